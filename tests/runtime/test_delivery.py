"""Delivery to a tracking store that fails now and then; the slow test kills a real `mlflow server` and starts it again."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from mlflow.tracking import MlflowClient
from pydantic import Field

from uniovseg.config import Config
from uniovseg.errors import StorageError, UniOVSegError
from uniovseg.runtime import delivery
from uniovseg.runtime.delivery import Artifact, Delivery, Ending, Entry, Metrics, Parameters, connect, deliver, keep
from uniovseg.runtime.tracking import Run, TrackingConfig, tracked_run
from uniovseg.storage import Location


class Job(Config):
    steps: int = Field(3, description="")


class Flaky:
    """A client whose calls fail by a list of verdicts: "refuse" before the store sees them, "lose" after it has done them, else they work."""

    def __init__(self, client: MlflowClient, verdicts: list[str]) -> None:
        self.client, self.verdicts, self.calls = client, verdicts, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.client, name)

        def flaky(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            verdict = self.verdicts.pop(0) if self.verdicts else ""
            if verdict == "refuse":
                raise MlflowException("connection refused")
            result = call(*arguments, **options)
            if verdict == "lose":
                raise MlflowException("the answer was lost")
            return result

        return flaky


@pytest.fixture
def run_id(mlflow_uri: str) -> str:
    client = connect(mlflow_uri)
    return str(client.create_run("0").info.run_id)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(delivery, "LONGEST_PAUSE", 0.01)


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(item.step, item.value) for item in MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)]


@pytest.mark.parametrize("verdict", ["refuse", "lose"])
def test_what_a_failing_store_gets_is_whole_in_order_and_once(verdict: str, mlflow_uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = Flaky(MlflowClient(tracking_uri=mlflow_uri), [verdict if index % 2 else "" for index in range(12)])
    monkeypatch.setattr(delivery, "connect", lambda uri: flaky)
    sender = Delivery(mlflow_uri, run_id)
    for step in range(1, 6):
        sender.put(Metrics(step, 1000 + step, {"loss": 1 / step}))
        sender.put(Artifact(f"notes/{step}.txt", str(step).encode()))
    sender.put(Parameters({"lr": "1"}))
    sender.put(Ending("FINISHED", 5000))
    assert sender.close(60) == []
    assert history(mlflow_uri, run_id, "loss") == [(step, 1 / step) for step in range(1, 6)]
    client = MlflowClient(tracking_uri=mlflow_uri)
    assert sorted(item.path for item in client.list_artifacts(run_id, "notes")) == [f"notes/{step}.txt" for step in range(1, 6)]
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time, run.data.params) == ("FINISHED", 5000, {"lr": "1"})


def test_a_proxy_before_a_server_that_is_away_loses_nothing(mlflow_uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even at the start: then there is no client yet."""
    answers = [MlflowException("no server behind this proxy", error_code=ENDPOINT_NOT_FOUND)]

    class Proxied(Flaky):
        def get_run(self, run_id: str) -> Any:
            if answers:
                raise answers.pop()
            return self.client.get_run(run_id)

    clients = iter([None, Proxied(MlflowClient(tracking_uri=mlflow_uri), [])])

    def opened(uri: str) -> Flaky:
        client = next(clients)
        if client is None:
            raise MlflowException("connection refused")
        return client

    monkeypatch.setattr(delivery, "connect", opened)
    sender = Delivery(mlflow_uri, run_id)
    sender.put(Metrics(1, 1, {"loss": 1.0}))
    assert sender.close(60) == [] and sender.refused == 0 and answers == []
    assert history(mlflow_uri, run_id, "loss") == [(1, 1.0)]


