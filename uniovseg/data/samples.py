"""Records to training-ready samples and batches of stage 1."""

import hashlib
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from uniovseg.config import Config
from uniovseg.data.images import decode_image, shrink_for
from uniovseg.data.views import ViewConfig, colour_jitter, draw_view, render, source_window, stack_images
from uniovseg.errors import DataError
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImageMasks, MaskBatch, MaskSample, View


class MaskSampleConfig(Config):
    """Which masks of a view are trained on."""

    min_area_ratio: float = Field(1e-4, ge=0, le=1, description="least visible area, as a fraction of the view")
    max_area_ratio: float = Field(0.8, gt=0, le=1, description="largest visible area, as a fraction of the view")
    max_masks: int = Field(40, ge=1, description="most masks of a sample; a random subset of more")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_area_ratio > self.max_area_ratio:
            raise ValueError(f"min_area_ratio ({self.min_area_ratio}) must not exceed max_area_ratio ({self.max_area_ratio})")
        return self


def sample_seed(seed: int, epoch: int, key: str) -> int:
    """The seed of every random draw for a sample in an epoch: 63 bits that depend on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def make_mask_sample(record: ImageMasks, view_config: ViewConfig, sample_config: MaskSampleConfig, seed: int) -> MaskSample:
    """Draw a view of a record, choose its masks, and render the image.

    Raises DataError when the image or a mask cannot be read. A view in which no mask is large enough gives a sample without masks.
    """
    rng = np.random.default_rng(seed)
    masks = RunLengthMasks.from_counts(record.counts, (record.height, record.width))
    view = draw_view(view_config, record.height, record.width, rng)
    area, boxes = masks.visible(source_window(view))
    share = area.double() / (abs(view.scale_xy[0]) * view.scale_xy[1]) / (view.size[0] * view.size[1])
    kept = torch.nonzero((area > 0) & (share >= sample_config.min_area_ratio) & (share <= sample_config.max_area_ratio)).flatten()
    if len(kept) > sample_config.max_masks:
        kept = kept[np.sort(rng.permutation(len(kept))[: sample_config.max_masks])]
    shrink = shrink_for(record.image, record.height, record.width, min(abs(view.scale_xy[0]), view.scale_xy[1]))
    pixels = decode_image(record.image, shrink)
    if pixels.shape[:2] != (-(-record.height // shrink), -(-record.width // shrink)):
        raise DataError("the image is not of the size of its masks", seen=f"{pixels.shape[:2]} x {shrink}", allowed=(record.height, record.width))
    image = render(pixels, view, shrink)
    if view_config.colour_jitter:
        image = colour_jitter(image, rng)
    return MaskSample(key=record.key, image=image, view=view, masks=masks.select(kept), boxes_xyxy=boxes_in_view(boxes[kept], view), seed=seed)


def boxes_in_view(boxes_xyxy: Tensor, view: View) -> Tensor:
    """Source boxes [n, 4] as boxes of the view, cut at what the view shows: [n, 4] float32."""
    corners = view.to_view(boxes_xyxy.float().reshape(-1, 2, 2))
    low, high = corners.amin(1), corners.amax(1)  # a flip exchanges left and right
    limit = torch.tensor(view.valid_xyxy[2:])
    return torch.cat([low.clamp(min=0), torch.minimum(high, limit)], dim=1)


def collate(samples: Sequence[MaskSample], images: Tensor | None = None) -> MaskBatch:
    """Samples of one view size as a batch; `images`: their images where they are stacked already, [B, 3, H, W]."""
    return MaskBatch(
        keys=tuple(sample.key for sample in samples),
        images=stack_images([sample.image for sample in samples]) if images is None else images,
        views=tuple(sample.view for sample in samples),
        masks=tuple(sample.masks for sample in samples),
        boxes_xyxy=tuple(sample.boxes_xyxy for sample in samples),
        seeds=tuple(sample.seed for sample in samples),
    )
