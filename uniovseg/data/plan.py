"""The order of samples, as a plan that anyone can compute: which row is sample i of a run.

An epoch, given (seed, epoch), is a permutation of the row groups; windows of consecutive groups in that order are shuffled row by row, so that memory
and reads stay local. The epochs follow each other without a seam, and the stream is cut into global batches: rows that fill no batch open the next
epoch's first one. Step s is always the same batch, so a resume needs nothing but the step.

Rank r of n takes the r-th slice of each global batch. Within a batch the rows are ordered by (window, place of the group in the window), which changes
nothing for the gradient and gives each rank mostly the same 1/n of a window's groups: with n ranks a group is read about once, not n times.
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

    def epoch_of(self, step: int) -> int:
        """The epoch that a step's first row belongs to."""
        return step * self.batch_size // self.rows

    def batch(self, step: int) -> list[PlanItem]:
        """The rows of a step's global batch, ordered so that neighbours share row groups."""
        items: list[tuple[int, int, int, PlanItem]] = []
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, within = divmod(position, self.rows)
            groups, starts = self._epoch(epoch)
            window = bisect_right(starts, within) - 1
            group_of, row_of = self._window(epoch, window)
            first = within - starts[window]
            taken = min(len(group_of) - first, end - position)
            for place, row in zip(group_of[first : first + taken], row_of[first : first + taken], strict=True):
                group = int(groups[window * self.window_groups + place])
                items.append((epoch, window, int(place), PlanItem(epoch, group, int(row))))
            position += taken
        return [item for *_, item in sorted(items)]

    def slices(self, start: int, rank: int, world_size: int, parts: int = 1) -> Iterator[list[PlanItem]]:
        """This rank's rows from step `start` on, for ever: `parts` equal micro-batches a step.

        Raises:
            ConfigError: the global batch does not divide by ``world_size * parts``.
        """
        share, rest = divmod(self.batch_size, world_size * parts)
        if rest:
            raise ConfigError(
                "batch_size does not divide evenly", seen=f"{self.batch_size} over {world_size} workers x {parts} micro-batches",
                allowed=f"a multiple of {world_size * parts}",
            )  # fmt: skip
        step = start
        while True:
            batch = self.batch(step)
            for part in range(rank * parts, (rank + 1) * parts):
                yield batch[part * share : (part + 1) * share]
            step += 1

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        """The epoch's order of groups, and the position in the epoch at which each window starts."""
        if epoch not in self._epochs:
            groups = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows_per_group))
            ends = np.cumsum(self.rows_per_group[groups])
            last_of_window = ends[self.window_groups - 1 :: self.window_groups]
            starts = [0, *(int(end) for end in last_of_window if end < self.rows)]
            _remember(self._epochs, epoch, (groups, starts), 2)
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The window's rows in shuffled order: place of the group in the window, and row in the group."""
        key = (epoch, window)
        if key not in self._windows:
            groups, _ = self._epoch(epoch)
            sizes = self.rows_per_group[groups[window * self.window_groups : (window + 1) * self.window_groups]]
            place = np.repeat(np.arange(len(sizes)), sizes)
            row = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            order = np.random.default_rng([self.seed, epoch, window]).permutation(len(place))
            _remember(self._windows, key, (place[order], row[order]), 3)
        return self._windows[key]


def _remember(cache: "OrderedDict[Key, Value]", key: Key, value: Value, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
