"""How good a segmentation is: mIoU and panoptic quality, as sums that can be added over images, machines and runs.

A score holds counts only, so that ``a + b`` is the score of all their images together; the figures are computed at the end. Every figure is a
fraction in [0, 1], or NaN where there is nothing to take a mean of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uniovseg.errors import DataError
from uniovseg.records import PanopticMap, PanopticTruth, Vocabulary

Counts = NDArray[np.int64]
LabelMap = NDArray[np.integer]

MATCH_IOU = 0.5
"""A predicted segment finds a true one when their IoU is above this, so that no segment can have two partners."""

ID_LIMIT = 1 << 24
"""Segment ids are below this: the PNG form has 24 bits."""


@dataclass(frozen=True, slots=True)
class SemanticScore:
    """Pixel counts of each class over images.

    Attributes:
        correct: [C] pixels of the class that are predicted to be.
        truth: [C] pixels of the class.
        predicted: [C] pixels predicted to be of the class, ignored ones left out.
        images: number of images.
    """

    correct: Counts
    truth: Counts
    predicted: Counts
    images: int = 1

    @classmethod
    def zero(cls, num_classes: int) -> "SemanticScore":
        """The score of no image: what sums start from."""
        none = np.zeros(num_classes, np.int64)
        return cls(none, none, none, images=0)

    def __add__(self, other: "SemanticScore") -> "SemanticScore":
        return SemanticScore(self.correct + other.correct, self.truth + other.truth, self.predicted + other.predicted, self.images + other.images)

    def iou(self) -> NDArray[np.float64]:
        """[C] IoU of each class; NaN for a class that the ground truth does not have."""
        union = self.truth + self.predicted - self.correct
        return np.where(self.truth > 0, self.correct / np.maximum(union, 1), np.nan)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean IoU over the classes that the ground truth has, of `classes` (indices) where given."""
        iou = self.iou() if classes is None else self.iou()[list(classes)]
        return mean_present(iou)

    def summary(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """``miou``, and ``per_class``: the IoU of each class that the ground truth has, by its id (its index where no `ids` are given)."""
        present = np.flatnonzero(self.truth)
        names = present if ids is None else np.array(ids)[present]
        per_class = dict(zip(map(str, names.tolist()), self.iou()[present].tolist(), strict=True))
        return {"miou": figure(self.miou()), "per_class": per_class}


def figure(value: float) -> float | None:
    """A figure as JSON has it: None for NaN."""
    return None if math.isnan(value) else float(value)


def mean_present(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else math.nan


def semantic_score(truth: LabelMap, prediction: LabelMap, num_classes: int, ignore: int) -> SemanticScore:
    """Compare two label maps of one image.

    Args:
        truth: [H, W] class indices below `num_classes`, or `ignore`: what is predicted there does not count.
        prediction: [H, W] class indices; `ignore` says that a pixel is of none of the classes, which is wrong wherever the ground truth has one.
        num_classes: number of classes, up to 65536.
        ignore: the value that is no class; it may be below 0, above all classes, or a class index that is never to be counted.

    Raises:
        DataError: maps of different sizes, or a value that is neither a class nor `ignore`.
    """
    if truth.shape != prediction.shape:
        raise DataError("the prediction is of another size than the ground truth", seen=prediction.shape, allowed=truth.shape)
    counted = truth != ignore
    labels = _class_indices(truth[counted], num_classes, ignore, "ground truth")
    guesses = _class_indices(prediction[counted], num_classes, ignore, "prediction")
    return SemanticScore(
        correct=_count(labels[labels == guesses], num_classes),
        truth=_count(labels, num_classes),
        predicted=_count(guesses[guesses != ignore], num_classes),
    )


def _class_indices(values: LabelMap, num_classes: int, ignore: int, what: str) -> Counts:
    indices = values.astype(np.int64)
    wrong = (indices != ignore) & ((indices < 0) | (indices >= num_classes))
    if wrong.any():
        raise DataError(f"a value of the {what} is no class", seen=int(indices[wrong][0]), allowed=f"0 to {num_classes - 1}, or {ignore} (ignored)")
    return indices


def _count(indices: Counts, num_classes: int) -> Counts:
    return np.bincount(indices, minlength=num_classes).astype(np.int64)


class PanopticQuality(NamedTuple):
    """Panoptic, segmentation and recognition quality, each the mean over `n` classes."""

    pq: float
    sq: float
    rq: float
    n: int


@dataclass(frozen=True, slots=True)
class PanopticScore:
    """Segment counts of each class over images.

    Attributes:
        iou: [C] float64, sum of the IoUs of found segments.
        found: [C] true segments with a predicted partner (TP).
        wrong: [C] predicted segments without one (FP).
        missed: [C] true segments without one (FN).
        images: number of images.
    """

    iou: NDArray[np.float64]
    found: Counts
    wrong: Counts
    missed: Counts
    images: int = 1

    @classmethod
    def zero(cls, num_classes: int) -> "PanopticScore":
        """The score of no image: what sums start from."""
        none = np.zeros(num_classes, np.int64)
        return cls(np.zeros(num_classes), none, none, none, images=0)

    def __add__(self, other: "PanopticScore") -> "PanopticScore":
        return PanopticScore(
            self.iou + other.iou, self.found + other.found, self.wrong + other.wrong, self.missed + other.missed, self.images + other.images
        )

    def occurs(self) -> NDArray[np.bool_]:
        """[C] whether a class has any segment, true or predicted; the others are in no mean."""
        return (self.found + self.wrong + self.missed) > 0

    def per_class(self) -> NDArray[np.float64]:
        """[C, 3] PQ, SQ and RQ of each class; zeros for one that does not occur."""
        weight = self.found + 0.5 * self.wrong + 0.5 * self.missed
        safe = np.where(weight > 0, weight, 1)
        return np.stack([self.iou / safe, self.iou / np.maximum(self.found, 1), self.found / safe], axis=1)

    def quality(self, chosen: NDArray[np.bool_] | None = None) -> PanopticQuality:
        """Means over the classes that occur, of those that `chosen` [C] marks where given. SQ and RQ are means of their own: their product is not PQ."""
        rows = self.occurs() if chosen is None else self.occurs() & chosen
        n = int(rows.sum())
        pq, sq, rq = self.per_class()[rows].mean(axis=0) if n else (math.nan,) * 3
        return PanopticQuality(float(pq), float(sq), float(rq), n)

    def summary(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """``All``, ``Things`` and ``Stuff`` with pq, sq, rq and n, and ``per_class``: pq, sq and rq of each class that occurs, by its category id."""
        is_thing = np.array([category.is_thing for category in vocabulary.categories], bool)
        groups = {"All": None, "Things": is_thing, "Stuff": ~is_thing}
        qualities = {name: self.quality(chosen)._asdict() for name, chosen in groups.items()}
        report: dict[str, Any] = {
            name: {key: figure(value) for key, value in quality.items()} | {"n": quality["n"]} for name, quality in qualities.items()
        }
        rows = self.per_class()
        report["per_class"] = {
            str(vocabulary.categories[index].id): dict(zip(("pq", "sq", "rq"), rows[index].tolist(), strict=True))
            for index in np.flatnonzero(self.occurs()).tolist()
        }
        return report


def panoptic_score(truth: PanopticTruth, prediction: PanopticMap, num_classes: int) -> PanopticScore:
    """Compare the segments of one image by the rules of panopticapi (method: 4.8).

    Segments of one class with an IoU above 0.5 are partners; void pixels of the ground truth are left out of the union. Crowds are neither found nor
    missed. A predicted segment without a partner is no mistake when more than half of it lies on void and on the crowd of its class (the last one
    listed, where an image has several: so does panopticapi).

    Raises:
        DataError: maps of different sizes; a segment of the prediction that is listed and has no pixel, or the reverse; a class index of none of the
            classes; two segments of one id.
    """
    if truth.ids.shape != prediction.ids.shape:
        raise DataError("the prediction is of another size than the ground truth", seen=prediction.ids.shape, allowed=truth.ids.shape)
    true_id, predicted_id, pixels = _overlaps(truth.ids, prediction.ids)
    true_class = _classes([segment.class_index for segment in truth.segments], num_classes, "ground truth")
    predicted_class = _classes([segment.class_index for segment in prediction.segments], num_classes, "prediction")
    t = _rows(true_id, [segment.id for segment in truth.segments], "ground truth")
    p = _rows(predicted_id, [segment.id for segment in prediction.segments], "prediction")
    _check_listed(predicted_id, p, prediction)

    area = _sum(p, pixels, len(predicted_class))
    void = _sum(np.where(true_id == 0, p, -1), pixels, len(predicted_class))
    true_area = np.array([segment.area for segment in truth.segments], np.int64)
    is_crowd = np.array([segment.is_crowd for segment in truth.segments], bool)

    both = (t >= 0) & (p >= 0)
    i, j, shared = t[both], p[both], pixels[both]
    iou = shared / (area[j] + true_area[i] - shared - void[j])
    partners = (true_class[i] == predicted_class[j]) & ~is_crowd[i] & (iou > MATCH_IOU)
    missed = ~is_crowd
    missed[i[partners]] = False
    crowd_of = np.full(num_classes, -1)
    crowd_of[true_class[is_crowd]] = np.flatnonzero(is_crowd)
    excused = void + _sum(np.where(i == crowd_of[predicted_class[j]], j, -1), shared, len(area))
    wrong = 2 * excused <= area
    wrong[j[partners]] = False
    return PanopticScore(
        iou=np.bincount(true_class[i[partners]], iou[partners], num_classes).astype(np.float64),
        found=_count(true_class[i[partners]], num_classes),
        wrong=_count(predicted_class[wrong], num_classes),
        missed=_count(true_class[missed], num_classes),
    )


def _overlaps(truth: NDArray[np.int32], prediction: NDArray[np.int32]) -> tuple[Counts, Counts, Counts]:
    """The pairs of a true and a predicted id that share pixels, and how many."""
    pairs, pixels = np.unique(truth.astype(np.int64) * ID_LIMIT + prediction, return_counts=True)
    return pairs // ID_LIMIT, pairs % ID_LIMIT, pixels.astype(np.int64)


def _classes(indices: list[int], num_classes: int, what: str) -> Counts:
    classes = np.array(indices, np.int64)
    if len(classes) and (classes.min() < 0 or classes.max() >= num_classes):
        raise DataError(
            f"a segment of the {what} is of no class", seen=f"class indices {classes.min()} to {classes.max()}", allowed=f"0 to {num_classes - 1}"
        )
    return classes


def _rows(ids: Counts, listed: list[int], what: str) -> Counts:
    """For each id its position among the listed segments; -1 for one that is not listed."""
    order = np.argsort(listed, kind="stable") if listed else np.zeros(0, np.int64)
    ordered = np.array(listed, np.int64)[order]
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise DataError(f"two segments of the {what} have one id", seen=int(repeated[0]))
    if not listed:
        return np.full(len(ids), -1)
    place = np.searchsorted(ordered, ids).clip(max=len(ordered) - 1)
    return np.where(ordered[place] == ids, order[place], -1)


def _check_listed(ids: Counts, rows: Counts, prediction: PanopticMap) -> None:
    unlisted = ids[(rows < 0) & (ids != 0)]
    if len(unlisted):
        raise DataError(
            "the predicted map has a segment that is not listed", seen=f"id {unlisted[0]}", allowed="0 (void) and the ids of the segments"
        )
    absent = np.setdiff1d(np.arange(len(prediction.segments)), rows)
    if len(absent):
        raise DataError("a predicted segment is listed and has no pixel in the map", seen=f"id {prediction.segments[int(absent[0])].id}")


def _sum(rows: Counts, pixels: Counts, length: int) -> Counts:
    """[length] sums of `pixels` by row; row -1 is left out."""
    kept = rows >= 0
    return np.bincount(rows[kept], pixels[kept], length).astype(np.int64)
