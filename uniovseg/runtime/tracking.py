"""MLflow: one run a job. The driver opens the run and closes it; whoever trains logs to its id.

Tracking is on when a tracking URI is configured. What is logged goes through a buffer (`uniovseg.runtime.delivery`), so that a tracking server that goes
away neither stops nor slows a run; only to open a run it must be there. An SQLite store is initialised by one driver at a time: two processes that do
it together break it. MLflow is imported where it is used: that takes two seconds, which a worker that does not log need not spend.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uniovseg import storage
from uniovseg.config import Config, flatten, to_yaml
from uniovseg.errors import ConfigError, MissingFileError, StorageError, TrainingStoppedError
from uniovseg.pictures import encode_picture
from uniovseg.runtime import provenance
from uniovseg.runtime.delivery import (
    NOT_THERE,
    Artifact,
    Delivery,
    Ending,
    Entry,
    Metrics,
    Parameters,
    connect,
    has_secrets,
    keep,
    said,
    without_credentials,
)
from uniovseg.runtime.system_metrics import SystemMetrics
from uniovseg.storage import Location

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"

STARTS = 3
"""How often a run is tried to be opened; between the tries the pauses of `storage.pause`."""

MOST_NUMBERS, PER_CLASS = 50, "per_class"
"""A mapping of a report with more numbers than this, or of this name, is a table: it is in the report's file, not among the metrics."""

IDENTITY = "mlflow.json"
"""File of a run's folder that says which MLflow run it is, and of which configuration (a SHA-256)."""

Resume = Literal["never", "same", "always"]
"""When a job goes on with the run that its folder had before: see `tracked_run`."""

PARENT = "mlflow.parentRunId"
"""MLflow's own tag of a run that belongs to another."""


