"""What Ray's errors are turned into."""

import pickle

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train import Checkpoint, ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from uniovseg.errors import ConfigError, DataError, DeviceMemoryError, TrainingError, UniOVSegError
from uniovseg.runtime.failures import FailureBudget, explained

KILLED = OutOfMemoryError("Task was killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2) was 31.9GB / 32.0GB")


def of_a_task(error: Exception) -> Exception:
    """As Ray raises a task's error in who waits for it."""
    raised: Exception = RayTaskError("make_samples", "Traceback", error).as_instanceof_cause()
    return raised


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ControllerError(WorkerGroupStartupTimeoutError(4)), ["could not be started together", "seen: 4 of 1 CPUs", "min_workers"]),
        (ControllerError(TrainingError("worker 1 failed: bad; seen: sa_7")), ["worker 1 failed: bad; seen: sa_7"]),
        (ControllerError(ValueError("snapshot")), ["controller", "seen: snapshot"]),
        (WorkerGroupError("...", {1: KILLED}), ["ran out of memory, and Ray ended worker 1", "31.9GB", "cpus_per_worker"]),
        (WorkerGroupError("...", {3: WorkerHealthCheckFailedError("no answer", KILLED)}), ["Ray ended worker 3"]),
        (
            WorkerGroupError(
                "...", {0: ActorDiedError(), 2: UserExceptionWithTraceback(DeviceMemoryError("too much", fix="accumulate"), "Traceback")}
            ),
            ["worker 2 failed: too much; accumulate"],
        ),
        (WorkerGroupError("...", {0: UserExceptionWithTraceback(DataError("bad", seen="sa_7"), "Traceback")}), ["worker 0 failed: bad; seen: sa_7"]),
        (WorkerGroupError("...", {0: of_a_task(of_a_task(DataError("bad", seen="sa_7")))}), ["worker 0 failed: bad; seen: sa_7"]),
        (WorkerGroupError("rank 0: Segmentation fault", {0: ActorDiedError()}), ["the training failed", "Segmentation fault"]),
    ],
)
def test_the_reason_is_in_the_users_words(error: TrainingFailedError, parts: list[str]) -> None:
    text = str(explained(pickle.loads(cloudpickle.dumps(error)), "4 of 1 CPUs"))  # noqa: S301 - as it comes from the controller
    assert "\n" not in text and all(part in text for part in parts), text


def died(preempted: bool = False) -> Exception:
    error: Exception = WorkerHealthCheckFailedError("no answer", RayActorError(preempted=preempted))
    return error


def test_failures_count_from_the_newest_checkpoint_on() -> None:
    budget, kept = FailureBudget(2, "4 of 1 CPUs"), Checkpoint("/run/step_0000003")
    for _ in range(5):
        budget.after_exception(None, {1: died()})
        budget.after_exception(None, {1: died()})
        budget.after_report(None, [{}], kept)
    budget.after_exception(None, {1: died()})
    budget.after_report(None, [{}], None)  # a report is no progress
    budget.after_exception(None, {1: died()})
    with pytest.raises(TrainingError, match="the training failed; seen: .*worker 1: "):
        budget.after_exception(None, {1: died()})


def test_lost_spot_nodes_do_not_count() -> None:
    budget = FailureBudget(0, "4 of 1 CPUs")
    for _ in range(5):
        budget.after_exception(None, {0: ConnectionError("the others are gone"), 1: died(preempted=True)})
    with pytest.raises(TrainingError):
        budget.after_exception(None, {1: died()})


@pytest.mark.parametrize("kind", [DataError, ConfigError])
def test_what_another_try_would_meet_again_ends_the_run_at_once(kind: type[UniOVSegError]) -> None:
    budget = FailureBudget(9, "4 of 1 CPUs")
    with pytest.raises(TrainingError, match="worker 1 failed: sample sa_7: the image cannot be decoded"):
        budget.after_exception(None, {0: ConnectionError("the others are gone"), 1: kind("sample sa_7: the image cannot be decoded")})
