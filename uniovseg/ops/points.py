"""Points: grids of prompts, bilinear sampling, and sampling where a mask is uncertain (PointRend)."""

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLES_AT_ONCE = 1 << 22
"""How many candidate points are held at once when points are drawn by uncertainty."""


def grid_points(per_side: int, valid_xyxy: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Cell centres of a grid over a rectangle, x fastest.

    Args:
        per_side: points a side, n.
        valid_xyxy: [4] the rectangle, in any pixels.
        generator: when given, each point is moved to a uniform place in its cell.

    Returns:
        [n * n, 2] float32 (x, y) on the device of `valid_xyxy`.
    """
    centres = torch.arange(per_side, dtype=torch.float32) + 0.5
    cells = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).reshape(-1, 2)
    if generator is not None:
        cells = cells.to(generator.device)
        cells = cells + torch.rand(cells.shape, generator=generator, device=generator.device) - 0.5
    first, last = valid_xyxy[:2].float(), valid_xyxy[2:].float()
    return first + cells.to(first.device) / per_side * (last - first)


def point_sample(maps: Tensor, points_xy: Tensor) -> Tensor:
    """Bilinear samples of maps.

    Args:
        maps: [N, h, w].
        points_xy: [N, P, 2] in [0, 1] over each map (pixel centres at (i + 0.5) / size); zeros outside.

    Returns:
        [N, P].
    """
    grid = 2 * points_xy[:, :, None] - 1
    return F.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, oversample: float, importance: float, generator: torch.Generator) -> Tensor:
    """Points for a mask loss, mostly where the mask is uncertain (PointRend, arXiv 1912.08193, section 3.1).

    Of ``count * oversample`` uniform candidates the ``count * importance`` with the smallest absolute logit are kept; uniform points fill
    the rest. Masks are taken a slice at a time, so that memory stays bounded.

    Args:
        logits: [N, h, w].
        count: points a mask, P.
        oversample: candidates for each kept point, at least 1.
        importance: share of the points that are chosen by uncertainty, in [0, 1].
        generator: on the device of `logits`.

    Returns:
        [N, P, 2] (x, y) in [0, 1].
    """
    chosen, device = int(count * importance), logits.device
    drawn = []
    for part in torch.split(logits, max(1, SAMPLES_AT_ONCE // int(count * oversample))):
        candidates = torch.rand(len(part), int(count * oversample), 2, generator=generator, device=device)
        hardest = point_sample(part, candidates).abs().topk(chosen, dim=1, largest=False, sorted=False).indices
        rest = torch.rand(len(part), count - chosen, 2, generator=generator, device=device)
        drawn.append(torch.cat([candidates.gather(1, hardest[..., None].expand(-1, -1, 2)), rest], dim=1))
    return torch.cat(drawn)
