"""MLflow: one run a job. The driver opens the run and closes it; whoever trains logs to its id in batches.

Tracking is on when a tracking URI is configured. An SQLite store is initialised once, by the driver: two processes that do it together break it.
MLflow is imported where it is used: that takes two seconds, which a worker that does not log need not spend.
"""

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uniovseg.config import Config, flatten, to_yaml
from uniovseg.errors import ConfigError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"


class TrackingConfig(Config):
    """Where the run is recorded."""

    uri: str | None = Field(None, description="MLflow tracking URI such as sqlite:///runs/mlflow.db; null: MLFLOW_TRACKING_URI, else off")
    experiment: str = Field("uniovseg", description="MLflow experiment")

    def resolve(self) -> str | None:
        """The tracking URI in force, or None for no tracking. The path of an SQLite file becomes absolute: workers have another working directory.

        Raises:
            ConfigError: `uri` holds credentials, which would end up among the parameters and in checkpoints.
        """
        if self.uri is not None and "@" in urlsplit(self.uri).netloc:
            raise ConfigError(
                "tracking.uri holds credentials",
                fix="give the whole URI as MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri and uri.startswith(SQLITE) else uri


class Run:
    """A handle on one MLflow run; picklable, so that a worker can log to the driver's run. All calls do nothing when tracking is off."""

    def __init__(self, uri: str | None, run_id: str | None) -> None:
        self.uri = uri
        self.run_id = run_id

    def _client(self) -> "MlflowClient":
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log metrics of one step in one request. Values that are not finite are left out."""
        if self.run_id is None:
            return
        from mlflow.entities import Metric

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
        """One line for a person: where the run can be seen. It shows no credentials of the URI."""
        if self.uri is None:
            return "off (no tracking URI)"
        place = urlsplit(self.uri).netloc
        return f"{self.run_id} in {self.uri.replace(place, place.rpartition('@')[2], 1)}"


def code_version() -> dict[str, str]:
    """The git commit of the working directory and whether it has changes; empty outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return {}


def _experiment_id(client: "MlflowClient", name: str) -> str:
    """Id of the experiment, made if needed. (MLflow's own set_experiment would set the tracking URI of the whole process, by its environment.)"""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job has made it in between
            if found is None:
                raise
    return str(found.experiment_id)


@contextmanager
def tracked_run(tracking: TrackingConfig, name: str, config: Config, tags: dict[str, Any] | None = None) -> Iterator[Run]:
    """Open a run with the configuration as parameters, give it to the body, and close it as FINISHED or FAILED."""
    uri = tracking.resolve()
    if uri is None:
        yield Run(None, None)
        return
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    run = Run(uri, None)
    client = run._client()
    run.run_id = client.create_run(_experiment_id(client, tracking.experiment), run_name=name, tags=code_version() | (tags or {})).info.run_id
    parameters = [Param(key, str(value)[:500]) for key, value in flatten(config).items()]
    for begin in range(0, len(parameters), 100):
        client.log_batch(run.run_id, params=parameters[begin : begin + 100])
    client.log_text(run.run_id, to_yaml(config), "config.yaml")
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        client.set_terminated(run.run_id, status)
