"""From the plan to batches, in one process: row groups are read once a window, samples are made by threads ahead of the trainer.

`GroupReader` and a `SampleMaker` are the two halves that `uniovseg.runtime.datasets` runs as Ray Data tasks; `planned_batches` joins them with threads.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import pyarrow as pa

from uniovseg.data.makers import BatchT, SampleMaker, SampleT
from uniovseg.data.plan import PlanItem
from uniovseg.data.shards import ShardSet


class GroupReader:
    """Reads rows of a shard set by row group, keeping the newest `most` groups.

    Args:
        shards: the shard set.
        most: row groups held in memory; as many as `groups_held` says avoid reading twice.
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


def planned_batches(
    shards: ShardSet, slices: Iterator[Sequence[PlanItem]], maker: SampleMaker[SampleT, BatchT], *, threads: int, groups: int
) -> Iterator[BatchT]:
    """Batches in the order of the plan, made ahead by threads.

    Args:
        shards: the training set.
        slices: the rows of each batch, from `Plan.slices`.
        maker: makes the samples.
        threads: threads that decode; a thread a sample.
        groups: row groups kept in memory, see `uniovseg.data.plan.groups_held`.
    """
    reader = GroupReader(shards, groups)
    cv2.setNumThreads(1)  # else each of the threads would use every core

    def prepare(pool: ThreadPoolExecutor, items: Sequence[PlanItem]) -> list[Future[SampleT]]:
        return [pool.submit(maker.make, reader.row(item), 0, item.epoch) for item in items]

    def collect(futures: list[Future[SampleT]]) -> BatchT:
        return maker.collate([future.result() for future in futures])

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[list[Future[SampleT]]] = deque()
        for items in slices:
            ahead.append(prepare(pool, items))
            if len(ahead) > 2:
                yield collect(ahead.popleft())
        while ahead:
            yield collect(ahead.popleft())
