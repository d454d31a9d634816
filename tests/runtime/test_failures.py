"""What Ray's errors are turned into."""

import pickle

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from uniovseg.errors import DataError, DeviceMemoryError
from uniovseg.runtime.failures import explained

KILLED = OutOfMemoryError("Task was killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2) was 31.9GB / 32.0GB")


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ControllerError(WorkerGroupStartupTimeoutError(4)), ["could not be started together", "seen: 4 of 1 CPUs", "min_workers"]),
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
        (WorkerGroupError("rank 0: Segmentation fault", {0: ActorDiedError()}), ["the training failed", "Segmentation fault"]),
    ],
)
def test_the_reason_is_in_the_users_words(error: TrainingFailedError, parts: list[str]) -> None:
    text = str(explained(pickle.loads(pickle.dumps(error)), "4 of 1 CPUs"))  # noqa: S301 - as it comes from the controller
    assert "\n" not in text and all(part in text for part in parts), text
