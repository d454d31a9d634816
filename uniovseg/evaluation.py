"""Evaluation: one code path for validation during training, `jobs/evaluate.py` and the tables.

Promptable evaluation (method: section 5). *1-point IoU (oracle)*: every point of a grid over the image is a prompt; a ground-truth mask scores the
best IoU over all masks of all points. *1-box IoU*: its own tight box is the prompt. Both are means over ground-truth masks, at the image's own
resolution. As a yardstick, *box fill* is the IoU of the box itself taken as the mask.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from uniovseg.config import Config
from uniovseg.methods.mask_generation import EmbeddedImage, MaskGeneration
from uniovseg.ops.points import grid_points
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.postprocess import resize_logits


class PromptableConfig(Config):
    """How promptable evaluation is done."""

    points_per_side: int = Field(20, ge=1, le=64, description="grid of the 1-point IoU, points a side")
    prompts_per_call: int = Field(100, ge=1, description="prompts decoded together")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """An image with ground-truth masks: ``image`` [H, W, 3] uint8 RGB and masks of the same size; `key` names it in errors and tables."""

    key: str
    image: NDArray[np.uint8]
    masks: RunLengthMasks


@dataclass(frozen=True, slots=True)
class PromptableScores:
    """IoU of every ground-truth mask, in [0, 1]; added over images by `+`.

    Attributes:
        point_iou, box_iou, box_fill_iou: [n] float64, one entry a ground-truth mask.
        images: number of images.
    """

    point_iou: Tensor
    box_iou: Tensor
    box_fill_iou: Tensor
    images: int = 1

    def __add__(self, other: "PromptableScores") -> "PromptableScores":
        return PromptableScores(
            torch.cat([self.point_iou, other.point_iou]),
            torch.cat([self.box_iou, other.box_iou]),
            torch.cat([self.box_fill_iou, other.box_fill_iou]),
            self.images + other.images,
        )

    def summary(self) -> dict[str, float]:
        """Means over ground-truth masks, with the counts."""
        means = {"point_iou": self.point_iou, "box_iou": self.box_iou, "box_fill_iou": self.box_fill_iou}
        return {name: float(values.mean()) if len(values) else float("nan") for name, values in means.items()} | {
            "masks": float(len(self.box_iou)),
            "images": float(self.images),
        }


NO_SCORES = PromptableScores(*(torch.zeros(0, dtype=torch.float64) for _ in range(3)), images=0)
"""The scores of no image: what sums start from."""


@torch.no_grad()
def evaluate_image(method: MaskGeneration, sample: LabelledImage, config: PromptableConfig) -> PromptableScores:
    """Promptable scores of one image. Masks of no pixel are dropped."""
    masks = sample.masks.select(torch.nonzero(sample.masks.area() > 0).flatten())
    if len(masks) == 0:
        return PromptableScores(*(torch.zeros(0, dtype=torch.float64) for _ in range(3)))
    embedded = method.embed(sample.image)
    device = method.device
    boxes = masks.boxes_xyxy()
    truth = masks.to(device).to_dense().flatten(1).float()
    area = truth.sum(1)

    best = torch.zeros(len(masks), device=device)
    height, width = masks.size
    valid = torch.tensor([0.0, 0.0, float(width), float(height)])
    points = grid_points(config.points_per_side, valid).to(device)
    for chunk in points.split(config.prompts_per_call):
        logits, _ = method.decode_points(embedded, chunk)
        for few in logits.flatten(0, 1).split(64):
            best = torch.maximum(best, _iou(_binarise(embedded, few), truth, area).amax(0))
    box_iou = torch.cat(
        [
            _iou(_binarise(embedded, method.decode_boxes(embedded, chunk)[0].flatten(0, 1)), truth[rows], area[rows]).diagonal()
            for rows, chunk in zip(
                torch.arange(len(masks), device=device).split(config.prompts_per_call),
                boxes.to(device).float().split(config.prompts_per_call),
                strict=True,
            )
        ]
    )
    sides = boxes[:, 2:] - boxes[:, :2]
    fill = masks.area() / (sides[:, 0] * sides[:, 1])
    return PromptableScores(best.double().cpu(), box_iou.double().cpu(), fill.double().cpu())


def _binarise(embedded: EmbeddedImage, logits: Tensor) -> Tensor:
    """Masks [k, H*W] float32 in {0, 1} at source resolution from [k, h, w] logits over the view."""
    return (resize_logits(logits, embedded.view, embedded.size) > 0).flatten(1).float()


def _iou(predicted: Tensor, truth: Tensor, area: Tensor) -> Tensor:
    """[k, n] IoU of binary float masks [k, HW] and [n, HW] with areas [n]; exact, as counts stay below 2^24."""
    intersection = predicted @ truth.T
    return intersection / (predicted.sum(1, keepdim=True) + area - intersection).clamp(min=1)


def evaluate_promptable(method: MaskGeneration, samples: Iterable[LabelledImage], config: PromptableConfig) -> Iterator[PromptableScores]:
    """Scores image by image, so that a caller can show progress and stop anywhere; add them up from `NO_SCORES`."""
    for sample in samples:
        yield evaluate_image(method, sample, config)
