"""What every method keeps to, whatever it does: one test for all that the catalogue names, so that a new one cannot forget it."""

from typing import Any

import numpy as np
import pytest
import torch

from uniovseg.config import validate
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.methods.base import OptimConfig, TrainableMethod
from uniovseg.methods.catalog import METHODS, build_method

SMALL = {"clip": {"name": "shapes"}, "generator": "shapes", "size": 64, "regions": {"sizes": [64], "templates": "simple"}, "test_points_per_side": 3}
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3)).astype(np.uint8)

pytestmark = pytest.mark.parametrize("name", METHODS)


def built(name: str, seed: int = 0) -> TrainableMethod[Any]:
    config: Any = validate(METHODS[name].config_type, SMALL | {"proposals": {"min_predicted_iou": 0.0}})
    assert config.name == name
    return build_method(config, seed)


def test_equal_seeds_give_equal_weights(name: str) -> None:
    one, same, other = (built(name, seed).state() for seed in (0, 0, 1))
    assert one.keys() == same.keys() == other.keys()
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def test_what_is_frozen_is_in_no_checkpoint_and_gets_no_step(name: str) -> None:
    method = built(name)
    trained = {id(parameter) for group in method.param_groups(OptimConfig()) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    assert trained
    for part in method.frozen:
        assert not any(key.startswith(f"{part}.") for key in method.state())
        assert not any(parameter.requires_grad for parameter in method.get_submodule(part).parameters())


def test_predictions_are_masks_of_the_image_with_scores_for_every_class(name: str) -> None:
    vocabulary = load_vocabulary("cat, dog, grass")
    (prediction,) = built(name).eval().predict([IMAGE], vocabulary)
    assert len(prediction.masks) == len(prediction.quality) == len(prediction.class_scores) > 0
    assert prediction.masks.size == IMAGE.shape[:2]
    torch.testing.assert_close(prediction.class_scores.sum(1), torch.ones(len(prediction.masks)))
