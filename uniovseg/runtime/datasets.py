"""The feed from Ray Data: a rank's rows in the order of the plan, read by window and decoded on any CPU of the cluster.

Two operators. *Read*: one task a run of consecutive steps reads the row groups that this rank needs for them, once, and emits the rows, still JPEG and
run lengths, in the plan's order. *Make*: tasks on any CPU turn blocks of rows into training samples. They are kept apart by their CPU shares (equal ones would
be fused into a single task, which would decode a whole window on one core), and the order is kept from end to end.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from uniovseg.data.feed import GroupReader
from uniovseg.data.makers import BatchT, SampleMaker
from uniovseg.data.plan import Plan, groups_held, micro_batch_places
from uniovseg.data.shards import ShardSet

ROWS_A_BLOCK = 32
"""About how many rows one *make* task turns into samples."""

CPUS_OF_A_FEED = 1.5
"""CPUs that a worker's feed needs at least: one *read* and one *make* task. With fewer Ray Data waits for ever."""

STEPS_A_DATASET = 4096
"""Steps that one Ray dataset covers; its tasks are listed up front, so a long run is a chain of datasets."""


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """Which rows to read: the plan, this rank's place, and micro-batches a step. Picklable."""

    uri: str
    rows_per_group: tuple[int, ...]
    seed: int
    batch_size: int
    window_groups: int
    rank: int
    world_size: int
    parts: int

    @property
    def sizes(self) -> list[int]:
        """Rows of each of this rank's micro-batches of a step."""
        return [len(places) for places in micro_batch_places(self.batch_size, self.rank, self.world_size, self.parts)]

    @property
    def share(self) -> int:
        """This rank's rows a step."""
        return sum(self.sizes)

    def read(self, start: int, stop: int) -> Iterator[pa.Table]:
        """This rank's rows of the steps [start, stop), in blocks of whole micro-batches."""
        plan = Plan(self.rows_per_group, seed=self.seed, batch_size=self.batch_size, window_groups=self.window_groups)
        reader = GroupReader(_opened(self.uri, self.rows_per_group), groups_held(self.window_groups, self.world_size))
        per_block = max(1, ROWS_A_BLOCK * self.world_size * self.parts // self.batch_size)
        slices = islice(plan.slices(start, self.rank, self.world_size, self.parts), (stop - start) * self.parts)
        while block := [item for part in islice(slices, per_block) for item in part]:
            table = pa.concat_tables([reader.row(item) for item in block])
            yield table.append_column("epoch", pa.array(np.array([item.epoch for item in block])))


@functools.lru_cache(maxsize=4)
def _opened(uri: str, _rows_per_group: tuple[int, ...]) -> ShardSet:
    """The shard set, opened once a process: its tasks read the manifest and the footers once. One that was written anew has other row groups."""
    return ShardSet(uri)


class PlanSource(Datasource):  # type: ignore[misc]
    """A Ray datasource that reads planned rows: one task for each run of `steps_a_task` steps."""

    def __init__(self, rows: PlannedRows, start: int, stop: int, steps_a_task: int) -> None:
        super().__init__()
        self._rows, self._start, self._stop, self._steps = rows, start, stop, steps_a_task

    def estimate_inmemory_data_size(self) -> None:
        """Not known without reading."""
        return

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None) -> list[ReadTask]:
        """The tasks, in the plan's order, whatever parallelism is asked for."""

        def task(begin: int) -> ReadTask:
            rows, end = self._rows, min(begin + self._steps, self._stop)
            metadata = BlockMetadata(num_rows=rows.share * (end - begin), size_bytes=None, input_files=None, exec_stats=None)
            return ReadTask(lambda: rows.read(begin, end), metadata)

        return [task(begin) for begin in range(self._start, self._stop, self._steps)]


def make_samples(table: pa.Table, maker: SampleMaker[Any, Any]) -> pa.Table:
    """A block of planned rows as a block of training samples."""
    cv2.setNumThreads(1)  # the task has one CPU
    return maker.pack([maker.make(table, row, table.column("epoch")[row].as_py()) for row in range(len(table))])


def ray_batches(rows: PlannedRows, maker: SampleMaker[Any, BatchT], start: int, stop: int) -> Iterator[BatchT]:
    """This rank's micro-batches of the steps [start, stop), by Ray Data."""
    bounds = [0, *accumulate(rows.sizes)]
    rows_a_window = rows.window_groups * max(rows.rows_per_group)
    steps_a_task = max(1, rows_a_window // rows.share)  # about a window's worth of rows, of however many workers this is one
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # the error of a sample that cannot be made, which else reaches the training as text only
    for begin in range(start, stop, STEPS_A_DATASET):
        end = min(begin + STEPS_A_DATASET, stop)
        source = PlanSource(rows, begin, end, min(steps_a_task, end - begin))
        planned = ray.data.read_datasource(source, override_num_blocks=-(-(end - begin) // steps_a_task), num_cpus=0.5)
        samples = planned.map_batches(
            make_samples, batch_size=None, batch_format="pyarrow", fn_kwargs={"maker": maker}, num_cpus=1, zero_copy_batch=True
        )
        # A split of one: the executor then runs in an actor of its own. In this process its thread would take the interpreter from the training step.
        (iterator,) = samples.streaming_split(1, equal=False)
        for table in iterator.iter_batches(batch_size=rows.share, batch_format="pyarrow", prefetch_batches=2):
            for first, after in pairwise(bounds):
                yield maker.unpack(table.slice(first, after - first))
