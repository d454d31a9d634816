"""Sweeps of real, tiny trainings on a local cluster: loss weights with ASHA, and trials that take over another's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from jobs import _cli, train
from uniovseg import checkpoint
from uniovseg.config import load, to_yaml, validate
from uniovseg.data.samples import MaskSampleConfig
from uniovseg.data.views import ViewConfig
from uniovseg.methods.base import OptimConfig
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.job import sweep
from uniovseg.runtime.tracking import PARENT, TrackingConfig
from uniovseg.runtime.train import TrainJobConfig
from uniovseg.training import DataConfig, ValidationConfig

EVERY, STEPS = 2, 6


@pytest.fixture(scope="module")
def train_file(tiny_config: MaskGenerationConfig, shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of six steps, validated and kept every second, as a file."""
    file = tmp_path_factory.mktemp("training") / "train.yaml"
    job = TrainJobConfig(
        output=str(file.parent / "unused"),
        steps=STEPS,
        batch_size=2,
        threads=1,
        method=tiny_config,
        data=DataConfig(train=str(shapes_shards), view=ViewConfig(size=64), sample=MaskSampleConfig(max_masks=6), feed="threads", threads=1),
        optim=OptimConfig(lr=1e-3, warmup_steps=1),
        validation=ValidationConfig(shards=str(shapes_shards), images=2, points_per_side=2, every=EVERY),
        log_every=1,
        checkpoint_every=EVERY,
        tracking=TrackingConfig(uri=None),
    )
    file.write_text(to_yaml(job))
    return file


def sweep_of(train_file: Path, name: str, uri: str, **changes: Any) -> SweepConfig:
    values = {
        "output": str(train_file.parent / name),
        "task": {"name": "training", "train": str(train_file)},
        "max_concurrent": 2,
        "verbose": 0,
        "tracking": {"uri": uri, "experiment": name},
    }
    return validate(SweepConfig, values | changes)


def lines(folder: Path) -> dict[int, dict[str, float]]:
    """The training's lines of metrics.jsonl by step."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {int(line["step"]): line for line in read if "loss" in line}


@pytest.mark.cluster
@pytest.mark.slow
def test_loss_weights_are_ranked_by_prompts_and_the_worse_trial_may_end_early(
    ray_cluster: None, train_file: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sweep_of(
        train_file, "losses", mlflow_uri,
        space={"method.loss.dice_weight": {"log_uniform": [0.1, 10]}, "method.loss.iou_weight": {"uniform": [0.5, 2]}},
        search={"name": "optuna", "trials": 2, "seed": 3},
        scheduler={"name": "asha", "grace_steps": EVERY},
    )  # fmt: skip
    report = sweep(config)
    assert (report["trials"], report["failed"]) == (2, 0)
    tuned = {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in Path(config.output).glob("tune/*/result.json")
    }
    assert len(tuned) == 2
    for trial, results in tuned.items():
        run = Path(config.output) / "trials" / trial
        assert [result["step"] for result in results] == list(range(EVERY, EVERY * len(results) + 1, EVERY))
        for result in results:
            metrics = checkpoint.read_info(Path(result["train_checkpoint"])).metrics if Path(result["train_checkpoint"]).exists() else result
            assert result["score"] == pytest.approx((metrics["val_box_iou"] + metrics["val_point_iou"]) / 2)
        used = checkpoint.read_info(next(run.glob("step_*"))).config["method"]["loss"]
        assert used["dice_weight"] == pytest.approx(results[0]["config"]["method.loss.dice_weight"])
    last = {trial: results[-1] for trial, results in tuned.items()}
    assert report["best"]["trial"] == max(last, key=lambda trial: last[trial]["score"])
    assert max(result["step"] for result in last.values()) == STEPS

    client = MlflowClient(tracking_uri=mlflow_uri)
    parent = client.get_run(report["mlflow"].split()[0])
    children = client.search_runs([parent.info.experiment_id], f"tags.`{PARENT}` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == set(tuned)
    for child in children:
        assert child.info.status in ("FINISHED", "KILLED")
        assert child.data.metrics["score"] == pytest.approx(last[child.info.run_name]["score"])
        assert float(child.data.params["method.loss.iou_weight"]) == pytest.approx(last[child.info.run_name]["config"]["method.loss.iou_weight"])

    capsys.readouterr()
    assert _cli.run(TrainJobConfig, train.main, ["--config", report["best_config"], "--dry-run"]) == 0
    best = load(TrainJobConfig, report["best_config"])
    assert capsys.readouterr().out == to_yaml(best)
    assert best.method.model_dump()["loss"]["dice_weight"] == pytest.approx(report["best"]["values"]["method.loss.dice_weight"])


@pytest.mark.cluster
@pytest.mark.slow
def test_a_trial_that_exploits_another_starts_from_its_weights(ray_cluster: None, train_file: Path, mlflow_uri: str) -> None:
    config = sweep_of(
        train_file, "population", mlflow_uri,
        task={"name": "training", "train": str(train_file), "overrides": ["steps=4"]},
        space={"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        search={"name": "random", "trials": 2},
        scheduler={"name": "pbt", "interval_steps": EVERY, "share": 0.5, "resample": 1.0, "synchronous": True},
    )  # fmt: skip
    report = sweep(config)
    assert (report["trials"], report["failed"]) == (2, 0)
    taken = sorted((Path(config.output) / "trials").glob("*-after-*"))
    assert taken
    compared = 0
    for run in taken:
        donor, step = run.name.partition("-after-")[2].rsplit("-", 2)[:2]
        sources = [path / f"step_{int(step):07d}" for path in (Path(config.output) / "trials").glob(f"{donor}*") if path != run]
        weights = (run / "start" / checkpoint.MODEL).read_bytes()
        (source,) = [path.parent for path in sources if path.exists() and (path / checkpoint.MODEL).read_bytes() == weights]
        assert checkpoint.read_info(run / "start").step == int(step)
        if int(step) < 4:  # the plan of samples and the draws depend on the step: the donor's next loss is the taker's first
            assert min(lines(run)) == int(step) + 1
            assert lines(run)[int(step) + 1]["loss"] == pytest.approx(lines(source)[int(step) + 1]["loss"], rel=1e-6)
            compared += 1
    assert compared

    client = MlflowClient(tracking_uri=mlflow_uri)
    parent = client.get_run(report["mlflow"].split()[0])
    children = client.search_runs([parent.info.experiment_id], f"tags.`{PARENT}` = '{parent.info.run_id}'")
    scores = {child.info.run_name: child.data.metrics["score"] for child in children if "score" in child.data.metrics}
    last = [json.loads(path.read_text().splitlines()[-1]) for path in Path(config.output).glob("tune/*/result.json")]
    ended = {Path(result["train_checkpoint"]).parent.name: result["score"] for result in last}
    assert scores == pytest.approx({name: score for name, score in ended.items() if name in {child.info.run_name for child in children}}) and scores
