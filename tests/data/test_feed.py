"""The feed of one process: batches in the plan's order, whatever the threads do, each row group read about once."""

import threading
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import cv2
import pyarrow as pa
import pytest
import torch

from uniovseg.data.feed import GroupReader, planned_batches
from uniovseg.data.makers import MaskSampleMaker
from uniovseg.data.plan import Plan, PlanItem, groups_held
from uniovseg.data.samples import MaskSampleConfig, collate, make_mask_sample, sample_seed
from uniovseg.data.shards import ShardSet, to_table
from uniovseg.data.views import ViewConfig
from uniovseg.errors import DataError
from uniovseg.records import ImageMasks, MaskBatch, MaskSample

VIEW, SAMPLE = ViewConfig(size=64), MaskSampleConfig()


@pytest.fixture
def shards(shapes_shards: Path) -> ShardSet:
    return ShardSet(shapes_shards)


def plan_of(shards: ShardSet, batch_size: int, window_groups: int) -> Plan:
    return Plan([group.rows for group in shards.groups], seed=1, batch_size=batch_size, window_groups=window_groups)


def feed(shards: ShardSet, start: int, count: int, *, threads: int = 3, window_groups: int = 2, parts: int = 1) -> list[MaskBatch]:
    slices = plan_of(shards, 4, window_groups).slices(start, rank=0, world_size=1, parts=parts)
    batches = planned_batches(shards, slices, MaskSampleMaker(VIEW, SAMPLE, 1), threads=threads, groups=2 * window_groups)
    return list(islice(batches, count))


def assert_same(a: MaskBatch, b: MaskBatch) -> None:
    assert (a.keys, a.seeds, a.views, list(a.masks)) == (b.keys, b.seeds, b.views, list(b.masks))
    assert torch.equal(a.images, b.images)
    assert all(torch.equal(x, y) for x, y in zip(a.boxes_xyxy, b.boxes_xyxy, strict=True))


def test_batches_are_those_of_the_plan(shards: ShardSet, scenes: list[ImageMasks]) -> None:
    first_row = [0, 3, 6, 7]  # of the shard set's groups of 3, 3, 1 and 3 rows
    for step, batch in enumerate(feed(shards, 0, 7)):
        items = plan_of(shards, 4, 2).batch(step)
        seeds = [sample_seed(1, item.epoch, scenes[first_row[item.group] + item.row].key) for item in items]
        samples = [make_mask_sample(scenes[first_row[item.group] + item.row], VIEW, SAMPLE, seed) for item, seed in zip(items, seeds, strict=True)]
        assert_same(batch, collate(samples))


def test_every_row_once_an_epoch_with_new_views_in_the_next(shards: ShardSet) -> None:
    batches = feed(shards, 0, 5)  # two epochs of ten rows
    keys = [key for batch in batches for key in batch.keys]
    assert Counter(keys) == dict.fromkeys(keys, 2)
    assert len(set(keys)) == 10
    seeds = [seed for batch in batches for seed in batch.seeds]
    assert len(set(seeds)) == 20


def test_the_order_does_not_depend_on_threads_or_start(shards: ShardSet) -> None:
    whole = feed(shards, 0, 6, threads=1)
    for a, b in zip(whole, feed(shards, 0, 6, threads=4), strict=True):
        assert_same(a, b)
    for a, b in zip(whole[3:], feed(shards, 3, 3), strict=True):
        assert_same(a, b)


def test_micro_batches_make_up_the_batch(shards: ShardSet) -> None:
    whole = feed(shards, 0, 3)
    halves = feed(shards, 0, 6, parts=2)
    for step, batch in enumerate(whole):
        assert (halves[2 * step].keys, halves[2 * step + 1].keys) == (batch.keys[::2], batch.keys[1::2])


def test_threads_that_decode_leave_each_other_the_cores(shards: ShardSet) -> None:
    cv2.setNumThreads(2)
    assert len(feed(shards, 0, 1)) == 1
    assert cv2.getNumThreads() == 1


def test_a_feed_that_ends_gives_its_last_batches(shards: ShardSet) -> None:
    slices = islice(plan_of(shards, 4, 2).slices(0, rank=0, world_size=1), 2)
    batches = planned_batches(shards, slices, MaskSampleMaker(VIEW, SAMPLE, 1), threads=2, groups=4)
    assert [len(batch.keys) for batch in batches] == [4, 4]


