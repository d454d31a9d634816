"""From masks with class scores to what a user asked for: a map of classes, a panoptic map, or instances (method: sections 4.5 to 4.7).

Masks overlap and are run lengths, so nothing is computed per pixel. The run ends of all masks cut the image, column by column, into intervals that are
covered by the same masks throughout; a decision is made once an interval, and for the sum over masks once a set of covering masks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from uniovseg.config import Config
from uniovseg.deadline import in_time
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import PanopticMap, PanopticSegment, Prediction, Vocabulary

VALUES_AT_ONCE = 16_000_000
"""How many values (masks times intervals, sets of masks times classes) are held at once."""

UNKNOWN = -1
"""In place of a class index: none of the vocabulary's classes."""

UNCOVERED = -2  # while a map is made: no mask here

ClassMap = NDArray[np.int32]


class SegmentationConfig(Config):
    """How masks with class scores become a map. The *score* of a mask is that of its best class times its predicted IoU.

    Differs: the release asks for a score of 0.7 in its panoptic maps, FC-CLIP for more than 0. A softmax over many classes is seldom that sure, so that
    nothing is asked here unless a data set's setting does.
    """

    unknown_below: float = Field(0.0, ge=0, le=1, description="a mask whose best class score is lower has no class; 0: every mask has one")
    min_score: float = Field(0.0, ge=0, le=1, description="panoptic, instances: masks of a lower score are left out")
    min_visible: float = Field(0.4, ge=0, le=1, description="panoptic: a segment of which better ones leave a smaller share is left out")
    max_instances: int = Field(100, ge=1, description="instances: most of an image, best first")


@dataclass(frozen=True, slots=True)
class Instance:
    """A thing that was found: ``mask``, the index of its mask in the prediction; the class index; a score in [0, 1]."""

    mask: int
    class_index: int
    score: float


