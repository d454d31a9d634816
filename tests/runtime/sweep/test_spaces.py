"""Spaces in YAML, what they refuse, and a trial's values as overrides."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from uniovseg.config import Config, load, to_yaml, validate
from uniovseg.errors import ConfigError
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.scale_sets import ScaleSet
from uniovseg.runtime.sweep.spaces import Space
from uniovseg.runtime.sweep.tasks import Scales, task_of
from uniovseg.runtime.sweep.tuner import count_trials
from uniovseg.runtime.sweep.values import with_values
from uniovseg.runtime.train import TrainJobConfig

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"


def sweep_of(**changes: Any) -> SweepConfig:
    task = {"name": "scales", "match": str(CONFIGS / "match_shapes.yaml"), "sizes": [64, 96]}
    return validate(SweepConfig, {"output": "o", "task": task, "space": {"sizes": {"subsets": [64, 96]}}} | changes)


def test_all_subsets_of_five_are_31() -> None:
    listed = Space(subsets=(640, 768, 896, 1024, 1152)).listed
    assert listed is not None and len(listed) == 31
    assert {frozenset(json.loads(text)) for text in listed} == {
        frozenset(size for place, size in enumerate((640, 768, 896, 1024, 1152)) if bits >> place & 1) for bits in range(1, 32)
    }


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [({"uniform": [2, 3]}, 2, 3), ({"log_uniform": ["1e-4", 1]}, 1e-4, 1), ({"choice": [5, 7]}, 5, 7), ({"grid": [5, 7]}, 5, 7)],
)
def test_what_is_drawn_lies_in_the_space(kind: dict[str, Any], low: float, high: float) -> None:
    domain = Space.model_validate(kind).sampled()
    drawn = [domain.sample() for _ in range(200)]
    assert low <= min(drawn) < max(drawn) <= high
    if "log_uniform" in kind:
        assert 60 < sum(value < 1e-2 for value in drawn) < 140


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"chioce": [1]}, r"space\.sizes: not a mapping with one of .*did you mean 'choice'"),
        ({"choice": [1], "grid": [1]}, "not a mapping with one of"),
        ([1, 2], "not a mapping with one of"),
        ({"uniform": [3, 3]}, "not below the highest"),
        ({"uniform": [3]}, "space.sizes"),
        ({"log_uniform": [0, 3]}, "not above 0"),
        ({"grid": []}, "no value is given"),
        ({"subsets": [64, 64]}, "given twice"),
    ],
)
def test_a_wrong_space_is_refused(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(space={"sizes": space})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"matching.max_cost": {"uniform": [0, 1]}}}, "cannot try all of a range: matching.max_cost"),
        ({"space": {}}, "space"),
        ({"scheduler": {"name": "asha"}}, "needs scores during training"),
        ({"shceduler": {}}, "did you mean 'scheduler'"),
        ({"task": {"name": "scale"}}, "task"),
        (
            {"task": {"name": "training", "train": "t"}, "search": {"name": "optuna"}, "scheduler": {"name": "pbt"}},
            "allowed with it: search.name=random",
        ),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(**changes)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"size": {"grid": [[64]]}}, "unknown key 'size'.*sizes"),
        ({"sizes": {"grid": [[64], [128]]}}, "not measured; seen: 128"),
        ({"matching.cost": {"grid": ["raw", "clip"]}}, "matching.cost"),
    ],
)
def test_a_key_or_value_that_the_task_does_not_have_is_refused(space: dict[str, Any], message: str) -> None:
    config = sweep_of(space=space)
    assert config.task.name == "scales"
    with pytest.raises(ConfigError, match=message):
        Scales(config, config.task).check(config)


def test_ground_truth_masks_have_no_confidence_rule() -> None:
    truth = {"name": "labelled", "benchmark": "ade20k_panoptic"}
    task = {"name": "scales", "match": str(CONFIGS / "match_shapes.yaml"), "sizes": [64, 96], "truth": truth}
    config = sweep_of(task=task, space={"matching.confidence": {"grid": ["all", "mutual_best"]}})
    assert config.task.name == "scales"
    with pytest.raises(ConfigError, match="no confidence rule"):
        Scales(config, config.task).check(config)


def test_what_is_written_down_is_read_again() -> None:
    config = sweep_of(search={"name": "random"}, space={"matching.max_cost": {"log_uniform": [0.1, 1]}, "sizes": {"grid": [[64], [64, 96]]}})
    assert SweepConfig.model_validate_json(config.model_dump_json()) == config
    assert validate(SweepConfig, yaml.safe_load(to_yaml(config))) == config


def test_an_override_changes_a_dotted_key() -> None:
    changes = ["space.matching.cost={grid: [raw]}", "space.sizes={subsets: [256, 512]}", "search.seed=3"]
    config = load(SweepConfig, CONFIGS / "sweep_scales_shapes.yaml", changes)
    assert {key: space.listed for key, space in config.space.items()} == {
        "sizes": ["[256]", "[512]", "[256, 512]"], "matching.cost": ["raw"], "matching.confidence": ["all", "top_fraction", "mutual_best"]
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"space\.matching\.cost: not a mapping"):
        load(SweepConfig, CONFIGS / "sweep_scales_shapes.yaml", ["space.matching.cost.girds=[raw]"])


def test_values_go_through_the_overrides_of_the_command_line() -> None:
    base = ScaleSet(sizes=(64, 96))
    chosen = with_values(base, {"sizes": "[96]", "matching.cost": "raw", "matching.top_fraction": 0.25, "matching.max_cost": 1e-05})
    assert chosen.sizes == (96,)
    assert (chosen.matching.cost, chosen.matching.top_fraction, chosen.matching.max_cost) == ("raw", 0.25, 1e-5)
    assert chosen.matching.confidence == base.matching.confidence
    with pytest.raises(ConfigError, match="did you mean 'cost'"):
        with_values(base, {"matching.cots": "raw"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": {"name": "asha", "grace_steps": 500}}, "grace_steps: no trial is that long; seen: 500; allowed: at most steps, which is 40"),
        ({"space": {"method.generator.decoder_layers": {"uniform": [2, 4]}}}, r"decoder_layers"),
    ],
)
def test_a_training_sweep_that_would_fail_in_its_trials_is_refused(changes: dict[str, Any], message: str) -> None:
    overrides = ["steps=40", "validation.every=20", "validation.shards=s", "checkpoint_every=20"]
    values = {"task": {"name": "training", "train": str(CONFIGS / "stage1_shapes.yaml"), "overrides": overrides}, "search": {"name": "random"}}
    config = sweep_of(**(values | {"space": {"optim.lr": {"log_uniform": [1e-4, 1e-3]}}} | changes))
    with pytest.raises(ConfigError, match=message):
        task_of(config).check(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sweep_*.yaml")), ids=lambda path: str(path.stem))
def test_shipped_sweeps_vary_keys_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])
    config = load(SweepConfig, path)
    assert "score" not in config.space
    if config.task.name == "scales":
        Scales(config, config.task).check(config)
        assert count_trials(config) % 31 == 0
    else:
        base: Config = load(TrainJobConfig, config.task.train, config.task.overrides)
        for key, space in config.space.items():
            for value in space.samples:
                with_values(base, {key: value})
    assert yaml.safe_load(path.read_text())["output"] == config.output
