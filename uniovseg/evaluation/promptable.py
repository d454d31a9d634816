"""Promptable evaluation (method: section 5).

*1-point IoU (oracle)*: every point of a grid over the image is a prompt; a ground-truth mask scores the best IoU over all masks of all points.
*1-box IoU*: its own tight box is the prompt. Both are means over ground-truth masks, at the image's own resolution; beside them are the means over
images of an image's mean. As a yardstick, *box fill* is the IoU of the box itself taken as the mask.

Differs: by default only a shortlist of all masks, the best on a coarse grid, is compared at full resolution, so that the 1-point IoU is a lower bound of
the oracle, which ``shortlist=0`` gives. Points outside a ground-truth mask count too; what they add is not told apart.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from uniovseg.config import Config
from uniovseg.data.images import decode_image
from uniovseg.methods.promptable import EmbeddedImage, PromptableSegmenter
from uniovseg.models.mask_decoder import MaskEmbeddings
from uniovseg.ops.points import grid_points
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.postprocess import PIXELS_AT_ONCE, dense_masks, grid_masks, valid_cells
from uniovseg.records import ImageMasks
from uniovseg.threads import map_threads

COARSE_CELLS = 128
"""Cells a side, at least, on which masks are compared to make the shortlist; a small canvas has as many as it has pixels."""
MASKS_AT_ONCE = 100
"""Masks compared together on the coarse grid: few enough for the processor's caches."""