class CountingShards(ShardSet):
    """Counts the row groups that are read."""

    def __init__(self, uri: Path) -> None:
        super().__init__(uri)
        self.groups_read: list[int] = []

    def read_group(self, index: int):  # type: ignore[no-untyped-def]
        self.groups_read.append(index)
        return super().read_group(index)


def test_a_group_is_read_about_once_an_epoch(shapes_shards: Path) -> None:
    counting = CountingShards(shapes_shards)
    slices = islice(plan_of(counting, 2, 2).slices(0, rank=0, world_size=1), 5)  # one epoch
    list(planned_batches(counting, slices, MaskSampleMaker(VIEW, SAMPLE, 1), threads=2, groups=4))
    assert sorted(counting.groups_read) == [0, 1, 2, 3]


class Numbers:
    """Row groups without data, which counts how often each is read."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.read = sizes, Counter[int]()

    def read_group(self, index: int) -> pa.Table:
        self.read[index] += 1
        return pa.table({"row": range(self.sizes[index])})


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_no_rank_reads_a_group_twice_in_a_window(world_size: int, parts: int) -> None:
    """Each group is in one window of an epoch."""
    sizes, window, batch = [16, 16, 5, 16, 9, 16] * 4, 8, 12
    most = groups_held(window, world_size)
    for rank in range(world_size):
        numbers, reads = Numbers(sizes), Counter[tuple[int, int]]()
        reader = GroupReader(numbers, most)  # type: ignore[arg-type]
        plan = Plan(sizes, seed=1, batch_size=batch, window_groups=window)
        for item in chain.from_iterable(islice(plan.slices(0, rank, world_size, parts), parts * 3 * sum(sizes) // batch)):
            before = numbers.read[item.group]
            assert reader.row(item)["row"].to_pylist() == [item.row]
            reads[item.epoch, item.group] += numbers.read[item.group] - before
            assert len(reader._tables) <= most
        assert max(reads.values()) == 1
    assert [groups_held(64, count) for count in (1, 2, 8, 56)] == [130, 66, 18, 6]


def test_the_reader_keeps_the_newest_groups(shapes_shards: Path) -> None:
    counting = CountingShards(shapes_shards)
    reader = GroupReader(counting, most=2)
    for group in (0, 1, 0, 3, 0, 1):  # 3 drives out 1, not 0
        assert reader.row(PlanItem(0, group, 0)).num_rows == 1
    assert counting.groups_read == [0, 1, 3, 1]
    assert reader.row(PlanItem(0, 0, 2)).column("key")[0].as_py() == "sa_3"


def test_an_image_that_cannot_be_read_is_named(scenes: list[ImageMasks]) -> None:
    broken = ImageMasks(**({name: getattr(scenes[0], name) for name in ImageMasks.__slots__} | {"key": "sa_99", "image": b"no jpeg"}))
    with pytest.raises(DataError, match="sample sa_99: the image cannot be decoded"):
        MaskSampleMaker(VIEW, SAMPLE, 0).make(to_table([broken], ["x"], [0]), 0, 0)


def test_abandoning_a_feed_ends_its_threads(shards: ShardSet) -> None:
    before = set(threading.enumerate())
    slices = plan_of(shards, 4, 2).slices(0, rank=0, world_size=1)
    batches = planned_batches(shards, slices, MaskSampleMaker(VIEW, SAMPLE, 1), threads=3, groups=4)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - before


def test_a_sample_is_drawn_from_its_own_seed(scenes: list[ImageMasks]) -> None:
    maker = MaskSampleMaker(VIEW, SAMPLE, 3)
    table = to_table(scenes, ["x"] * len(scenes), range(len(scenes)))
    sample = maker.make(table, 4, 2)
    assert sample.seed == sample_seed(3, 2, scenes[4].key)
    expected: MaskSample = make_mask_sample(scenes[4], VIEW, SAMPLE, sample.seed)
    assert_same(collate([sample]), collate([expected]))
    assert maker.make(table, 4, 1).seed != sample.seed
