"""One thread that owns the model: work of its own and work that can be done for several at once, which is done for all that wait, take turns.

Nothing waits for company: whenever the thread is free it takes what is there, so a lone request is not delayed and a busy service gets full batches. Work
whose caller gave up, or whose time is over, is never begun.
"""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Group(Generic[T, R]):
    """Work that can be done for several items at once: items of one group are alike, so that `run` takes them together.

    Args:
        run: gives a result for each item.
        most: items of one call.
    """

    def __init__(self, run: Callable[[Sequence[T]], Sequence[R]], most: int) -> None:
        self.run, self.most = run, most


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    group: Group[Any, Any] | None  # None: `item` is a call
    item: Any
    until: float
    result: Future[Any]


class ModelThread:
    """The thread. Start it by making it, end it with `close`."""

    def __init__(self) -> None:
        self._alone: deque[_Job] = deque()
        self._grouped: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._open, self._batch_next = True, False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """The thread runs."""
        return self._thread.is_alive()

    async def call(self, work: Callable[[], R], until: float) -> R:
        """The result of a call on the thread; TimeoutError where it cannot begin before `until` (`time.monotonic`)."""
        result: R = await asyncio.wrap_future(self._put(self._alone, None, work, until))
        return result

    async def grouped(self, group: Group[T, R], item: T, until: float) -> R:
        """The result for one item of a group, as `call`. An item that makes its batch fail is tried alone."""
        result: R = await asyncio.wrap_future(self._put(self._grouped, group, item, until))
        return result

    def close(self) -> None:
        """End the thread after what it does now; what waits is cancelled."""
        with self._changed:
            self._open = False
            for job in (*self._alone, *self._grouped):
                job.result.cancel()
            self._changed.notify()

    def _put(self, queue: deque[_Job], group: Group[Any, Any] | None, item: Any, until: float) -> Future[Any]:
        job = _Job(group, item, until, Future())
        with self._changed:
            queue.append(job)
            self._changed.notify()
        job.result.add_done_callback(functools.partial(self._forget, id(job)))
        return job.result

    def _forget(self, number: int, done: Future[Any]) -> None:
        """Work that nobody waits for any more leaves its queue, and with it what it holds; `number` is its ``id``, which keeps nothing alive."""
        if done.cancelled():
            with self._changed:
                for queue in (self._alone, self._grouped):
                    for job in [job for job in queue if id(job) == number]:
                        queue.remove(job)

    def _work(self) -> None:
        while jobs := self._next():
            ready = [job for job in jobs if job.result.set_running_or_notify_cancel() and not _late(job)]
            if ready:
                _do(ready)
            del jobs, ready  # no result is kept alive while the thread waits

    def _next(self) -> list[_Job]:
        """What to do next: one job alone, or all of the first waiting group up to its most, in turn where both wait; nothing when closed."""
        with self._changed:
            while self._open and not self._alone and not self._grouped:
                self._changed.wait()
            if not self._open:
                return []
            if self._alone and not (self._grouped and self._batch_next):
                self._batch_next = True
                return [self._alone.popleft()]
            self._batch_next = False
            group = self._grouped[0].group
            assert group is not None
            same = [job for job in self._grouped if job.group is group][: group.most]
            for job in same:  # in place: `_put` may have been given this queue already
                self._grouped.remove(job)
            return same


def _late(job: _Job) -> bool:
    late = time.monotonic() >= job.until
    if late:
        job.result.set_exception(TimeoutError())
    return late


def _do(jobs: list[_Job]) -> None:
    """Do jobs and empty the list: a failure remembers this frame, and what it remembers must not lead back to the result that holds it."""
    group = jobs[0].group
    try:
        results = [jobs[0].item()] if group is None else list(group.run([job.item for job in jobs]))
        assert len(results) == len(jobs), "a result for each item"
    except BaseException as error:  # whatever it is belongs to the caller, and the thread lives on
        if len(jobs) == 1:
            jobs.pop().result.set_exception(error)
        while jobs:
            _do([jobs.pop(0)])
        return
    for job, result in zip(jobs, results, strict=True):
        job.result.set_result(result)
