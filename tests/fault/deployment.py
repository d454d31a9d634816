"""A deployment whose parts can be taken away while a job trains: the workers, the head, the way to the store, the tracking server."""

import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import psutil

from tests.e2e.cluster import client, end_tree, free_port, node_environment, short_folder, start_mlflow, start_ray, submission
from tests.object_store import make_bucket
from uniovseg.benchmarks.fault_proxy import FaultProxy, Weather
from uniovseg.benchmarks.object_store import ObjectStore
from uniovseg.checkpoint import MANIFEST

SLOTS = 3
"""CPU slots of the one node: two training workers, and one for tasks that look around."""

SECONDS = 1800
"""Only so that a hang ends; nothing here takes as long."""


class Job:
    """A submitted job, and what it prints."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def require_running(self) -> None:
        """Fail when the job is over."""
        assert self.process.poll() is None, f"the job has ended: {self.printed()}"

    def succeed(self) -> None:
        """Wait for the job's end, which must be a good one."""
        assert self.process.wait(SECONDS) == 0, self.printed()

    def printed(self) -> str:
        """The end of what was printed."""
        return self.log.read_text()[-6000:]

    def forget(self) -> None:
        """End the client that waits for the job."""
        self.process.kill()
        self.process.wait(30)


class ResubmittedJob(Job):
    """A job that is submitted again, as its message asks for, where a worker died in the moment in which Ray launched all: Ray then gives up the run.

    Args:
        submit: submits it.
    """

    def __init__(self, submit: Callable[[], Job]) -> None:
        self._submit = submit
        self._take(submit())

    def _take(self, job: Job) -> None:
        self.log, self.process = job.log, job.process

    def _given_up(self) -> bool:
        return self.process.returncode not in (None, 0) and "Ray's controller of the training failed" in self.printed()

    def require_running(self) -> None:
        """As of any job, after it was submitted again where that is due."""
        self.process.poll()
        if self._given_up():
            self._take(self._submit())
        super().require_running()

    def succeed(self) -> None:
        """As of any job, submitted again as often as that is due."""
        self.process.wait(SECONDS)
        while self._given_up():
            self._take(self._submit())
            self.process.wait(SECONDS)
        super().succeed()


class Deployment:
    """A store behind a proxy, a tracking server, and a Ray head that trains on itself; `stack` ends them.

    What the nodes read and write goes through the proxy; the test looks into the store directly (``clear``).
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self.folder = stack, folder
        store = ObjectStore(folder / "store")
        stack.callback(store.close)
        self.proxy = FaultProxy(store.endpoint)
        stack.callback(self.proxy.close)
        self.bucket = make_bucket(store)
        self.clear = store.environment()
        self.environment = node_environment(store, self.proxy.endpoint)
        self._port, self._jobs = free_port(), list[Job]()
        self.tracking_uri = f"http://127.0.0.1:{self._port}"
        self.start_tracking()
        self.start_head()

    def start_tracking(self) -> None:
        """Start the tracking server, on its address and its file."""
        self._tracking = start_mlflow(self._stack, self.folder, self.environment, f"{self.bucket}/mlflow", self._port)

    def end_tracking(self) -> None:
        """Kill the tracking server."""
        end_tree(self._tracking)

    def start_head(self) -> None:
        """Start a Ray cluster of one node."""
        self.dashboard, _, (self.head,) = start_ray(self._stack, self.folder, self.environment, [(short_folder(self._stack), SLOTS)])

    def kill_head(self) -> None:
        """Kill the head and all that it has started, as when its machine is gone."""
        end_tree(self.head)

    def store_away(self, away: bool) -> None:
        """Take the store away from the nodes, or give it back."""
        self.proxy.set(Weather(away=away))

    def training_workers(self) -> list[psutil.Process]:
        """The processes of the training's workers; Ray writes what a process does into its command line."""
        found: list[psutil.Process] = []
        for child in psutil.Process(self.head.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def submit(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Job:
        """Submit a job and do not wait for it."""
        command = submission(self.dashboard, {"MLFLOW_TRACKING_URI": self.tracking_uri} | dict(variables or {}), arguments)
        job = Job(command, client(self.environment), self.folder / f"job_{len(self._jobs)}.log")
        self._jobs.append(job)
        self._stack.callback(job.forget)
        return job

    def clear_up(self) -> None:
        """After a test: what a failed one has left running takes the places of the next one's workers, so it goes, with the head."""
        running = [job for job in self._jobs if job.process.poll() is None]
        if running:
            for job in running:
                job.forget()
            self.kill_head()
            self.start_head()


@cache
def s3() -> Any:
    """A client of the store that the environment names."""
    return boto3.client("s3")


def read_now(uri: str) -> str:
    """An object's text in one request, so that it is of one moment: what is written anew all the time may become shorter; empty where there is none."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        return str(s3().get_object(Bucket=bucket, Key=key)["Body"].read().decode())
    except s3().exceptions.NoSuchKey:
        return ""


def logged(output: str) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; none before the first."""
    return [json.loads(line) for line in read_now(f"{output}/metrics.jsonl").splitlines()]


def last_step(output: str) -> int:
    """The last step that a run has logged; 0 before the first."""
    lines = logged(output)
    return int(lines[-1]["step"]) if lines else 0


def reported(output: str) -> dict[str, datetime]:
    """The checkpoints that Ray knows of, by name, and when each was made whole. No run has to make one of them again."""
    text = read_now(f"{output}/checkpoint_manager_snapshot.json")
    names = [result["checkpoint_dir_name"] for result in json.loads(text)["checkpoint_results"]] if text else []
    bucket, _, prefix = output.removeprefix("s3://").partition("/")
    return {name: s3().head_object(Bucket=bucket, Key=f"{prefix}/{name}/{MANIFEST}")["LastModified"] for name in names}


def wait(seconds: float) -> None:
    """Let time go by."""
    threading.Event().wait(seconds)


def wait_until(ready: Callable[[], bool], job: Job) -> None:
    """Look again and again until it is so; the job must run until then."""
    while not ready():
        job.require_running()
        wait(0.1)


def fill(folder: Path) -> Path:
    """Fill a file system to its last byte, also what has become free since the last call; returns the file that does."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(65536)):
            pass
    return path
