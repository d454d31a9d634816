"""Promptable evaluation against a slow oracle: one mask at a time, dense arrays, no shortlist."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import uniovseg
from uniovseg import checkpoint
from uniovseg.data.shapes import SceneConfig, image_masks
from uniovseg.errors import DataError
from uniovseg.evaluation import promptable
from uniovseg.evaluation.promptable import NO_SCORES, LabelledImage, PromptableConfig, PromptableScores, evaluate_image, evaluate_promptable, labelled
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.methods.promptable import EmbeddedImage
from uniovseg.models.mask_decoder import MaskEmbeddings
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.postprocess import resize_logits
from uniovseg.records import ImageMasks
from uniovseg.segmenter import Segmenter

SHIPPED = Path(uniovseg.__file__).parent / checkpoint.SHIPPED["shapes"] / checkpoint.MANIFEST
BRUTE = PromptableConfig(points_per_side=3, shortlist=0)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def masks_of(method: MaskGeneration, image: EmbeddedImage, decoded: MaskEmbeddings) -> list[NDArray[np.bool_]]:
    logits = method.mask_logits(image, decoded.flat())
    return [(resize_logits(one[None], image.view, image.size)[0] > 0).numpy() for one in logits]


def oracle(method: MaskGeneration, sample: LabelledImage, per_side: int) -> list[tuple[float, float, float]]:
    """(point IoU, box IoU, box fill) of every ground-truth mask, the slow way."""
    height, width = sample.image.shape[:2]
    image = method.embed(sample.image)
    found = []
    for row in range(per_side):
        for column in range(per_side):
            point = torch.tensor([[(column + 0.5) * width / per_side, (row + 0.5) * height / per_side]])
            found += masks_of(method, image, method.embed_points(image, point))
    scores = []
    for truth in sample.masks.to_dense().numpy():
        if not truth.any():
            continue
        ys, xs = np.nonzero(truth)
        x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        filled = np.zeros_like(truth)
        filled[y0:y1, x0:x1] = True
        (boxed,) = masks_of(method, image, method.embed_boxes(image, torch.tensor([[x0, y0, x1, y1]]).float()))
        scores.append((max(iou(mask, truth) for mask in found), iou(boxed, truth), iou(filled, truth)))
    return scores


@pytest.fixture(scope="module")
def wide() -> LabelledImage:
    """A scene cut to 60 x 96, so that the canvas has padding, with a mask of no pixel among its masks."""
    (sample,) = labelled([image_masks(SceneConfig(size=96), 1, 0)])
    dense = sample.masks.to_dense()[:, 20:80]
    dense = torch.cat([dense[:2], torch.zeros_like(dense[:1]), dense[2:]])
    return LabelledImage(key="wide", image=np.ascontiguousarray(sample.image[20:80]), masks=RunLengthMasks.from_dense(dense))


def test_scores_are_those_of_the_oracle(tiny_method: MaskGeneration, wide: LabelledImage) -> None:
    expected = np.array(oracle(tiny_method, wide, 3))
    scores = evaluate_image(tiny_method, wide, BRUTE)
    assert len(scores.box_iou) == len(expected) == int((wide.masks.area() > 0).sum())
    assert expected[:, :2].max() > 0.1  # random weights, but not nothing
    for column, found in enumerate((scores.point_iou, scores.box_iou, scores.box_fill_iou)):
        assert found.dtype == torch.float64
        assert found.numpy() == pytest.approx(expected[:, column], abs=1e-3)  # a pixel may lie on the threshold


def test_chunks_do_not_change_scores(tiny_method: MaskGeneration, wide: LabelledImage, monkeypatch: pytest.MonkeyPatch) -> None:
    once = evaluate_image(tiny_method, wide, BRUTE)
    monkeypatch.setattr(promptable, "PIXELS_AT_ONCE", 60 * 96 * 2)
    chunked = evaluate_image(tiny_method.with_settings({"prompts_per_call": 1}), wide, BRUTE)
    for name in ("point_iou", "box_iou", "box_fill_iou"):
        torch.testing.assert_close(getattr(chunked, name), getattr(once, name), atol=1e-3, rtol=0)


def test_a_longer_shortlist_misses_less(tiny_method: MaskGeneration, scenes: list[ImageMasks]) -> None:
    """The masks of random weights are ragged, so that their IoU at a quarter of the canvas says little: the hardest case."""
    samples = list(labelled(scenes[:3]))

    def point_iou(shortlist: int) -> torch.Tensor:
        found = evaluate_promptable(tiny_method, samples, PromptableConfig(points_per_side=4, shortlist=shortlist))
        return sum(found, NO_SCORES).point_iou

    brute = point_iou(0)
    missed = [brute - point_iou(shortlist) for shortlist in (1, 8, 63)]
    assert all((part >= -1e-3).all() for part in missed)
    assert missed[0].mean() > missed[1].mean() >= missed[2].mean()
    assert float(missed[1].mean()) < 5e-3
    assert float(missed[2].mean()) < 1e-4
    assert torch.equal(point_iou(64), brute)  # as long as all masks there are


@pytest.mark.skipif(not SHIPPED.exists(), reason="the shapes model is not in the package yet: make shapes-full")
def test_the_shortlist_finds_what_all_masks_of_a_trained_model_give() -> None:
    method = Segmenter.load().method
    samples = list(labelled(image_masks(SceneConfig(), 77, index) for index in range(2)))
    brute = sum(evaluate_promptable(method, samples, PromptableConfig(points_per_side=6, shortlist=0)), NO_SCORES)
    short = sum(evaluate_promptable(method, samples, PromptableConfig(points_per_side=6)), NO_SCORES)
    assert short.summary()["point_iou"] == pytest.approx(brute.summary()["point_iou"], abs=1e-3)


def test_scores_add_up() -> None:
    def scores(key: str, *values: float) -> PromptableScores:
        tensor = torch.tensor(values, dtype=torch.float64)
        return PromptableScores(tensor, tensor / 2, tensor / 4, ((key, len(values)),))

    total = sum([scores("a", 0.2, 0.4), scores("none"), scores("b", 0.9)], NO_SCORES)
    by_image = {"point_iou_image_mean": 0.6, "box_iou_image_mean": 0.3}
    assert total.summary() == pytest.approx({"point_iou": 0.5, "box_iou": 0.25, "box_fill_iou": 0.125, **by_image, "masks": 3, "images": 3})
    first, none, last = total.by_image()
    assert first == {"image": "a", "masks": 2, "point_iou": pytest.approx(0.3), "box_iou": pytest.approx(0.15), "box_fill_iou": pytest.approx(0.075)}
    assert none == {"image": "none", "masks": 0, "point_iou": None, "box_iou": None, "box_fill_iou": None}
    assert (last["image"], last["masks"], last["point_iou"]) == ("b", 1, 0.9)
    nothing = NO_SCORES.summary()
    assert nothing.pop("images") == nothing.pop("masks") == 0 and set(nothing.values()) == {None}


def test_an_image_without_masks_counts_as_an_image(tiny_method: MaskGeneration) -> None:
    sample = LabelledImage(key="x", image=np.zeros((40, 50, 3), np.uint8), masks=RunLengthMasks.from_dense(torch.zeros(2, 40, 50, dtype=torch.bool)))
    scores = evaluate_image(tiny_method, sample, BRUTE)
    assert (len(scores.box_iou), scores.images) == (0, (("x", 0),))


def test_labelled(scenes: list[ImageMasks]) -> None:
    sample = next(labelled(scenes))
    assert (sample.key, sample.image.shape, sample.masks.size) == ("sa_1", (96, 96, 3), (96, 96))
    assert sample.masks.to_counts() == list(scenes[0].counts)
    broken = ImageMasks(key="x", image=b"no image", height=2, width=2, counts=(), predicted_iou=(), stability_score=())
    with pytest.raises(DataError, match="cannot be decoded"):
        list(labelled([broken]))
