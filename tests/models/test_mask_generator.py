import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from tests.models.conftest import CHANNELS, TINY
from uniovseg.models.layers import PositionKind
from uniovseg.models.mask_decoder import in_windows
from uniovseg.models.mask_generator import MaskGenerator, MaskGeneratorConfig, build_mask_generator
from uniovseg.models.pixel_decoder import PixelFeatures

Features = tuple[Tensor, Tensor, Tensor, Tensor]


def test_points_give_num_masks_masks_after_every_layer(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor) -> None:
    with torch.no_grad():
        layers = generator.embed_points(pixel, points)
        outputs = generator.masks(pixel, layers)
    assert len(outputs) == 1 + 4
    for layer, output in zip(layers, outputs, strict=True):
        assert layer.embeddings.shape == (2, 6, 3, 32)
        assert output.mask_logits.shape == (2, 6, 3, 16, 24)
        assert output.iou_probs.shape == (2, 6, 3)
        assert 0 < output.iou_probs.min() <= output.iou_probs.max() < 1


def test_boxes_and_point_sets_give_one_mask(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor, boxes: Tensor) -> None:
    labels = torch.tensor([1, 0, 1]).expand(2, 2, 3)
    with torch.no_grad():
        by_box = generator.masks(pixel, generator.embed_boxes(pixel, boxes)[-1:])[0]
        by_set = generator.masks(pixel, generator.embed_point_sets(pixel, points.view(2, 2, 3, 2), labels)[-1:])[0]
    assert by_box.mask_logits.shape == (2, 6, 1, 16, 24)
    assert by_set.mask_logits.shape == (2, 2, 1, 16, 24)
    assert by_set.iou_probs.shape == (2, 2, 1)


def test_the_last_layer_alone_is_the_last_of_all(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor) -> None:
    layers = generator.embed_points(pixel, points)
    every, last = generator.masks(pixel, layers), generator.masks(pixel, layers[-1:])
    assert torch.equal(every[-1].mask_logits, last[0].mask_logits)
    assert torch.equal(every[-1].iou_probs, last[0].iou_probs)


def test_masks_of_survivors_are_the_masks_of_all(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor) -> None:
    """Filtering before making masks gives what filtering after gives."""
    one = PixelFeatures(pixel.mask_features[:1], (pixel.levels[0][:1], pixel.levels[1][:1], pixel.levels[2][:1]))
    with torch.no_grad():
        last = generator.embed_points(one, points[:1])[-1]
        kept = last.iou_probs >= last.iou_probs.median()
        found = generator.masks(one, [last.take(kept).take((None, slice(None), None))])[0].mask_logits[0, :, 0]
        expected = generator.masks(one, [last])[0].mask_logits[kept]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("grad", [True, False])
