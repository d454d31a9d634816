"""Dense binary masks: overlaps and suppression of near-duplicates."""

import torch
from torch import Tensor


def overlaps(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Pairwise intersections and areas of [N, P] masks, in pixels: float32 [N, N] and [N] (exact below 2^24)."""
    flat = masks.float()
    return flat @ flat.T, flat.sum(1)


def inner_nms(masks: Tensor, scores: Tensor, iou_threshold: float, inner_threshold: float) -> Tensor:
    """Keep masks greedily by descending score; a kept mask i suppresses j when ``IoU(i, j) >= iou_threshold`` or ``|i and j| / |j| >= inner_threshold``.

    So a mask mostly inside a better one goes, while a better small one inside a worse large one leaves that alone (method: 1.7).

    Args:
        masks: [N, P] bool, flattened.
        scores: [N].

    Returns:
        [K] int64 indices of the kept masks, best first (ties: lowest index first).
    """
    if len(masks) == 0:
        return torch.zeros(0, dtype=torch.int64, device=masks.device)
    order = scores.argsort(descending=True, stable=True)
    intersection, area = overlaps(masks[order])
    union = area[:, None] + area - intersection
    eps = 1e-6
    suppresses = ((intersection + eps) / (union + eps) >= iou_threshold) | ((intersection + eps) / (area + eps) >= inner_threshold)
    matrix = suppresses.cpu().numpy()
    alive = torch.ones(len(order), dtype=torch.bool).numpy()
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~matrix[i, i + 1 :]
    return order[torch.from_numpy(alive).to(order.device)]
