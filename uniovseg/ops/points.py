"""Points: grids of prompts, bilinear sampling, and sampling where a mask is uncertain (PointRend)."""

import torch
from torch import Tensor
from torch.nn import functional as F


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
    return F.grid_sample(maps[:, None], 2 * points_xy[:, :, None] - 1, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, oversample: float, importance: float, generator: torch.Generator) -> Tensor:
    """Points for a mask loss, mostly where the mask is uncertain (PointRend).

    Of ``count * oversample`` uniform candidates the ``count * importance`` with the smallest absolute logit are kept; uniform points fill the rest.

    Args:
        logits: [N, h, w].
        count: points a mask, P.
        oversample: candidates for each kept point, at least 1.
        importance: share of the points that are chosen by uncertainty, in [0, 1].
        generator: on the device of `logits`.

    Returns:
        [N, P, 2] (x, y) in [0, 1].
    """
    chosen = int(count * importance)
    candidates = torch.rand(len(logits), int(count * oversample), 2, generator=generator, device=logits.device)
    hardest = point_sample(logits, candidates).abs().topk(chosen, dim=1, largest=False, sorted=False).indices
    rest = torch.rand(len(logits), count - chosen, 2, generator=generator, device=logits.device)
    return torch.cat([candidates.gather(1, hardest[..., None].expand(-1, -1, 2)), rest], dim=1)
