"""From mask logits to the masks a user gets: filter first, bring to source resolution last."""

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from uniovseg.config import Config
from uniovseg.deadline import in_time
from uniovseg.ops.masks import cells_in_boxes, inner_nms
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import View

PIXELS_AT_ONCE = 16_000_000
"""How many values of resized logits are held at once."""


class ProposalConfig(Config):
    """Which of a grid's masks are kept.

    Differs: the release cuts at 0.65 after a second sigmoid, which is ln(0.65 / 0.35) = 0.619 on the predicted IoU; we cut there, on the
    predicted IoU itself.
    """

    min_predicted_iou: float = Field(0.619, ge=0, le=1, description="masks of a lower predicted IoU are dropped")
    nms_iou: float = Field(0.5, ge=0, le=1, description="a mask that overlaps a better one by this IoU is dropped")
    nms_inner: float = Field(0.7, ge=0, le=1, description="a mask of which this share lies in a better one is dropped")
    min_stability: float = Field(0.0, ge=0, le=1, description="least IoU of the mask at logit thresholds -1 and +1 (SAM); 0: not asked")
    min_area: float = Field(0.0, ge=0, description="least area, pixels of the source image")
    max_proposals: int = Field(1000, ge=1, description="most masks of an image, best first")


def filter_proposals(
    config: ProposalConfig, logits: Tensor, ious: Tensor, view: View, size: tuple[int, int], limits_xyxy: Tensor | None = None
) -> tuple[RunLengthMasks, Tensor]:
    """Drop bad and doubled masks, then resize the survivors.

    Args:
        config: thresholds.
        logits: [k, h, w] over the view.
        ious: [k] predicted IoU in [0, 1].
        view, size: where the source image, (h, w) pixels, lies in the view.
        limits_xyxy: [k, 4] boxes in source pixels that the masks are cut to; None: no mask is cut.

    Returns:
        Masks at source resolution and their predicted IoU [K], best first; none if nothing survives.

    Differs: overlaps are computed at the logits' own resolution; the release resizes every mask to half the canvas first.
    """
    kept = ious >= config.min_predicted_iou
    if config.min_stability > 0:
        kept &= stability(logits) >= config.min_stability
    inside = valid_cells(view, (logits.shape[-2], logits.shape[-1]), logits.device)
    binary = grid_masks(logits, size, limits_xyxy)[:, inside]
    rows = torch.nonzero(kept & binary.any(1)).flatten()
    rows = rows[inner_nms(binary[rows], ious[rows], config.nms_iou, config.nms_inner)[: config.max_proposals]]
    masks, quality = masks_from_logits(logits[rows], view, size, None if limits_xyxy is None else limits_xyxy[rows]), ious[rows]
    large = torch.nonzero(masks.area() >= max(config.min_area, 1)).flatten()
    return masks.select(large), quality[large.to(quality.device)].float().cpu()


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """IoU of each mask [k, h, w] thresholded at ``+offset`` and at ``-offset`` (SAM), in [0, 1]."""
    inner, outer = (logits > offset).flatten(1).sum(1), (logits > -offset).flatten(1).sum(1)
    return inner / outer.clamp(min=1)


def valid_cells(view: View, size: tuple[int, int], device: torch.device) -> Tensor:
    """[h, w] bool: cells of a grid of `size` over the view whose centre shows image; of an image thinner than that, the row or column it begins in."""
    x0, y0, x1, y1 = view.valid_xyxy

    def centres(low: float, high: float, count: int, side: int) -> Tensor:
        begin, end = (math.ceil(edge * count / side - 0.5) for edge in (low, high))
        if end <= begin:
            begin = int(low * count / side)
            end = begin + 1
        cells = torch.arange(count, device=device)
        return (cells >= begin) & (cells < end)

    return centres(y0, y1, size[0], view.size[0])[:, None] & centres(x0, x1, size[1], view.size[1])


def resize_logits(logits: Tensor, view: View, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling of [k, h, w] logits over an inference view (`uniovseg.data.views.fit_view`) at the source image's pixel centres: [k, H, W]."""
    side = max(size)  # what the whole square canvas is in source pixels
    assert view.offset_xy == (0.0, 0.0), view
    return F.interpolate(logits[None].float(), size=(side, side), mode="bilinear", align_corners=False)[0, :, : size[0], : size[1]]


SLACK = 1e-3
"""Of a cell: what a box must reach into it, as boxes come from fractions that are not exact."""


def grid_masks(logits: Tensor, size: tuple[int, int], limits_xyxy: Tensor | None) -> Tensor:
    """Masks [k, h, w] bool on the logits' own grid over the whole canvas of an image of `size` (h, w), cut to boxes [k, 4] in source pixels if given."""
    masks = logits > 0
    cells = (logits.shape[-2], logits.shape[-1])
    return masks if limits_xyxy is None else masks & cells_in_boxes(limits_xyxy * (cells[1] / max(size)), cells, SLACK)


def dense_masks(logits: Tensor, view: View, size: tuple[int, int], limits_xyxy: Tensor | None = None) -> Tensor:
    """Masks [k, H, W] bool at source resolution (logit above 0) from [k, h, w] logits over a view, cut to boxes [k, 4] in source pixels if given.

    They are cut here and not on the logits' grid, whose cells are several pixels wide and would be blended with what is cut off.
    """
    masks = resize_logits(logits, view, size) > 0
    return masks if limits_xyxy is None else masks & cells_in_boxes(limits_xyxy, size, SLACK)


def masks_from_logits(logits: Tensor, view: View, size: tuple[int, int], limits_xyxy: Tensor | None = None) -> RunLengthMasks:
    """`dense_masks` in run-length form, made a few at a time; on the CPU."""
    if len(logits) == 0:
        return RunLengthMasks.empty(size)
    step = max(1, PIXELS_AT_ONCE // max(size) ** 2)  # the whole canvas is resized, its padding too
    parts = (slice(begin, begin + step) for begin in in_time(range(0, len(logits), step)))
    dense = (dense_masks(logits[part], view, size, None if limits_xyxy is None else limits_xyxy[part]) for part in parts)
    return RunLengthMasks.cat([RunLengthMasks.from_dense(masks.cpu()) for masks in dense])
