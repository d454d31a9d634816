"""Losses of stage 1: binary cross-entropy and dice at sampled points, and predicted IoU, at every decoder layer (method: 2.1)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from uniovseg.config import Config
from uniovseg.ops.points import point_sample, uncertain_points
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Matches, View


class LossConfig(Config):
    """Weights and sampling of the losses."""

    mask_weight: float = Field(2.0, ge=0, description="weight of the binary cross-entropy")
    dice_weight: float = Field(1.0, ge=0, description="weight of the dice loss")
    iou_weight: float = Field(1.0, ge=0, description="weight of the predicted-IoU loss")
    num_points: int = Field(12_544, ge=16, description="points a pair, at which masks are compared")
    oversample: float = Field(3.0, ge=1, description="uniform candidates for each point chosen by uncertainty")
    importance: float = Field(0.75, ge=0, le=1, description="share of the points chosen by uncertainty")
    iou_target: Literal["soft_dice_last", "hard_iou_per_layer"] = Field(
        "soft_dice_last",
        description="what predicted IoU learns: soft dice (author: the last layer's for points, each layer's for boxes), or each layer's own IoU",
    )

    def weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of ``loss_mask``, ``loss_dice`` and ``loss_iou``."""
        return self.mask_weight * losses["loss_mask"] + self.dice_weight * losses["loss_dice"] + self.iou_weight * losses["loss_iou"]


def mask_generation_losses(
    config: LossConfig,
    outputs: Sequence[tuple[Tensor, Tensor]],
    matches: Sequence[Matches],
    masks: Sequence[RunLengthMasks],
    views: Sequence[View],
    generators: Sequence[torch.Generator],
    normaliser: float,
) -> dict[str, Tensor]:
    """Losses of matched predictions, summed over layers (method: 2.1). Unmatched predictions get no gradient.

    Each layer and pair is compared at its own points: most where that layer's mask is uncertain, the rest uniform (`uncertain_points`).
    loss_mask is the mean binary cross-entropy over the points, loss_dice is 1 - dice, loss_iou is smooth L1 (beta 1) of predicted IoU and
    its target.

    Args:
        config: weights and sampling.
        outputs: of each layer, mask logits [B, Q, M, h, w] and predicted IoU [B, Q, M] in [0, 1].
        matches: pairs of each image, found on the last layer and used for all.
        masks, views: ground truth and view of each image.
        generators: each image's own random stream, on the device of the outputs: an image's loss does not depend on its batch.
        normaliser: number of pairs to divide by, more than 0.

    Returns:
        ``loss_mask``, ``loss_dice``, ``loss_iou``: scalars, unweighted; zeros that stay connected to the outputs when there are no pairs.

    Differs: the author's files sample labels bilinearly in masks resized to the view; here a label is the mask's value at the source pixel
    under the point.
    """
    counts = [len(match) for match in matches]
    if sum(counts) == 0:  # every parameter still takes part, so that DistributedDataParallel does not wait for gradients that never come
        zero = 0.0 * torch.stack([logits.sum() + ious.sum() for logits, ious in outputs]).float().sum()
        return {"loss_mask": zero, "loss_dice": zero, "loss_iou": zero}
    # One gather a layer for the whole batch: its backward fills a tensor as large as the layer, once and not once an image.
    per_image = outputs[0][1][0].numel()
    rows = torch.cat([match.predictions + b * per_image for b, match in enumerate(matches)])
    logits = torch.stack([layer[0].flatten(0, 2)[rows] for layer in outputs], dim=1).float()  # [K, L, h, w]
    ious = torch.stack([layer[1].flatten()[rows] for layer in outputs], dim=1).float()  # [K, L]
    predicted, labels, targets = [], [], []
    for part, match, truth, view, generator in zip(torch.split(logits, counts), matches, masks, views, generators, strict=True):
        if len(match):
            at_points, truth_at_points = _at_points(config, part, match, truth, view, generator)
            predicted.append(at_points)
            labels.append(truth_at_points)
            targets.append(_iou_targets(config, part.detach(), match, truth, view))
    x, t = torch.cat(predicted), torch.cat(labels).float()  # [K, L, P]
    return {
        "loss_mask": F.binary_cross_entropy_with_logits(x, t, reduction="sum") / (config.num_points * normaliser),
        "loss_dice": (1 - soft_dice(x.sigmoid(), t)).sum() / normaliser,
        "loss_iou": F.smooth_l1_loss(ious, torch.cat(targets), reduction="sum") / normaliser,
    }


def soft_dice(probs: Tensor, labels: Tensor) -> Tensor:
    """(2 sum(pt) + 1) / (sum p + sum t + 1) over the last dimension."""
    return (2 * (probs * labels).sum(-1) + 1) / (probs.sum(-1) + labels.sum(-1) + 1)


def _at_points(
    config: LossConfig, logits: Tensor, match: Matches, truth: RunLengthMasks, view: View, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Logits (float) and labels (bool), [K, L, P], of one image at the points of each pair and layer; one search for all labels."""
    pairs, layers = logits.shape[:2]
    flat = logits.flatten(0, 1)
    points = uncertain_points(flat, config.num_points, config.oversample, config.importance, generator)
    size = points.new_tensor([view.size[1], view.size[0]])
    labels = truth.sample(view.to_source(points * size), match.masks.repeat_interleave(layers))
    return point_sample(flat, points).view(pairs, layers, -1), labels.view(pairs, layers, -1)


@torch.no_grad()
def _iou_targets(config: LossConfig, logits: Tensor, match: Matches, truth: RunLengthMasks, view: View) -> Tensor:
    """What the predicted IoU of each pair and layer of an image should be: [K, L]."""
    pairs, layers, height, width = logits.shape
    if match.dice is not None and config.iou_target == "soft_dice_last":
        return match.dice[:, None].expand(pairs, layers)
    labels = truth.sample(view.cell_centres(height, width, logits.device))[match.masks].float()  # [K, h * w]
    score = soft_dice if config.iou_target == "soft_dice_last" else _hard_iou
    # A layer at a time: the intermediate values of all layers together would take several times the memory of the logits.
    return torch.stack([score(layer.flatten(1).sigmoid(), labels) for layer in logits.unbind(1)], dim=1)


def _hard_iou(probs: Tensor, labels: Tensor) -> Tensor:
    """Intersection over union of ``probs > 0.5`` and labels over the last dimension; 0 where both are empty."""
    binary = (probs > 0.5).float()
    shared = (binary * labels).sum(-1)
    return shared / (binary.sum(-1) + labels.sum(-1) - shared).clamp(min=1)
