"""What a process logs to MLflow, on its way to a tracking server that may be away for a while.

Whoever logs puts an entry into a buffer of bounded size and goes on at once. A thread sends the entries in their order, and waits ever longer between tries
while the server does not answer; only an artifact whose store fails lets the others pass. Nothing arrives twice: before the first request and after each
failed one the thread asks which step the run has of each metric, and leaves out points that are there. So a worker that is started again may log what its
predecessor has logged, and what it had not delivered.

At the end the run waits a bounded time for what is left. What then has not arrived is kept in the run's folder, and is delivered by
``python -m uniovseg.runtime.delivery FOLDER`` when the server is back.
"""

import base64
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from uniovseg import storage
from uniovseg.errors import ConfigError, UniOVSegError, tell
from uniovseg.storage import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

MOST_ENTRIES, MOST_BYTES = 100_000, 64 * 1024**2
"""Entries, and bytes of artifacts among them, that wait at most; further ones are dropped. (Metrics and pictures also lie in the run's folder.)"""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two tries: at first, and at most."""

POINTS, PARAMETERS = 1000, 100
"""Metric values and parameters that MLflow takes in one request."""

NOT_THERE = "RESOURCE_DOES_NOT_EXIST"
"""MLflow's own word for a run that it does not have. HTTP's 404 alone may be that of a proxy before a server that is away."""

UNDELIVERED = "mlflow_undelivered"
"""Folder of what did not arrive, in the run's folder."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one step, and when they were taken (milliseconds since 1970)."""

    step: int
    time: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of the run; those that it has keep their values."""

    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file among the run's artifacts."""

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of the run: FINISHED, FAILED or KILLED, and when (milliseconds since 1970)."""

    status: str
    time: int


Entry = Metrics | Parameters | Artifact | Ending

KINDS: dict[str, type[Entry]] = {"metrics": Metrics, "parameters": Parameters, "artifact": Artifact, "ending": Ending}


def connect(uri: str) -> "MlflowClient":
    """A client whose requests fail soon: who waits for the server is `Delivery`. MLflow's own settings in the environment win."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def without_credentials(uri: str) -> str:
    """The URI without user and password, for people and files."""
    place = urlsplit(uri).netloc
    return uri.replace(place, place.rpartition("@")[2], 1)


def has_secrets(uri: str) -> bool:
    """Whether a URI holds a user, a password, or a query, in which keys are given too."""
    parts = urlsplit(uri)
    return "@" in parts.netloc or bool(parts.query)


def said(error: Exception) -> str:
    """What an error of MLflow says, in one line and without the credentials of URIs in it."""
    return re.sub(r"//[^/\s]*@", "//", " ".join(str(error).split()))[:300]


