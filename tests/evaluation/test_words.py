"""Open-vocabulary evaluation: a method that knows the answer scores 1, and one with faults scores what a confusion matrix and panopticapi's rules give."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uniovseg.data.benchmarks import UNLABELLED, LabelledSet, PanopticSample, as_semantic, open_benchmark, read_image
from uniovseg.evaluation.true_masks import truth_masks
from uniovseg.evaluation.words import evaluate_panoptic, evaluate_semantic
from uniovseg.methods.base import Method
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.metrics import PanopticScore, SemanticScore
from uniovseg.open_vocabulary import UNKNOWN, SegmentationConfig
from uniovseg.records import Prediction, Vocabulary

CONFIG = SegmentationConfig()


@pytest.fixture(scope="module")
def world(labelled_scenes: Path) -> LabelledSet:
    return open_benchmark("shapes", str(labelled_scenes))


class Oracle(Method):
    """Answers with the ground truth, except that segments of the `confused` classes get the class after theirs."""

    def __init__(self, samples: Sequence[PanopticSample], confused: set[int]) -> None:
        super().__init__()
        self.samples = samples
        self.confused = confused

    def predict(self, images: Sequence[NDArray[np.uint8]], vocabulary: Vocabulary | None = None) -> list[Prediction]:
        assert vocabulary is not None
        predictions = []
        for image in images:
            (sample,) = [sample for sample in self.samples if np.array_equal(read_image(sample), image)]
            masks, classes = truth_masks(sample.truth)
            scores = torch.full((len(masks), len(vocabulary)), 1e-4)
            scores[range(len(masks)), [index + (index in self.confused) for index in classes.tolist()]] = 0.9
            predictions.append(Prediction(masks=masks, quality=torch.ones(len(masks)), class_scores=scores))
        return predictions


def test_the_truth_scores_1(world: LabelledSet) -> None:
    method = Oracle(list(world.panoptic()), set())
    classes = len(world.vocabulary)
    semantic = sum((item.score for item in evaluate_semantic(method, world.semantic(), world.vocabulary, CONFIG)), SemanticScore.zero(classes))
    panoptic = sum((item.score for item in evaluate_panoptic(method, world.panoptic(), world.vocabulary, CONFIG)), PanopticScore.zero(classes))
    assert (semantic.miou(), semantic.images, panoptic.images) == (1, 4, 4)
    assert panoptic.quality()[:3] == (1, 1, 1)


def test_a_class_taken_for_another_scores_as_counted_by_hand(world: LabelledSet) -> None:
    samples = list(world.panoptic())
    present = sorted({segment.class_index for sample in samples for segment in sample.truth.segments})
    confused = {next(index for index in present if index + 1 not in present and index < 255)}
    method = Oracle(samples, confused)
    (wrong,) = confused
    classes = len(world.vocabulary)
    results = list(evaluate_semantic(method, world.semantic(), world.vocabulary, CONFIG))
    score = sum((item.score for item in results), SemanticScore.zero(classes))
    assert score.miou() == pytest.approx((len(present) - 1) / len(present))
    assert score.predicted[wrong + 1] == score.truth[wrong] > 0
    for result, sample in zip(results, samples, strict=True):
        expected = np.where(as_semantic(sample).labels == wrong, wrong + 1, as_semantic(sample).labels)
        labelled = as_semantic(sample).labels != UNLABELLED
        assert np.array_equal(result.predicted[labelled], expected[labelled])
        assert np.array_equal(result.image, read_image(sample))
    found = sum((item.score for item in evaluate_panoptic(method, samples, world.vocabulary, CONFIG)), PanopticScore.zero(classes))
    assert found.quality().pq == pytest.approx((len(present) - 1) / (len(present) + 1))  # the class taken for it occurs too
    assert found.missed[wrong] == found.wrong[wrong + 1] > 0


def test_a_pixel_left_unnamed_is_compared_as_one_of_no_class() -> None:
    assert UNKNOWN == UNLABELLED


def test_unnamed_masks_are_wrong_and_claim_nothing(world: LabelledSet) -> None:
    samples = list(world.panoptic())
    config = SegmentationConfig(unknown_below=0.95)
    (result, *_) = evaluate_semantic(Oracle(samples, set()), world.semantic(), world.vocabulary, config)
    assert (result.predicted == UNKNOWN).all()
    assert (result.score.predicted.sum(), result.score.miou()) == (0, 0)


def test_a_model_is_evaluated_end_to_end(tiny_method: MaskGeneration, world: LabelledSet) -> None:
    items = world.items[:2]
    semantic = list(evaluate_semantic(tiny_method, world.semantic(items), world.vocabulary, CONFIG))
    panoptic = list(evaluate_panoptic(tiny_method, world.panoptic(items), world.vocabulary, CONFIG))
    assert [item.sample.key for item in semantic] == [item.sample.key for item in panoptic] == ["0", "1"]
    assert all(item.predicted.shape == (96, 96) for item in semantic)
    assert all(item.predicted.ids.shape == (96, 96) for item in panoptic)
