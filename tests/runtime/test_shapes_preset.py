"""The training set of ``python jobs/train.py`` without a configuration."""

from pathlib import Path

import pytest

from uniovseg.data.shards import ShardSet
from uniovseg.data.views import ViewConfig
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.runtime import shapes_preset
from uniovseg.runtime.shapes_preset import train_on_shapes
from uniovseg.runtime.train import TrainJobConfig
from uniovseg.training import DataConfig


@pytest.mark.cluster
def test_the_set_is_made_once_and_then_trained_on(
    ray_cluster: None, tiny_config: MaskGenerationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sets: list[tuple[int, int]] = []

    def fit(config: TrainJobConfig) -> dict[str, object]:
        shards = ShardSet(config.data.train)
        sets.append((shards.manifest.samples, (Path(config.data.train) / "manifest.json").stat().st_mtime_ns))
        return {"steps": config.steps}

    monkeypatch.setattr(shapes_preset, "fit", fit)
    monkeypatch.chdir(tmp_path)
    data = DataConfig(train="runs/shards", view=ViewConfig(size=64))
    config = TrainJobConfig(output="runs/train", method=tiny_config, data=data, workers=2, batch_size=4, steps=3)
    assert train_on_shapes(config) == train_on_shapes(config) == {"steps": 3}
    assert sets[0] == sets[1] and sets[0][0] == 12