def best_classes(class_scores: Tensor, config: SegmentationConfig) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Class index of each mask, `UNKNOWN` where no score reaches ``unknown_below``, and its best class score.

    Args:
        class_scores: [n, C] in [0, 1], at least one class.

    Returns:
        [n] class indices (ties: the lowest) and [n] scores.
    """
    scores = class_scores.float().cpu().numpy()
    classes = scores.argmax(1)
    best = scores[np.arange(len(scores)), classes]
    return np.where(best >= config.unknown_below, classes, UNKNOWN), best


def semantic_map(prediction: Prediction, config: SegmentationConfig) -> ClassMap:
    """The class of every pixel: argmax over c of the sum, over the masks there that have a class, of class score times predicted IoU (ties: the lowest).

    A pixel on unknown masks only is `UNKNOWN`; so is every pixel where there is no mask at all.

    Differs: the sources sum sigmoids, which are above 0 everywhere. These masks are binary, and a pixel outside all of them takes the class of the
    nearest pixel (Euclidean) that is inside one.

    Returns:
        [H, W] int32 class indices at source resolution.
    """
    masks, quality = prediction.masks.to("cpu"), _quality(prediction)
    if not len(masks):
        return np.full(masks.size, UNKNOWN, np.int32)
    named = best_classes(prediction.class_scores, config)[0] != UNKNOWN
    weights = prediction.class_scores.float().cpu().numpy() * (quality * named)[:, None]
    lengths, classes = zip(*((length, _class_by_sum(cover, weights, named)) for length, cover in _overlay(masks)), strict=True)
    found = _paint(np.concatenate(lengths), np.concatenate(classes), masks.size)
    outside = found == UNCOVERED
    if outside.all():
        return np.full(masks.size, UNKNOWN, np.int32)
    if outside.any():
        rows, columns = distance_transform_edt(outside, return_distances=False, return_indices=True)
        found = found[rows, columns]
    return found


def _class_by_sum(cover: NDArray[np.bool_], weights: NDArray[np.float32], named: NDArray[np.bool_]) -> ClassMap:
    """[E] the class of each interval, from what masks cover it [n, E] and their weights [n, C]."""
    packed, place = np.unique(np.packbits(cover.T, axis=1), axis=0, return_inverse=True)
    sets = np.unpackbits(packed, axis=1, count=len(cover)).astype(np.float32)
    step = max(1, VALUES_AT_ONCE // weights.shape[1])
    classes = np.concatenate([(sets[start : start + step] @ weights).argmax(1) for start in range(0, len(sets), step)]).astype(np.int32)
    classes[~sets[:, named].any(1)] = UNKNOWN
    classes[~sets.any(1)] = UNCOVERED
    return classes[place.reshape(-1)]


def panoptic_map(prediction: Prediction, vocabulary: Vocabulary, config: SegmentationConfig) -> PanopticMap:
    """At most one segment a pixel: the mask of the highest score there (ties: the first).

    A segment of which less than ``min_visible`` is left is dropped, and its pixels are void; stuff segments of one class are one segment, with the best's
    score. Ids count from 1, best score first.
    """
    classes, best = best_classes(prediction.class_scores, config)
    scores = best * _quality(prediction)
    kept = np.flatnonzero((classes != UNKNOWN) & (scores >= config.min_score))
    order = kept[np.argsort(-scores[kept], kind="stable")]
    masks = prediction.masks.to("cpu").select(torch.from_numpy(order))
    if not len(masks):
        return PanopticMap(np.zeros(masks.size, np.int32), ())
    lengths, owners = zip(*((length, np.where(cover.any(0), cover.argmax(0), -1)) for length, cover in _overlay(masks)), strict=True)
    length, owner = np.concatenate(lengths), np.concatenate(owners)
    visible = np.bincount(owner + 1, weights=length, minlength=len(order) + 1)[1:]
    shown = (visible > 0) & (visible / masks.area().numpy().clip(min=1) >= config.min_visible)
    ids = np.zeros(len(order) + 1, np.int32)  # of rank k at k + 1; void at 0
    segments: list[PanopticSegment] = []
    stuff: dict[int, int] = {}
    for rank in np.flatnonzero(shown).tolist():
        index = int(classes[order[rank]])
        if index not in stuff:
            segments.append(PanopticSegment(len(segments) + 1, index, float(scores[order[rank]])))
        ids[rank + 1] = stuff.get(index, len(segments))
        if not vocabulary.categories[index].is_thing:
            stuff[index] = int(ids[rank + 1])
    return PanopticMap(_paint(length, ids[owner + 1], masks.size), tuple(segments))


def instances(prediction: Prediction, vocabulary: Vocabulary, config: SegmentationConfig) -> list[Instance]:
    """The best pairs of a mask that is not empty and a thing class, by class score times predicted IoU, best first; one mask may be in several.

    Differs: the sources take the best pairs before they leave stuff out, and rank by the class score alone.
    """
    things = np.array([category.is_thing for category in vocabulary.categories])
    class_scores = prediction.class_scores.float().cpu().numpy()
    scores = class_scores * _quality(prediction)[:, None]
    filled = prediction.masks.area().cpu().numpy() > 0
    pairs = (class_scores >= config.unknown_below) & (scores >= config.min_score) & (scores > 0) & things & filled[:, None]
    mask, index = np.nonzero(pairs)
    order = np.argsort(-scores[mask, index], kind="stable")[: config.max_instances]
    return [Instance(int(mask[item]), int(index[item]), float(scores[mask[item], index[item]])) for item in order]


def _quality(prediction: Prediction) -> NDArray[np.float32]:
    quality: NDArray[np.float32] = prediction.quality.float().cpu().numpy()
    return quality


def _overlay(masks: RunLengthMasks) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """The intervals of column-major pixels with the same covering masks, some at a time: their lengths [E] and which masks cover them [n, E]."""
    height, width = masks.size
    pixels = height * width
    owner = torch.repeat_interleave(masks.splits.diff())
    starts = torch.cat([masks.ends.new_zeros(1), masks.ends - owner * pixels]).unique()
    starts = starts[starts < pixels]
    lengths = torch.cat([starts, starts.new_tensor([pixels])]).diff()
    step = max(1, VALUES_AT_ONCE // max(1, len(masks)))
    for begin, length in in_time(zip(starts.split(step), lengths.split(step), strict=True)):
        centres = torch.stack([begin // height, begin % height], dim=-1) + 0.5
        yield length.numpy(), masks.sample(centres).numpy()


def _paint(lengths: NDArray[np.int64], values: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int32]:
    """[H, W] from the lengths and values of column-major intervals."""
    return np.ascontiguousarray(np.repeat(values, lengths).reshape(size[1], size[0]).T)
