"""Promptable evaluation (method: section 5).

*1-point IoU (oracle)*: every point of a grid over the image is a prompt; a ground-truth mask scores the best IoU over all masks of all points.
*1-box IoU*: its own tight box is the prompt. Both are means over ground-truth masks, at the image's own resolution. As a yardstick, *box fill* is
the IoU of the box itself taken as the mask.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
from uniovseg.postprocess import PIXELS_AT_ONCE, resize_logits, valid_cells
from uniovseg.records import ImageMasks
from uniovseg.threads import map_threads

COARSE_CELLS = 128
"""Cells a side, at least, on which masks are compared to make the shortlist; a small canvas has as many as it has pixels."""
MASKS_AT_ONCE = 100
"""Masks compared together on the coarse grid: few enough for the processor's caches."""


class PromptableConfig(Config):
    """How promptable evaluation is done."""

    points_per_side: int = Field(20, ge=1, le=64, description="grid of the 1-point IoU, points a side")
    prompts_per_call: int = Field(100, ge=1, description="prompts decoded together")
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


_NONE = torch.zeros(0, dtype=torch.float64)
NO_SCORES = PromptableScores(_NONE, _NONE, _NONE, images=0)
"""The scores of no image: what sums start from."""


@torch.no_grad()
def evaluate_image(method: PromptableSegmenter, sample: LabelledImage, config: PromptableConfig) -> PromptableScores:
    """Promptable scores of one image. Masks of no pixel are dropped."""
    masks = sample.masks.select(torch.nonzero(sample.masks.area() > 0).flatten())
    if len(masks) == 0:
        return PromptableScores(_NONE, _NONE, _NONE)
    embedded = method.embed(sample.image)
    boxes = masks.boxes_xyxy()
    sides = boxes[:, 2:] - boxes[:, :2]
    fill = masks.area() / (sides[:, 0] * sides[:, 1])
    truth = masks.to(method.device)
    by_box = [method.embed_boxes(embedded, chunk) for chunk in boxes.to(method.device).float().split(config.prompts_per_call)]
    box_iou = _paired_iou(method, embedded, MaskEmbeddings.cat(by_box).flat(), truth)
    return PromptableScores(_best_point_iou(method, embedded, truth, config).cpu(), box_iou.cpu(), fill.double())


def _best_point_iou(method: PromptableSegmenter, embedded: EmbeddedImage, truth: RunLengthMasks, config: PromptableConfig) -> Tensor:
    """[n] best IoU of each ground-truth mask over the masks of all grid points."""
    height, width = embedded.size
    points = grid_points(config.points_per_side, torch.tensor([0.0, 0.0, width, height])).to(method.device)
    masks = MaskEmbeddings.cat([method.embed_points(embedded, chunk) for chunk in points.split(config.prompts_per_call)]).flat()
    rows = torch.arange(len(masks.embeddings), device=method.device)
    if 0 < config.shortlist < len(rows):
        coarse = torch.cat([_coarse_iou(method, embedded, masks.take(part), truth) for part in rows.split(MASKS_AT_ONCE)])
        picked = coarse.topk(config.shortlist, dim=0).indices  # [shortlist, n]
    else:
        picked = rows[:, None].expand(-1, len(truth))
    return torch.stack([_paired_iou(method, embedded, masks.take(row), truth) for row in picked]).amax(0)


def _coarse_iou(method: PromptableSegmenter, embedded: EmbeddedImage, masks: MaskEmbeddings, truth: RunLengthMasks) -> Tensor:
    """[k, n] IoU on a grid over the part of the canvas that shows image: the grid of the logits, or a finer one where that is too coarse to rank masks."""
    logits = method.mask_logits(embedded, masks)
    side = max(logits.shape[-1], min(COARSE_CELLS, embedded.view.size[1]))
    if side > logits.shape[-1]:
        logits = F.interpolate(logits[None].float(), size=(side, side), mode="bilinear", align_corners=False)[0]
    height, width = logits.shape[-2:]
    inside = valid_cells(embedded.view, (height, width), logits.device).flatten()
    predicted = ((logits.flatten(1) > 0) & inside).float()
    labels = truth.sample(embedded.view.cell_centres(height, width, logits.device)).float()
    shared = predicted @ labels.T
    return shared / (predicted.sum(1, keepdim=True) + labels.sum(1) - shared).clamp(min=1)


def _paired_iou(method: PromptableSegmenter, embedded: EmbeddedImage, masks: MaskEmbeddings, truth: RunLengthMasks) -> Tensor:
    """[n] float64 IoU, at source resolution, of each of n masks with its own ground truth."""
    ious = []
    step = max(1, PIXELS_AT_ONCE // (embedded.size[0] * embedded.size[1]))
    for rows in torch.arange(len(truth), device=method.device).split(step):
        predicted = resize_logits(method.mask_logits(embedded, masks.take(rows)), embedded.view, embedded.size) > 0
        labels = truth.select(rows).to_dense()
        shared = (predicted & labels).flatten(1).sum(1)
        ious.append(shared.double() / (predicted | labels).flatten(1).sum(1).clamp(min=1))
    return torch.cat(ious)


def evaluate_promptable(
    method: PromptableSegmenter, samples: Iterable[LabelledImage], config: PromptableConfig, threads: int = 1
) -> Iterator[PromptableScores]:
    """Scores image by image, by that many threads, so that a caller can show progress and stop anywhere; add them up from `NO_SCORES`."""
    return map_threads(lambda sample: evaluate_image(method, sample, config), samples, threads)
