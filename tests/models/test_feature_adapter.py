"""The feature adapter: nothing at the start, gradients to the branches alone, and each placement against its definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from uniovseg.models.clip import Clip, ClipConfig, load_clip
from uniovseg.models.feature_adapter import AdapterConfig, FeatureAdapter, LowRank, Placement
from uniovseg.models.mask_generator import MaskGeneratorConfig, build_mask_generator

PLACEMENTS: list[Placement] = ["parallel_clip", "parallel_pixel", "inline"]
SHAPES = MaskGeneratorConfig.model_validate("shapes")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(ClipConfig())


@pytest.fixture(scope="module")
def pixel_decoder(clip: Clip) -> nn.Module:
    torch.manual_seed(0)
    return build_mask_generator(SHAPES, clip.feature_channels).pixel_decoder.requires_grad_(False)


def images(side: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def adapter_of(clip: Clip, placement: Placement, *, trained: bool) -> FeatureAdapter:
    torch.manual_seed(2)
    adapter = FeatureAdapter(AdapterConfig(placement=placement, rank=4, alpha=2.0), clip.feature_channels, SHAPES.dim)
    if trained:
        for branch in branches_of(adapter):
            for parameter in branch.up.parameters():
                nn.init.normal_(parameter, std=0.1)
    return adapter


def bias(conv: nn.Conv2d) -> torch.Tensor:
    assert conv.bias is not None
    return conv.bias[:, None, None]


def branches_of(adapter: FeatureAdapter) -> list[LowRank]:
    return [branch for branch in adapter.branches if isinstance(branch, LowRank)]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_untrained_adapter_changes_nothing(clip: Clip, pixel_decoder: nn.Module, placement: Placement) -> None:
    found = adapter_of(clip, placement, trained=False)(clip, images(), pixel_decoder)
    assert torch.equal(found, clip.features(images()).res5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradients_reach_every_branch_and_nothing_else(clip: Clip, pixel_decoder: nn.Module, placement: Placement) -> None:
    adapter = adapter_of(clip, placement, trained=True)
    adapter(clip, images(), pixel_decoder).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())
    assert all(parameter.grad is None for module in (clip, pixel_decoder) for parameter in module.parameters())


def test_parallel_branches_add_their_averages_to_the_last_map(clip: Clip, pixel_decoder: nn.Module) -> None:
    features = clip.features(images())
    pixel = pixel_decoder(features)
    maps = {"parallel_clip": tuple(features), "parallel_pixel": (pixel.mask_features, pixel.levels[2], pixel.levels[1], pixel.levels[0])}
    for placement in ("parallel_clip", "parallel_pixel"):
        adapter = adapter_of(clip, placement, trained=True)
        expected = features.res5.clone()
        for branch, x in zip(branches_of(adapter), maps[placement], strict=True):
            hidden = F.gelu(torch.einsum("bchw,rc->brhw", x, branch.down.weight[:, :, 0, 0]) + bias(branch.down))
            full = torch.einsum("brhw,cr->bchw", hidden, branch.up.weight[:, :, 0, 0]) + bias(branch.up)
            expected += 0.5 * F.interpolate(full, size=features.res5.shape[-2:], mode="area")  # alpha / rank = 2 / 4
        torch.testing.assert_close(adapter(clip, images(), pixel_decoder), expected, atol=1e-4, rtol=1e-4)


def test_inline_branches_change_what_later_stages_read(clip: Clip, pixel_decoder: nn.Module) -> None:
    adapter = adapter_of(clip, "inline", trained=True)
    trunk = clip.model.visual.trunk
    x = trunk.stem((images().float() - clip.mean) / clip.std)
    for stage, branch in zip(trunk.stages, branches_of(adapter), strict=True):
        x = stage(x)
        x = x + 0.5 * branch.up(F.gelu(branch.down(x)))
    torch.testing.assert_close(adapter(clip, images(), pixel_decoder), trunk.norm_pre(x), atol=1e-4, rtol=1e-4)


def test_the_papers_number_of_parameters() -> None:
    """Rank 8 over ConvNeXt-L's 192 to 1536 channels (method: 3.4)."""
    adapter = FeatureAdapter(AdapterConfig(), (192, 384, 768, 1536), 256)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 78_368
    assert len(branches_of(adapter)) == 4
