from pathlib import Path

import pytest

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import load
from uniovseg.methods.mask_generation import MaskGeneration, MaskGenerationConfig
from uniovseg.runtime.model_size import model_size
from uniovseg.runtime.train import TrainJobConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def test_the_size_is_that_of_a_written_checkpoint(tiny_config: MaskGenerationConfig, tiny_method: MaskGeneration, tmp_path: Path) -> None:
    info = CheckpointInfo(step=0, method=tiny_config.model_dump(mode="json"))
    moments = {f"{kind}/{name}": p for name, p in tiny_method.named_parameters() if p.requires_grad for kind in ("exp_avg", "exp_avg_sq")}
    checkpoint.save(tmp_path, info, tiny_method.state(), {name: value.detach().clone() for name, value in moments.items()})
    written = (tmp_path / checkpoint.MODEL).stat().st_size, (tmp_path / checkpoint.OPTIMIZER).stat().st_size
    size = model_size(tiny_config)
    assert size.weights_bytes == pytest.approx(written[0], rel=0.1)  # the rest are names
    assert size.checkpoint_bytes == pytest.approx(sum(written), rel=0.1)


def test_a_clip_that_comes_with_the_checkpoint_counts(tiny_config: MaskGenerationConfig, tiny_method: MaskGeneration) -> None:
    imported = tiny_config.model_copy(update={"clip": tiny_config.clip.model_copy(update={"weights": "checkpoint"})})
    clip = sum(value.numel() * value.element_size() for value in tiny_method.clip.state_dict().values())
    assert model_size(imported).weights_bytes == model_size(tiny_config).weights_bytes + clip


def test_the_released_mask_branch_has_its_parameters() -> None:
    config = load(TrainJobConfig, CONFIGS / "stage1_sa1b.yaml")
    size = model_size(config.method)
    assert size.trainable == 21_978_565
    assert size.gradient_bytes == 87_914_260
