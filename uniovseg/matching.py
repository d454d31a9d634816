"""Many-to-many matching of predicted masks and ground truth (method: section 2).

Every point prompt gives M masks, and every ground-truth mask that contains the point is a candidate. Inside one point the assignment is
one-to-one and of least cost; over points the same ground truth may be matched many times, and one point reaches several granularities:
many-to-many.

The assignment needs no solver. However many candidates compete, some optimal assignment gives each prediction one of its own M cheapest:
the other predictions hold at most M - 1 of these, so a prediction with a dearer one could change to a free one. So M choices for each of M
predictions are enumerated, M^M combinations for all points at once, those that use a candidate twice are struck out, and the cheapest is
taken.
"""

import itertools
import logging
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from uniovseg.config import Config
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Matches, View

log = logging.getLogger(__name__)

NAN_COST = 1e6
"""Cost of a pair whose cost is not finite: above any real cost, so that the pair is matched last."""


class MatchingConfig(Config):
    """Cost of a pair: weighted binary cross-entropy and dice on a grid over the view."""

    grid: int = Field(128, ge=8, description="cells a side of the grid on which costs are computed")
    bce_weight: float = Field(2.0, ge=0, description="weight of the mean binary cross-entropy")
    dice_weight: float = Field(1.0, ge=0, description="weight of the dice loss")


@torch.no_grad()
def match_many_to_many(
    config: MatchingConfig, mask_logits: Tensor, masks: Sequence[RunLengthMasks], views: Sequence[View], points_xy: Tensor
) -> list[Matches]:
    """Match the masks of point prompts with the ground truth of each image (method: 2.2, steps 1 to 4).

    A ground-truth mask is a candidate of a point that it contains, unless it vanishes on the grid of the costs. A point with k candidates
    gives min(M, k) pairs. Costs that are not finite are logged and matched last; they then show in the loss, which the training loop checks.

    Args:
        config: the cost.
        mask_logits: [B, P, M, h, w] over the view.
        masks: ground truth of each image, source frame, on the device of the logits.
        views: each image's view.
        points_xy: [B, P, 2] the prompts, view pixels; one that lies on padding is in no ground truth.

    Returns:
        For each image its pairs, ordered by prediction; empty where no point lies in any ground truth.

    Differs: the author's files resize the ground truth to the grid (nearest) and look a point up at its rounded-down pixel of the resized
    view; here both are looked up in the run lengths, at the source pixel under the cell's centre and under the point.
    """
    batch, points, per_point = mask_logits.shape[:3]
    most = max(map(len, masks))
    if most == 0 or points == 0:
        none = torch.zeros(0, dtype=torch.int64, device=mask_logits.device)
        return [Matches(none, none, none.float()) for _ in range(batch)]
    labels, candidate = _look_up(config.grid, masks, views, points_xy)
    cost, dice = pair_costs(config, mask_logits, labels)
    cost = cost.view(batch, points, per_point, most)
    strange = ~cost.isfinite()
    chosen = assign(cost.masked_fill(strange, NAN_COST).flatten(0, 1), candidate.flatten(0, 1)).view(batch, -1)  # [B, P * M], -1 for none
    image, prediction = (chosen >= 0).nonzero(as_tuple=True)
    truth = chosen[image, prediction]
    *counts, broken = torch.cat([(chosen >= 0).sum(1), (strange & candidate[:, :, None]).sum()[None]]).tolist()
    if broken:
        log.warning("matching: the costs of %d pairs are not finite; counted as %g", broken, NAN_COST)
    parts = (torch.split(values, counts) for values in (prediction, truth, dice[image, prediction, truth]))
    return [Matches(*part) for part in zip(*parts, strict=True)]


