import pytest
import torch
from torch import Tensor

from uniovseg.ops import masks as masks_module
from uniovseg.ops.masks import cells_in_boxes, inner_nms


def slow_nms(masks: Tensor, scores: Tensor, iou_threshold: float, inner_threshold: float) -> list[int]:
    """The release's rule, a pair at a time."""
    sets = [set(mask.nonzero().flatten().tolist()) for mask in masks]
    kept: list[int] = []
    for j in sorted(range(len(sets)), key=lambda index: (-float(scores[index]), index)):
        ious = [(len(sets[i] & sets[j]) + 1e-6) / (len(sets[i] | sets[j]) + 1e-6) for i in kept]
        inner = [(len(sets[i] & sets[j]) + 1e-6) / (len(sets[j]) + 1e-6) for i in kept]
        if all(value < iou_threshold for value in ious) and all(value < inner_threshold for value in inner):
            kept.append(j)
    return kept


def spans(*ranges: tuple[int, int], length: int = 40) -> Tensor:
    position = torch.arange(length)
    return torch.stack([(position >= start) & (position < stop) for start, stop in ranges])


def nms(masks: Tensor, scores: list[float]) -> list[int]:
    return inner_nms(masks, torch.tensor(scores), 0.5, 0.7).tolist()


@pytest.mark.parametrize("block", [1, 4, 128])
def test_inner_nms_equals_a_loop_over_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        starts = torch.randint(0, 60, (30,), generator=generator)
        ends = starts + torch.randint(1, 25, (30,), generator=generator)
        masks = spans(*zip(starts.tolist(), ends.tolist(), strict=True), length=90)
        scores = torch.randint(0, 12, (30,), generator=generator) / 12  # with ties
        for thresholds in [(0.5, 0.7), (0.5, 1.1), (1.1, 0.7), (0.8, 0.9)]:
            assert inner_nms(masks, scores, *thresholds).tolist() == slow_nms(masks, scores, *thresholds)


def test_a_worse_mask_inside_a_better_one_goes() -> None:
    assert nms(spans((0, 30), (5, 15)), [0.9, 0.8]) == [0]


def test_a_better_small_mask_leaves_the_large_one_around_it() -> None:
    assert nms(spans((0, 30), (5, 15)), [0.8, 0.9]) == [1, 0]


def test_a_suppressed_mask_suppresses_nothing() -> None:
    # 1 falls to 0 by IoU; 2 overlaps 1 by IoU >= 0.5 but 0 by less than both thresholds.
    assert nms(spans((0, 20), (6, 26), (12, 32)), [0.9, 0.8, 0.7]) == [0, 2]


def test_thresholds_are_reached_by_equality() -> None:
    assert nms(spans((0, 20), (10, 20)), [0.8, 0.9]) == [1]  # IoU is 0.5: the large one goes
    assert nms(spans((0, 27), (20, 30)), [0.9, 0.8]) == [0]  # 7 of 10 inside
    assert nms(spans((0, 26), (20, 30)), [0.9, 0.8]) == [0, 1]  # 6 of 10


def test_equal_scores_keep_the_first() -> None:
    assert nms(spans((0, 10), (0, 10), (20, 30)), [0.5, 0.5, 0.5]) == [0, 2]


def test_no_masks() -> None:
    assert nms(torch.zeros(0, 40, dtype=torch.bool), []) == []


def test_cells_in_boxes_are_those_that_a_box_overlaps() -> None:
    boxes_xyxy = torch.tensor([[2.0, 3.0, 7.0, 6.0], [2.5, 0.0, 2.6, 9.0], [4.0 - 1e-5, 4.0, 8.0 + 1e-5, 8.0], [-5.0, -5.0, 0.0, 50.0]])
    found = cells_in_boxes(boxes_xyxy / 2, (5, 4), 1e-3)
    for (x0, y0, x1, y1), mask in zip(boxes_xyxy.round(decimals=3).tolist(), found, strict=True):
        for row in range(5):
            for column in range(4):
                overlaps = 2 * column < x1 and 2 * column + 2 > x0 and 2 * row < y1 and 2 * row + 2 > y0
                assert bool(mask[row, column]) == overlaps, (x0, y0, x1, y1, row, column)
