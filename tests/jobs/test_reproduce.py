"""The command line of the paper's tables."""

from pathlib import Path

import pytest
import yaml

from jobs import _cli, reproduce
from uniovseg.runtime.reproduce.job import ReproduceConfig


def resolved(capsys: pytest.CaptureFixture[str], *argv: str) -> ReproduceConfig:
    assert _cli.run(ReproduceConfig, reproduce.main, [*argv, "--dry-run"], reproduce.arguments) == 0
    return ReproduceConfig.model_validate(yaml.safe_load(capsys.readouterr().out))


def test_flags_are_short_for_settings(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(capsys, "--table", "3", "--world", "shapes", "--seeds", "4,5", "shapes.align_steps=7")
    assert (config.table, config.world, config.seeds, config.noise, config.cost) == (3, "shapes", (4, 5), False, False)
    assert config.shapes.align_steps == 7
    assert config == resolved(capsys, "table=3", "world=shapes", "seeds=[4,5]", "shapes.align_steps=7")
    config = resolved(capsys, "--table=promptable", "--noise", "--cost")
    assert (config.table, config.noise, config.cost, config.seeds) == ("promptable", True, True, (0, 1, 2))


def test_a_file_of_ones_own_takes_the_place_of_the_shipped_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("output: elsewhere\n")
    assert resolved(capsys, "--config", str(tmp_path / "own.yaml")).output == "elsewhere"
    assert resolved(capsys).output == "runs/reproduce"


def test_the_shipped_settings_are_found_from_any_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolved(capsys, "--table", "3", "--world", "shapes")
    assert Path(config.shapes.match).is_file() and Path(config.shapes.align).is_file()
    assert resolved(capsys, "shapes.match=mine.yaml").shapes.match == "mine.yaml"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing is asked"),
        (["--table"], "argument --table: expected one argument"),
        (["--table", "5"], "table: Input should be 1, 2, 3, 4 or 'promptable'; seen: 5"),
        (["--table", "2", "--world", "shapes"], "the shapes world has only table 3; seen: 2"),
        (["--table", "3", "ablation.nlkt=x"], "no such row: nlkt; allowed: baseline, nltk"),
        (["--noise", "output=s3://bucket/x"], "the shapes world is drawn on this machine"),
    ],
)
def test_a_wrong_call_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.run(ReproduceConfig, reproduce.main, argv, reproduce.arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
