"""Dense binary masks: boxes as cells of a grid, and suppression of near-duplicates."""

import torch
from torch import Tensor

from uniovseg.deadline import in_time

BLOCK = 128
"""Masks that `inner_nms` compares at once with those kept so far."""


def cells_in_boxes(boxes_xyxy: Tensor, cells: tuple[int, int], slack: float = 0.0) -> Tensor:
    """Cells of an (h, w) grid that boxes [..., 4], in cells, overlap or touch by at least `slack` of a cell: [..., h, w] bool."""
    left, top, right, bottom = boxes_xyxy.float().unbind(-1)
    down, across = (torch.arange(count, device=boxes_xyxy.device) for count in cells)
    rows = (down + 1 >= top[..., None] + slack) & (down <= bottom[..., None] - slack)
    columns = (across + 1 >= left[..., None] + slack) & (across <= right[..., None] - slack)
    return rows[..., :, None] & columns[..., None, :]


def inner_nms(masks: Tensor, scores: Tensor, iou_threshold: float, inner_threshold: float) -> Tensor:
    """Keep masks greedily by descending score.

    A kept mask i suppresses j when ``IoU(i, j) >= iou_threshold`` or ``|i and j| / |j| >= inner_threshold``: a mask mostly inside a better
    one goes, while a better small one inside a worse large one leaves that alone (method: 1.7). Blocks of masks are compared with the kept
    ones only, so the cost grows with candidates times kept, not with candidates squared.

    Args:
        masks: [N, P] bool, flattened.
        scores: [N].
        iou_threshold, inner_threshold: in [0, 1].

    Returns:
        [K] int64 indices of the kept masks, best first (ties: lowest index first).
    """
    order = scores.argsort(descending=True, stable=True)
    kept, pixels = order[:0], masks[:0].float()
    for block in in_time(torch.split(order, BLOCK)):
        flat = masks[block].float()
        if len(kept):
            free = ~_suppresses(pixels, flat, iou_threshold, inner_threshold).any(0)
            block, flat = block[free], flat[free]
        alive = _greedy(_suppresses(flat, flat, iou_threshold, inner_threshold))
        kept, pixels = torch.cat([kept, block[alive]]), torch.cat([pixels, flat[alive]])
    return kept


def _suppresses(better: Tensor, worse: Tensor, iou_threshold: float, inner_threshold: float) -> Tensor:
    """bool [I, J]: whether mask i of `better` [I, P] suppresses mask j of `worse` [J, P]; both 0 or 1, float32 (exact to 2^24 pixels)."""
    shared = better @ worse.T
    area = worse.sum(1)
    union = better.sum(1)[:, None] + area - shared
    # >= without a division: a mask of no pixel is inside any other.
    return (shared >= iou_threshold * union) | (shared >= inner_threshold * area)


def _greedy(suppresses: Tensor) -> Tensor:
    """bool [N]: which of N masks, best first, survive when each survivor removes the later ones it suppresses."""
    matrix = suppresses.cpu().numpy()
    alive = torch.ones(len(matrix), dtype=torch.bool)
    survivors = alive.numpy()
    for i in range(len(matrix)):
        if survivors[i]:
            survivors[i + 1 :] &= ~matrix[i, i + 1 :]
    return alive.to(suppresses.device)
