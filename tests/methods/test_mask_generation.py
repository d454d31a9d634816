"""Stage 1's training step: what its loss adds up, prompts that are left out, and batches without ground truth."""

import pytest

from uniovseg.data.samples import MaskSampleConfig, collate, make_mask_sample
from uniovseg.data.views import ViewConfig
from uniovseg.methods.base import OptimConfig
from uniovseg.methods.mask_generation import MaskGeneration, MaskGenerationConfig, build_mask_generation
from uniovseg.records import ImageMasks, MaskBatch, StepOutput

KINDS = ("loss_mask", "loss_dice", "loss_iou")


def batch_of(scenes: list[ImageMasks], **sample: float) -> MaskBatch:
    return collate([make_mask_sample(scene, ViewConfig(size=64), MaskSampleConfig.model_validate(sample), seed) for seed, scene in enumerate(scenes)])


def built(config: MaskGenerationConfig, **changes: float) -> MaskGeneration:
    method = build_mask_generation(config.model_copy(update=changes), 0)
    method.train()
    return method


def weighed(method: MaskGeneration, output: StepOutput, prefix: str = "") -> float:
    return float(method.config.loss.weigh({kind: output.metrics[prefix + kind] for kind in KINDS}))


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_that_of_points_and_of_boxes_by_its_weight(weight: float, tiny_config: MaskGenerationConfig, scenes: list[ImageMasks]) -> None:
    method = built(tiny_config, box_weight=weight)
    output = method.training_step(batch_of(scenes[:2]))
    points, boxes = weighed(method, output), weighed(method, output, "box_")
    assert points > 0 and boxes > 0
    assert output.loss.item() == pytest.approx(points + weight * boxes, rel=1e-6)


@pytest.mark.parametrize("changes", [{"max_boxes": 0}, {"box_weight": 0.0}])
def test_without_boxes_only_points_count(changes: dict[str, float], tiny_config: MaskGenerationConfig, scenes: list[ImageMasks]) -> None:
    method, batch = built(tiny_config, **changes), batch_of(scenes[:2])
    output = method.training_step(batch)
    assert set(output.metrics) == {*KINDS, "pairs"}
    assert output.loss.item() == pytest.approx(weighed(method, output), rel=1e-6)
    both = built(tiny_config).training_step(batch)
    assert [float(output.metrics[kind]) for kind in KINDS] == [float(both.metrics[kind]) for kind in KINDS]
    output.loss.backward()  # DistributedDataParallel waits for the gradient of each parameter
    assert [name for name, parameter in method.named_parameters() if parameter.requires_grad and parameter.grad is None] == []
    assert len(method.generator.of_boxes) == 13


def test_a_batch_without_ground_truth_reaches_every_parameter_with_zeros(tiny_config: MaskGenerationConfig, scenes: list[ImageMasks]) -> None:
    """Method 2.2, n_b = 0: DistributedDataParallel waits for the gradient of each parameter."""
    method, batch = built(tiny_config), batch_of(scenes[:2], min_area_ratio=1.0, max_area_ratio=1.0)
    assert [len(masks) for masks in batch.masks] == [0, 0]
    output = method.training_step(batch)
    assert output.loss.item() == 0 and float(output.metrics["pairs"]) == 0
    output.loss.backward()
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None or parameter.grad.any()] == []


def test_all_matrices_decay_and_no_embedding(tiny_config: MaskGenerationConfig) -> None:
    method = built(tiny_config)
    names = {parameter: name for name, parameter in method.named_parameters()}
    _, others = method.param_groups(OptimConfig())
    kept = {names[parameter].removeprefix("generator.") for parameter in others["params"] if parameter.ndim > 1}
    tokens = {f"prompt_encoder.{name}_embed" for name in ("corner", "point", "box", "mask")}
    assert kept == tokens | {"prompt_encoder.label_embed.weight", "mask_decoder.level_embed.weight", "pixel_decoder.level_embed"}
