"""Regions: which cells of a feature grid a mask stands for (method: 3.1)."""

import torch
from torch import Tensor

from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import View

STRIDE = 32
"""Side of a cell of the CLIP's last map, in pixels of the view."""
SAMPLES = 8
"""A cell's coverage is measured at this many points a side."""


def view_regions(masks: RunLengthMasks, view: View) -> Tensor:
    """The regions [n, H/32, W/32] of masks in a view of (H, W) pixels, as stage 2 learns from them; see `region_cells`."""
    return region_cells(masks, view, (view.size[0] // STRIDE, view.size[1] // STRIDE))


def region_cells(masks: RunLengthMasks, view: View, size: tuple[int, int]) -> Tensor:
    """The cells that each mask covers by at least half; see `cell_coverage` and `covered_cells`.

    Args:
        masks: n binary masks at source resolution.
        view: where the feature map lies on the source image.
        size: (h, w) of the feature map.

    Returns:
        [n, h, w] bool, at least one cell of each mask true.
    """
    return covered_cells(cell_coverage(masks, view, size), masks, view)


def cell_coverage(masks: RunLengthMasks, view: View, size: tuple[int, int]) -> Tensor:
    """[n, h, w] float32, the share of each cell of a feature map (h, w) that each mask covers.

    It is counted at 8 x 8 points of a cell, each the value of the binary mask's pixel under it.
    """
    height, width = size
    values = masks.sample(view.cell_centres(height * SAMPLES, width * SAMPLES, masks.ends.device))
    return values.view(-1, height, SAMPLES, width, SAMPLES).float().mean(dim=(2, 4))


def vanishes(coverage: Tensor) -> Tensor:
    """[n] bool: masks that cover no cell by half, from their `cell_coverage`."""
    return ~(coverage >= 0.5).flatten(1).any(1)


def covered_cells(coverage: Tensor, masks: RunLengthMasks, view: View) -> Tensor:
    """The cells [n, h, w] bool that masks cover by at least half, from their `cell_coverage`.

    A mask that covers no cell by half takes the one cell that it covers most, or where no point fell on it, the cell under the centre of its box: no
    region is ever empty.

    Differs: the author's files resize mask logits to the feature map, and a mask that vanishes there pools to zeros.
    """
    height, width = coverage.shape[1:]
    cells = coverage >= 0.5
    lost = torch.nonzero(vanishes(coverage)).flatten()
    if len(lost):
        boxes = masks.select(lost).boxes_xyxy().float()
        centres = view.to_view((boxes[:, :2] + boxes[:, 2:]) / 2)
        x = (centres[:, 0] / view.size[1] * width).long().clamp(0, width - 1)
        y = (centres[:, 1] / view.size[0] * height).long().clamp(0, height - 1)
        most, best = coverage[lost].flatten(1).max(1)
        cells.flatten(1)[lost, torch.where(most > 0, best, y * width + x)] = True
    return cells
