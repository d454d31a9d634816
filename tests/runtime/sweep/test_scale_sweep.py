"""A scale sweep on a real local cluster, interrupted and resumed: its scores, its files, its runs in MLflow."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from jobs import _cli, match, tune
from uniovseg.config import validate
from uniovseg.data import entities
from uniovseg.data.shapes import TEXT_STREAM as STREAM
from uniovseg.data.shapes import SceneConfig, draw_scene, encode_image, scene_rng
from uniovseg.data.shapes import entities as names_of
from uniovseg.errors import ConfigError, TrainingError
from uniovseg.mask_text_matching import MaskTextMatchingConfig
from uniovseg.records import ImageEntities
from uniovseg.runtime.match import MatchConfig
from uniovseg.runtime.shards import PartRange, write_manifest, write_records
from uniovseg.runtime.sweep import tuner
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.job import sweep
from uniovseg.runtime.sweep.scale_sets import Matrices, ScaleSet, score
from uniovseg.runtime.tracking import PARENT
from uniovseg.storage import Location

SCENE, SIZES = SceneConfig(size=96), [64, 96, 128]
SET, COSTS = "sizes", ("clip_softmax", "raw")


@pytest.fixture(scope="module")
def match_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matching job on three scenes, as a file."""
    folder = tmp_path_factory.mktemp("scales")
    scenes = [draw_scene(SCENE, scene_rng(5, STREAM, index), held_out=False) for index in range(3)]
    records = [
        ImageEntities(key=f"text_{index + 1}", image=encode_image(scene.image, SCENE.jpeg_quality), caption="", entities=tuple(names_of(scene)))
        for index, scene in enumerate(scenes)
    ]
    commit = write_records(PartRange(name="t", source="t", begin=0, end=3), enumerate(records), Location.of(folder / "set"), 2, entities.to_table)
    write_manifest(Location.of(folder / "set"), [commit])
    file = folder / "match.yaml"
    pairing = {"points_per_side": 6, "max_masks": 12}
    file.write_text(json.dumps({"entities": str(folder / "set"), "output": str(folder / "pairs"), "device": "cpu", "pairing": pairing}))
    return file


@pytest.fixture(scope="module")
def config(match_file: Path, mlflow_uri: str) -> SweepConfig:
    return validate(
        SweepConfig,
        {
            "output": str(match_file.parent / "sweep"),
            "task": {"name": "scales", "match": str(match_file), "sizes": SIZES, "truth": {"name": "shapes", "seed": 5, "scene": SCENE.model_dump()}},
            "space": {SET: {"subsets": SIZES}, "matching.cost": {"grid": list(COSTS)}},
            "max_concurrent": 2,
            "verbose": 0,
            "tracking": {"uri": mlflow_uri, "experiment": "sweeps"},
        },
    )


