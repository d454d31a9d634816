"""The order of samples, as a plan that anyone can compute: which row is sample i of a run.

An epoch, given (seed, epoch), is a permutation of the row groups; windows of consecutive groups in that order are shuffled row by row, so that memory
and reads stay local. The epochs follow each other without a seam, and the stream is cut into global batches: rows that fill no batch open the next
epoch's first one. Step s is always the same batch, so a resume needs nothing but the step.

Rank r of n takes the r-th slice of each global batch; slices differ by a row where n does not divide it. If any row of a window could stand at any
place of a batch, each rank would read all of the window's groups, n times as much as there is. So a window is shuffled in *lanes*: its groups are laid
end to end, the layout is cut into as many lanes as a batch has places, and lane j is shuffled over the places j of the window's batches. A batch is then
one row from each lane, a sample stratified over the window's groups, and a rank, with its run of places, reads one run of groups: together the n ranks
read little more than every group once. The batches do not
depend on n.

A rank's micro-batches take the places of its slice in turns. So a micro-batch too, over all ranks together, is the same rows for any n, and a loss that
is divided by the pairs of a micro-batch is the same loss.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from uniovseg.errors import ConfigError

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, order=True)
class PlanItem:
    """One row of the plan: the epoch in which it is drawn, its row group, and its row in the group."""

    epoch: int
    group: int
    row: int


class Plan:
    """The order of a shard set's rows.

    Args:
        rows_per_group: rows of each row group, in the manifest's order.
        seed: seed of all permutations.
        batch_size: rows of a global batch. It may exceed the rows there are; a batch then spans epochs.
        window_groups: row groups shuffled together.

    Raises:
        ConfigError: there are no rows.
    """

    def __init__(self, rows_per_group: Sequence[int], *, seed: int, batch_size: int, window_groups: int) -> None:
        self.rows_per_group = np.asarray(rows_per_group, np.int64)
        self.seed, self.batch_size, self.window_groups = seed, batch_size, window_groups
        self.rows = int(self.rows_per_group.sum())
        if self.rows == 0:
            raise ConfigError("the shard set has no rows", seen=0, allowed="at least 1", fix="look at it: python -m uniovseg inspect URI")
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], list[int]]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()

    def batch(self, step: int) -> list[PlanItem]:
        """The rows of a step's global batch."""
        items: list[PlanItem] = []
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, within = divmod(position, self.rows)
            starts = self._epoch(epoch)[1]
            window = bisect_right(starts, within) - 1
            groups, rows = self._window(epoch, window)
            first = within - starts[window]
            part = slice(first, first + end - position)
            items += [PlanItem(epoch, group, row) for group, row in zip(groups[part].tolist(), rows[part].tolist(), strict=True)]
            position = step * self.batch_size + len(items)
        return items

    def slices(self, start: int, rank: int, world_size: int, parts: int = 1) -> Iterator[list[PlanItem]]:
        """This rank's rows from step `start` on, for ever: `parts` micro-batches a step, as even over the ranks as whole rows can be.

        Raises:
            ConfigError: the global batch does not divide by `parts`, or has fewer rows than there are micro-batches.
        """
        step, micro_batches = start, micro_batch_places(self.batch_size, rank, world_size, parts)
        while True:
            batch = self.batch(step)
            for places in micro_batches:
                yield [batch[place] for place in places]
            step += 1

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        """The epoch's order of groups, and the position in the epoch at which each window starts."""
        if epoch not in self._epochs:
            groups = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.rows_per_group))
            ends = np.cumsum(self.rows_per_group[groups])
            last_of_window = ends[self.window_groups - 1 :: self.window_groups]
            starts = [0, *(int(end) for end in last_of_window if end < self.rows)]
            _remember(self._epochs, epoch, (groups, starts), 2)
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The window's rows in the order of the stream: row group, and row in the group."""
        key = (epoch, window)
        if key not in self._windows:
            order, starts = self._epoch(epoch)
            groups = order[window * self.window_groups : (window + 1) * self.window_groups]
            sizes = self.rows_per_group[groups]
            group = np.repeat(groups, sizes)
            row = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            rng = np.random.default_rng([self.seed, epoch, window + 1])  # 0 is the order of groups: trailing zeros do not change a numpy seed
            layout = np.lexsort((rng.random(len(group)), np.repeat(np.arange(len(sizes)), sizes)))  # group by group, each one's rows shuffled
            place = (epoch * self.rows + starts[window] + np.arange(len(group))) % self.batch_size
            stream = np.empty_like(layout)
            stream[np.lexsort((rng.random(len(group)), place))] = layout  # lane by lane, each one's rows shuffled
            _remember(self._windows, key, (group[stream], row[stream]), 3)
        return self._windows[key]


def groups_held(window_groups: int, world_size: int) -> int:
    """Row groups that the reader of one of `world_size` ranks keeps, so as to read none twice in a window.

    A window's rows of a rank are a run of the layout: its share of the groups, and a part of one more. Kept are twice as many: at a window's end the
    micro-batches of a step take turns in both windows, and the groups at hand may be smaller than others.
    """
    return 2 * (-(-window_groups // world_size) + 1)


def micro_batch_places(batch_size: int, rank: int, world_size: int, parts: int) -> list[range]:
    """The places of the global batch that each of a rank's micro-batches takes: micro-batch p has, of the rank's slice, every place that is p modulo `parts`.

    Raises:
        ConfigError: the batch does not divide by `parts`, or has fewer rows than there are micro-batches.
    """
    if batch_size % parts or batch_size < world_size * parts:
        raise ConfigError(
            "batch_size does not divide", seen=f"{batch_size} over {world_size} workers x {parts} micro-batches",
            allowed=f"a multiple of {parts} that is at least {world_size * parts}",
        )  # fmt: skip
    begin, end = batch_size * rank // world_size, batch_size * (rank + 1) // world_size
    return [range(begin + (part - begin) % parts, end, parts) for part in range(parts)]


def _remember(cache: "OrderedDict[Key, Value]", key: Key, value: Value, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
