import itertools
import logging

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from uniovseg.matching import MatchingConfig, assign, match_many_to_many, pair_costs
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Matches, View

SIDE, GRID = 64, 16
CONFIG = MatchingConfig(grid=GRID)
VIEW = View(scale_xy=(1.0, 1.0), offset_xy=(0.0, 0.0), size=(SIDE, SIDE), valid_xyxy=(0.0, 0.0, SIDE, SIDE))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes(*boxes_xyxy: tuple[int, int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> RunLengthMasks:
    """Masks that are filled boxes."""
    dense = torch.zeros(len(boxes_xyxy), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(dense, boxes_xyxy, strict=True):
        mask[y0:y1, x0:x1] = True
    return RunLengthMasks.from_dense(dense)


def logits_like(masks: RunLengthMasks, index: list[int]) -> Tensor:
    """[len(index), GRID, GRID] confident logits of these masks."""
    return 20.0 * masks.sample(VIEW.cell_centres(GRID, GRID))[index].float().view(-1, GRID, GRID) - 10.0


def match(mask_logits: Tensor, masks: RunLengthMasks, points: list[tuple[float, float]], view: View = VIEW) -> Matches:
    """Match one image: mask_logits [P, M, h, w]."""
    return match_many_to_many(CONFIG, mask_logits[None], [masks], [view], torch.tensor(points).view(1, -1, 2))[0]


def pairs(matches: Matches) -> list[tuple[int, int]]:
    return list(zip(matches.predictions.tolist(), matches.masks.tolist(), strict=True))


def noise(points: int, predictions: int = 4, seed: int = 0, side: int = GRID) -> Tensor:
    return 3 * torch.randn(points, predictions, side, side, generator=seeded(seed))


def slow_match(config: MatchingConfig, mask_logits: Tensor, masks: RunLengthMasks, view: View, points_xy: Tensor) -> list[tuple[int, int, float]]:
    """Section 2.2 word for word: dense masks, one pair and one point at a time, scipy. Returns (prediction, mask, dice)."""
    dense = masks.to_dense().numpy()

    def lookup(mask: np.ndarray, x: float, y: float) -> bool:
        x, y = x * view.scale_xy[0] + view.offset_xy[0], y * view.scale_xy[1] + view.offset_xy[1]
        column, row = int(np.floor(x)), int(np.floor(y))
        return 0 <= column < mask.shape[1] and 0 <= row < mask.shape[0] and bool(mask[row, column])

    cells = [((i + 0.5) * view.size[1] / config.grid, (j + 0.5) * view.size[0] / config.grid) for j in range(config.grid) for i in range(config.grid)]
    truth = [torch.tensor([float(lookup(mask, *cell)) for cell in cells]) for mask in dense]
    found = []
    for p, (x, y) in enumerate(points_xy.tolist()):
        candidates = [j for j, mask in enumerate(dense) if lookup(mask, x, y) and truth[j].any()]
        cost, dice = np.zeros((mask_logits.shape[1], len(candidates))), np.zeros((mask_logits.shape[1], len(candidates)))
        for m, c in itertools.product(range(mask_logits.shape[1]), range(len(candidates))):
            resized = F.interpolate(mask_logits[p, m][None, None], size=(config.grid, config.grid), mode="bilinear", align_corners=False).flatten()
            s, t = resized.sigmoid(), truth[candidates[c]]
            dice[m, c] = float((2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1))
            cost[m, c] = config.bce_weight * float(F.binary_cross_entropy_with_logits(resized, t)) + config.dice_weight * (1 - dice[m, c])
        for m, c in zip(*linear_sum_assignment(cost), strict=True):
            found.append((p * mask_logits.shape[1] + int(m), candidates[int(c)], float(dice[m, c])))
    return sorted(found)


RANDOM_BOXES = [(x, y, x + w, y + h) for x, y, w, h in np.random.default_rng(0).integers([0, 0, 8, 8], [40, 40, 50, 50], (9, 4)).clip(0, 63).tolist()]
VIEWS = {
    "whole": VIEW,
    "flipped crop": View(scale_xy=(-0.75, 0.75), offset_xy=(60.0, 5.0), size=(SIDE, SIDE), valid_xyxy=(0.0, 0.0, SIDE, SIDE)),
    "padded": View(scale_xy=(1.5, 1.5), offset_xy=(0.0, 0.0), size=(SIDE, SIDE), valid_xyxy=(0.0, 0.0, SIDE / 1.5, SIDE / 1.5)),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("side", [GRID, 2 * GRID])
def test_equals_the_algorithm_word_for_word(name: str, side: int) -> None:
    view = VIEWS[name]
    masks = boxes(*RANDOM_BOXES)
    points = SIDE * torch.rand(1, 12, 2, generator=seeded())
    logits = noise(12, side=side)
    found = match_many_to_many(CONFIG, logits[None], [masks], [view], points)[0]
    expected = slow_match(CONFIG, logits, masks, view, points[0])
    assert len(expected) >= 12
    assert pairs(found) == [(prediction, mask) for prediction, mask, _ in expected]
    assert found.dice is not None
    torch.testing.assert_close(found.dice, torch.tensor([dice for *_, dice in expected]))


def test_images_do_not_see_each_other() -> None:
    sets = [boxes(*RANDOM_BOXES), boxes(), boxes(*RANDOM_BOXES[:6], size=(SIDE, 2 * SIDE))]
    logits, points = torch.stack([noise(9, seed=seed) for seed in range(3)]), SIDE * torch.rand(3, 9, 2, generator=seeded())
    together = match_many_to_many(CONFIG, logits, sets, [VIEW, VIEWS["flipped crop"], VIEWS["padded"]], points)
    for b, view in enumerate([VIEW, VIEWS["flipped crop"], VIEWS["padded"]]):
        alone = match_many_to_many(CONFIG, logits[b : b + 1], sets[b : b + 1], [view], points[b : b + 1])[0]
        assert pairs(together[b]) == pairs(alone)
        torch.testing.assert_close(together[b].dice, alone.dice)
    assert len(together[0]) > len(together[2]) > len(together[1]) == 0


def test_no_ground_truth() -> None:
    found = match(noise(2), boxes(), [(5.0, 5.0), (40.0, 40.0)])
    assert (len(found), found.predictions.dtype, found.masks.dtype) == (0, torch.int64, torch.int64)


def test_no_point_inside_any_mask() -> None:
    assert pairs(match(noise(2), boxes((20, 20, 30, 30)), [(5.0, 5.0), (30.0, 25.0)])) == []  # x1 is exclusive


def test_fewer_candidates_than_predictions_are_all_used() -> None:
    masks = boxes((0, 0, 64, 64), (0, 0, 32, 32), (40, 40, 60, 60))  # the third is not at the point
    assert pairs(match(logits_like(masks, [2, 1, 2, 0])[None], masks, [(10.0, 10.0)])) == [(1, 1), (3, 0)]


def test_more_candidates_than_predictions_leave_the_dearest() -> None:
    masks = boxes((0, 0, 64, 64), (0, 0, 48, 64), (0, 0, 32, 64), (0, 0, 24, 64), (0, 0, 16, 64), (0, 0, 8, 64))
    assert pairs(match(logits_like(masks, [5, 3, 0, 2])[None], masks, [(4.0, 4.0)])) == [(0, 5), (1, 3), (2, 0), (3, 2)]


def test_nested_masks_are_matched_at_every_granularity_by_every_point_inside() -> None:
    masks = boxes((0, 0, 64, 64), (8, 8, 40, 40), (16, 16, 24, 24))  # group, object, part
    logits = torch.stack([logits_like(masks, order) for order in ([0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 0])])
    found = match(logits, masks, [(20.0, 20.0), (30.0, 30.0), (60.0, 60.0)])
    assert pairs(found) == [(0, 0), (1, 1), (2, 2), (6, 1), (7, 0), (11, 0)]
    assert found.dice is not None
    assert (found.dice > 0.99).all()


def test_a_mask_that_vanishes_on_the_grid_is_no_candidate() -> None:
    masks = boxes((20, 20, 21, 21), (0, 0, 32, 32))  # a pixel between the cell centres at 18 and 22
    assert match(noise(1), masks, [(20.5, 20.5)]).masks.tolist() == [1]


def test_duplicates_are_both_kept() -> None:
    masks = boxes((0, 0, 32, 32), (0, 0, 32, 32))
    found = match(noise(1), masks, [(10.0, 10.0)])
    assert sorted(found.masks.tolist()) == [0, 1]
    assert found.predictions.unique().numel() == 2


def test_overlapping_masks_share_the_points_of_their_overlap_only() -> None:
    found = match(noise(3), boxes((0, 0, 40, 64), (24, 0, 64, 64)), [(10.0, 30.0), (30.0, 30.0), (60.0, 30.0)])
    by_point = [sorted(mask for prediction, mask in pairs(found) if prediction // 4 == point) for point in range(3)]
    assert by_point == [[0], [0, 1], [1]]


def test_points_on_padding_match_nothing() -> None:
    masks = boxes((0, 0, 64, 32), size=(32, 64))  # the whole of an image half as high as the view
    view = View(scale_xy=(1.0, 1.0), offset_xy=(0.0, 0.0), size=(SIDE, SIDE), valid_xyxy=(0.0, 0.0, 64.0, 32.0))
    found = match(noise(2), masks, [(10.0, 32.0), (10.0, 31.9)], view)
    assert found.predictions.tolist()[0] // 4 == 1
    assert len(found) == 1


def test_equal_costs_go_to_the_lowest_index() -> None:
    masks = boxes(*[(0, 0, 32, 32)] * 40)  # so many that a sort that is not stable mixes them
    same = logits_like(masks, [0, 0])[None]
    assert pairs(match(same, masks, [(10.0, 10.0)])) == [(0, 0), (1, 1)]


def test_costs_that_are_not_finite_are_matched_last_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    masks = boxes((0, 0, 32, 32), (0, 0, 64, 64))
    logits = noise(1)
    logits[0, 0, 3, 3], logits[0, 2, 5, 5], logits[0, 3, 1, 1] = float("nan"), float("inf"), float("nan")
    with caplog.at_level(logging.WARNING):
        one = match(logits, masks, [(60.0, 60.0)])
        both = match(logits, masks, [(10.0, 10.0)])
    assert pairs(one) == [(1, 1)]
    assert len(both) == 2
    assert {1} < set(both.predictions.tolist())
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [3, 6]


def test_costs_are_computed_in_float32_under_autocast() -> None:
    masks = boxes(*RANDOM_BOXES)
    labels = masks.sample(VIEW.cell_centres(GRID, GRID)).float()[None]
    exact = pair_costs(CONFIG, noise(3)[None], labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = pair_costs(CONFIG, noise(3)[None], labels)
    assert all(torch.equal(a, b) for a, b in zip(exact, mixed, strict=True))


@pytest.mark.parametrize("predictions", [1, 2, 3, 4])
def test_assignment_costs_what_scipy_finds(predictions: int) -> None:
    generator = seeded(predictions)
    for columns in (1, 2, 3, 4, 5, 12):
        cost = torch.rand(60, predictions, columns, generator=generator)
        cost[30:] = (cost[30:] * 4).round()  # with ties
        candidate = torch.rand(60, columns, generator=generator) < torch.linspace(0, 1, 60)[:, None]
        for found, table, allowed in zip(assign(cost, candidate), cost, candidate, strict=True):
            usable = allowed.nonzero().flatten().tolist()
            rows, chosen = linear_sum_assignment(table[:, usable].numpy())
            used = [(row, column) for row, column in enumerate(found.tolist()) if column >= 0]
            assert len(used) == len(rows) == min(predictions, len(usable))
            assert len({column for _, column in used}) == len(used)
            assert all(column in usable for _, column in used)
            assert float(sum(table[row, column].double() for row, column in used)) == pytest.approx(
                float(table[:, usable].double()[rows, chosen].sum())
            )
