"""Open-vocabulary evaluation: a method segments images into the classes of a vocabulary, and is scored against their ground truth (method: section 4).

Everything is done an image at a time, and each image's result is kept together with its score, so that a caller can add scores up, rank the images,
or draw them. One prediction can be scored both ways: `semantic_result`, `panoptic_result`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uniovseg.data.benchmarks import UNLABELLED, LabelledSet, PanopticSample, SemanticSample, read_image
from uniovseg.methods.base import Method
from uniovseg.metrics import PanopticScore, SemanticScore, panoptic_score, semantic_score
from uniovseg.open_vocabulary import SegmentationConfig, panoptic_map, semantic_map
from uniovseg.records import PanopticMap, Prediction, Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticResult:
    """One image segmented into classes: the RGB image, the predicted class indices [H, W] (`UNKNOWN`: none), and its score."""

    sample: SemanticSample
    image: NDArray[np.uint8]
    predicted: NDArray[np.int32]
    score: SemanticScore


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticResult:
    """One image segmented into things and stuff: the RGB image, the predicted map, and its score."""

    sample: PanopticSample
    image: NDArray[np.uint8]
    predicted: PanopticMap
    score: PanopticScore


def semantic_result(
    prediction: Prediction, sample: SemanticSample, image: NDArray[np.uint8], vocabulary: Vocabulary, config: SegmentationConfig
) -> SemanticResult:
    """A prediction as a map of classes, with its score. A pixel that is predicted to be of no class (`UNKNOWN`) is wrong wherever there is one."""
    predicted = semantic_map(prediction, config)
    return SemanticResult(
        sample=sample, image=image, predicted=predicted, score=semantic_score(sample.labels, predicted, len(vocabulary), UNLABELLED)
    )


def panoptic_result(
    prediction: Prediction, sample: PanopticSample, image: NDArray[np.uint8], vocabulary: Vocabulary, config: SegmentationConfig
) -> PanopticResult:
    """A prediction as a panoptic map, with its score."""
    predicted = panoptic_map(prediction, vocabulary, config)
    return PanopticResult(sample=sample, image=image, predicted=predicted, score=panoptic_score(sample.truth, predicted, len(vocabulary)))


def evaluate_semantic(
    method: Method, samples: Iterable[SemanticSample], vocabulary: Vocabulary, config: SegmentationConfig
) -> Iterator[SemanticResult]:
    """Segment and score each image; start the sum of scores from ``SemanticScore.zero(len(vocabulary))``. Raises DataError naming a broken image."""
    for sample in samples:
        image = read_image(sample)
        (prediction,) = method.predict([image], vocabulary)
        yield semantic_result(prediction, sample, image, vocabulary, config)


def mean_iou(method: Method, dataset: LabelledSet, config: SegmentationConfig) -> float:
    """The mean IoU of a method on a whole set. Raises DataError naming a broken image."""
    results = evaluate_semantic(method, dataset.semantic(), dataset.vocabulary, config)
    return sum((result.score for result in results), SemanticScore.zero(len(dataset.vocabulary))).miou()


def evaluate_panoptic(
    method: Method, samples: Iterable[PanopticSample], vocabulary: Vocabulary, config: SegmentationConfig
) -> Iterator[PanopticResult]:
    """Segment and score each image; start the sum of scores from ``PanopticScore.zero(len(vocabulary))``. Raises DataError naming a broken image."""
    for sample in samples:
        image = read_image(sample)
        (prediction,) = method.predict([image], vocabulary)
        yield panoptic_result(prediction, sample, image, vocabulary, config)
