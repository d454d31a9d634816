"""The data's vocabulary: the records that cross a boundary between modules, each field with its shape, unit and frame.

Frames: *source* pixels are those of the image as stored; *view* pixels are those of the square training or inference canvas.
Points are (x, y), sizes are (h, w), pixel i covers [i, i + 1) so that its centre is at i + 0.5, and boxes are x0, y0, x1, y1 with x1, y1
exclusive.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniovseg.ops.run_length import RunLengthMasks


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMasks:
    """One image with its class-agnostic masks, as ingested: JPEG bytes stay JPEG, masks stay COCO RLE.

    Attributes:
        key: identity of the sample, unique within a shard set (the file stem in SA-1B: ``sa_123``).
        image: the encoded image file (JPEG; PNG for sets that have it).
        height, width: size in pixels, equal to the encoded image's and to every mask's.
        counts: compressed COCO RLE counts, one per mask (the ASCII form).
        predicted_iou: per mask in [0, 1], NaN where the source has none.
        stability_score: per mask in [0, 1], NaN where the source has none.
    """

    key: str
    image: bytes
    height: int
    width: int
    counts: tuple[bytes, ...]
    predicted_iou: tuple[float, ...]
    stability_score: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageText:
    """One image with one caption. `image` is the encoded file; the caption is free text."""

    key: str
    image: bytes
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntities:
    """One image with what its caption names.

    Attributes:
        key: identity of the sample.
        image: the encoded image file.
        caption: the caption that the entities come from (refined, where it was).
        entities: cleaned noun phrases with their descriptive words, no two equal, in the caption's order.
    """

    key: str
    image: bytes
    caption: str
    entities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePairs:
    """One image with its mask proposals, the entities of its caption, and which mask each entity names.

    Attributes:
        key: identity of the sample.
        image: the encoded image file.
        height, width: size in pixels, equal to the encoded image's and to every mask's.
        counts: Q proposals as compressed COCO RLE counts.
        quality: [Q] predicted IoU in [0, 1].
        entities: T entities.
        sizes: S canvas sides at which the CLIP saw the image.
        costs: [S, Q, T] float32, the cost of each mask and entity at each size.
        pairs: [K, 2] int64 (mask, entity), least cost first.
        pair_costs: [K] float32, averaged over sizes.
    """

    key: str
    image: bytes
    height: int
    width: int
    counts: tuple[bytes, ...]
    quality: NDArray[np.float32]
    entities: tuple[str, ...]
    sizes: tuple[int, ...]
    costs: NDArray[np.float32]
    pairs: NDArray[np.int64]
    pair_costs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a vocabulary.

    Attributes:
        id: the number that ground truth and results call it by; unique in its vocabulary.
        name: what people call it; in most vocabularies the first of its synonyms.
        synonyms: words that mean it, at least one; its score is its best synonym's.
        is_thing: countable; False for stuff.
        templates: sentences with a place ``{}`` that its synonyms are put into, at least one; None: those of the method.
    """

    id: int
    name: str
    synonyms: tuple[str, ...]
    is_thing: bool = True
    templates: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The classes that an image is segmented into. Class index c is the position in `categories`; a category's id may be any number.

    Attributes:
        name: of the vocabulary, for people.
        categories: at least one.
    """

    name: str
    categories: tuple[Category, ...]

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on the categories and nothing else: the key of cached text embeddings."""
        listed = [[item.id, item.name, item.synonyms, item.is_thing, *(item.templates or ())] for item in self.categories]
        return hashlib.sha256(json.dumps(listed, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A sample that cannot be used: where it stood and why.

    Attributes:
        key: identity of the sample as far as it could be read.
        source: URI of the file it came from.
        offset: where it stands there: byte offset of its first member in a tar, its number in a list of captions, 0 where the source is the image itself.
        reason: a short word from a fixed list (see `uniovseg.data.reasons`).
        detail: one line for a person.
    """

    key: str
    source: str
    offset: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An axis-aligned affine map from view pixels to source pixels: ``source = scale * view + offset`` per axis, plus what of the view is image.

    Attributes:
        scale_xy: source pixels per view pixel; a negative x scale is a horizontal flip.
        offset_xy: source coordinates of the view's corner (0, 0).
        size: (h, w) of the view in pixels.
        valid_xyxy: the part of the view that shows image, in view pixels (the rest is padding).
    """

    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]
    size: tuple[int, int]
    valid_xyxy: tuple[float, float, float, float]

    def to_source(self, points_xy: Tensor) -> Tensor:
        """Map [..., 2] points from view pixels to source pixels."""
        return points_xy * points_xy.new_tensor(self.scale_xy) + points_xy.new_tensor(self.offset_xy)

    def to_view(self, points_xy: Tensor) -> Tensor:
        """Map [..., 2] points from source pixels to view pixels."""
        return (points_xy - points_xy.new_tensor(self.offset_xy)) / points_xy.new_tensor(self.scale_xy)

    def cell_centres(self, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
        """Source coordinates [height * width, 2] of the cell centres of a grid over the whole view, row by row."""
        ys = (torch.arange(height, device=device) + 0.5) * (self.size[0] / height)
        xs = (torch.arange(width, device=device) + 0.5) * (self.size[1] / width)
        return self.to_source(torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2))


@dataclass(frozen=True, slots=True)
class Matches:
    """Which predicted masks of an image are trained towards which ground-truth masks.

    Attributes:
        predictions: [K] int64, index into the image's P * M predicted masks (p * M + m).
        masks: [K] int64, index into its ground-truth masks.
        dice: [K] float32 soft dice of each pair on the matching grid, in [0, 1]; None for pairs that were not found by matching.
    """

    predictions: Tensor
    masks: Tensor
    dice: Tensor | None

    def __len__(self) -> int:
        return len(self.predictions)

    @classmethod
    def paired(cls, masks: Tensor) -> "Matches":
        """Prediction k belongs to ground truth ``masks[k]``, as for box prompts."""
        return cls(torch.arange(len(masks), device=masks.device), masks, None)


class Batch(Protocol):
    """What the training loop asks of a batch, whichever method it is for."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Identity of each sample."""

    def to(self, device: torch.device | str) -> Self:
        """The batch with its tensors on `device`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSample:
    """One training-ready sample of stage 1: a view of an image and the run-length masks that can be seen in it.

    Attributes:
        key: identity of the sample.
        image: [3, H, W] uint8 RGB, the view; padding is 128.
        view: the map between the view and the source image.
        masks: n ground-truth masks at source resolution, already filtered and capped.
        boxes_xyxy: [n, 4] float32, tight box of each mask's visible part, in view pixels.
        seed: of every further random draw for this sample.
    """

    key: str
    image: NDArray[np.uint8]
    view: View
    masks: RunLengthMasks
    boxes_xyxy: Tensor
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskBatch:
    """A batch of `MaskSample`: images stacked, everything ragged kept as one entry per image.

    Attributes:
        keys: identity of each sample.
        images: [B, 3, H, W] uint8 RGB; not to be written to, as Ray Data's lie in memory that processes share.
        views: B maps between view and source pixels.
        masks: B sets of ground-truth masks, n_b each, at source resolution.
        boxes_xyxy: B tensors [n_b, 4] float32, view pixels.
        seeds: B integers from (seed, epoch, key): every random draw for a sample comes from its own, so that it does not depend on the batch.
    """

    keys: tuple[str, ...]
    images: Tensor
    views: tuple[View, ...]
    masks: tuple[RunLengthMasks, ...]
    boxes_xyxy: tuple[Tensor, ...]
    seeds: tuple[int, ...]

    def to(self, device: torch.device | str) -> "MaskBatch":
        """The batch with its tensors on `device`."""
        return MaskBatch(
            keys=self.keys,
            images=self.images.to(device, non_blocking=True),
            views=self.views,
            masks=tuple(masks.to(device) for masks in self.masks),
            boxes_xyxy=tuple(boxes.to(device, non_blocking=True) for boxes in self.boxes_xyxy),
            seeds=self.seeds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EntitySample:
    """One sample of stage 2 before matching: an image and its entities, and a view of it to train on.

    Attributes:
        record: the image as stored, which is matched, and its entities.
        image: [3, H, W] uint8 RGB, the view; padding is 128.
        view: the map between the view and the source image.
    """

    record: ImageEntities
    image: NDArray[np.uint8]
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityBatch:
    """A batch of `EntitySample`: views stacked.

    Attributes:
        records: B images as stored, with their entities.
        images: [B, 3, H, W] uint8 RGB, the views; not to be written to, as `MaskBatch`'s.
        views: B maps between view and source pixels.
    """

    records: tuple[ImageEntities, ...]
    images: Tensor
    views: tuple[View, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Identity of each sample."""
        return tuple(record.key for record in self.records)

    def to(self, device: torch.device | str) -> "EntityBatch":
        """The batch with its views on `device`."""
        return EntityBatch(records=self.records, images=self.images.to(device, non_blocking=True), views=self.views)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSample:
    """One training-ready sample of stage 2: a view of an image, and pairs of a mask and the entity it is matched with.

    Attributes:
        key: identity of the sample.
        image: [3, H, W] uint8 RGB, the view; padding is 128.
        regions: [k, H/32, W/32] bool, the cells of the CLIP's last map that each mask stands for, at least one.
        entities: k phrases.
    """

    key: str
    image: NDArray[np.uint8]
    regions: Tensor
    entities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """A batch of `PairSample`: images stacked, everything ragged kept as one entry per image.

    Attributes:
        keys: identity of each sample.
        images: [B, 3, H, W] uint8 RGB; not to be written to, as Ray Data's lie in memory that processes share.
        regions: B tensors [k_b, H/32, W/32] bool, cells of the CLIP's last map.
        entities: B tuples of k_b phrases.
    """

    keys: tuple[str, ...]
    images: Tensor
    regions: tuple[Tensor, ...]
    entities: tuple[tuple[str, ...], ...]

    def to(self, device: torch.device | str) -> "PairBatch":
        """The batch with its tensors on `device`."""
        images = self.images.to(device, non_blocking=True)
        regions = tuple(cells.to(device, non_blocking=True) for cells in self.regions)
        return PairBatch(keys=self.keys, images=images, regions=regions, entities=self.entities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What every method predicts for one image; class-agnostic masks are the case of zero classes.

    Attributes:
        masks: n binary masks at source resolution.
        quality: [n] float32 in [0, 1], predicted IoU.
        class_scores: [n, C] float32 in [0, 1]; C = 0 without a vocabulary.
    """

    masks: RunLengthMasks
    quality: Tensor
    class_scores: Tensor


@dataclass(frozen=True, slots=True)
class PanopticSegment:
    """One segment of a panoptic map: its ``id`` in the map (1 and up), the class index, and a score in [0, 1]."""

    id: int
    class_index: int
    score: float


@dataclass(frozen=True, slots=True)
class PanopticMap:
    """Every pixel belongs to one segment or to none.

    Attributes:
        ids: [H, W] int32 segment ids at source resolution; 0 is void.
        segments: what the ids mean.
    """

    ids: NDArray[np.int32]
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True, slots=True)
class TruthSegment:
    """One segment of a ground-truth panoptic map.

    Attributes:
        id: in the map.
        class_index: position in the vocabulary.
        area: pixels, as the annotation says.
        is_crowd: a group of things nobody drew one by one: neither to be found nor wrong to be found.
    """

    id: int
    class_index: int
    area: int
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class PanopticTruth:
    """Ground truth of panoptic segmentation.

    Attributes:
        ids: [H, W] int32 segment ids; 0 is void.
        segments: what the ids mean.
    """

    ids: NDArray[np.int32]
    segments: tuple[TruthSegment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """One training step's result.

    Attributes:
        loss: scalar to differentiate.
        metrics: detached scalars to log, by name (``loss_mask``, ``pairs``, ...); kept as tensors so that nothing waits for the device.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
