"""What a sweep may be resumed with, and where values may lie, without a cluster."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _explore

from uniovseg.config import validate
from uniovseg.errors import ConfigError
from uniovseg.runtime.sweep import tasks
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.scale_sets import Matrices
from uniovseg.runtime.sweep.tasks import Scales, task_of
from uniovseg.runtime.sweep.tuner import _scheduler, begin
from uniovseg.runtime.tracking import Run


@pytest.fixture
def match_file(tmp_path: Path) -> Path:
    file = tmp_path / "match.yaml"
    file.write_text(json.dumps({"entities": "set", "output": "pairs"}))
    return file


def sweep_of(match_file: Path, **changes: Any) -> SweepConfig:
    task = {"name": "scales", "match": str(match_file), "sizes": [64, 96]}
    values = {"output": str(match_file.parent / "sweep"), "task": task, "space": {"sizes": {"subsets": [64, 96]}}}
    return validate(SweepConfig, values | changes)


def test_a_sweep_is_resumed_as_it_was(match_file: Path) -> None:
    def start(**changes: Any) -> None:
        config = sweep_of(match_file, **changes)
        begin(config, task_of(config).job)

    start()
    start(resume=True, verbose=0)
    with pytest.raises(ConfigError, match="holds another sweep"):
        start(resume=True, max_concurrent=2)  # Tune would go on with as many as before
    match_file.write_text(json.dumps(yaml.safe_load(match_file.read_text()) | {"tracking": {"experiment": "other"}}))
    start(resume=True)
    match_file.write_text(json.dumps(yaml.safe_load(match_file.read_text()) | {"pairing": {"points_per_side": 7}}))
    with pytest.raises(ConfigError, match="holds another sweep; .*files that it is made of"):
        start(resume=True)


def test_what_was_measured_is_not_measured_again(match_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def measured(*arguments: object) -> Matrices:
        calls.append(arguments)
        return Matrices("classes", (64, 96), 100.0, [np.zeros((2, 1, 3), np.float32)], [np.zeros((1, 3), np.bool_)], np.array([1]))

    monkeypatch.setattr(tasks, "measure", measured)
    monkeypatch.setattr("ray.tune.with_parameters", lambda trial, **_: trial)
    found = []
    for _ in range(2):
        task = task_of(sweep_of(match_file))
        assert isinstance(task, Scales)
        task.trainable(Run(None, None))
        found.append(task.measured_now)
    assert found == [True, False] and len(calls) == 1


def test_population_based_training_stays_in_the_ranges(match_file: Path) -> None:
    space = {"optim.lr": {"log_uniform": [1e-3, 1e-2]}, "method.loss.dice_weight": {"uniform": [0.5, 2]}, "batch_size": {"choice": [2, 4]}}
    config = sweep_of(
        match_file, task={"name": "training", "train": "-"}, space=space, search={"name": "random"}, scheduler={"name": "pbt", "resample": 0}
    )
    scheduler = _scheduler(config, 10)
    assert isinstance(scheduler, PopulationBasedTraining)
    for ends in (
        {"optim.lr": 1e-3, "method.loss.dice_weight": 0.5, "batch_size": 2},
        {"optim.lr": 1e-2, "method.loss.dice_weight": 2, "batch_size": 4},
    ):
        for _ in range(20):
            values, _ = _explore(ends, scheduler._hyperparam_mutations, 0.0, (1.2, 0.8), scheduler._custom_explore_fn)
            assert 1e-3 <= values["optim.lr"] <= 1e-2 and 0.5 <= values["method.loss.dice_weight"] <= 2 and values["batch_size"] in (2, 4)
            assert values.keys() == space.keys()
