"""How fast Ray Data feeds training workers: actors that take batches as a training does, and do nothing with them but wait as long as a step takes."""

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from uniovseg.data.makers import SampleMaker
from uniovseg.records import Batch
from uniovseg.runtime.datasets import PlannedRows, ray_batches


@dataclass(frozen=True, slots=True)
class Feeding:
    """What one worker took: samples, seconds in all, and seconds of these that it waited for data."""

    samples: int
    seconds: float
    waited: float


def take_steps(batches: Iterator[Batch], steps: int, step_seconds: float) -> Feeding:
    """Take `steps` batches and stay `step_seconds` with each."""
    started, samples, waited = time.perf_counter(), 0, 0.0
    for _ in range(steps):
        since = time.perf_counter()
        samples += len(next(batches).keys)
        waited += time.perf_counter() - since
        time.sleep(step_seconds)
    return Feeding(samples, time.perf_counter() - started, waited)


class _Worker:
    """A training worker without a model."""

    def __init__(self, rows: PlannedRows, maker: SampleMaker[Any, Batch], feed_cpus: float, steps: int) -> None:
        ray.data.DataContext.get_current().execution_options.resource_limits = ray.data.ExecutionResources(cpu=feed_cpus)
        self._batches = ray_batches(rows, maker, 0, steps)

    def skip(self, steps: int) -> None:
        """Take batches that are not counted."""
        deque(itertools.islice(self._batches, steps), maxlen=0)

    def take(self, steps: int, step_seconds: float) -> Feeding:
        """As `take_steps`."""
        return take_steps(self._batches, steps, step_seconds)


class FeedWorkers:
    """Workers that are fed by Ray Data, each with CPUs of its own for that, and have begun; to be used within `ray_session`.

    Args:
        rows: what each rank reads.
        maker: makes the samples.
        feed_cpus: CPUs of a worker's feed; at least `uniovseg.runtime.datasets.CPUS_OF_A_FEED`.
        first: steps that are taken at once, until everything runs.
        steps: steps that may be taken after these.
    """

    def __init__(self, rows: Sequence[PlannedRows], maker: SampleMaker[Any, Batch], feed_cpus: float, first: int, steps: int) -> None:
        actor = ray.remote(num_cpus=1)(_Worker)
        self._workers = [actor.remote(item, maker, feed_cpus, first + steps) for item in rows]
        ray.get([worker.skip.remote(first) for worker in self._workers])

    def take(self, steps: int, step_seconds: float = 0.0) -> list[Feeding]:
        """Let all workers take steps at the same time."""
        feedings: list[Feeding] = ray.get([worker.take.remote(steps, step_seconds) for worker in self._workers])
        return feedings

    def close(self) -> None:
        """End the workers and their feeds."""
        for worker in self._workers:
            ray.kill(worker)
