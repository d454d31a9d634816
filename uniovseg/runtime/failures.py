"""Ray's reasons for the end of a training, in a user's words: what happened, and what to do."""

from collections.abc import Iterator

from ray.exceptions import OutOfMemoryError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from uniovseg.errors import TrainingError, UniOVSegError

INNER = ("_base_exc", "health_check_failure", "cause", "__cause__")
"""Where the errors of Ray Train hold what they wrap."""


def _chain(error: object) -> Iterator[BaseException]:
    """An error and all that it wraps."""
    if isinstance(error, BaseException):
        yield error
        for name in INNER:
            yield from _chain(getattr(error, name, None))


def explained(error: TrainingFailedError, workers: str) -> TrainingError:
    """The error to raise for one of Ray Train's.

    Args:
        error: what ``TorchTrainer.fit`` raised.
        workers: how many there should be and what each takes, for people.
    """
    if isinstance(error, ControllerError):
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
