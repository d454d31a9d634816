"""Parity with the released mask branch: ``python -m tests.parity CASE.npz`` prints the differences as one JSON line.

A case stands alone: its `seed` makes the weights (by the rule below, from names and shapes) and the features; its `size` is the side of the
image in pixels.
"""

import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uniovseg.models.release import RELEASE_CHANNELS, release_generator, release_names, split_release


def fill(name: str, shape: list[int], seed: int) -> Tensor:
    """The weights of one tensor: a draw that depends on its released name, its shape and the seed alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    noise = torch.randn(shape, generator=generator)
    is_matrix = len(shape) > 1 and name.endswith("weight") and "attr_emb" not in name and "level_embed" not in name
    if is_matrix:
        return noise / math.sqrt(math.prod(shape[1:]))
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return (2.0 if name.endswith("sampling_offsets.bias") else 0.1) * noise
    return noise


def compare(case: Path) -> dict[str, float]:
    """Largest absolute difference of each output of a case, divided by max(standard deviation of the expected output, 0.01)."""
    with np.load(case) as data:
        expected = {name: torch.from_numpy(data[name]) if data[name].ndim else data[name].item() for name in data.files}
    seed, size = int(expected["seed"]), int(expected["size"])
    generator = release_generator().eval()
    state = split_release({name: fill(name, shape, seed) for name, shape in release_names().items()}).generator
    generator.load_state_dict(state)
    noise = torch.Generator().manual_seed(1000 + seed)
    features = tuple(
        torch.randn(1, channels, size // stride, size // stride, generator=noise)
        for channels, stride in zip(RELEASE_CHANNELS, (4, 8, 16, 32), strict=True)
    )
    with torch.no_grad():
        pixel = generator.pixel_decoder(features)
        points = generator.masks(pixel, generator.embed_points(pixel, expected["points"].float()[None])[-1:])[0]
        boxes = generator.masks(pixel, generator.embed_boxes(pixel, expected["boxes"].float()[None])[-1:])[0]
    found = {
        "memory_0": pixel.levels[0],
        "memory_2_sample": pixel.levels[2][:, :, ::4, ::4],
        "mask_features_sample": pixel.mask_features[:, :, ::8, ::8],
        "point_masks": points.mask_logits,
        "point_ious": points.iou_probs,
        "box_masks": boxes.mask_logits,
        "box_ious": boxes.iou_probs,
    }
    return {name: _difference(value, expected[name]) for name, value in found.items() if name in expected}


def _difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).abs().max() / max(float(expected.std()), 0.01))


if __name__ == "__main__":
    print(json.dumps({"max_rel_diff": compare(Path(sys.argv[1]))}))
