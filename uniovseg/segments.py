"""What the library gives back: segments of an image as COCO RLE, with words where a vocabulary was given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniovseg.data.label_maps import encode_labels
from uniovseg.data.panoptic import encode_ids
from uniovseg.open_vocabulary import UNKNOWN, Instance, SegmentationConfig, best_classes
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Category, PanopticMap, Prediction, Vocabulary

Task = Literal["semantic", "panoptic", "instance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One mask of an image.

    Attributes:
        rle: COCO RLE, ``{"size": [h, w], "counts": str}``, at the image's own resolution.
        predicted_iou: the model's own estimate of the mask's IoU, in [0, 1].
        box_xyxy: tight box in pixels, x1 and y1 exclusive; zeros for an empty mask.
        area: number of pixels.
        word: name of the class that fits best; None without a vocabulary, and where no class fits.
        score: probability of the best class among those of the vocabulary, in [0, 1]; None without a vocabulary.
    """

    rle: dict[str, Any]
    predicted_iou: float
    box_xyxy: tuple[int, int, int, int]
    area: int
    word: str | None = None
    score: float | None = None

    def mask(self) -> NDArray[np.bool_]:
        """The mask as an array [h, w]."""
        return _dense(self.rle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of an image that has a class: all pixels of a class (semantic), a thing or the stuff of a class (panoptic), or a thing (instance).

    Attributes:
        id: its value in `Segmentation.ids`, of an instance its rank from 1.
        word: name of its class.
        class_index: position of the class in the vocabulary.
        category_id: the class's own id.
        is_thing: countable.
        score: class score times predicted IoU, in [0, 1]; None in a semantic map, where masks are summed.
        rle, box_xyxy, area: as of a `Segment`.
    """

    id: int
    word: str
    class_index: int
    category_id: int
    is_thing: bool
    score: float | None
    rle: dict[str, Any]
    box_xyxy: tuple[int, int, int, int]
    area: int

    def mask(self) -> NDArray[np.bool_]:
        """The region as an array [h, w]."""
        return _dense(self.rle)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """An image segmented into the classes of a vocabulary.

    Attributes:
        task: what was asked for.
        vocabulary: the classes.
        ids: [H, W] int32. Semantic: the class index, -1 where no class fits. Panoptic: the region's id, 0 where there is none. None for instances, which
            overlap.
        regions: those that occur; semantic by class index, the others best score first.
    """

    task: Task
    vocabulary: Vocabulary
    ids: NDArray[np.int32] | None
    regions: tuple[Region, ...]


def describe_masks(masks: RunLengthMasks, quality: Tensor) -> list[Segment]:
    """Segments of n masks and their predicted IoU [n]."""
    return [
        Segment(rle=rle, predicted_iou=iou, box_xyxy=box, area=area) for iou, (rle, box, area) in zip(quality.tolist(), _measured(masks), strict=True)
    ]


def describe_named(prediction: Prediction, vocabulary: Vocabulary, config: SegmentationConfig) -> list[Segment]:
    """Segments of a prediction's masks with the word of their best class, None below ``unknown_below``."""
    classes, scores = best_classes(prediction.class_scores, config)
    words = [None if index == UNKNOWN else vocabulary.categories[index].name for index in classes.tolist()]
    rows = zip(prediction.quality.tolist(), words, scores.tolist(), _measured(prediction.masks), strict=True)
    return [Segment(rle=rle, predicted_iou=iou, box_xyxy=box, area=area, word=word, score=score) for iou, word, score, (rle, box, area) in rows]


def describe_semantic(ids: NDArray[np.int32], vocabulary: Vocabulary) -> Segmentation:
    """The classes of a map of class indices."""
    present = [index for index in np.unique(ids).tolist() if index != UNKNOWN]
    masks = _masks_of_ids(ids, present)
    regions = [_region(index, index, vocabulary.categories[index], None, measured) for index, measured in zip(present, _measured(masks), strict=True)]
    return Segmentation(task="semantic", vocabulary=vocabulary, ids=ids, regions=tuple(regions))


def describe_panoptic(panoptic: PanopticMap, vocabulary: Vocabulary) -> Segmentation:
    """The segments of a panoptic map."""
    masks = _masks_of_ids(panoptic.ids, [item.id for item in panoptic.segments])
    regions = [
        _region(item.id, item.class_index, vocabulary.categories[item.class_index], item.score, measured)
        for item, measured in zip(panoptic.segments, _measured(masks), strict=True)
    ]
    return Segmentation(task="panoptic", vocabulary=vocabulary, ids=panoptic.ids, regions=tuple(regions))


def describe_instances(found: Sequence[Instance], masks: RunLengthMasks, vocabulary: Vocabulary) -> Segmentation:
    """Instances of things, whose masks are among `masks`."""
    chosen = masks.to("cpu").select(torch.tensor([item.mask for item in found], dtype=torch.int64))
    regions = [
        _region(rank, item.class_index, vocabulary.categories[item.class_index], item.score, measured)
        for rank, (item, measured) in enumerate(zip(found, _measured(chosen), strict=True), 1)
    ]
    return Segmentation(task="instance", vocabulary=vocabulary, ids=None, regions=tuple(regions))


def encode_map(segmentation: Segmentation) -> bytes:
    """The map as a PNG.

    Semantic: class indices, 8 bit with 255 where no class fits; of more than 255 classes, 16 bit with 65535. Panoptic: ids as colours.
    """
    assert segmentation.ids is not None, "instances have no map"
    if segmentation.task == "panoptic":
        return encode_ids(segmentation.ids)
    few = len(segmentation.vocabulary) <= 255
    labels = np.where(segmentation.ids == UNKNOWN, 255 if few else 65_535, segmentation.ids)
    return encode_labels(labels.astype(np.uint8 if few else np.uint16))


def masks_of(segments: Sequence[Segment | Region], size: tuple[int, int]) -> RunLengthMasks:
    """The masks of segments of an image of `size` (h, w) as run lengths, for drawing or measuring."""
    return RunLengthMasks.from_coco([segment.rle for segment in segments], size)


_Measured = tuple[dict[str, Any], tuple[int, int, int, int], int]


def _measured(masks: RunLengthMasks) -> Iterable[_Measured]:
    """RLE, box and area of each mask."""
    masks = masks.to("cpu")
    boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in masks.boxes_xyxy().tolist()]
    return zip(masks.to_coco(), boxes, masks.area().tolist(), strict=True)


def _masks_of_ids(ids: NDArray[np.int32], values: Sequence[int]) -> RunLengthMasks:
    parts = [RunLengthMasks.from_dense(torch.from_numpy(ids == value)[None]) for value in values]
    height, width = ids.shape
    return RunLengthMasks.cat([RunLengthMasks.empty((height, width)), *parts])


def _region(identity: int, class_index: int, category: Category, score: float | None, measured: _Measured) -> Region:
    rle, box, area = measured
    return Region(
        id=identity,
        word=category.name,
        class_index=class_index,
        category_id=category.id,
        is_thing=category.is_thing,
        score=score,
        rle=rle,
        box_xyxy=box,
        area=area,
    )


def _dense(rle: dict[str, Any]) -> NDArray[np.bool_]:
    height, width = rle["size"]
    dense: NDArray[np.bool_] = RunLengthMasks.from_coco([rle], (height, width)).to_dense()[0].numpy()
    return dense