class TrackingConfig(Config):
    """Where the run is recorded."""

    uri: str | None = Field(None, description="MLflow tracking URI such as sqlite:///runs/mlflow.db; null: MLFLOW_TRACKING_URI, else off")
    experiment: str = Field("uniovseg", description="MLflow experiment")
    parent: str | None = Field(None, description="id of the MLflow run that this one belongs to, such as its sweep's; null: none")
    register_as: str | None = Field(None, description="name in MLflow's registry that a finished model is registered under; null: it is not")
    patience: float = Field(30.0, ge=0, description="seconds that a finished run waits for a tracking server that is away")

    def resolve(self) -> str | None:
        """The tracking URI in force, or None for no tracking. The path of an SQLite file becomes absolute: workers have another working directory.

        Raises:
            ConfigError: `uri` holds credentials or a query, which would end up among the parameters and in checkpoints.
        """
        if self.uri is not None and has_secrets(self.uri):
            raise ConfigError(
                "tracking.uri holds credentials or a query",
                fix="give the whole URI as MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri and uri.startswith(SQLITE) else uri


class Run:
    """A handle on one MLflow run; picklable, so that a worker can log to the driver's run. All calls do nothing when tracking is off.

    Use it as a context manager where something is logged: at the end it waits for what is on its way.

    Args:
        uri: MLflow tracking URI; None: tracking is off.
        run_id: id of the run; None: tracking is off.
        folder: the run's folder, where what did not arrive is kept; None: it is lost.
        patience: seconds to wait at the end.
        started: when the run began, seconds since 1970.
    """

    def __init__(self, uri: str | None, run_id: str | None, folder: Location | None = None, patience: float = 30.0, started: float = 0.0) -> None:
        self.uri, self.run_id, self.folder, self.patience, self.started = uri, run_id, folder, patience, started
        self._delivery: Delivery | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_delivery": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _put(self, entry: Entry) -> None:
        if self.uri is None or self.run_id is None:
            return
        if self._delivery is None:
            self._delivery = Delivery(self.uri, self.run_id)
        self._delivery.put(entry)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one step. Values that are not finite are left out, and so is a metric's value at a step that is not after its last one."""
        values = {_name(name): float(value) for name, value in metrics.items() if np.isfinite(value)}
        if values:
            self._put(Metrics(step, _now(), values))

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log parameters; one that the run has keeps its value."""
        self._put(Parameters({_name(name): str(value)[:500] for name, value in parameters.items()}))

    def log_pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Store RGB pictures as artifacts ``pictures/step_N/name.png``."""
        for name, picture in pictures.items():
            if self.run_id is not None:
                self.log_bytes(f"pictures/step_{step:07d}/{name}.png", encode_picture(picture))

    def log_bytes(self, path: str, data: bytes) -> None:
        """Store a file of this content as the artifact `path`."""
        self._put(Artifact(path, data))

    def log_file(self, path: Path) -> None:
        """Store a file as an artifact."""
        if self.run_id is not None:
            self.log_bytes(path.name, path.read_bytes())

    def log_report(self, report: Mapping[str, Any], step: int = 0) -> None:
        """Store a job's report as the artifact report.json, and its numbers as metrics of `step` by dotted names."""
        self.log(step, numbers(report))
        self.log_bytes("report.json", json.dumps(report, indent=2, default=str).encode())

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._put(Ending(status, _now()))
        self.close()

    def close(self) -> None:
        """Wait for what is on its way; what has not arrived in time is kept in the run's folder, with a warning that says what to do with it."""
        delivery, self._delivery = self._delivery, None
        left = delivery.close(self.patience) if delivery else []
        if not left:
            return
        assert self.uri is not None and self.run_id is not None
        where = "it is lost, as the run has no folder"
        if self.folder is not None:
            try:
                keep(self.folder, self.uri, self.run_id, left)
                where = f"to deliver it later: python -m uniovseg.runtime.delivery {self.folder.uri}"
            except StorageError as error:
                where = f"it is lost: {error}"
        logger.warning("the tracking server does not answer: %d entries of run %s have not arrived; %s", len(left), self.run_id, where)

    def describe(self) -> str:
        """One line for a person: where the run can be seen. It shows no credentials of the URI."""
        return "off (no tracking URI)" if self.uri is None else f"{self.run_id} in {without_credentials(self.uri)}"


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _name(name: str) -> str:
    """A name that MLflow takes: it refuses all but letters, digits and a few signs."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report by dotted keys, without those in lists and in tables (`MOST_NUMBERS`, `PER_CLASS`)."""
    found: dict[str, float] = {}
    for key, value in report.items():
        if isinstance(value, Mapping) and key != PER_CLASS:
            inner = numbers(value)
            found |= {f"{key}.{name}": number for name, number in inner.items()} if len(inner) <= MOST_NUMBERS else {}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[str(key)] = float(value)
    return found


_OPEN: ContextVar[Run | None] = ContextVar("_OPEN", default=None)


def open_run() -> Run:
    """The run that this process has open, the innermost of `tracked_run`; one that is off where there is none."""
    return _OPEN.get() or Run(None, None)


@contextmanager
def tracked_run(
    tracking: TrackingConfig,
    name: str,
    config: Config,
    tags: dict[str, Any] | None = None,
    *,
    parent: str | None = None,
    folder: Location | None = None,
    resume: Resume = "never",
) -> Iterator[Run]:
    """Open a run with the configuration as parameters, give it to the body, and close it as FINISHED, FAILED, or, where it was stopped, KILLED.

    Args:
        tracking: where.
        name: the run's name, for people.
        config: what its parameters are.
        tags: further tags.
        parent: id of the run it belongs to; None: ``tracking.parent``, else the run that this process has open, if it has one.
        folder: the job's output, where what the server did not take is kept.
        resume: whether to go on with the run that `folder` had before, if there is one, so that a job that is submitted again is one run. "same": if its
            configuration was this one, as a run keeps the parameters that it began with.

    Raises:
        StorageError: the tracking server does not answer.
        ConfigError: the tracking URI cannot be used.
    """
    uri = tracking.resolve()
    if uri is None:
        yield Run(None, None)
        return
    outer = open_run()
    parent = parent or tracking.parent or (outer.run_id if outer.uri == uri else None)
    facts = provenance.environment() | (tags or {}) | ({PARENT: parent} if parent else {})
    stored = _open(
        uri, tracking, name, facts, folder if resume != "never" else None, hashlib.sha256(to_yaml(config).encode()).hexdigest(), resume == "same"
    )
    run = Run(uri, stored.info.run_id, folder, tracking.patience, stored.info.start_time / 1000)
    run.log_parameters(flatten(config))
    run.log_bytes("config.yaml", to_yaml(config).encode())
    token, status = _OPEN.set(run), "FAILED"
    try:
        with SystemMetrics(run.log, run.started):
            yield run
        status = "FINISHED"
    except (TrainingStoppedError, KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        _OPEN.reset(token)
        run.end(status)


def log_datasets(run: Run, config: Config) -> None:
    """Log the shard sets that a configuration names, by the hash of their manifests, as MLflow's data sets and as tags."""
    _log_datasets(run, {key: value for key, value in flatten(config).items() if key != "output"})


def log_output(run: Run, output: str) -> None:
    """Log the shard set that a job has written, if it has, as `log_datasets` does."""
    _log_datasets(run, {"output": output})


def _log_datasets(run: Run, values: Mapping[str, Any]) -> None:
    if run.uri is None or run.run_id is None:
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    found = provenance.datasets(values)
    inputs = [
        DatasetInput(
            Dataset(Location(item.uri).name, item.digest, "uniovseg shard set", json.dumps({"uri": item.uri})),
            [InputTag("mlflow.data.context", item.key)],
        )
        for item in found
    ]
    client = connect(run.uri)
    try:
        if inputs:
            client.log_inputs(run.run_id, inputs)
        for item in found:
            client.set_tag(run.run_id, f"manifest.{item.key}", item.digest)
    except MlflowException as error:
        logger.warning("the data sets of run %s are not logged: %s", run.run_id, said(error))


def _open(
    uri: str, tracking: TrackingConfig, name: str, tags: dict[str, Any], folder: Location | None, configuration: str, same: bool
) -> "StoredRun":
    """A new run, or the one that `folder` had before; where it is to be the `same`, only if that had this configuration."""
    from mlflow.exceptions import MlflowException

    for attempt in range(STARTS):
        try:
            with _initialised(uri):
                client = connect(uri)
                experiment = _experiment_id(client, tracking.experiment, uri)
            run = _earlier(client, experiment, folder, configuration if same else None) if folder else None
            if run is None:
                run = client.create_run(experiment, run_name=name, tags=tags)
            else:
                client.update_run(run.info.run_id, status="RUNNING")
            if folder:
                storage.write_bytes(folder / IDENTITY, json.dumps({"run_id": run.info.run_id, "configuration": configuration}).encode())
            return run
        except MlflowException as error:
            if attempt == STARTS - 1 or error.get_http_status_code() in (400, 401, 403):
                raise StorageError(
                    "the tracking server does not open a run", seen=f"{without_credentials(uri)}: {said(error)}",
                    fix="does it run, and may these credentials write there? Without tracking.uri and MLFLOW_TRACKING_URI nothing is tracked",
                ) from error  # fmt: skip
            storage.pause(attempt + 3)
    raise AssertionError


@contextmanager
def _initialised(uri: str) -> Iterator[None]:
    """For an SQLite store: its folder is there, and no other process of this machine is in such a block at the same time."""
    if not uri.startswith(SQLITE):
        yield
        return
    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment_id(client: "MlflowClient", name: str, uri: str) -> str:
    """Id of the experiment, made if needed; artifacts of an SQLite store lie beside it.

    (MLflow's own set_experiment would set the tracking URI of the whole process, by its environment.)
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        artifacts = f"{Path(uri.removeprefix(SQLITE)).with_suffix('')}_artifacts" if uri.startswith(SQLITE) else None
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job has made it in between
            if found is None:
                raise
    return str(found.experiment_id)


def _earlier(client: "MlflowClient", experiment: str, folder: Location, configuration: str | None) -> "StoredRun | None":
    """The run that a folder had before, if the experiment still has it, and, unless None is given, if it was of this configuration."""
    from mlflow.exceptions import MlflowException

    try:
        found = json.loads(storage.read_bytes(folder / IDENTITY))
        if configuration not in (None, found.get("configuration")):
            return None
        run = client.get_run(found["run_id"])
    except (MissingFileError, ValueError, KeyError):
        return None
    except MlflowException as error:
        if error.error_code == NOT_THERE:
            return None
        raise
    return run if run.info.experiment_id == experiment and run.info.lifecycle_stage == "active" else None