class PromptableConfig(Config):
    """How promptable evaluation is done."""

    points_per_side: int = Field(20, ge=1, le=64, description="grid of the 1-point IoU, points a side")
    shortlist: int = Field(
        8, ge=0, description="1-point IoU: how many masks, best by IoU on a coarse grid, are compared at full resolution; 0: all (exact)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """An image with ground-truth masks: ``image`` [H, W, 3] uint8 RGB and masks of the same size; `key` names it in errors and tables."""

    key: str
    image: NDArray[np.uint8]
    masks: RunLengthMasks


def labelled(records: Iterable[ImageMasks]) -> Iterator[LabelledImage]:
    """Image-mask records as images with ground truth. Raises DataError for an image or a mask that cannot be read."""
    for record in records:
        masks = RunLengthMasks.from_counts(record.counts, (record.height, record.width))
        yield LabelledImage(key=record.key, image=decode_image(record.image), masks=masks)


FIGURES = ("point_iou", "box_iou", "box_fill_iou")
"""The figures of a ground-truth mask."""


@dataclass(frozen=True, slots=True)
class PromptableScores:
    """IoU of every ground-truth mask, in [0, 1]; added over images by `+`.

    Attributes:
        point_iou, box_iou, box_fill_iou: [n] float64, one entry a ground-truth mask.
        images: key and number of ground-truth masks of each image.
    """

    point_iou: Tensor
    box_iou: Tensor
    box_fill_iou: Tensor
    images: tuple[tuple[str, int], ...]

    def __add__(self, other: "PromptableScores") -> "PromptableScores":
        return PromptableScores(
            torch.cat([self.point_iou, other.point_iou]),
            torch.cat([self.box_iou, other.box_iou]),
            torch.cat([self.box_fill_iou, other.box_fill_iou]),
            self.images + other.images,
        )

    def by_image(self) -> list[dict[str, Any]]:
        """Of each image its key as ``image``, its number of ``masks``, and its means; None where it has no mask."""
        counts = [count for _, count in self.images]
        columns = {name: [_mean(part) for part in getattr(self, name).split(counts)] for name in FIGURES}
        return [{"image": key, "masks": count} | {name: columns[name][row] for name in FIGURES} for row, (key, count) in enumerate(self.images)]

    def summary(self) -> dict[str, float | None]:
        """Means over ground-truth masks, then over images that have any; None without a mask. With the counts."""
        rows = [row for row in self.by_image() if row["masks"]]
        by_image = {f"{name}_image_mean": _mean(torch.tensor([row[name] for row in rows], dtype=torch.float64)) for name in ("point_iou", "box_iou")}
        counts = {"masks": len(self.box_iou), "images": len(self.images)}
        return {name: _mean(getattr(self, name)) for name in FIGURES} | by_image | counts


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


_NONE = torch.zeros(0, dtype=torch.float64)
NO_SCORES = PromptableScores(_NONE, _NONE, _NONE, images=())
"""The scores of no image: what sums start from."""


@torch.no_grad()
def evaluate_image(method: PromptableSegmenter, sample: LabelledImage, config: PromptableConfig) -> PromptableScores:
    """Promptable scores of one image. Masks of no pixel are dropped."""
    masks = _with_pixels(sample.masks)
    if len(masks) == 0:
        return PromptableScores(_NONE, _NONE, _NONE, ((sample.key, 0),))
    embedded = method.embed(sample.image)
    boxes = masks.boxes_xyxy()
    sides = boxes[:, 2:] - boxes[:, :2]
    fill = masks.area() / (sides[:, 0] * sides[:, 1])
    truth = masks.to(method.device)
    by_box = method.embed_boxes(embedded, boxes.to(method.device).float()).flat()
    box_iou = _paired_iou(method, embedded, by_box, truth)
    return PromptableScores(_best_point_iou(method, embedded, truth, config).cpu(), box_iou.cpu(), fill.double(), ((sample.key, len(masks)),))


@torch.no_grad()
def masks_by_box(method: PromptableSegmenter, sample: LabelledImage) -> tuple[RunLengthMasks, RunLengthMasks]:
    """The ground-truth masks that have pixels, and the mask that each one's box gives; for pictures."""
    masks = _with_pixels(sample.masks)
    embedded = method.embed(sample.image)
    found = method.embed_boxes(embedded, masks.boxes_xyxy().to(method.device).float()).flat()
    return masks, method.masks(embedded, found)


def _with_pixels(masks: RunLengthMasks) -> RunLengthMasks:
    return masks.select(torch.nonzero(masks.area() > 0).flatten())


def _best_point_iou(method: PromptableSegmenter, embedded: EmbeddedImage, truth: RunLengthMasks, config: PromptableConfig) -> Tensor:
    """[n] best IoU of each ground-truth mask over the masks of all grid points."""
    height, width = embedded.size
    points = grid_points(config.points_per_side, torch.tensor([0.0, 0.0, width, height])).to(method.device)
    masks = method.embed_points(embedded, points).flat()
    rows = torch.arange(len(masks.embeddings), device=method.device)
    if 0 < config.shortlist < len(rows):
        coarse = torch.cat([_coarse_iou(method, embedded, masks.take(part), truth) for part in rows.split(MASKS_AT_ONCE)])
        picked = coarse.topk(config.shortlist, dim=0).indices  # [shortlist, n]
    else:
        picked = rows[:, None].expand(-1, len(truth))
    return torch.stack([_paired_iou(method, embedded, masks.take(row), truth) for row in picked]).amax(0)


def _coarse_iou(method: PromptableSegmenter, embedded: EmbeddedImage, masks: MaskEmbeddings, truth: RunLengthMasks) -> Tensor:
    """[k, n] IoU on a grid over the part of the canvas that shows image: the grid of the logits, or a finer one where that is too coarse to rank masks."""
    logits, limits = method.uncut_logits(embedded, masks)
    side = max(logits.shape[-1], min(COARSE_CELLS, embedded.view.size[1]))
    if side > logits.shape[-1]:
        logits = F.interpolate(logits[None].float(), size=(side, side), mode="bilinear", align_corners=False)[0]
    height, width = logits.shape[-2:]
    inside = valid_cells(embedded.view, (height, width), logits.device).flatten()
    predicted = (grid_masks(logits, embedded.size, limits).flatten(1) & inside).float()
    labels = truth.sample(embedded.view.cell_centres(height, width, logits.device)).float()
    shared = predicted @ labels.T
    return shared / (predicted.sum(1, keepdim=True) + labels.sum(1) - shared).clamp(min=1)


def _paired_iou(method: PromptableSegmenter, embedded: EmbeddedImage, masks: MaskEmbeddings, truth: RunLengthMasks) -> Tensor:
    """[n] float64 IoU, at source resolution, of each of n masks with its own ground truth."""
    ious = []
    step = max(1, PIXELS_AT_ONCE // max(embedded.size) ** 2)  # the whole canvas is resized, its padding too
    for rows in torch.arange(len(truth), device=method.device).split(step):
        logits, limits = method.uncut_logits(embedded, masks.take(rows))
        predicted = dense_masks(logits, embedded.view, embedded.size, limits)
        labels = truth.select(rows).to_dense()
        shared = (predicted & labels).flatten(1).sum(1)
        ious.append(shared.double() / (predicted | labels).flatten(1).sum(1).clamp(min=1))
    return torch.cat(ious)


def evaluate_promptable(
    method: PromptableSegmenter, samples: Iterable[LabelledImage], config: PromptableConfig, threads: int = 1
) -> Iterator[PromptableScores]:
    """Scores image by image, by that many threads, so that a caller can show progress and stop anywhere; add them up from `NO_SCORES`."""
    return map_threads(lambda sample: evaluate_image(method, sample, config), samples, threads)
