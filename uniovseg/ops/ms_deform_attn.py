"""Multi-scale deformable attention (Deformable DETR, Eq. 3): each query reads a few points around it on every level of a feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn(value: Tensor, sizes: Sequence[tuple[int, int]], locations_xy: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels and points of weight times the bilinearly sampled value.

    Args:
        value: [B, S, M, D] projected features of all levels, flattened and joined, S = sum of h * w; M heads.
        sizes: (h, w) of each of the L levels, in the order of `value`.
        locations_xy: [B, Q, M, L, P, 2] where to read, (x, y) in [0, 1] over each level (pixel centres at (i + 0.5) / size; zeros outside).
        weights: [B, Q, M, L, P] attention weights, normally summing to 1 over L and P.

    Returns:
        [B, Q, M * D].
    """
    batch, _, heads, dim = value.shape
    queries, points = locations_xy.shape[1], locations_xy.shape[4]
    grids = (2 * locations_xy - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # [B*M, L, Q, P, 2]
    sampled = []
    for level, (part, (height, width)) in enumerate(zip(value.split([h * w for h, w in sizes], dim=1), sizes, strict=True)):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        sampled.append(F.grid_sample(maps, grids[:, level], mode="bilinear", padding_mode="zeros", align_corners=False))  # [B*M, D, Q, P]
    by_head = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, len(sizes) * points)
    summed = (torch.cat(sampled, dim=-1) * by_head).sum(-1)  # [B*M, D, Q]
    return summed.reshape(batch, heads * dim, queries).transpose(1, 2)
