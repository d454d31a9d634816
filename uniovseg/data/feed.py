"""From the plan to batches, in one process: row groups are read once a window, samples are made by threads ahead of the trainer.

`GroupReader` and `SampleMaker` are the two halves that `uniovseg.runtime.datasets` runs as Ray Data tasks; `planned_batches` joins them with threads.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from uniovseg.data.plan import PlanItem
from uniovseg.data.samples import MaskSampleConfig, collate, make_mask_sample, sample_seed
from uniovseg.data.shards import ShardSet, to_record
from uniovseg.data.views import ViewConfig
from uniovseg.errors import DataError
from uniovseg.records import ImageMasks, MaskBatch, MaskSample


class GroupReader:
    """Reads rows of a shard set by row group, keeping the newest `most` groups.

    Args:
        shards: the shard set.
        most: row groups held in memory; a window's worth avoids reading twice.
    """

    def __init__(self, shards: ShardSet, most: int) -> None:
        self.shards, self.most = shards, most
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()

    def row(self, item: PlanItem) -> pa.Table:
        """The planned row as a table of one row."""
        table = self._tables.get(item.group)
        if table is None:
            table = self.shards.read_group(item.group)
            self._tables[item.group] = table
            while len(self._tables) > self.most:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(item.group)
        return table.slice(item.row, 1)


class SampleMaker:
    """Makes training samples from records; picklable.

    Args:
        view, sample: how views are drawn and masks are chosen.
        seed: the run's seed.
    """

    def __init__(self, view: ViewConfig, sample: MaskSampleConfig, seed: int) -> None:
        self.view, self.sample, self.seed = view, sample, seed

    def __call__(self, record: ImageMasks, epoch: int) -> tuple[MaskSample, int]:
        """The sample and its seed. Raises DataError that names the record."""
        seed = sample_seed(self.seed, epoch, record.key)
        try:
            return make_mask_sample(record, self.view, self.sample, seed), seed
        except DataError as error:
            raise DataError(f"sample {record.key}: {error}", fix="ingest again with verify=decode to reject such files") from error


def planned_batches(
    shards: ShardSet, slices: Iterator[Sequence[PlanItem]], maker: SampleMaker, *, threads: int, window_groups: int
) -> Iterator[MaskBatch]:
    """Batches in the order of the plan, made ahead by threads.

    Args:
        shards: the training set.
        slices: the rows of each batch, from `Plan.slices`.
        maker: makes the samples.
        threads: threads that decode; a thread a sample.
        window_groups: row groups kept in memory.
    """
    reader = GroupReader(shards, 2 * window_groups)

    def prepare(pool: ThreadPoolExecutor, items: Sequence[PlanItem]) -> list[Future[tuple[MaskSample, int]]]:
        return [pool.submit(partial(_make, maker, reader.row(item), item.epoch)) for item in items]

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[list[Future[tuple[MaskSample, int]]]] = deque()
        for items in slices:
            ahead.append(prepare(pool, items))
            if len(ahead) > 2:
                yield _collect(ahead.popleft())
        while ahead:
            yield _collect(ahead.popleft())


def _make(maker: Callable[[ImageMasks, int], tuple[MaskSample, int]], row: pa.Table, epoch: int) -> tuple[MaskSample, int]:
    return maker(to_record(row, 0), epoch)


def _collect(futures: list[Future[tuple[MaskSample, int]]]) -> MaskBatch:
    made = [future.result() for future in futures]
    return collate([sample for sample, _ in made], [seed for _, seed in made])
