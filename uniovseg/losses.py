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
        "soft_dice_last", description="what predicted IoU learns for points: the last layer's soft dice (author), or each layer's own IoU"
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
    """Losses of matched predictions, summed over layers. Unmatched predictions get no gradient.

    Args:
        config: weights and sampling.
        outputs: of each layer, mask logits [B, Q, M, h, w] and predicted IoU [B, Q, M] in [0, 1].
        matches: pairs of each image, found on the last layer and used for all.
        masks, views: ground truth and view of each image.
        generators: each image's own random stream, on the device of the outputs: an image's loss does not depend on its batch.
        normaliser: number of pairs to divide by, at least 1.

    Returns:
        ``loss_mask``, ``loss_dice``, ``loss_iou``: scalars, unweighted; zeros that stay connected to the outputs when there are no pairs.
    """
    total = {name: sum((layer[0].sum() + layer[1].sum() for layer in outputs), torch.zeros(())) * 0.0 for name in ("loss_mask", "loss_dice", "loss_iou")}
    for b, (match, truth, view, generator) in enumerate(zip(matches, masks, views, generators, strict=True)):
        if len(match) == 0:
            continue
        logits = torch.stack([layer[0][b].flatten(0, 1)[match.predictions] for layer in outputs]).float()  # [L, K, h, w]
        ious = torch.stack([layer[1][b].flatten()[match.predictions] for layer in outputs]).float()  # [L, K]
        predicted, labels = _at_points(config, logits, match, truth, view, generator)
        bce = F.binary_cross_entropy_with_logits(predicted, labels, reduction="none").mean(-1)
        total["loss_mask"] = total["loss_mask"] + bce.sum() / normaliser
        total["loss_dice"] = total["loss_dice"] + (1 - soft_dice(predicted.sigmoid(), labels)).sum() / normaliser
        target = _iou_targets(config, logits.detach(), match, truth, view)
        total["loss_iou"] = total["loss_iou"] + F.smooth_l1_loss(ious, target.expand_as(ious), reduction="sum") / normaliser
    return total


def soft_dice(probs: Tensor, labels: Tensor) -> Tensor:
    """(2 sum(pt) + 1) / (sum p + sum t + 1) over the last dimension."""
    return (2 * (probs * labels).sum(-1) + 1) / (probs.sum(-1) + labels.sum(-1) + 1)


def _at_points(
    config: LossConfig, logits: Tensor, match: Matches, truth: RunLengthMasks, view: View, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Logits and labels [L, K, P] at points drawn for every layer and pair; labels are looked up in the run lengths in one search."""
    layers, pairs = logits.shape[:2]
    flat = logits.flatten(0, 1)
    points = uncertain_points(flat, config.num_points, config.oversample, config.importance, generator)
    predicted = point_sample(flat, points)
    size = points.new_tensor([view.size[1], view.size[0]])
    labels = truth.sample(view.to_source(points * size), match.masks.repeat(layers)).float()
    return predicted.unflatten(0, (layers, pairs)), labels.unflatten(0, (layers, pairs))


@torch.no_grad()
def _iou_targets(config: LossConfig, logits: Tensor, match: Matches, truth: RunLengthMasks, view: View) -> Tensor:
    """What the predicted IoU of each layer and pair should be: [1 or L, K]."""
    if match.dice is not None and config.iou_target == "soft_dice_last":
        return match.dice[None]
    height, width = logits.shape[-2:]
    labels = truth.sample(view.cell_centres(height, width, logits.device))[match.masks].float()  # [K, h * w]
    flat = logits.flatten(2)
    if match.dice is None:  # box prompts: each layer's own soft dice (author)
        return soft_dice(flat.sigmoid(), labels)
    binary = (flat > 0).float()
    shared = (binary * labels).sum(-1)
    return shared / (binary.sum(-1) + labels.sum(-1) - shared).clamp(min=1)
