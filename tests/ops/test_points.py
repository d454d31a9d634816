import math

import pytest
import torch
from torch import Tensor

from uniovseg.ops import points
from uniovseg.ops.points import grid_points, point_sample, uncertain_points


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bilinear(image: Tensor, x: float, y: float) -> float:
    """The value at (x, y) in [0, 1], pixel centres at (i + 0.5) / size, zeros outside."""
    height, width = image.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * float(image[row, column])
    return total


def test_grid_points_are_cell_centres_with_x_fastest() -> None:
    expected = [[15, 30], [25, 30], [15, 50], [25, 50]]
    assert grid_points(2, torch.tensor([10.0, 20.0, 30.0, 60.0])).tolist() == expected


def test_jittered_points_fill_their_own_cells() -> None:
    corner, cell = torch.tensor([10.0, 20.0]), torch.tensor([10.0, 20.0])
    own = torch.tensor([[column, row] for row in range(3) for column in range(3)])
    draws = torch.stack([(grid_points(3, torch.tensor([10, 20, 40, 80]), seeded(seed)) - corner) / cell - own for seed in range(200)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.amin((0, 1)).max() < 0.05  # not only the middle of the cell
    assert draws.amax((0, 1)).min() > 0.95


def test_jitter_depends_on_the_generator_alone() -> None:
    rectangle = torch.tensor([0, 0, 8, 8])
    assert torch.equal(grid_points(3, rectangle, seeded(1)), grid_points(3, rectangle, seeded(1)))
    assert not torch.equal(grid_points(3, rectangle, seeded(1)), grid_points(3, rectangle, seeded(2)))


def test_point_sample_is_bilinear_with_zeros_outside() -> None:
    maps = torch.randn(2, 3, 5, generator=seeded())
    points_xy = torch.rand(2, 40, 2, generator=seeded(1)) * 1.4 - 0.2
    sampled = point_sample(maps, points_xy)
    expected = [[bilinear(image, float(x), float(y)) for x, y in row] for image, row in zip(maps, points_xy, strict=True)]
    torch.testing.assert_close(sampled, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("importance", [0.0, 0.75, 1.0])
def test_uncertain_points_are_the_smallest_logits_of_the_candidates_then_uniform(importance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "SAMPLES_AT_ONCE", 60)  # a mask at a time, so that the draws can be repeated mask by mask
    logits = torch.randn(3, 6, 7, generator=seeded())
    drawn = uncertain_points(logits, 20, 3.0, importance, seeded(5))
    assert drawn.shape == (3, 20, 2)
    replay = seeded(5)
    chosen = int(20 * importance)
    for mask, picked in zip(logits, drawn.tolist(), strict=True):
        candidates = torch.rand(1, 60, 2, generator=replay)[0].tolist()
        uniform = torch.rand(1, 20 - chosen, 2, generator=replay)[0].tolist()
        hardest = sorted(candidates, key=lambda point: abs(bilinear(mask, *point)))[:chosen]
        assert sorted(picked[:chosen]) == sorted(hardest)
        assert picked[chosen:] == uniform


def test_slices_only_bound_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, 8, 8, generator=seeded())
    monkeypatch.setattr(points, "SAMPLES_AT_ONCE", 2 * 96)
    drawn = uncertain_points(logits, 32, 3.0, 0.75, seeded())
    hardness = point_sample(logits, drawn).abs()
    assert drawn.shape == (5, 32, 2)
    assert (hardness[:, :24].mean(1) < 0.6 * hardness[:, 24:].mean(1)).all()


def test_uncertain_points_lie_on_the_edge_of_a_mask() -> None:
    ramp = torch.linspace(-8, 8, 32).expand(1, 32, 32)  # the mask's edge is the middle column
    drawn = uncertain_points(ramp, 200, 3.0, 0.75, seeded())[0]
    assert ((drawn[:150, 0] - 0.5).abs() < 0.2).all()
    assert ((drawn[150:, 0] - 0.5).abs() > 0.2).any()
