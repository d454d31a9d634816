"""A trial's training run: which one it goes on with, and a checkpoint that another trial takes over."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.methods.mask_generation import MaskGeneration, MaskGenerationConfig
from uniovseg.runtime.sweep.train_trial import Forward, Origin, TrialSettings, _run_of, prompt_score, transplant
from uniovseg.runtime.sweep.values import with_values
from uniovseg.runtime.train import TrainJobConfig, with_absolute_paths
from uniovseg.training import DataConfig, refuse_other_run


@pytest.fixture
def base(tiny_config: MaskGenerationConfig, tmp_path: Path) -> TrainJobConfig:
    return TrainJobConfig(output=str(tmp_path / "best"), steps=8, method=tiny_config, data=DataConfig(train=str(tmp_path / "shards")))


@pytest.fixture
def donor(base: TrainJobConfig, tiny_method: MaskGeneration, tmp_path: Path) -> Origin:
    """Trial B after four steps with other values."""
    values = {"optim.lr": 0.5}
    job = with_values(base, values).model_copy(update={"output": str(tmp_path / "trials/B")})
    dumped = job.model_dump(mode="json")
    info = CheckpointInfo(step=4, method=dumped["method"], config=dumped, metrics={"val_box_iou": 0.5})
    folder = tmp_path / "trials/B/step_0000004"
    checkpoint.save(folder, info, tiny_method.state(), {"step": torch.tensor(4.0)})
    return Origin(values=values, output=job.output, checkpoint=str(folder), step=4)


def test_a_trial_goes_on_with_its_own_run_and_begins_another_after_anothers(base: TrainJobConfig, donor: Origin, tmp_path: Path) -> None:
    settings = TrialSettings(base=base, trials=str(tmp_path / "trials"))
    own = {"optim.lr": 0.25}
    job = with_values(base, own)
    assert _run_of(job, settings, own, "A", None) == (job.model_copy(update={"output": str(tmp_path / "trials/A")}), None)
    paused = Origin(values=own, output=str(tmp_path / "trials/A"), checkpoint="-", step=2)
    assert _run_of(job, settings, own, "A", paused)[0].output == paused.output
    taken, start = _run_of(job, settings, own, "A", donor)
    assert start == f"{taken.output}/start" and Path(taken.output).name.startswith("A-after-B-4-")
    changed = {"optim.lr": 0.125}
    assert _run_of(with_values(base, changed), settings, changed, "A", donor)[0].output != taken.output
    assert taken.optim.lr == 0.25
    same = with_values(base, donor.values)
    assert Path(_run_of(same, settings, donor.values, "A", donor)[0].output).name.startswith("A-after-B-4-")
    assert _run_of(same, settings, donor.values, "B", donor) == (same.model_copy(update={"output": donor.output}), None)


def test_a_transplanted_checkpoint_has_the_donors_weights_and_fits_the_run(base: TrainJobConfig, donor: Origin, tmp_path: Path) -> None:
    job = with_values(base, {"optim.lr": 0.25}).model_copy(update={"output": str(tmp_path / "trials/A-after-B")})
    folder = Path(transplant(donor.checkpoint, job))
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        assert (folder / name).read_bytes() == (Path(donor.checkpoint) / name).read_bytes()
    info = checkpoint.read_info(folder)
    assert (info.step, info.metrics) == (4, {"val_box_iou": 0.5})
    refuse_other_run(with_absolute_paths(job), info)
    assert json.loads((folder / checkpoint.MANIFEST).read_text())["config"]["optim"]["lr"] == 0.25


def test_the_score_of_prompts_is_the_mean_of_both() -> None:
    assert prompt_score({"val_box_iou": 0.75, "val_point_iou": 0.25, "val_box_fill_iou": 0.9}) == 0.5


def test_a_checkpoint_without_a_validation_is_no_report_of_the_trial() -> None:
    queue = MagicMock()
    forward, kept = Forward(queue), SimpleNamespace(path="/run/step_0000003")
    forward.after_report(None, [{"step": 3}], kept)
    forward.after_report(None, [{"step": 3, "val_box_iou": -math.inf}], kept)
    forward.after_report(None, [{"step": 6, "val_box_iou": 0.5, "val_point_iou": 0.25}], None)
    assert queue.put.call_count == 0
    scored = {"step": 6, "val_box_iou": 0.5, "val_point_iou": 0.25}
    forward.after_report(None, [scored], kept)
    queue.put.assert_called_once_with((scored, "step_0000003"))
