from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import pytest
import torch

from uniovseg.data.feed import GroupReader, planned_batches
from uniovseg.data.makers import MaskSampleMaker
from uniovseg.data.plan import Plan
from uniovseg.data.samples import MaskSampleConfig
from uniovseg.data.shards import ShardSet
from uniovseg.data.views import ViewConfig
from uniovseg.records import MaskBatch
from uniovseg.runtime import datasets
from uniovseg.runtime.datasets import PlannedRows, PlanSource, make_samples, ray_batches

BATCH, WINDOW, SEED = 4, 2, 7
MAKER = MaskSampleMaker(ViewConfig(size=64), MaskSampleConfig(max_masks=6), SEED)


def rows_of(shards: ShardSet, rank: int, world_size: int, parts: int) -> PlannedRows:
    rows_per_group = tuple(group.rows for group in shards.groups)
    return PlannedRows(shards.location.uri, rows_per_group, SEED, BATCH, WINDOW, rank, world_size, parts)


def batches_of(shards: ShardSet, start: int, stop: int, rank: int, world_size: int, parts: int) -> list[MaskBatch]:
    """The same batches by threads, without Ray."""
    plan = Plan([group.rows for group in shards.groups], seed=SEED, batch_size=BATCH, window_groups=WINDOW)
    slices = islice(plan.slices(start, rank, world_size, parts), (stop - start) * parts)
    return list(planned_batches(shards, slices, MAKER, threads=2, groups=2 * WINDOW))


def assert_same(found: MaskBatch, expected: MaskBatch) -> None:
    assert (found.keys, found.seeds, found.views) == (expected.keys, expected.seeds, expected.views)
    assert found.images.dtype == expected.images.dtype and torch.equal(found.images, expected.images)
    assert all(map(torch.equal, found.boxes_xyxy, expected.boxes_xyxy))
    for ours, theirs in zip(found.masks, expected.masks, strict=True):
        assert ours.size == theirs.size and torch.equal(ours.ends, theirs.ends) and torch.equal(ours.splits, theirs.splits)


@pytest.mark.cluster
@pytest.mark.parametrize(("rank", "world_size", "parts"), [(0, 1, 1), (1, 2, 2)])
def test_ray_feeds_the_planned_batches_bit_for_bit(
    ray_cluster: None, shapes_shards: Path, monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int, parts: int
) -> None:
    monkeypatch.setattr(datasets, "STEPS_A_DATASET", 5)
    shards = ShardSet(shapes_shards)
    found = list(ray_batches(rows_of(shards, rank, world_size, parts), MAKER, 1, 9))  # two datasets, several tasks each, over three epochs
    expected = batches_of(shards, 1, 9, rank, world_size, parts)
    assert len(found) == len(expected) == 8 * parts
    assert len({key for batch in expected for key in batch.keys}) > BATCH
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


def test_the_ranks_read_each_planned_row_once_in_blocks_of_whole_batches(shapes_shards: Path) -> None:
    shards = ShardSet(shapes_shards)
    plan = Plan([group.rows for group in shards.groups], seed=SEED, batch_size=BATCH, window_groups=WINDOW)
    records = list(shards.records())
    first_row = [sum(group.rows for group in shards.groups[:index]) for index in range(len(shards.groups))]
    for step in range(6):
        planned = [(records[first_row[item.group] + item.row].key, item.epoch) for item in plan.batch(step)]
        tables = [table for rank in range(2) for table in rows_of(shards, rank, 2, 1).read(step, step + 1)]
        assert [row for table in tables for row in zip(*(table.column(name).to_pylist() for name in ("key", "epoch")), strict=True)] == planned


def test_the_tasks_cover_the_steps_once_and_know_their_rows(shapes_shards: Path) -> None:
    rows = rows_of(ShardSet(shapes_shards), 0, 2, 1)
    tasks = PlanSource(rows, 3, 14, 4).get_read_tasks(parallelism=99)
    counts = [sum(len(table) for table in task()) for task in tasks]
    assert counts == [task.metadata.num_rows for task in tasks] == [8, 8, 6]


def test_a_task_of_one_cpu_decodes_on_one_core(shapes_shards: Path) -> None:
    cv2.setNumThreads(2)
    table = next(rows_of(ShardSet(shapes_shards), 0, 1, 1).read(0, 1))
    assert len(make_samples(table, MAKER)) == BATCH
    assert cv2.getNumThreads() == 1


def test_a_rank_of_many_holds_few_groups(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Watched(GroupReader):
        def __init__(self, shards: ShardSet, most: int) -> None:
            super().__init__(shards, most)
            made.append(most)

    monkeypatch.setattr(datasets, "GroupReader", Watched)
    rows = replace(rows_of(ShardSet(shapes_shards), 3, 56, 1), batch_size=56, window_groups=64)
    assert len(next(rows.read(0, 1))) == 1
    assert made == [6]
