"""Layers that the pixel decoder, the prompt encoder and the mask decoder share.

The layer worth reading twice is `PromptAttention`. In the mask decoder all tokens of a prompt look at the same pixels, so the attention's
mask is [prompts, pixels] and not [prompts * tokens * heads, pixels]; it is added to the scores by broadcasting and never repeated. The
scores of a 20 x 20 grid at 1024 pixels would still be 400 * 7 * 8 * 16,384 numbers (1.5 GB), so without gradients prompts go through in
small chunks: four times faster on a CPU than one large product, and the memory no longer grows with the number of prompts.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PositionKind = Literal["random_shared", "random_independent", "sine"]
"""One random Fourier matrix for pixels and prompts; a matrix of its own for each part, as released; sine and cosine of fixed rates."""

CHUNK_SCORES = 4_000_000
"""How many attention scores are held at once when no gradient is needed (16 MB in float32); prompts are taken in chunks to stay below."""


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel's channels."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Three linear layers with ReLU between them: dim to dim to dim to `out_dim`."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, out_dim)])

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., out_dim]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class FeedForward(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        out: Tensor = self.linear2(F.relu(self.linear1(x)))
        return out


class PositionEncoding(nn.Module):
    """Encodes points of the unit square in `dim` channels, always in float32: angles reach 20 radians, where bfloat16 steps by 0.125.

    With a matrix G [2, dim / 2]: sin and cos of 2 pi (2c - 1) G (random Fourier features; SAM, the release). The matrix is a persistent
    buffer: it belongs to the weights. Without: sin and cos of 2 pi c at geometrically spaced rates, x and y apart (DETR, paper v1).

    Args:
        dim: channels, divisible by 4.
        matrix: G, normally drawn from N(0, 1); a copy is kept. None for the sine encoding.
    """

    matrix: Tensor | None

    def __init__(self, dim: int, matrix: Tensor | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("matrix", None if matrix is None else matrix.clone())

    def forward(self, points_xy: Tensor) -> Tensor:
        """Encode [..., 2] points (x, y) in [0, 1] as [..., dim] float32."""
        with torch.autocast(points_xy.device.type, enabled=False):
            points = points_xy.float()
            if self.matrix is not None:
                angles = 2 * math.pi * ((2 * points - 1) @ self.matrix.float())
                return torch.cat([angles.sin(), angles.cos()], dim=-1)
            count = self.dim // 4
            rates = 10_000 ** (-torch.arange(count, device=points.device) / count)
            angles = 2 * math.pi * points[..., None] * rates  # [..., 2, count]
            return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)

    def grid(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Encode the pixel centres of a map of (h, w) pixels: [h * w, dim], row by row."""
        encoded: Tensor = self(pixel_centres(size, device))
        return encoded


def pixel_centres(size: tuple[int, int], device: torch.device) -> Tensor:
    """Centres of the pixels of a map of (h, w) pixels, as (x, y) in [0, 1]: [h * w, 2] float32, row by row."""
    ys = (torch.arange(size[0], device=device) + 0.5) / size[0]
    xs = (torch.arange(size[1], device=device) + 0.5) / size[1]
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)


class Attention(nn.Module):
    """Multi-head attention with the parameters (names and shapes) of `nn.MultiheadAttention`, batch first."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project [B, N, C] inputs; returns them split into heads, [B, heads, N, C / heads]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def merge(self, x: Tensor) -> Tensor:
        """Join heads [B, heads, N, C / heads] and project out: [B, N, C]."""
        out: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))
        return out

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Unmasked attention of [B, N, C] queries over [B, S, C] keys and values."""
        return self.merge(F.scaled_dot_product_attention(*self.project(query, key, value)))


class PromptAttention(Attention):
    """Masked cross-attention in which all tokens of a prompt see the same pixels: the mask is never repeated over tokens or heads."""

    def forward_masked(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, K, C], K tokens of each of Q prompts.
            key, value: [B, L, C].
            visible: [B, Q, L] bool, the pixels a prompt's tokens may look at; at least one each.

        Returns:
            [B, Q, K, C].
        """
        batch, prompts, tokens, dim = query.shape
        q, k, v = self.project(query.flatten(1, 2), key, value)
        q = q * (dim // self.heads) ** -0.5
        k = k.transpose(-1, -2)
        bias = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, float("-inf"))
        step = prompts
        if not torch.is_grad_enabled():
            step = max(1, CHUNK_SCORES // (batch * self.heads * tokens * k.shape[-1]))
        parts = []
        for begin in range(0, prompts, step):
            chunk = bias[:, begin : begin + step]
            scores = q[:, :, begin * tokens : (begin + step) * tokens] @ k  # [B, heads, q * K, L]
            by_prompt = scores.view(batch, self.heads, -1, tokens, scores.shape[-1])
            by_prompt += chunk[:, None, :, None]
            parts.append(scores.softmax(-1) @ v)
        return self.merge(torch.cat(parts, dim=2)).view(query.shape)
