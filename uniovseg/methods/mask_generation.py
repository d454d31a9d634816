"""Stage 1 of Uni-OVSeg: a promptable, class-agnostic segmenter over a frozen CLIP, learned from image-mask pairs without labels.

A training step prompts each image with a jittered grid of points and with boxes of some of its masks. A point's four masks are matched
many-to-many with the ground-truth masks that contain the point; a box's one mask belongs to the mask that gave the box. The losses are
binary cross-entropy, dice and predicted IoU (method: section 2), at every decoder layer.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from uniovseg.data.prompts import draw_boxes
from uniovseg.losses import LossConfig, mask_generation_losses
from uniovseg.matching import MatchingConfig, match_many_to_many
from uniovseg.methods.base import TrainableMethod, mean_over_ranks
from uniovseg.methods.promptable import PromptableConfig, PromptableSegmenter
from uniovseg.models.clip import Clip, load_clip
from uniovseg.models.mask_generator import MaskGenerator, MaskPrediction, build_mask_generator
from uniovseg.ops.points import grid_points
from uniovseg.records import MaskBatch, Matches, StepOutput


class MaskGenerationConfig(PromptableConfig):
    """Stage 1 and its parts."""

    name: Literal["mask_generation"] = Field("mask_generation", description="the method's name")
    matching: MatchingConfig = Field(MatchingConfig(), description="many-to-many matching")
    loss: LossConfig = Field(LossConfig(), description="losses")
    train_points_per_side: int = Field(10, ge=1, description="grid of point prompts in training, points a side (jittered)")
    max_boxes: int = Field(40, ge=0, description="box prompts an image in training")
    box_weight: float = Field(1.0, ge=0, description="weight of the box prompts' losses beside the points'")

    @property
    def trains_boxes(self) -> bool:
        """Whether box prompts are trained."""
        return self.max_boxes > 0 and self.box_weight > 0


class MaskGeneration(PromptableSegmenter, TrainableMethod[MaskBatch]):
    """Stage 1: trains the mask generator of the promptable segmenter.

    Args:
        config: sizes and weights of the parts.
        clip: the frozen CLIP.
        generator: pixel decoder, prompt encoder and mask decoder.
    """

    batch_type = MaskBatch
    config: MaskGenerationConfig

    def __init__(self, config: MaskGenerationConfig, clip: Clip, generator: MaskGenerator) -> None:
        super().__init__(config, clip, generator)

    def training_step(self, batch: MaskBatch) -> StepOutput:
        """Sum of the point prompts' and the box prompts' losses over one pixel-decoder output.

        Metrics: each loss by kind for points (``loss_mask``, ``loss_dice``, ``loss_iou``) and boxes (``box_loss_mask``, ...), and ``pairs``, the
        matched (mask, ground truth) pairs an image.
        """
        device = batch.images.device
        pixel = self.pixel_features(batch.images)
        generators = [torch.Generator(device).manual_seed(seed) for seed in batch.seeds]
        points = torch.stack(
            [
                grid_points(self.config.train_points_per_side, torch.tensor(view.valid_xyxy, device=device), generator)
                for view, generator in zip(batch.views, generators, strict=True)
            ]
        )
        outputs = self.generator.masks(pixel, self.generator.embed_points(pixel, points))
        matches = match_many_to_many(self.config.matching, outputs[-1].mask_logits, batch.masks, batch.views, points)
        losses = self._losses(outputs, matches, batch, generators)
        total = self.config.loss.weigh(losses)
        metrics = losses | {"pairs": torch.tensor(float(sum(map(len, matches))) / len(matches))}
        if self.config.trains_boxes:
            drawn = [draw_boxes(boxes, self.config.max_boxes, generator) for boxes, generator in zip(batch.boxes_xyxy, generators, strict=True)]
            outputs = self.generator.masks(pixel, self.generator.embed_boxes(pixel, torch.stack([boxes for boxes, _ in drawn])))
            box_losses = self._losses(outputs, [Matches.paired(index) for _, index in drawn], batch, generators)
            total = total + self.config.box_weight * self.config.loss.weigh(box_losses)
            metrics |= {f"box_{name}": value for name, value in box_losses.items()}
        return StepOutput(loss=total, metrics={name: value.detach() for name, value in metrics.items()})

    def _losses(
        self, outputs: list[MaskPrediction], matches: list[Matches], batch: MaskBatch, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        return mask_generation_losses(
            self.config.loss, outputs, matches, batch.masks, batch.views, generators, mean_over_ranks(sum(map(len, matches)), self.device)
        )


def build_mask_generation(config: MaskGenerationConfig, seed: int) -> MaskGeneration:
    """Stage 1 with a loaded CLIP and a mask generator whose random weights come from `seed` (torch's global stream is left as it was)."""
    clip = load_clip(config.clip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = build_mask_generator(config.generator, clip.feature_channels)
    if not config.trains_boxes:
        for part in generator.of_boxes:
            part.requires_grad_(False)  # DDP waits for the gradient of whatever has one
    return MaskGeneration(config, clip, generator)
