"""The pixel decoder: deformable attention over strides 8, 16, 32 of the trunk, and one FPN step to stride 4 (method: 1.3)."""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniovseg.models.layers import FeedForward, LayerNorm2d, PositionEncoding, pixel_centres
from uniovseg.ops.ms_deform_attn import ms_deform_attn


class PixelFeatures(NamedTuple):
    """What the mask decoder reads.

    Attributes:
        mask_features: [B, d, H/4, W/4]; a mask is its product with an embedding.
        levels: [B, d, h, w] at strides 32, 16, 8, in the order in which the mask decoder visits them.
    """

    mask_features: Tensor
    levels: tuple[Tensor, Tensor, Tensor]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the view in pixels."""
        return self.mask_features.shape[2] * 4, self.mask_features.shape[3] * 4

    def take(self, index: int) -> "PixelFeatures":
        """The features of one view of the batch (batch of 1), which keep no memory of the others."""
        if len(self.mask_features) == 1 and index == 0:
            return self
        first, second, third = (level[index : index + 1].clone() for level in self.levels)
        return PixelFeatures(self.mask_features[index : index + 1].clone(), (first, second, third))


class DeformableAttention(nn.Module):
    """Multi-scale deformable self-attention with learned offsets (in pixels of each level) and weights.

    Offsets start as the heads' directions on a square of 1, 2, ... pixels; weights start uniform.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset()

    def _reset(self) -> None:
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        offsets = directions[:, None, None] * torch.arange(1, self.points + 1)[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.data.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, source: Tensor, reference_xy: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Attend from `query` [B, S, C] around `reference_xy` [S, 2] in [0, 1] to `source` [B, S, C], the joined levels of `sizes`."""
        batch, length, _ = query.shape
        shape = (batch, length, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(*shape, 2)
        weights = self.attention_weights(query).view(*shape[:3], -1).softmax(-1).view(shape)
        scale = query.new_tensor([(w, h) for h, w in sizes])
        locations = reference_xy[None, :, None, None, None] + offsets / scale[:, None]
        value = self.value_proj(source).unflatten(-1, (self.heads, -1))
        out: Tensor = self.output_proj(ms_deform_attn(value, sizes, locations, weights))
        return out


class DeformableLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by its residual sum's normalisation."""

    def __init__(self, dim: int, levels: int, heads: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, levels, heads, points)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, source: Tensor, position: Tensor, reference_xy: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """[B, S, C] to [B, S, C]; `position` [S, C] is added to the queries."""
        source = self.norm1(source + self.self_attn(source + position, source, reference_xy, sizes))
        out: Tensor = self.norm2(source + self.ffn(source))
        return out


class PixelDecoder(nn.Module):
    """Trunk features to mask features.

    Args:
        channels: channels of the four input maps, stride 4 first.
        dim: channels of everything after.
        layers, heads, points, ffn_dim: of the deformable encoder.
        position: encoding of pixel positions.
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int],
        dim: int,
        *,
        layers: int,
        heads: int,
        points: int,
        ffn_dim: int,
        position: PositionEncoding,
    ) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(c, dim, 1) for c in reversed(channels[1:])]
        for conv in convolutions:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(cast(Tensor, conv.bias))
        self.input_proj = nn.ModuleList([nn.Sequential(conv, LayerNorm2d(dim, eps=1e-6)) for conv in convolutions])
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.layers = nn.ModuleList([DeformableLayer(dim, 3, heads, points, ffn_dim) for _ in range(layers)])
        self.position = position
        groups = math.gcd(32, dim // 2)  # 32 from 64 channels on, as released
        self.lateral = nn.Sequential(nn.Conv2d(channels[0], dim, 1, bias=False), nn.GroupNorm(groups, dim))
        self.output = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.GroupNorm(groups, dim), nn.ReLU())
        self.mask_features = nn.Conv2d(dim, dim, 1)

    def forward(self, features: tuple[Tensor, Tensor, Tensor, Tensor]) -> PixelFeatures:
        """From maps [B, C, H/s, W/s] at s = 4, 8, 16, 32. Runs in float32 whatever autocast says, as the release does."""
        with torch.autocast(features[0].device.type, enabled=False):
            levels = self._encode([project(x.float()) for project, x in zip(self.input_proj, reversed(features[1:]), strict=True)])
            fine = self.lateral(features[0].float())
            fine = self.output(fine + F.interpolate(levels[2], size=fine.shape[-2:], mode="bilinear", align_corners=False))
            return PixelFeatures(self.mask_features(fine), levels)

    def _encode(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The deformable encoder over maps [B, d, h, w] of three levels; same shapes out."""
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        device = maps[0].device
        source = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        position = torch.cat([self.position.grid(size, device) + self.level_embed[level] for level, size in enumerate(sizes)])
        reference = torch.cat([pixel_centres(size, device) for size in sizes])
        for layer in self.layers:
            source = layer(source, position, reference, sizes)
        parts = torch.split_with_sizes(source, [h * w for h, w in sizes], dim=1)
        coarse, middle, fine = (part.transpose(1, 2).reshape(x.shape) for part, x in zip(parts, maps, strict=True))
        return coarse, middle, fine
