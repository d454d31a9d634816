"""Many-to-many matching of predicted masks and ground truth (method: section 2).

Every point prompt gives M masks, and every ground-truth mask that contains the point is a candidate. Inside one point the assignment is one-to-one and
of least cost; over points the same ground truth may be matched many times, and one point reaches several granularities: many-to-many.

The assignment needs no solver. If more than M candidates compete, some optimal assignment gives each prediction one of its own M cheapest
candidates (any other could be exchanged for a free one of these). So M choices for each of M predictions are enumerated, M^M combinations for all
points at once, those that use a candidate twice are struck out, and the cheapest is taken.
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
_BIG = 1e9
"""Cost of leaving a prediction without ground truth: more than any sum of real costs, so that as many as possible are matched."""


class MatchingConfig(Config):
    """Cost of a pair: weighted binary cross-entropy and dice on a grid over the view."""

    grid: int = Field(128, ge=8, description="cells a side of the grid on which costs are computed")
    bce_weight: float = Field(2.0, ge=0, description="weight of the mean binary cross-entropy")
    dice_weight: float = Field(1.0, ge=0, description="weight of the dice loss")


@torch.no_grad()
def match_many_to_many(
    config: MatchingConfig, mask_logits: Tensor, masks: Sequence[RunLengthMasks], views: Sequence[View], points_xy: Tensor
) -> list[Matches]:
    """Match the masks of point prompts with the ground truth of each image.

    Args:
        config: the cost.
        mask_logits: [B, P, M, h, w] over the view.
        masks: ground truth of each image, source frame, on the device of the logits.
        views: each image's view.
        points_xy: [B, P, 2] the prompts, view pixels; one that lies on padding is in no ground truth.

    Returns:
        For each image its pairs, ordered by prediction; empty where no point lies in any ground truth.
    """
    batch, points, per_point = mask_logits.shape[:3]
    device = mask_logits.device
    most = max(map(len, masks))
    if most == 0 or points == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return [Matches(none, none, torch.zeros(0, device=device))] * batch

    labels = torch.zeros(batch, most, config.grid * config.grid, device=device)
    candidate = torch.zeros(batch, points, most, dtype=torch.bool, device=device)
    for b, (truth, view) in enumerate(zip(masks, views, strict=True)):
        labels[b, : len(truth)] = truth.sample(view.cell_centres(config.grid, config.grid, device)).float()
        candidate[b, :, : len(truth)] = truth.sample(view.to_source(points_xy[b])).T
    candidate &= labels.any(-1)[:, None]  # a mask that vanishes on the grid has no cost that means anything

    cost, dice = pair_costs(config, mask_logits, labels)
    if bool(cost.isnan().any()):
        log.warning("matching: %d of %d costs are not a number; counted as %g", int(cost.isnan().sum()), cost.numel(), NAN_COST)
        cost = cost.nan_to_num(nan=NAN_COST)
    chosen = assign(cost.unflatten(1, (points, per_point)).flatten(0, 1), candidate.flatten(0, 1))  # [B*P, M], -1 for none
    chosen = chosen.view(batch, points * per_point)
    result = []
    for b in range(batch):
        predictions = torch.nonzero(chosen[b] >= 0).flatten()
        truth_index = chosen[b, predictions]
        result.append(Matches(predictions, truth_index, dice[b, predictions, truth_index]))
    return result


def pair_costs(config: MatchingConfig, mask_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Costs and soft dice of all pairs.

    Args:
        mask_logits: [B, P, M, h, w].
        labels: [B, n, g * g] float ground truth on the grid.

    Returns:
        cost and dice, each [B, P * M, n] float32. Cost = ``bce_weight * mean BCE + dice_weight * (1 - dice)`` with
        dice = (2 sum(st) + 1) / (sum s + sum t + 1), s the probabilities and t the labels.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        logits = F.interpolate(mask_logits.flatten(1, 2).float(), size=(config.grid, config.grid), mode="bilinear", align_corners=False).flatten(2)
        truth = labels.transpose(1, 2)
        bce = (F.softplus(logits).sum(-1, keepdim=True) - logits @ truth) / logits.shape[-1]
        probs = logits.sigmoid()
        dice = (2 * (probs @ truth) + 1) / (probs.sum(-1, keepdim=True) + labels.sum(-1)[:, None] + 1)
    return config.bce_weight * bce + config.dice_weight * (1 - dice), dice


def assign(cost: Tensor, candidate: Tensor) -> Tensor:
    """Least-cost assignment inside each point.

    Args:
        cost: [R, M, n] float, one M x n problem a row.
        candidate: [R, n] bool, the columns that may be used.

    Returns:
        [R, M] int64: the column of each prediction, -1 for none. min(M, number of candidates) predictions are assigned; of equally cheap
        assignments the first in lexicographic order of cheapness is taken.
    """
    problems, rows, columns = cost.shape
    allowed = cost.masked_fill(~candidate[:, None], _BIG)
    width = min(rows, columns)
    value, column = allowed.sort(dim=-1, stable=True)
    value, column = value[..., :width], column[..., :width]  # each prediction's cheapest candidates
    if width < rows:  # fewer columns than predictions: the rest choose nothing
        value = F.pad(value, (0, 1), value=_BIG)
        column = F.pad(column, (0, 1), value=0)
    real = value < _BIG
    combos = torch.tensor(list(itertools.product(range(value.shape[-1]), repeat=rows)), device=cost.device)
    total = torch.zeros(problems, len(combos), dtype=torch.float64, device=cost.device)
    for row in range(rows):
        total += value[:, row, combos[:, row]]
    for one, two in itertools.combinations(range(rows), 2):
        a, b = combos[:, one], combos[:, two]
        clash = (column[:, one, a] == column[:, two, b]) & real[:, one, a] & real[:, two, b]
        total.masked_fill_(clash, float("inf"))
    best = combos[total.argmin(1)]  # [R, M]
    picked = column.gather(2, best[..., None])[..., 0]
    return torch.where(real.gather(2, best[..., None])[..., 0], picked, -1)
