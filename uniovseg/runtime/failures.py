"""How often a training's workers may fail, and Ray's reasons for its end in a user's words: what happened, and what to do."""

from collections.abc import Iterator
from typing import Any

from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.train import Checkpoint, ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from uniovseg.errors import ConfigError, DataError, TrainingError, UniOVSegError

INNER = ("_base_exc", "health_check_failure", "cause", "__cause__")
"""Where the errors of Ray Train hold what they wrap."""


def _chain(error: object) -> Iterator[BaseException]:
    """An error and all that it wraps, but for Ray's wrapping of a task's error, which is of that error's class too and says a traceback."""
    if isinstance(error, BaseException):
        if not isinstance(error, RayTaskError):
            yield error
        for name in INNER:
            yield from _chain(getattr(error, name, None))


class FailureBudget(UserCallback):  # type: ignore[misc]
    """Ends a training whose workers fail once too often without a new checkpoint in between, or by what another try would meet again.

    Ray's own budget is for the whole run, so that any run which is long enough would end by it. Lost spot nodes, which Ray knows, do not count.
    (What a callback raises ends the training.)

    Args:
        most: failures in a row after which the workers are started again.
        workers: for `explained`.
    """

    def __init__(self, most: int, workers: str) -> None:
        self.most, self.workers, self.failures = most, workers, 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """A checkpoint is progress: what failed before it no longer counts."""
        if checkpoint is not None:
            self.failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Count a failure. Raises TrainingError where the workers are not to be started again."""
        causes = [cause for failure in worker_exceptions.values() for cause in _chain(failure)]
        if any(getattr(cause, "preempted", False) for cause in causes):
            return
        self.failures += 1
        if self.failures > self.most or any(isinstance(cause, DataError | ConfigError) for cause in causes):
            said = "; ".join(f"worker {rank}: {failure}" for rank, failure in sorted(worker_exceptions.items()))
            raise explained(WorkerGroupError(said, worker_exceptions), self.workers)


def explained(error: TrainingFailedError, workers: str) -> TrainingError:
    """The error to raise for one of Ray Train's.

    Args:
        error: what ``TorchTrainer.fit`` raised.
        workers: how many there should be and what each takes, for people.
    """
    if isinstance(error, ControllerError):
        if isinstance(error.controller_failure, TrainingError):
            return error.controller_failure
        said = " ".join(str(error.controller_failure).split())[:300]
        if type(error.controller_failure).__name__.startswith("WorkerGroupStartup"):
            return TrainingError(
                "the workers could not be started together", seen=f"{workers}; {said}",
                fix="something else may hold their places (ray status), or nodes are yet to come: start_minutes says how long to wait; fewer workers "
                "need less, and min_workers lets the run begin with fewer",
            )  # fmt: skip
        return TrainingError(
            "Ray's controller of the training failed", seen=said, fix="submit the same run again: it goes on from the newest checkpoint"
        )
    failures = sorted(error.worker_failures.items()) if isinstance(error, WorkerGroupError) else []
    for rank, failure in failures:
        for inner in _chain(failure):
            if isinstance(inner, OutOfMemoryError):
                return TrainingError(
                    f"a node ran out of memory, and Ray ended worker {rank}", seen=" ".join(str(inner).split())[:300],
                    fix="give each worker a larger share of a node (cpus_per_worker), or lower data.window_groups, data.threads or the object store",
                )  # fmt: skip
            if isinstance(inner, UniOVSegError):
                return TrainingError(f"worker {rank} failed: {inner}")
    return TrainingError("the training failed", seen=" ".join(str(error).split())[-600:])
