import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from jobs import _cli
from uniovseg.config import Config, fields
from uniovseg.errors import ConfigError, DataError
from uniovseg.runtime.ingest import IngestConfig
from uniovseg.runtime.train import TrainJobConfig


class Inner(Config):
    lr: float = Field(0.1, gt=0, description="step size")


class Outer(Config):
    output: str = Field(..., description="folder of the report")
    steps: int = Field(3, ge=1, description="optimizer steps")
    optim: Inner = Field(Inner(), description="the optimizer")


def report(config: Outer) -> dict[str, Any]:
    return {"steps": config.steps, "lr": config.optim.lr}


def untouched(config: Any) -> dict[str, Any]:
    raise AssertionError(config)


def refuse(config: Outer) -> dict[str, Any]:
    raise DataError("the shard is broken", seen=config.steps)


def end_from_outside(config: Outer) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


def misconfigured(config: Outer) -> dict[str, Any]:
    raise ConfigError("does not go together", seen=config.steps)


def test_the_report_is_written(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("steps: 5\noptim: {lr: 0.5}\n")
    assert _cli.run(Outer, report, ["--config", str(config), f"output={tmp_path}/new", "optim.lr=3e-4"]) == 0
    assert json.loads((tmp_path / "new/report.json").read_text()) == {"steps": 5, "lr": 3e-4}
    assert yaml.safe_load((tmp_path / "new/config.yaml").read_text()) == {"output": f"{tmp_path}/new", "steps": 5, "optim": {"lr": 3e-4}}


def test_dry_run_prints_the_configuration_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.run(Outer, refuse, ["--dry-run", f"output={tmp_path}/new", "steps=7"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"output": f"{tmp_path}/new", "steps": 7, "optim": {"lr": 0.1}}
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_configuration_is_found_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.run(TrainJobConfig, untouched, ["--config", "stage1_sa1b.yaml", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["steps"] == 110_000
    assert _cli.config_file("tests/none.yaml") == "tests/none.yaml"


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _cli.run(IngestConfig, lambda _: {}, ["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in fields(IngestConfig):
        assert f"  {field.key}  [" in shown and field.description in shown
    assert "default: required" in shown and "default: 64" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stepz=3"], ["stepz", "steps"]),
        (["steps=0"], ["steps", "seen: 0", "greater than or equal to 1"]),
        (["optim.lrr=3"], ["optim.lrr", "did you mean 'lr'"]),
        (["steps"], ["key.key=value", "steps"]),
        (["--config", "no_such.yaml"], ["no_such.yaml", "cannot be read"]),
        ([], ["output is missing"]),
        (["--dryrun"], ["unrecognized arguments: --dryrun (did you mean '--dry-run'?)", " --help"]),
        (["--config"], ["argument --config: expected one argument", " --help"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line_and_exit_code_2(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = [] if not arguments else ["output=x"]
    assert _cli.run(Outer, report, [*given, *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and all(part in shown for part in expected)


def test_a_job_that_fails_says_why_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.run(Outer, refuse, [f"output={tmp_path}"]) == 1
    assert _cli.run(Outer, misconfigured, [f"output={tmp_path}"]) == 2
    assert capsys.readouterr().err == "error: the shard is broken; seen: 3\nerror: does not go together; seen: 3\n"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_ends_a_job_as_an_interruption_does(tmp_path: Path) -> None:
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            _cli.run(Outer, end_from_outside, [f"output={tmp_path}/new"])
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert ended.value.code == 143 and not (tmp_path / "new").exists()
