"""The plan of samples: every row once an epoch, batches that do not depend on the ranks, and little read twice."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniovseg.data.plan import Plan, PlanItem
from uniovseg.errors import ConfigError

GROUPS = [3, 5, 1, 4, 0, 4, 2, 6]


def plan_of(groups: list[int] = GROUPS, seed: int = 0, batch_size: int = 4, window_groups: int = 3) -> Plan:
    return Plan(groups, seed=seed, batch_size=batch_size, window_groups=window_groups)


def stream(plan: Plan, steps: int) -> list[PlanItem]:
    return [item for step in range(steps) for item in plan.batch(step)]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 2**63),
    batch_size=st.integers(1, 30),
    window_groups=st.integers(1, 14),
)
def test_every_row_comes_once_an_epoch_and_epochs_follow_without_a_seam(groups: list[int], seed: int, batch_size: int, window_groups: int) -> None:
    plan = plan_of(groups, seed, batch_size, window_groups)
    total, epochs = sum(groups), 3
    items = stream(plan, -(-epochs * total // batch_size))
    expected = sorted((group, row) for group, rows in enumerate(groups) for row in range(rows))
    for epoch in range(epochs):
        part = items[epoch * total : (epoch + 1) * total]
        assert {item.epoch for item in part} == {epoch}
        assert sorted((item.group, item.row) for item in part) == expected


def test_rows_that_fill_no_batch_open_the_next_epoch() -> None:
    plan = plan_of()  # 25 rows, batches of 4
    assert [item.epoch for item in plan.batch(6)] == [0, 1, 1, 1]


def test_a_batch_larger_than_the_set_repeats_it() -> None:
    batch = plan_of(batch_size=60).batch(0)
    assert [item.epoch for item in batch] == [0] * 25 + [1] * 25 + [2] * 10
    assert set(Counter((item.group, item.row) for item in batch).values()) == {2, 3}


def test_steps_can_be_asked_in_any_order() -> None:
    plan = plan_of()
    forward = [plan.batch(step) for step in range(30)]
    assert [plan_of().batch(step) for step in range(29, -1, -1)] == forward[::-1]
    assert [plan.batch(step) for step in (28, 3, 17)] == [forward[28], forward[3], forward[17]]


def test_epochs_and_seeds_differ() -> None:
    rows = [[(item.group, item.row) for item in stream(plan_of(seed=seed, batch_size=25), 2)] for seed in (0, 1)]
    orders = [rows[0][:25], rows[0][25:], rows[1][:25], rows[1][25:]]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(("world_size", "parts"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_ranks_and_micro_batches_cut_the_same_batches(world_size: int, parts: int) -> None:
    plan = plan_of()
    slices = [list(islice(plan.slices(5, rank, world_size, parts), 3 * parts)) for rank in range(world_size)]
    for step in range(3):
        batch = plan.batch(5 + step)
        for part in range(parts):
            assert [item for rank in range(world_size) for item in slices[rank][step * parts + part]] == batch[part::parts]  # whatever world_size is
        joined = [sorted(item for part in slices[rank][step * parts : (step + 1) * parts] for item in part) for rank in range(world_size)]
        share = 4 // world_size
        assert joined == [sorted(batch[rank * share : (rank + 1) * share]) for rank in range(world_size)]  # a rank reads one run of groups
        assert {len(part) for rank in range(world_size) for part in slices[rank]} == {share // parts}


@pytest.mark.parametrize(("world_size", "parts", "sizes"), [(3, 1, [2, 3, 3]), (3, 2, [1, 1, 2, 1, 1, 2]), (5, 1, [1, 2, 1, 2, 2])])
def test_uneven_slices_make_up_the_batch_too(world_size: int, parts: int, sizes: list[int]) -> None:
    plan = plan_of(batch_size=8)
    slices = [part for rank in range(world_size) for part in islice(plan.slices(5, rank, world_size, parts), parts)]
    for part in range(parts):
        assert [item for micro in slices[part::parts] for item in micro] == plan.batch(5)[part::parts]
    assert [len(part) for part in slices] == sizes


@pytest.mark.parametrize(("world_size", "parts"), [(5, 1), (2, 3), (1, 3)])
def test_a_batch_that_cannot_be_shared_out_is_refused(world_size: int, parts: int) -> None:
    with pytest.raises(ConfigError, match=rf"seen: 4 over {world_size} workers x {parts} micro-batches; allowed: a multiple of {parts} that"):
        next(plan_of().slices(0, 0, world_size, parts))


def test_a_set_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="no rows"):
        plan_of([0, 0])


@pytest.mark.parametrize(("world_size", "most"), [(1, 1.0), (2, 1.1), (8, 1.25)])
def test_the_ranks_together_read_little_more_than_every_group_once(world_size: int, most: float) -> None:
    groups, window_groups, batch_size = 256, 64, 56
    plan = plan_of([64] * groups, 3, batch_size, window_groups)
    steps = groups * 64 // batch_size
    read = sum(len({item.group for part in islice(plan.slices(0, rank, world_size), steps) for item in part}) for rank in range(world_size))
    assert read / groups <= most


def test_a_window_keeps_to_its_groups_and_a_batch_to_all_of_them() -> None:
    plan = plan_of([64] * 32, 3, 16, 8)  # windows of 512 rows, 32 batches
    windows = [{item.group for step in range(first, first + 32) for item in plan.batch(step)} for first in range(0, 128, 32)]
    assert sorted(group for window in windows for group in window) == list(range(32))
    for step in range(128):
        assert Counter(item.group for item in plan.batch(step)) == dict.fromkeys(windows[step // 32], 2)


def test_rows_that_lie_together_are_taken_apart() -> None:
    """Two neighbours in a group share a batch as often as chance has it."""
    plan, steps = plan_of([256] * 4, 5, 16, 4), 64 * 12
    together = 0
    for step in range(steps):
        rows = {(item.group, item.row) for item in plan.batch(step)}
        together += sum((group, row + 1) in rows for group, row in rows)
    expected = steps * 16 * (255 / 256) * 3 / 255  # a batch has three more rows of the group's other 255
    assert abs(together - expected) < 4 * np.sqrt(expected)


def test_a_large_set_is_planned_at_once() -> None:
    plan = plan_of([64] * 170_000, 0, 56, 64)
    items = plan.batch(10_000_000)
    assert {item.epoch for item in items} == {10_000_000 * 56 // (64 * 170_000)}
    assert len(plan._epochs) == 1 and len(plan._windows) <= 2  # nothing is kept of the epochs before