def _look_up(grid: int, masks: Sequence[RunLengthMasks], views: Sequence[View], points_xy: Tensor) -> tuple[Tensor, Tensor]:
    """Ground truth on the grid, float [B, n, grid * grid], and each point's candidates, bool [B, P, n]; n is the most masks of any image."""
    batch, points = points_xy.shape[:2]
    most = max(map(len, masks))
    labels = torch.zeros(batch, most, grid * grid, device=points_xy.device)
    candidate = torch.zeros(batch, points, most, dtype=torch.bool, device=points_xy.device)
    for b, (truth, view) in enumerate(zip(masks, views, strict=True)):
        labels[b, : len(truth)] = truth.sample(view.cell_centres(grid, grid, points_xy.device)).float()
        candidate[b, :, : len(truth)] = truth.sample(view.to_source(points_xy[b])).T
    return labels, candidate & labels.any(-1)[:, None]


def pair_costs(config: MatchingConfig, mask_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Costs and soft dice of all pairs (method: 2.1).

    Args:
        config: grid and weights.
        mask_logits: [B, P, M, h, w], resized to the grid bilinearly.
        labels: [B, n, g * g] float ground truth on the grid.

    Returns:
        cost and dice, each [B, P * M, n] float32. Cost = ``bce_weight * mean BCE + dice_weight * (1 - dice)`` with
        dice = (2 sum(st) + 1) / (sum s + sum t + 1), s the probabilities and t the labels.
    """
    side = (config.grid, config.grid)
    with torch.autocast(mask_logits.device.type, enabled=False):
        logits = mask_logits.flatten(1, 2).float()
        if logits.shape[-2:] != side:
            logits = F.interpolate(logits, size=side, mode="bilinear", align_corners=False)
        logits, truth = logits.flatten(2), labels.transpose(1, 2)
        # BCE(x, t) = softplus(x) - x t, so that the sum over cells is one product for all pairs.
        bce = (F.softplus(logits).sum(-1, keepdim=True) - logits @ truth) / logits.shape[-1]
        probs = logits.sigmoid()
        dice = (2 * (probs @ truth) + 1) / (probs.sum(-1, keepdim=True) + labels.sum(-1)[:, None] + 1)
    return config.bce_weight * bce + config.dice_weight * (1 - dice), dice


def assign(cost: Tensor, candidate: Tensor) -> Tensor:
    """Least-cost assignment inside each point.

    Args:
        cost: [R, M, n] float, one M x n problem a row, finite.
        candidate: [R, n] bool, the columns that may be used.

    Returns:
        [R, M] int64: the column of each prediction, -1 for none. min(M, number of candidates) predictions are assigned. Of equally cheap
        assignments the one is taken that gives prediction 0 its cheapest column, then prediction 1, and so on; of equal columns the first.
    """
    problems, rows, columns = cost.shape
    value, column = cost.masked_fill(~candidate[:, None], float("inf")).sort(dim=-1, stable=True)
    width = min(rows, columns)
    value, column = value[..., :width], column[..., :width]  # each prediction's cheapest candidates
    if width < rows:  # fewer columns than predictions: the rest choose nothing
        value, column = F.pad(value, (0, 1), value=float("inf")), F.pad(column, (0, 1))
        width += 1
    real = value < float("inf")
    value, column = value.double().masked_fill(~real, 0.0), column.masked_fill(~real, -1)

    def along(values: Tensor, *axes: int) -> Tensor:  # the choices of these predictions, in the array of all combinations
        return values.view(problems, *(width if axis in axes else 1 for axis in range(rows)))

    total = torch.zeros(problems, *[width] * rows, dtype=torch.float64, device=cost.device)
    matched = torch.zeros(total.shape, dtype=torch.int8, device=cost.device)
    for row in range(rows):
        total += along(value[:, row].contiguous(), row)
        matched += along(real[:, row].contiguous(), row)
    most = candidate.sum(1).clamp(max=rows)
    total.masked_fill_(matched != along(most), float("inf"))
    for one, two in itertools.combinations(range(rows), 2):
        clash = (column[:, one, :, None] == column[:, two, None]) & real[:, one, :, None]
        total.masked_fill_(along(clash, one, two), float("inf"))
    best = torch.stack(torch.unravel_index(total.flatten(1).argmin(1), [width] * rows), dim=1)
    return column.gather(2, best[..., None])[..., 0]