def test_prompts_do_not_see_each_other(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor, grad: bool) -> None:
    order = torch.tensor([4, 0, 3])
    with torch.set_grad_enabled(grad):
        every, few = generator.embed_points(pixel, points)[-1], generator.embed_points(pixel, points[:, order])[-1]
    torch.testing.assert_close(few.embeddings, every.embeddings[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few.iou_probs, every.iou_probs[:, order])


def test_a_box_with_a_window_depends_on_the_pixels_in_it(generator: MaskGenerator, pixel: PixelFeatures) -> None:
    """Everything outside the box changes; what the decoder makes of the box does not, unless boxes have no windows."""
    box = torch.tensor([[[32.0, 0.0, 63.9, 31.9]]]).expand(2, 1, 4)  # one cell of stride 32
    box = box + torch.tensor([0.1, 0.1, 0.0, 0.0])

    def outside(level: Tensor) -> Tensor:
        changed = level + 1
        cell = level.shape[3] * 32 // (pixel.mask_features.shape[3] * 4)
        changed[:, :, :cell, cell : 2 * cell] = level[:, :, :cell, cell : 2 * cell]
        return changed

    levels = tuple(outside(level) for level in pixel.levels)
    other = PixelFeatures(pixel.mask_features, (levels[0], levels[1], levels[2]))
    same = {}
    with torch.no_grad():
        for generator.box_windows in (True, False):
            found, changed = (generator.embed_boxes(each, box)[-1].embeddings for each in (pixel, other))
            same[generator.box_windows] = torch.allclose(found, changed, atol=1e-5)
    assert same == {True: True, False: False}


def test_the_masks_of_a_point_are_cut_to_windows_around_it(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor) -> None:
    generator.point_windows = (0.25, 0.5, 2.0)
    with torch.no_grad():
        last = generator.embed_points(pixel, points)[-1]
        logits = generator.masks(pixel, [last])[0].mask_logits
    assert last.windows is not None
    size = torch.tensor([96.0, 64.0])
    for mask, side in enumerate((0.25, 0.5, 2.0)):
        torch.testing.assert_close((last.windows[:, :, mask, :2] + last.windows[:, :, mask, 2:]) / 2 * size, points)
        torch.testing.assert_close(last.windows[:, :, mask, 2:] - last.windows[:, :, mask, :2], torch.full((2, 6, 2), side))
    assert bool((logits[~in_windows(last.windows, (16, 24))] == -8).all()) and not bool((logits[:, :, 2] == -8).any())


def test_point_windows_are_as_many_as_masks() -> None:
    with pytest.raises(ValidationError, match="point_windows must be empty or have num_masks values; it has 1 and num_masks is 4"):
        MaskGeneratorConfig(point_windows=(0.5,))


def test_images_do_not_see_each_other(generator: MaskGenerator, pixel: PixelFeatures, boxes: Tensor) -> None:
    one = PixelFeatures(pixel.mask_features[1:], (pixel.levels[0][1:], pixel.levels[1][1:], pixel.levels[2][1:]))
    with torch.no_grad():
        both, alone = generator.embed_boxes(pixel, boxes)[-1], generator.embed_boxes(one, boxes[1:])[-1]
    torch.testing.assert_close(alone.embeddings, both.embeddings[1:], atol=1e-5, rtol=1e-5)


def test_point_sets_depend_on_labels_not_on_order(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor) -> None:
    sets, labels = points.view(2, 2, 3, 2), torch.tensor([1, 1, 0]).expand(2, 2, 3)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        found = generator.embed_point_sets(pixel, sets, labels)[-1]
        permuted = generator.embed_point_sets(pixel, sets[:, :, order], labels[:, :, order])[-1]
        other = generator.embed_point_sets(pixel, sets, 1 - labels)[-1]
    torch.testing.assert_close(permuted.embeddings, found.embeddings, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(other.embeddings, found.embeddings, atol=1e-3)


def test_gradients_reach_every_parameter(generator: MaskGenerator, features: Features, points: Tensor, boxes: Tensor) -> None:
    for name, parameter in generator.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):  # they start at zero and let nothing through
            torch.nn.init.normal_(parameter, std=0.02)
    pixel = generator.pixel_decoder(features)
    labels = torch.tensor([1, 0, 1]).expand(2, 2, 3)
    prompted = [
        generator.embed_points(pixel, points),
        generator.embed_boxes(pixel, boxes),
        generator.embed_point_sets(pixel, points.view(2, 2, 3, 2), labels),
    ]
    outputs = [output for layers in prompted for output in generator.masks(pixel, layers)]
    loss = torch.stack([output.mask_logits.square().mean() + output.iou_probs.mean() for output in outputs]).sum()
    torch.autograd.backward(loss)
    without = [name for name, parameter in generator.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_the_same_seed_gives_the_same_weights() -> None:
    def build(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build_mask_generator(TINY, CHANNELS).state_dict()

    with torch.random.fork_rng(devices=[]):
        first, again, other = build(0), build(0), build(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_decoder.level_embed"], other["pixel_decoder.level_embed"])


@pytest.mark.parametrize(("position", "distinct"), [("random_shared", 1), ("random_independent", 3), ("sine", 0)])
def test_positions_are_shared_or_not_and_survive_a_checkpoint(position: PositionKind, distinct: int) -> None:
    generator = build_mask_generator(TINY.model_copy(update={"position": position}), CHANNELS)
    state = load(save(generator.state_dict()))  # refuses tensors that share memory
    matrices = {tuple(value.flatten().tolist()) for name, value in state.items() if name.endswith("position.matrix")}
    assert len(matrices) == distinct
    generator.load_state_dict(state)


@pytest.mark.parametrize("name", ["release", "paper_v1", "shapes"])
def test_presets_round_trip_and_build(name: str) -> None:
    config = MaskGeneratorConfig.preset(name)
    assert MaskGeneratorConfig.model_validate_json(config.model_dump_json()) == config
    with torch.device("meta"):
        generator = build_mask_generator(config, (192, 384, 768, 1536))
    assert len(generator.mask_decoder.layers) == {"release": 9, "paper_v1": 6, "shapes": 3}[name]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="decoder_heads must divide dim; decoder_heads is 5 and dim 64"):
        MaskGeneratorConfig(dim=64, decoder_heads=5)


def test_runs_under_autocast(generator: MaskGenerator, pixel: PixelFeatures, points: Tensor) -> None:
    """Predicted IoU stays float32; masks agree with float32 to bfloat16's precision."""
    with torch.no_grad():
        expected = generator.masks(pixel, generator.embed_points(pixel, points)[:1])[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layers = generator.embed_points(pixel, points)
            found = generator.masks(pixel, layers[:1])[0]
    assert layers[-1].iou_probs.dtype == torch.float32
    assert float((found.mask_logits.float() - expected.mask_logits).abs().max() / expected.mask_logits.std()) < 0.1
