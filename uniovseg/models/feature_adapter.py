"""The multi-scale feature adapter of stage 2: low-rank branches that correct the frozen CLIP's last map from several scales (method: 3.4).

Every branch is linear, GELU, linear; the second linear starts at zero, so an untrained adapter changes nothing. The placements differ in what the
branches read and where their output goes: ``parallel_clip`` reads the CLIP's four maps and ``parallel_pixel`` the pixel decoder's, and both add
to the last CLIP map; ``inline`` adds to each CLIP stage's own map, which the next stage reads.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from uniovseg.config import Config
from uniovseg.models.clip import Clip, ClipFeatures
from uniovseg.models.pixel_decoder import PixelFeatures

Placement = Literal["parallel_clip", "parallel_pixel", "inline"]


class AdapterConfig(Config):
    """Sizes and wiring of the feature adapter."""

    placement: Placement = Field("parallel_clip", description="what the branches read, and where they add (method: 3.4)")
    rank: int = Field(8, ge=1, description="channels between a branch's two linears")
    alpha: float = Field(8.0, gt=0, description="a branch's output is scaled by alpha / rank")


class LowRank(nn.Module):
    """One branch: a 1 x 1 convolution to `rank` channels, GELU, and a 1 x 1 convolution to `out_dim` that starts at zero."""

    def __init__(self, in_dim: int, rank: int, out_dim: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_dim, rank, 1)
        self.up = nn.Conv2d(rank, out_dim, 1)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, in_dim, H, W] to [B, out_dim, *size] by area averaging; averaging comes before the second linear, which it commutes with."""
        pooled = F.adaptive_avg_pool2d(F.gelu(self.down(x.to(self.down.weight.dtype))), size)
        out: Tensor = self.scale * self.up(pooled)
        return out


class FeatureAdapter(nn.Module):
    """Adapted last feature maps of a frozen CLIP.

    Args:
        config: placement, rank, alpha.
        channels: of the CLIP's four maps, stride 4 first.
        pixel_dim: channels of the pixel decoder's maps.
    """

    def __init__(self, config: AdapterConfig, channels: tuple[int, int, int, int], pixel_dim: int) -> None:
        super().__init__()
        self.placement = config.placement
        read = (pixel_dim,) * 4 if config.placement == "parallel_pixel" else channels
        written = channels if config.placement == "inline" else (channels[-1],) * 4
        scale = config.alpha / config.rank
        self.branches = nn.ModuleList([LowRank(a, config.rank, b, scale) for a, b in zip(read, written, strict=True)])

    def forward(self, clip: Clip, images: Tensor, pixel_decoder: nn.Module, frozen: Callable[[Tensor], ClipFeatures] | None = None) -> Tensor:
        """The adapted last map x' of [B, 3, H, W] RGB images in 0..255: [B, C, H/32, W/32]. Gradients reach the branches alone.

        `frozen` gives the CLIP's own maps of the images where somebody keeps them; ``inline`` changes them on their way and cannot use it.
        """
        if self.placement == "inline":
            return clip.features(images, lambda number, x: x + self.branches[number](x, (x.shape[2], x.shape[3]))).res5
        with torch.no_grad():
            features = clip.features(images) if frozen is None else frozen(images)
            maps: tuple[Tensor, ...] = features
            if self.placement == "parallel_pixel":
                maps = _pixel_maps(pixel_decoder(features))
        size = (features.res5.shape[2], features.res5.shape[3])
        return features.res5 + torch.stack([branch(x, size) for branch, x in zip(self.branches, maps, strict=True)]).sum(0)


def _pixel_maps(pixel: PixelFeatures) -> tuple[Tensor, ...]:
    """The pixel decoder's maps, stride 4 first."""
    return (pixel.mask_features, *reversed(pixel.levels))
