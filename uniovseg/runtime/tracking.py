"""MLflow: one run a job. The driver opens the run and closes it; whoever trains logs to its id in batches.

Tracking is on when a tracking URI is configured. An SQLite store is initialised once, by the driver: two processes that do it together break it.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunStatus
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray
from pydantic import Field

from uniovseg.config import Config, flatten, to_yaml


class TrackingConfig(Config):
    """Where the run is recorded."""

    uri: str | None = Field(None, description="MLflow tracking URI such as sqlite:///runs/mlflow.db; null: MLFLOW_TRACKING_URI, else off")
    experiment: str = Field("uniovseg", description="MLflow experiment")

    def resolve(self) -> str | None:
        """The tracking URI in force, or None for no tracking."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI")


class Run:
    """A handle on one MLflow run; picklable, so that a worker can log to the driver's run. All calls do nothing when tracking is off."""

    def __init__(self, uri: str | None, run_id: str | None) -> None:
        self.uri = uri
        self.run_id = run_id

    def _client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics of one step in one request. Values that are not finite are left out."""
        if self.run_id is None:
            return
        now = int(time.time() * 1000)
        self._client().log_batch(self.run_id, [Metric(name, float(value), now, step) for name, value in metrics.items() if np.isfinite(value)])

    def log_pictures(self, step: int, pictures: dict[str, NDArray[np.uint8]]) -> None:
        """Store RGB pictures as artifacts ``pictures/step_N/name.png``."""
        if self.run_id is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, picture in pictures.items():
                cv2.imwrite(str(Path(folder) / f"{name}.png"), np.ascontiguousarray(picture[..., ::-1]))
            self._client().log_artifacts(self.run_id, folder, f"pictures/step_{step:07d}")

    def log_file(self, path: Path) -> None:
        """Store a file as an artifact."""
        if self.run_id is not None:
            self._client().log_artifact(self.run_id, str(path))

    def describe(self) -> str:
        """One line for a person: where the run can be seen."""
        return "off (no tracking URI)" if self.run_id is None else f"{self.run_id} in {self.uri}"


def code_version() -> dict[str, str]:
    """The git commit of the working directory and whether it has changes; empty outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


@contextmanager
def tracked_run(tracking: TrackingConfig, name: str, config: Config, tags: dict[str, Any] | None = None) -> Iterator[Run]:
    """Open a run with the configuration as parameters, give it to the body, and close it as FINISHED or FAILED."""
    uri = tracking.resolve()
    if uri is None:
        yield Run(None, None)
        return
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = mlflow.set_experiment(tracking.experiment)
    created = client.create_run(experiment.experiment_id, run_name=name, tags=code_version() | (tags or {}))
    run = Run(uri, created.info.run_id)
    parameters = [Param(key, str(value)[:500]) for key, value in flatten(config).items()]
    for begin in range(0, len(parameters), 100):
        client.log_batch(created.info.run_id, params=parameters[begin : begin + 100])
    client.log_text(created.info.run_id, to_yaml(config), "config.yaml")
    status = RunStatus.to_string(RunStatus.FAILED)
    try:
        yield run
        status = RunStatus.to_string(RunStatus.FINISHED)
    finally:
        client.set_terminated(created.info.run_id, status)
