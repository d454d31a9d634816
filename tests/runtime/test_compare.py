"""Comparisons of runs in MLflow and in folders; what is compared is written down by hand here."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pydantic import Field

from jobs import _cli
from jobs import compare as compare_job
from uniovseg.config import Config
from uniovseg.errors import DataError
from uniovseg.runtime.compare import CompareConfig, RunRecord, comparison, draw_curves, read_runs, render
from uniovseg.runtime.tracking import TrackingConfig, tracked_run


class Job(Config):
    output: str = Field("out", description="")
    lr: float = Field(0.1, description="")
    seed: int = Field(0, description="")


@pytest.fixture(scope="module")
def tracking(mlflow_uri: str) -> TrackingConfig:
    return TrackingConfig(uri=mlflow_uri, experiment="compare")


@pytest.fixture(scope="module")
def sweep(tracking: TrackingConfig) -> str:
    """A parent with two children of two points each; its id."""
    with tracked_run(tracking, "sweep", Job()) as parent:
        for index, lr in enumerate((0.1, 0.2)):
            with tracked_run(tracking, f"trial_{index}", Job(lr=lr, output=f"out{index}")) as run:  # in the same process: a child by itself
                for step in (1, 2):
                    run.log(step, {"loss": lr * step})
                run.log(2, {"iou": 0.5 + index})
    assert parent.run_id is not None
    return parent.run_id


EXPECTED = [
    ("trial_0", {"loss": 0.2, "iou": 0.5}, {"loss": [(1, 0.1), (2, 0.2)]}),
    ("trial_1", {"loss": 0.4, "iou": 1.5}, {"loss": [(1, 0.2), (2, 0.4)]}),
]


def facts(runs: list[RunRecord]) -> list[tuple[str, dict[str, float], dict[str, list[tuple[int, float]]]]]:
    return [(run.name, run.metrics, run.curves) for run in runs]


def test_a_parent_alone_stands_for_its_children_and_a_run_is_found_by_id_or_name(sweep: str, tracking: TrackingConfig) -> None:
    runs = read_runs([sweep], tracking)
    assert facts(runs) == EXPECTED
    assert read_runs(["sweep"], tracking) == runs
    assert facts(read_runs([runs[1].identity, "trial_0"], tracking)) == EXPECTED[::-1]
    assert [run.name for run in read_runs([sweep, "trial_0"], tracking)] == ["sweep", "trial_0"]
    found = comparison(runs)
    assert (found.differing, found.metrics) == (("lr",), ("iou", "loss"))
    assert [run.parameters["lr"] for run in found.runs] == ["0.1", "0.2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a job leaves: numbers in a report, a table in it that is none of the metrics, a curve with a validation line."""
    place = tmp_path / "job"
    place.mkdir()
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "val_iou": 0.5}]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "report.json").write_text(json.dumps({"semantic": {"miou": 0.25, "per_class": {"1": 0.5}}, "note": "x", "fine": True, "list": [1]}))
    (place / "config.yaml").write_text(yaml.safe_dump({"output": "job", "lr": 0.1, "seed": 3}))
    return place


def test_a_folder_beside_a_run(folder: Path, sweep: str, tracking: TrackingConfig) -> None:
    runs = read_runs([str(folder), "trial_1"], tracking)
    assert facts(runs)[0] == ("job", {"loss": 2.0, "val_iou": 0.5, "semantic.miou": 0.25}, {"loss": [(1, 3.0), (2, 2.0)]})
    assert comparison(runs).differing == ("lr", "seed")
    twice = comparison([runs[0], runs[0]])
    assert [run.name for run in twice.runs] == ["job (1)", "job (2)"] and twice.differing == ()


def test_the_command_writes_a_page_and_a_picture(
    folder: Path, sweep: str, tracking: TrackingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "compared"
    argv = [str(folder), "trial_1", "--output", str(output), "--tracking", str(tracking.uri)]
    assert _cli.run(CompareConfig, compare_job.main, argv, compare_job.arguments) == 0
    shown = capsys.readouterr().out
    assert "parameters that differ" in shown and "final metrics" in shown and "semantic.miou" in shown
    report = json.loads((output / "report.json").read_text())
    assert report["parameters"] == {"lr": ["0.1", "0.2"], "seed": ["3", "0"]}
    assert report["metrics"] == {"iou": [None, 1.5], "loss": [2.0, 0.4], "semantic.miou": [0.25, None], "val_iou": [0.5, None]}
    picture = cv2.imread(str(output / "compare.png"))
    assert picture is not None and picture.shape[0] > 200
    page = (output / "compare.html").read_text()
    assert "<td>lr</td><td>0.1</td><td>0.2</td>" in page and "data:image/png;base64," in page


def test_each_curve_is_drawn_and_names_are_escaped() -> None:
    def record(name: str, values: list[float]) -> RunRecord:
        return RunRecord(name, "id", {"text": "<b>"}, {"loss": 1.0}, {"loss": list(enumerate(values))})

    one, both = (draw_curves(comparison(runs)) for runs in ([record("a", [0, 1, 2])], [record("a", [0, 1, 2]), record("<i>", [2, 1, 0])]))
    pictures = [np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), 1)) for data in (one, both)]
    colours = [{tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()} for picture in pictures]
    first, second = (180, 119, 31), (14, 127, 255)  # matplotlib's first two, blue first
    assert first in colours[0] and second not in colours[0]
    assert {first, second} <= colours[1]
    assert "<i>" not in render(comparison([record("<i>", [0, 1]), record("b", [])]), b"").replace("<img", "")
    assert draw_curves(comparison([RunRecord("a", "id", {}, {"iou": 1.0}, {})])) == b""


def test_what_is_not_there_is_said(tracking: TrackingConfig, sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(DataError, match=r"seen: nothing_such; .*trial_1"):
        read_runs(["nothing_such"], tracking)
    with pytest.raises(DataError, match="MLFLOW_TRACKING_URI"):
        read_runs([str(tmp_path)], TrackingConfig())
