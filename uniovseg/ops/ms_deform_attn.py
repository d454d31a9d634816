"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

Where attention would compare a query with every pixel, here each query says itself where to look: a few points around it on every level of
a feature pyramid, read bilinearly and summed with weights that the query says too. The cost grows with the number of pixels, not with its
square. Written with `grid_sample`, it runs and differentiates on any device, and gives what the CUDA kernel of the paper gives.
"""

from collections.abc import Sequence

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
    queries = locations_xy.shape[1]
    grids = (2 * locations_xy - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # [B*M, L, Q, P, 2]
    by_level = weights.permute(0, 2, 3, 1, 4).flatten(0, 1)[:, :, None]  # [B*M, L, 1, Q, P]
    summed = value.new_zeros(batch * heads, dim, queries)
    for level, (height, width) in enumerate(sizes):
        begin = sum(h * w for h, w in sizes[:level])
        maps = value[:, begin : begin + height * width].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        sampled = F.grid_sample(maps, grids[:, level], mode="bilinear", padding_mode="zeros", align_corners=False)  # [B*M, D, Q, P]
        summed = summed + (sampled * by_level[:, level]).sum(-1)
    return summed.reshape(batch, heads * dim, queries).transpose(1, 2)