class InterruptsOnce(FIFOScheduler):  # type: ignore[misc]
    """Stops the sweep as Ctrl+C does, when its fourth trial has ended."""

    ended = 0

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        InterruptsOnce.ended += 1
        if InterruptsOnce.ended == 4:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def report(ray_cluster: None, config: SweepConfig) -> dict[str, Any]:
    """The report of the sweep, which was interrupted and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "FIFOScheduler", InterruptsOnce)
        with pytest.raises(TrainingError, match="interrupted; seen: [4-9] of 14 trials have ended; --resume"):
            sweep(config)
        with pytest.raises(ConfigError, match="holds a sweep; .*--resume"):
            sweep(config)
        other = config.model_copy(update={"resume": True, "search": config.search.model_copy(update={"seed": 1})})
        with pytest.raises(ConfigError, match="holds another sweep"):
            sweep(other)
        return sweep(config.model_copy(update={"resume": True}))


def rows(config: SweepConfig) -> list[dict[str, str]]:
    return list(csv.DictReader((Path(config.output) / "trials.csv").open()))


@pytest.mark.cluster
@pytest.mark.slow
def test_every_set_has_the_score_of_its_matrices(config: SweepConfig, report: dict[str, Any]) -> None:
    matrices = Matrices.load(Location.of(config.output) / "matrices.npz")
    assert matrices.sizes == tuple(SIZES) and len(matrices.cosines) == 3 and matrices.wanted.sum() > 6
    expected = {}
    for row in rows(config):
        sizes = tuple(map(int, row[SET].split("+")))
        figures = score(matrices, ScaleSet(sizes=sizes, matching=MaskTextMatchingConfig.model_validate({"cost": row["matching.cost"]})))
        expected[sizes, row["matching.cost"]] = figures["f1"]
        assert [float(row[name]) for name in ("precision", "recall", "f1")] == pytest.approx(
            [figures[name] for name in ("precision", "recall", "f1")]
        )
    assert len(expected) == 14 and (report["trials"], report["failed"]) == (14, 0)
    assert report["best"]["figures"]["f1"] == pytest.approx(max(expected.values())) and max(expected.values()) > 0
    assert max(float(row["f1"]) for row in rows(config)) == float(rows(config)[0]["f1"])


@pytest.mark.cluster
@pytest.mark.slow
def test_the_workers_are_few_import_no_torch_and_score_no_set_twice(config: SweepConfig, report: dict[str, Any]) -> None:
    lines = [file.read_text().splitlines() for file in (Path(config.output) / "tune").glob("*/result.json")]
    assert len(lines) == 14 and all(len(each) == 1 for each in lines)
    results = [json.loads(line) for (line,) in lines]
    assert not any(result["torch_imported"] for result in results)
    assert len({result["pid"] for result in results}) <= 5  # two before the interruption, two after, and one that was started ahead
    assert list((Path(config.output) / "tune").glob("*/events.out.tfevents*"))


@pytest.mark.cluster
@pytest.mark.slow
def test_each_trial_is_a_run_below_the_sweeps(config: SweepConfig, report: dict[str, Any]) -> None:
    client = MlflowClient(tracking_uri=config.tracking.uri)
    parent = client.get_run(report["mlflow"].split()[0])
    assert parent.info.status == "FINISHED" and parent.data.params["task.name"] == "scales"
    children = client.search_runs([parent.info.experiment_id], f"tags.`{PARENT}` = '{parent.info.run_id}' and tags.job = 'trial'")
    by_name = {child.info.run_name: child for child in children}
    assert len(children) == 14 and {child.info.status for child in children} == {"FINISHED"}
    for row in rows(config):
        child = by_name[row["trial"]]
        assert child.data.params["matching.cost"] == row["matching.cost"]
        assert json.loads(child.data.params[SET]) == [int(size) for size in row[SET].split("+")]
        assert child.data.metrics["f1"] == pytest.approx(float(row["f1"]))
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {
        "best.yaml", "trials.csv", "report.json", "parallel.html", "parallel.png", "scale_sets.html", "scale_sets.png"
    }  # fmt: skip


@pytest.mark.cluster
@pytest.mark.slow
def test_the_best_set_is_a_configuration_of_the_matching_job(
    config: SweepConfig, report: dict[str, Any], match_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _cli.run(MatchConfig, match.main, ["--config", report["best_config"], "--dry-run"]) == 0
    best = validate(MatchConfig, yaml.safe_load(capsys.readouterr().out))
    assert list(best.regions.sizes) == json.loads(report["best"]["values"][SET])
    assert best.pairing.matching.cost == report["best"]["values"]["matching.cost"]
    assert best.pairing.points_per_side == 6 and best.output == json.loads(match_file.read_text())["output"]


@pytest.mark.cluster
@pytest.mark.slow
def test_the_plots_are_pictures_and_pages_of_their_own(report: dict[str, Any]) -> None:
    pages = [Path(path) for path in report["plots"] if path.endswith(".html")]
    pictures = [Path(path) for path in report["plots"] if path.endswith(".png")]
    assert len(pages) == len(pictures) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    for path in pages:
        text = path.read_text()
        assert "64+96+128" in text and '<script src="http' not in text


def test_resume_is_an_option_of_the_command_line(config: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(config.model_dump_json())
    assert _cli.run(SweepConfig, tune.main, ["--config", str(file), "--resume", "--dry-run"], tune.arguments) == 0
    assert "\nresume: true\n" in capsys.readouterr().out
