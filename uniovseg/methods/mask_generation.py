"""Stage 1 of Uni-OVSeg: a promptable, class-agnostic segmenter over a frozen CLIP, learned from image-mask pairs without labels.

A training step prompts each image with a jittered grid of points and with boxes of some of its masks. A point's four masks are matched
many-to-many with the ground-truth masks that contain the point; a box's one mask belongs to the mask that gave the box. The losses are
binary cross-entropy, dice and predicted IoU (method: section 2), at every decoder layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from uniovseg.config import Config
from uniovseg.data.prompts import draw_boxes
from uniovseg.data.views import fit_view, render
from uniovseg.losses import LossConfig, mask_generation_losses
from uniovseg.matching import MatchingConfig, match_many_to_many
from uniovseg.methods.base import TrainableMethod
from uniovseg.models.clip import Clip, ClipConfig, load_clip
from uniovseg.models.mask_decoder import MaskEmbeddings, mask_logits
from uniovseg.models.mask_generator import MaskGenerator, MaskGeneratorConfig, MaskPrediction, build_mask_generator
from uniovseg.models.pixel_decoder import PixelFeatures
from uniovseg.ops.points import grid_points
from uniovseg.postprocess import ProposalConfig, filter_proposals
from uniovseg.records import MaskBatch, Matches, Prediction, StepOutput, View


class MaskGenerationConfig(Config):
    """Stage 1 and its parts."""

    name: Literal["mask_generation"] = Field("mask_generation", description="the method's name")
    clip: ClipConfig = Field(ClipConfig(), description="the frozen CLIP")
    generator: MaskGeneratorConfig = Field(MaskGeneratorConfig(), description="pixel decoder, prompt encoder, mask decoder")
    matching: MatchingConfig = Field(MatchingConfig(), description="many-to-many matching")
    loss: LossConfig = Field(LossConfig(), description="losses")
    proposals: ProposalConfig = Field(ProposalConfig(), description="filtering of the grid's masks at test time")
    size: int = Field(1024, ge=64, multiple_of=32, description="side of the square canvas at test time, pixels")
    train_points_per_side: int = Field(10, ge=1, description="grid of point prompts in training, points a side (jittered)")
    test_points_per_side: int = Field(20, ge=1, description="grid of point prompts of `everything`, points a side")
    max_boxes: int = Field(40, ge=0, description="box prompts an image in training")
    box_weight: float = Field(1.0, ge=0, description="weight of the box prompts' losses beside the points'")
    prompts_per_call: int = Field(100, ge=1, description="prompts decoded together at test time")


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image ready for prompts: its pixel features (batch of 1), the canvas view, and its own size (h, w) in pixels."""

    pixel: PixelFeatures
    view: View
    size: tuple[int, int]


