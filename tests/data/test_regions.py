"""Cells of a feature grid against dense masks."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from uniovseg.data.regions import cell_coverage, region_cells, vanishes
from uniovseg.data.views import fit_view
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import View


def blobs(count: int, size: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:size, :size]
    centres, radii = rng.uniform(0, size, (count, 2)), rng.uniform(1, size / 2, count)
    return torch.from_numpy(np.stack([(xs - x) ** 2 + (ys - y) ** 2 < r * r for (x, y), r in zip(centres, radii, strict=True)]))


def test_cells_are_those_covered_by_half() -> None:
    dense = blobs(40, 64, 0)  # 8 x 8 cells of 8 x 8 pixels: the points are the pixels, so coverage is exact
    cells = region_cells(RunLengthMasks.from_dense(dense), fit_view(256, 64, 64), (8, 8))
    covered = F.avg_pool2d(dense.float()[:, None], 8)[:, 0] >= 0.5
    seen = covered.flatten(1).any(1)
    assert 10 < seen.sum() < 40
    assert torch.equal(cells[seen], covered[seen])
    assert (cells[~seen].flatten(1).sum(1) == 1).all()
    coverage = cell_coverage(RunLengthMasks.from_dense(dense), fit_view(256, 64, 64), (8, 8))
    assert torch.equal(coverage, F.avg_pool2d(dense.float()[:, None], 8)[:, 0])
    assert torch.equal(vanishes(coverage), ~seen)


def test_a_mask_that_vanishes_takes_the_cell_it_covers_most() -> None:
    dense = torch.zeros(2, 64, 64, dtype=torch.bool)
    dense[0, 14:18, 40:44] = True  # rows 14-15 lie in the second row of cells, 16-17 in the third: a tie, and the first wins
    dense[1, 30:36, 7:9] = True  # rows 32-35 outweigh rows 30-31; of the two columns the first wins
    cells = region_cells(RunLengthMasks.from_dense(dense), fit_view(64, 64, 64), (8, 8))
    assert torch.nonzero(cells).tolist() == [[0, 1, 5], [1, 4, 0]]


def test_a_mask_between_the_points_takes_the_cell_under_its_centre() -> None:
    dense = torch.zeros(1, 512, 512, dtype=torch.bool)
    dense[0, 300, 200] = True  # points are 32 pixels apart on a 2 x 2 grid
    cells = region_cells(RunLengthMasks.from_dense(dense), fit_view(64, 512, 512), (2, 2))
    assert torch.nonzero(cells).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("flip", [False, True])
def test_the_view_moves_the_cells(flip: bool) -> None:
    dense = torch.zeros(1, 32, 64, dtype=torch.bool)
    dense[0, :16, :32] = True
    view = View(scale_xy=(-1.0 if flip else 1.0, 1.0), offset_xy=(64.0 if flip else 0.0, 0.0), size=(64, 64), valid_xyxy=(0, 0, 64, 32))
    cells = region_cells(RunLengthMasks.from_dense(dense), view, (4, 4))[0]
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 2:] = flip
    expected[0, :2] = not flip
    assert torch.equal(cells, expected)


def test_no_mask() -> None:
    assert region_cells(RunLengthMasks.empty((32, 32)), fit_view(32, 32, 32), (4, 4)).shape == (0, 4, 4)
