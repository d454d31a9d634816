"""``python -m serve`` says in one line what it cannot start with, before Ray is started."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from serve import __main__ as command
from serve.load import free_port
from serve.samples import sample_scene
from tests.serve.conftest import encoded


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["checkpoint={folder}/none"], 1, "none"),
        (["checkpoint={folder}"], 1, "{folder}"),
        (["checkpoint=shapes", "changes.colour=red"], 2, "colour"),
        (["checkpoint=shapes", "changes.clip.name=none"], 2, "none"),
        (["checkpoint=shapes", "keys_file={folder}/keys"], 2, "keys"),
        (["port=-1"], 2, "port"),
        (["--prot", "1"], 2, "unrecognized arguments: --prot"),
        (["checkpoint=shapes", "port=1"], 0, ""),
    ],
)
def test_what_cannot_start(
    arguments: list[str], code: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[int] = []
    monkeypatch.setattr(command, "run", lambda config: started.append(config.port))
    monkeypatch.setattr("sys.argv", ["serve", *(argument.format(folder=tmp_path) for argument in arguments)])
    assert command.main() == code
    error = capsys.readouterr().err
    assert started == ([] if code else [1])
    assert error == "" if code == 0 else error.startswith("error: ") and error.count("\n") == 1 and what.format(folder=tmp_path) in error


@pytest.mark.slow
@pytest.mark.cluster
def test_what_is_under_way_is_answered_before_the_service_ends() -> None:
    port, image = free_port(), encoded(sample_scene(1).image)
    service = subprocess.Popen([sys.executable, "-m", "serve", f"port={port}", "checkpoint=shapes"], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None and any("ready:" in line for line in service.stdout)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as http, ThreadPoolExecutor(1) as pool:
            slow = pool.submit(http.post, "/v1/everything?points_per_side=64", content=image, headers={"content-type": "image/png"})
            while not re.search(r"uniovseg_requests_under_way\{.*\} 2.0", http.get("/metrics").text):  # it, and the question for the figures
                assert not slow.done(), "too fast to be under way"
            service.send_signal(signal.SIGTERM)
            assert slow.result().status_code == 200
        assert service.wait(120) == 0
    finally:
        service.kill()
        service.wait()