class Delivery:
    """Delivers the entries of one process to one run.

    Args:
        uri: MLflow tracking URI.
        run_id: the run.
        before: when the last of the entries was made (milliseconds since 1970), where they come late: they then neither end a run that has ended or
            gone on since, nor replace its artifacts. None: they come as they are made.
    """

    def __init__(self, uri: str, run_id: str, before: int | None = None) -> None:
        self.uri, self.run_id, self.before = uri, run_id, before
        self.entries: deque[Entry] = deque()
        self.dropped = self.refused = 0
        self._bytes = 0
        self._steps: dict[str, int] | None = None
        self._parameters: set[str] = set()
        self._changed = threading.Condition()
        self._closing, self._given_up = False, threading.Event()
        self._sender = threading.Thread(target=self._work, daemon=True, name="mlflow-delivery")
        self._sender.start()

    def put(self, entry: Entry) -> None:
        """Take an entry; it is dropped when too much waits already."""
        size = _bytes(entry)
        with self._changed:
            if len(self.entries) >= MOST_ENTRIES or (size and self._bytes + size > MOST_BYTES):
                self.dropped += 1
                return
            self._bytes += size
            self.entries.append(entry)
            self._changed.notify_all()

    def close(self, patience: float) -> list[Entry]:
        """Wait at most `patience` seconds, and for a request that is under way, until all has arrived; returns what has not."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self.entries, timeout=patience)
        self._given_up.set()
        self._sender.join(timeout=2 * float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")))
        if self.dropped:
            logger.warning("%d entries for MLflow were dropped while the tracking server was away; the run's folder has the metrics", self.dropped)
        with self._changed:
            return list(self.entries)

    def _work(self) -> None:
        """Send until there is nothing more to come, or until `close` gives up."""
        client: MlflowClient | None = None
        pause = 0.0
        while not self._given_up.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self.entries or self._closing)
                if not self.entries:
                    return
                batch = self._next()
            try:
                client = client or connect(self.uri)
                self._send(client, batch)
            except Exception as error:  # whatever the client and its transports raise, tracking must not end a run
                if not _permanent(error):
                    self._steps = None
                    if isinstance(batch[0], Artifact):
                        with self._changed:
                            self.entries.rotate(-1)  # artifacts have a store of their own, which may be away while the server is not
                    pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
                    self._wait(pause)
                    continue
                self.refused += len(batch)
                logger.warning("MLflow refuses an entry of run %s: %s", self.run_id, said(error))
            pause = 0.0
            with self._changed:
                for _ in batch:
                    self._bytes -= _bytes(self.entries.popleft())
                self._changed.notify_all()

    def _next(self) -> list[Entry]:
        """The first entry, with the metrics right after it when it is one of metrics too, up to what fits in a request."""
        batch: list[Entry] = [self.entries[0]]
        points = 0
        for entry in self.entries:
            if not isinstance(entry, Metrics) or not isinstance(batch[0], Metrics):
                break
            points += len(entry.values)
            if points > POINTS:
                break
            if entry is not batch[0]:
                batch.append(entry)
        return batch

    def _wait(self, seconds: float) -> None:
        """Pause; the end of the run cuts the pause short, and then all pauses are as the first."""
        if self._closing:
            self._given_up.wait(min(seconds, FIRST_PAUSE))
            return
        with self._changed:
            self._changed.wait_for(lambda: self._closing, timeout=seconds)

    def _send(self, client: "MlflowClient", batch: Sequence[Entry]) -> None:
        first = batch[0]
        if self.before is not None and not isinstance(first, Metrics | Parameters) and self._replaced(client, first, self.before):
            return
        if isinstance(first, Artifact):
            with tempfile.TemporaryDirectory() as folder:
                path = PurePosixPath(first.path)
                (Path(folder) / path.name).write_bytes(first.data)
                client.log_artifact(self.run_id, f"{folder}/{path.name}", None if str(path.parent) == "." else str(path.parent))
            return
        if isinstance(first, Ending):
            client.set_terminated(self.run_id, first.status, first.time)
            return
        steps = self._look(client)
        if isinstance(first, Parameters):
            self._send_parameters(client, first)
            return
        from mlflow.entities import Metric

        points = []
        for entry in batch:
            assert isinstance(entry, Metrics)
            new = {name: value for name, value in entry.values.items() if entry.step > steps.get(name, -1)}
            points += [Metric(name, value, entry.time, entry.step) for name, value in new.items()]
            steps |= dict.fromkeys(new, entry.step)
        for begin in range(0, len(points), POINTS):
            client.log_batch(self.run_id, metrics=points[begin : begin + POINTS])

    def _replaced(self, client: "MlflowClient", entry: Artifact | Ending, before: int) -> bool:
        """Whether the run has ended or gone on since, and has an end or such an artifact of its own."""
        run = client.get_run(self.run_id)
        if run.info.status == "RUNNING" and all(metric.timestamp <= before for metric in run.data._metric_objs):
            return False
        if isinstance(entry, Ending):
            return True
        folder = str(PurePosixPath(entry.path).parent)
        return any(item.path == entry.path for item in client.list_artifacts(self.run_id, None if folder == "." else folder))

    def _send_parameters(self, client: "MlflowClient", entry: Parameters) -> None:
        from mlflow.entities import Param

        new = [Param(name, value) for name, value in entry.values.items() if name not in self._parameters]
        for begin in range(0, len(new), PARAMETERS):
            client.log_batch(self.run_id, params=new[begin : begin + PARAMETERS])

    def _look(self, client: "MlflowClient") -> dict[str, int]:
        """The last step that the run has of each metric; what the server holds, where that is not known."""
        if self._steps is None:
            data = client.get_run(self.run_id).data
            self._parameters = set(data.params)
            self._steps = {metric.key: metric.step for metric in data._metric_objs}  # the last of each name; `data.metrics` lacks the steps
        return self._steps


def _bytes(entry: Entry) -> int:
    return len(entry.data) if isinstance(entry, Artifact) else 0


def _permanent(error: Exception) -> bool:
    """Whether trying again cannot help: the server has understood and says no."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and (error.get_http_status_code() == 400 or error.error_code == NOT_THERE)


def keep(folder: Location, uri: str, run_id: str, entries: Sequence[Entry]) -> Location:
    """Write entries that have not arrived into a file of the run's folder."""
    lines: list[dict[str, Any]] = [{"uri": without_credentials(uri), "run_id": run_id}]
    names = {kind: name for name, kind in KINDS.items()}
    for entry in entries:
        values = asdict(entry)
        if isinstance(entry, Artifact):
            values["data"] = base64.b64encode(entry.data).decode()
        lines.append({"kind": names[type(entry)]} | values)
    file = folder / UNDELIVERED / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.jsonl"
    storage.write_bytes(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return file


def deliver(folder: Location, uri: str | None, patience: float = 60.0) -> int:
    """Deliver what `keep` has written into a run's folder; returns the number of entries. Files whose entries have arrived are deleted.

    Args:
        folder: the run's folder.
        uri: tracking URI; None: the one that the run had, which is written down without its credentials.
        patience: seconds to wait for the server, a file.

    Raises:
        UniOVSegError: something has not arrived, or the server refuses all of a file, as one that does not know the run does; the file is kept.
    """
    count = 0
    for file in storage.list_files(folder / UNDELIVERED, ".jsonl"):
        head, *lines = [json.loads(line) for line in storage.read_bytes(file).decode().splitlines()]
        delivery = Delivery(uri or head["uri"], head["run_id"], before=max((line["time"] for line in lines if "time" in line), default=0))
        for line in lines:
            if line["kind"] == "artifact":
                line["data"] = base64.b64decode(line["data"])
            delivery.put(KINDS[line.pop("kind")](**line))
        if left := delivery.close(patience):
            raise UniOVSegError("the tracking server does not answer", seen=f"{len(left)} of {len(lines)} entries of {file.uri} are left")
        if lines and delivery.refused == len(lines):
            raise UniOVSegError(
                "the tracking server refuses all of it", seen=file.uri, fix=f"does MLFLOW_TRACKING_URI name the server of run {head['run_id']}?"
            )  # fmt: skip
        storage.delete(file)
        count += len(lines)
    return count


def main(argv: Sequence[str]) -> int:
    """``python -m uniovseg.runtime.delivery FOLDER``: deliver what a run could not; MLFLOW_TRACKING_URI wins over the URI that the run had."""
    try:
        if len(argv) != 1:
            raise ConfigError("which run?", allowed="python -m uniovseg.runtime.delivery FOLDER, the output of the run")
        count = deliver(Location.of(argv[0]), os.environ.get("MLFLOW_TRACKING_URI") or None)
    except UniOVSegError as error:
        return tell(error)
    sys.stdout.write(f"delivered {count} entries\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
