import pytest
import torch
from torch import Tensor

from uniovseg.models.layers import PositionEncoding
from uniovseg.models.mask_generator import MaskGenerator
from uniovseg.models.pixel_decoder import DeformableAttention, PixelDecoder, PixelFeatures

Features = tuple[Tensor, Tensor, Tensor, Tensor]


def test_shapes(pixel: PixelFeatures) -> None:
    assert pixel.mask_features.shape == (2, 32, 16, 24)
    assert [tuple(level.shape) for level in pixel.levels] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]
    assert pixel.size == (64, 96)


def test_offsets_start_in_the_directions_of_the_heads() -> None:
    attention = DeformableAttention(16, levels=3, heads=8, points=4)
    assert not attention.sampling_offsets.weight.any()
    offsets = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    torch.testing.assert_close(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 3, 4))
    torch.testing.assert_close(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    torch.testing.assert_close(offsets[3, 2, 1], torch.tensor([-2.0, 2.0]))
    assert not attention.attention_weights.weight.any()


def test_offsets_are_pixels_of_each_level() -> None:
    """With one head, one point and identities for projections, a query at a pixel's centre with offset (1, 0) reads the right neighbour."""
    attention = DeformableAttention(4, levels=1, heads=1, points=1)
    for layer in (attention.value_proj, attention.output_proj):
        layer.weight.data.copy_(torch.eye(4))
    source = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))  # 2 x 3
    reference = torch.tensor([[(x + 0.5) / 3, (y + 0.5) / 2] for y in range(2) for x in range(3)])
    found = attention(source, source, reference, [(2, 3)]).view(2, 3, 4)
    torch.testing.assert_close(found[:, :2], source.view(2, 3, 4)[:, 1:])
    torch.testing.assert_close(found[:, 2], torch.zeros(2, 4), atol=1e-6, rtol=0)


def test_runs_in_float32_under_autocast(generator: MaskGenerator, features: Features, pixel: PixelFeatures) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = generator.pixel_decoder(features)
    assert torch.equal(found.mask_features, pixel.mask_features)


def test_images_do_not_mix(generator: MaskGenerator, features: Features, pixel: PixelFeatures) -> None:
    with torch.no_grad():
        alone = generator.pixel_decoder(tuple(x[1:] for x in features))
    torch.testing.assert_close(alone.mask_features, pixel.mask_features[1:])
    for level, batched in zip(alone.levels, pixel.levels, strict=True):
        torch.testing.assert_close(level, batched[1:])


@pytest.mark.parametrize("changed", range(4))
def test_every_level_reaches_the_mask_features(generator: MaskGenerator, features: Features, pixel: PixelFeatures, changed: int) -> None:
    with torch.no_grad():
        found = generator.pixel_decoder(tuple(x + (level == changed) * torch.randn_like(x) for level, x in enumerate(features)))
    assert not torch.allclose(found.mask_features, pixel.mask_features, atol=1e-3)


@pytest.mark.parametrize("dim", [16, 24, 72, 256])
def test_group_norms_fit_any_width(dim: int) -> None:
    decoder = PixelDecoder((8, 8, 8, 8), dim, layers=1, heads=4, points=1, ffn_dim=8, position=PositionEncoding(dim))
    norm = decoder.output[1]
    assert isinstance(norm, torch.nn.GroupNorm)
    assert dim % norm.num_groups == 0
    assert norm.num_groups == 32 or dim < 256