def test_a_second_process_adds_only_what_is_new(mlflow_uri: str, run_id: str) -> None:
    with Run(mlflow_uri, run_id) as first:
        for step in (1, 2, 3):
            first.log(step, {"loss": step})
        first.log_parameters({"lr": 1})
    with Run(mlflow_uri, run_id) as second:  # a worker that was started again: the steps after its checkpoint are trained again
        for step in (2, 3, 4):
            second.log(step, {"loss": step, "new": step})
        second.log_parameters({"lr": 2, "seed": 3})
    assert history(mlflow_uri, run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert history(mlflow_uri, run_id, "new") == [(2, 2.0), (3, 3.0), (4, 4.0)]
    assert MlflowClient(tracking_uri=mlflow_uri).get_run(run_id).data.params == {"lr": "1", "seed": "3"}


def test_what_the_store_refuses_for_good_holds_up_nothing(mlflow_uri: str, run_id: str, caplog: pytest.LogCaptureFixture) -> None:
    sender = Delivery(mlflow_uri, run_id)
    sender.put(Parameters({"bad\nname": "1"}))
    sender.put(Metrics(1, 1, {"loss": 1.0}))
    assert sender.close(60) == []
    assert history(mlflow_uri, run_id, "loss") == [(1, 1.0)]
    assert "MLflow refuses an entry" in caplog.text


def test_an_artifact_store_that_fails_holds_up_artifacts_only(mlflow_uri: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoArtifacts(Flaky):
        def log_artifact(self, *arguments: Any) -> None:
            raise MlflowException("the artifact store says 403")

    monkeypatch.setattr(delivery, "connect", lambda uri: NoArtifacts(MlflowClient(tracking_uri=mlflow_uri), []))
    sender = Delivery(mlflow_uri, run_id)
    sender.put(artifact := Artifact("picture.png", b"1"))
    for step in (1, 2, 3):
        sender.put(Metrics(step, step, {"loss": 1.0}))
    sender.put(Ending("FINISHED", 5))
    assert sender.close(2) == [artifact]
    assert history(mlflow_uri, run_id, "loss") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert MlflowClient(tracking_uri=mlflow_uri).get_run(run_id).info.status == "FINISHED"


def test_the_buffer_is_bounded_and_putting_does_not_wait(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(delivery, "MOST_ENTRIES", 5)
    monkeypatch.setattr(delivery, "MOST_BYTES", 10)
    released = threading.Event()

    def stuck(uri: str) -> Flaky:
        released.wait()
        return Flaky(MlflowClient(tracking_uri=uri), ["refuse"] * 1000)

    monkeypatch.setattr(delivery, "connect", stuck)
    sender = Delivery(mlflow_uri, "0" * 32)
    sender.put(Artifact("a", b"12345678"))
    sender.put(Artifact("too much", b"12345678"))
    for step in range(10):
        sender.put(Metrics(step, step, {"loss": 1.0}))
    assert [type(entry) for entry in sender.entries] == [Artifact, *[Metrics] * 4]
    assert sender.dropped == 7
    released.set()
    assert len(sender.close(0)) == 5
    assert "7 entries for MLflow were dropped" in caplog.text


def test_what_is_kept_is_delivered_later(mlflow_uri: str, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Location.of(tmp_path)
    left: list[Entry] = [Parameters({"lr": "1"}), Metrics(3, 77, {"loss": 0.5}), Artifact("notes/a.bin", bytes(range(256))), Ending("FAILED", 99)]
    file = keep(folder, mlflow_uri, run_id, left)
    assert "hunter2" not in Path(keep(folder, "https://me:hunter2@mlflow.example", run_id, []).uri).read_text()
    Path(sorted((tmp_path / delivery.UNDELIVERED).iterdir())[1]).unlink()
    assert Path(file.uri).is_file()
    assert delivery.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "delivered 4 entries\n"
    run = MlflowClient(tracking_uri=mlflow_uri).get_run(run_id)
    assert (run.info.status, run.info.end_time, run.data.params, run.data.metrics) == ("FAILED", 99, {"lr": "1"}, {"loss": 0.5})
    copied = MlflowClient(tracking_uri=mlflow_uri).download_artifacts(run_id, "notes/a.bin")
    assert Path(copied).read_bytes() == bytes(range(256))
    assert list((tmp_path / delivery.UNDELIVERED).iterdir()) == [] and deliver(folder, mlflow_uri) == 0
    assert delivery.main([]) == 2


@pytest.mark.parametrize("ended", [True, False])
def test_what_comes_late_does_not_replace_what_the_resumed_run_has(ended: bool, mlflow_uri: str, run_id: str, tmp_path: Path) -> None:
    late: list[Entry] = [Metrics(3, 77, {"loss": 0.5}), Artifact("report.json", b"old"), Artifact("notes/a.bin", b"only here"), Ending("KILLED", 99)]
    keep(Location.of(tmp_path), mlflow_uri, run_id, late)
    resumed = Delivery(mlflow_uri, run_id)
    newer: list[Entry] = [Metrics(4, 177, {"loss": 0.4}), Artifact("report.json", b"new"), *([Ending("FINISHED", 199)] if ended else [])]
    for entry in newer:
        resumed.put(entry)
    assert resumed.close(60) == []
    assert deliver(Location.of(tmp_path), mlflow_uri) == 4
    client = MlflowClient(tracking_uri=mlflow_uri)
    info = client.get_run(run_id).info
    assert (info.status, info.end_time) == (("FINISHED", 199) if ended else ("RUNNING", None))
    assert Path(client.download_artifacts(run_id, "report.json")).read_bytes() == b"new"
    assert Path(client.download_artifacts(run_id, "notes/a.bin")).read_bytes() == b"only here"


def test_what_another_server_refuses_is_kept(mlflow_uri: str, tmp_path: Path) -> None:
    file = keep(Location.of(tmp_path), mlflow_uri, "0" * 32, [Metrics(3, 77, {"loss": 0.5}), Ending("FAILED", 99)])
    with pytest.raises(UniOVSegError, match="refuses all of it"):
        deliver(Location.of(tmp_path), mlflow_uri)
    assert Path(file.uri).is_file()


def test_a_server_that_is_not_there_at_the_start_is_an_error_that_hides_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniovseg.runtime.tracking.STARTS", 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    with pytest.raises(StorageError, match="does not open a run") as caught, tracked_run(TrackingConfig(), "name", Job()):
        pass
    assert "hunter2" not in str(caught.value)


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A tracking server on SQLite and proxied artifacts in `folder`; killed at the end, with its own children."""
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=folder)
    uri = f"http://127.0.0.1:{port}"
    try:
        waiting = threading.Event()
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                waiting.wait(0.25)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_gets_everything_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "run"
    with mlflow_server(tmp_path, port) as uri:
        tracking = TrackingConfig(uri=uri, patience=300)
        context = tracked_run(tracking, "run", Job(), folder=Location.of(folder), resume="always")
        run = context.__enter__()
        assert run.run_id is not None
        run.log(1, {"loss": 1.0})
        waiting = threading.Event()
        while not history(uri, run.run_id, "loss"):
            waiting.wait(0.1)
    run.log(2, {"loss": 0.5})  # nobody is there: these wait
    run.log_bytes("notes/a.txt", b"while it was away")
    away = Run(uri, run.run_id, Location.of(folder), patience=0)
    away.log(7, {"other": 7.0})
    away.close()
    (left,) = (folder / delivery.UNDELIVERED).iterdir()
    assert json.loads(left.read_text().splitlines()[1])["values"] == {"other": 7.0}
    with mlflow_server(tmp_path, port):
        run.log(3, {"loss": 0.25})
        context.__exit__(None, None, None)
        assert deliver(Location.of(folder), None) == 1
        client = MlflowClient(tracking_uri=uri)
        assert history(uri, run.run_id, "loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
        assert history(uri, run.run_id, "other") == [(7, 7.0)]
        assert client.get_run(run.run_id).info.status == "FINISHED"
        assert Path(client.download_artifacts(run.run_id, "notes/a.txt")).read_text() == "while it was away"
        with tracked_run(tracking, "run", Job(), folder=Location.of(folder), resume="always") as again:
            assert again.run_id == run.run_id and client.get_run(run.run_id).info.status == "RUNNING"