class MaskGeneration(TrainableMethod):
    """The promptable segmenter: a frozen CLIP and a mask generator.

    Args:
        config: sizes and weights of the parts.
        clip: the frozen CLIP.
        generator: pixel decoder, prompt encoder and mask decoder.
    """

    frozen = ("clip",)

    def __init__(self, config: MaskGenerationConfig, clip: Clip, generator: MaskGenerator) -> None:
        super().__init__()
        self.config = config
        self.clip = clip
        self.generator = generator

    def training_step(self, batch: MaskBatch) -> StepOutput:
        """Sum of the point prompts' and the box prompts' losses over one pixel-decoder output.

        Metrics: each loss by kind for points (``loss_mask``, ``loss_dice``, ``loss_iou``) and boxes (``box_loss_mask``, ...), and ``pairs``, the
        matched (mask, ground truth) pairs an image.
        """
        device = batch.images.device
        pixel = self._pixel_features(batch.images)
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
        if self.config.max_boxes and self.config.box_weight:
            drawn = [draw_boxes(boxes, self.config.max_boxes, generator) for boxes, generator in zip(batch.boxes_xyxy, generators, strict=True)]
            outputs = self.generator.masks(pixel, self.generator.embed_boxes(pixel, torch.stack([boxes for boxes, _ in drawn])))
            box_losses = self._losses(outputs, [Matches.paired(index) for _, index in drawn], batch, generators)
            total = total + self.config.box_weight * self.config.loss.weigh(box_losses)
            metrics |= {f"box_{name}": value for name, value in box_losses.items()}
        return StepOutput(loss=total, metrics={name: value.detach() for name, value in metrics.items()})

    def _pixel_features(self, images: Tensor) -> PixelFeatures:
        with torch.no_grad():
            features = self.clip.features(images)
        pixel: PixelFeatures = self.generator.pixel_decoder(features)
        return pixel

    def _losses(
        self, outputs: list[MaskPrediction], matches: list[Matches], batch: MaskBatch, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        return mask_generation_losses(self.config.loss, outputs, matches, batch.masks, batch.views, generators, _mean_over_ranks(matches))

    @torch.no_grad()
    def embed(self, image: NDArray[np.uint8]) -> EmbeddedImage:
        """Pixel features of an RGB image [H, W, 3]: its longer side scaled to the canvas, padded right and below with 128."""
        height, width = image.shape[:2]
        view = fit_view(self.config.size, height, width)
        canvas = torch.from_numpy(render(image, view)).to(self.device)
        return EmbeddedImage(self._pixel_features(canvas[None]), view, (height, width))

    @torch.no_grad()
    def embed_points(self, embedded: EmbeddedImage, points_xy: Tensor) -> MaskEmbeddings:
        """What single points [Q, 2] in source pixels decode to, before any mask is made: embeddings [Q, M, C], predicted IoU [Q, M] in [0, 1]."""
        last = self.generator.embed_points(embedded.pixel, embedded.view.to_view(points_xy)[None])[-1]
        return MaskEmbeddings(last.embeddings[0], last.iou_probs[0])

    @torch.no_grad()
    def embed_point_set(self, embedded: EmbeddedImage, points_xy: Tensor, labels: Tensor) -> MaskEmbeddings:
        """The one mask of a set of points [P, 2] in source pixels with labels [P] (1 inside, 0 outside): embeddings [1, 1, C], IoU [1, 1]."""
        points = embedded.view.to_view(points_xy)[None, None]
        last = self.generator.embed_point_sets(embedded.pixel, points, labels[None, None])[-1]
        return MaskEmbeddings(last.embeddings[0], last.iou_probs[0])

    @torch.no_grad()
    def embed_boxes(self, embedded: EmbeddedImage, boxes_xyxy: Tensor) -> MaskEmbeddings:
        """The one mask of each box [Q, 4] in source pixels: embeddings [Q, 1, C], IoU [Q, 1]."""
        boxes = embedded.view.to_view(boxes_xyxy.reshape(-1, 2, 2)).reshape(1, -1, 4)
        last = self.generator.embed_boxes(embedded.pixel, boxes)[-1]
        return MaskEmbeddings(last.embeddings[0], last.iou_probs[0])

    @torch.no_grad()
    def mask_logits(self, embedded: EmbeddedImage, embeddings: Tensor) -> Tensor:
        """Logits [k, h, w] at stride 4 of the canvas, of mask embeddings [k, C]."""
        return mask_logits(embeddings[None], self.generator.mask_decoder.features(embedded.pixel))[0]

    @torch.no_grad()
    def propose(self, embedded: EmbeddedImage, points_per_side: int | None = None) -> Prediction:
        """Masks of everything: a grid of points, cut by predicted IoU before any mask is made, then inner-NMS, then source resolution."""
        height, width = embedded.size
        points = grid_points(points_per_side or self.config.test_points_per_side, torch.tensor([0, 0, width, height])).to(self.device)
        decoded = [self.embed_points(embedded, chunk) for chunk in points.split(self.config.prompts_per_call)]
        kept = [part.iou_probs >= self.config.proposals.min_predicted_iou for part in decoded]
        embeddings = torch.cat([part.embeddings[chosen] for part, chosen in zip(decoded, kept, strict=True)])
        ious = torch.cat([part.iou_probs[chosen] for part, chosen in zip(decoded, kept, strict=True)])
        logits = self.mask_logits(embedded, embeddings)
        masks, quality = filter_proposals(self.config.proposals, logits, ious, embedded.view, embedded.size)
        return Prediction(masks=masks, quality=quality, class_scores=torch.zeros(len(masks), 0))

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Class-agnostic masks of everything in each RGB image [H, W, 3]."""
        return [self.propose(self.embed(image)) for image in images]


def _mean_over_ranks(matches: Sequence[Matches]) -> float:
    """Number of pairs, averaged over the ranks of torch.distributed, at least 1: what the losses are divided by."""
    count = float(sum(len(match) for match in matches))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        total = torch.tensor(count, device=device)
        dist.all_reduce(total)
        count = float(total) / dist.get_world_size()
    return max(count, 1.0)


def build_mask_generation(config: MaskGenerationConfig, seed: int) -> MaskGeneration:
    """Stage 1 with a loaded CLIP and a mask generator whose random weights come from `seed` (torch's global stream is left as it was)."""
    clip = load_clip(config.clip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = build_mask_generator(config.generator, clip.feature_channels)
    return MaskGeneration(config, clip, generator)
