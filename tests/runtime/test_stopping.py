"""How a run is asked to stop, without a cluster."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train

from uniovseg.runtime import stopping
from uniovseg.runtime.recorder import RayRecorder
from uniovseg.runtime.stopping import WorkerRequests, stopped_by_sigterm
from uniovseg.runtime.tracking import Run
from uniovseg.storage import Location
from uniovseg.training import Request


def until(condition: threading.Event) -> None:
    assert condition.wait(60)


def appears(path: Path) -> None:
    while not path.exists():
        threading.Event().wait(0.01)


def test_a_signal_becomes_a_file_that_the_run_takes_away(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "stop").write_text("of an earlier run")
    with stopped_by_sigterm(Location.of(tmp_path)):
        assert not (tmp_path / "stop").exists()
        os.kill(os.getpid(), signal.SIGTERM)
        appears(tmp_path / "stop")
    assert not (tmp_path / "stop").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_driver(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught, stopped_by_sigterm(Location.of(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        until(threading.Event())
    assert caught.value.code == 143


def test_workers_that_do_not_end_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "STOP_SECONDS", 0.05)
    with pytest.raises(SystemExit), stopped_by_sigterm(Location.of(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
        until(threading.Event())


def test_rank_0_sees_the_file_and_every_rank_a_node_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going: list[object] = [None]
    asked: list[int] = []

    def preemption() -> object:
        asked.append(1)
        return going[0]

    monkeypatch.setattr(ray.train, "get_preemption_info", preemption)
    monkeypatch.setattr(stopping, "LOOK_SECONDS", 0.01)
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0)
    first, second = (WorkerRequests(Location.of(tmp_path), recorder, rank) for rank in (0, 1))
    assert [second(done) for done in range(1, 21)] == [Request.GO_ON] * 20
    assert len(asked) == 2
    going[0] = SimpleNamespace(deadline_ms=7)
    assert [second(done) for done in (21, 30, 31, 40)] == [Request.GO_ON, Request.CHECKPOINT, Request.GO_ON, Request.GO_ON]
    assert first(1) is Request.GO_ON
    (tmp_path / "stop").touch()
    until(first.stopped)
    assert (first(2), second(2)) == (Request.STOP, Request.GO_ON)  # the ranks agree where there are several processes
    for requests in (first, second):
        requests.over.set()
