"""Small layers that the pixel decoder, the prompt encoder and the mask decoder share."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PositionKind = Literal["random_shared", "random_independent", "sine"]


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
    """Encodes points of the unit square in `dim` channels.

    ``random``: sin and cos of 2 pi (2c - 1) G with a fixed Gaussian matrix G [2, dim / 2] (a persistent buffer: it belongs to the weights).
    ``sine``: sin and cos at geometrically spaced frequencies, x and y apart (DETR).
    """

    def __init__(self, dim: int, *, sine: bool) -> None:
        super().__init__()
        self.dim = dim
        self.matrix: Tensor | None
        self.register_buffer("matrix", None if sine else torch.randn(2, dim // 2))

    def forward(self, points_xy: Tensor) -> Tensor:
        """Encode [..., 2] points (x, y) in [0, 1] as [..., dim]."""
        if self.matrix is not None:
            angles = 2 * math.pi * ((2 * points_xy - 1) @ self.matrix)
            return torch.cat([angles.sin(), angles.cos()], dim=-1)
        count = self.dim // 4
        rates = 10_000 ** (-torch.arange(count, device=points_xy.device) / count)
        angles = 2 * math.pi * points_xy[..., None] * rates  # [..., 2, count]
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)

    def grid(self, height: int, width: int) -> Tensor:
        """Encode the pixel centres of a map: [height * width, dim], row by row."""
        like = self.matrix if self.matrix is not None else torch.zeros(())
        ys = (torch.arange(height, device=like.device) + 0.5) / height
        xs = (torch.arange(width, device=like.device) + 0.5) / width
        points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)
        encoded: Tensor = self(points.reshape(-1, 2))
        return encoded


class Attention(nn.Module):
    """Multi-head attention with the parameters of `nn.MultiheadAttention`, batch first."""

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
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def merge(self, x: Tensor) -> Tensor:
        """Join heads [B, heads, N, C / heads] and project out: [B, N, C]."""
        out: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))
        return out

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Unmasked attention of [B, N, C] queries over [B, S, C] keys and values."""
        return self.merge(F.scaled_dot_product_attention(*self.project(query, key, value)))


MASKED_SCORES = 32_000_000
"""How many attention scores are held at once when no gradient is needed; prompts are taken in chunks to stay below."""


class PromptAttention(Attention):
    """Masked cross-attention in which all tokens of a prompt see the same pixels, so that the mask is never repeated over tokens or heads."""

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
        q = q.unflatten(2, (prompts, tokens)) * (dim // self.heads) ** -0.5
        k = k.transpose(-1, -2)
        step = prompts
        if not torch.is_grad_enabled():
            step = max(1, MASKED_SCORES // (batch * self.heads * tokens * k.shape[-1]))
        parts = []
        for begin in range(0, prompts, step):
            few = q[:, :, begin : begin + step]
            scores = few.flatten(2, 3) @ k  # [B, heads, q * K, L]
            hidden = ~visible[:, None, begin : begin + step, None]
            scores.unflatten(2, (few.shape[2], tokens)).masked_fill_(hidden, float("-inf"))
            parts.append(scores.softmax(-1) @ v)
        return self.merge(torch.cat(parts, dim=2)).unflatten(1, (prompts, tokens))
