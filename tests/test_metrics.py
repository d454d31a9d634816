"""Metrics against slow oracles: a confusion matrix in four lines, and panoptic quality by a double loop over dense segments."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from uniovseg.errors import DataError
from uniovseg.metrics import PanopticQuality, PanopticScore, SemanticScore, panoptic_score, semantic_score
from uniovseg.records import PanopticMap, PanopticSegment, PanopticTruth, TruthSegment

CLASSES = 6


def confusion_iou(truth: NDArray[np.int64], prediction: NDArray[np.int64], classes: int, ignore: int) -> list[float]:
    kept = truth != ignore
    matrix = np.bincount(truth[kept] * classes + prediction[kept], minlength=classes**2).reshape(classes, classes)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return [matrix[c, c] / union[c] if matrix[c].any() else math.nan for c in range(classes)]


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_that_of_a_confusion_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES - 2, (20, 30))  # two classes are never true
    truth[rng.random(truth.shape) < 0.2] = 255
    prediction = np.where(rng.random(truth.shape) < 0.5, truth % 255, rng.integers(0, CLASSES - 1, truth.shape))  # and one never predicted
    score = semantic_score(truth.astype(np.uint8), prediction, CLASSES, 255)
    expected = confusion_iou(truth, prediction, CLASSES, 255)
    assert score.iou() == pytest.approx(expected, nan_ok=True, abs=1e-15)
    assert sum(math.isnan(value) for value in expected) == 2
    assert score.miou() == pytest.approx(np.mean(expected[:4]))
    assert score.miou([1, 3, 5]) == pytest.approx(np.mean([expected[1], expected[3]]))


def test_scores_of_parts_add_up_to_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, CLASSES, (2, 10, 12, 9))
    whole = semantic_score(truth, prediction, CLASSES, 255)
    parts = sum((semantic_score(t, p, CLASSES, 255) for t, p in zip(truth, prediction, strict=True)), SemanticScore.zero(CLASSES))
    assert parts.images == 10
    assert (parts.iou() == whole.iou()).all()


def test_more_classes_than_a_byte_holds() -> None:
    truth = np.array([[0, 300, 65534, 65535]], np.uint16)
    prediction = np.array([[0, 300, 300, 7]], np.uint16)
    score = semantic_score(truth, prediction, 65535, 65535)
    assert [score.iou()[c] for c in (0, 300, 65534)] == [1, 0.5, 0]
    assert np.isnan(score.iou()[7])  # predicted where the ground truth is ignored
    assert score.predicted[7] == 0


def test_a_pixel_of_no_class_is_missed_by_all_and_claimed_by_none() -> None:
    score = semantic_score(np.array([[0, 0, 1, -1]]), np.array([[0, -1, -1, -1]]), 2, -1)
    assert (score.truth.tolist(), score.predicted.tolist(), score.correct.tolist()) == ([2, 1], [1, 0], [1, 0])


def test_wrong_label_maps_are_refused() -> None:
    zeros = np.zeros((2, 3), int)
    with pytest.raises(DataError, match=r"another size.*\(2, 2\)"):
        semantic_score(zeros, zeros[:, :2], 2, 255)
    with pytest.raises(DataError, match="ground truth is no class; seen: 2; allowed: 0 to 1, or 255"):
        semantic_score(zeros + 2, zeros, 2, 255)
    with pytest.raises(DataError, match="prediction is no class; seen: -7"):
        semantic_score(zeros, zeros - 7, 2, 255)


def test_no_image_has_no_figure() -> None:
    assert math.isnan(SemanticScore.zero(3).miou())
    quality = PanopticScore.zero(3).quality()
    assert quality.n == 0
    assert math.isnan(quality.pq)


def dense(ids: NDArray[np.int32], segment_id: int) -> NDArray[np.bool_]:
    return np.equal(ids, segment_id)


def slow_score(truth: PanopticTruth, prediction: PanopticMap) -> tuple[list[float], list[int], list[int], list[int]]:
    """IoU sum, TP, FP, FN of each class, by dense masks."""
    iou, found, wrong, missed = [0.0] * CLASSES, [0] * CLASSES, [0] * CLASSES, [0] * CLASSES
    void = truth.ids == 0
    taken = set()
    for true in truth.segments:
        if true.is_crowd:
            continue
        mask, partner = dense(truth.ids, true.id), None
        for guess in prediction.segments:
            other = dense(prediction.ids, guess.id)
            value = (mask & other).sum() / (mask | (other & ~void)).sum()
            if guess.class_index == true.class_index and value > 0.5:
                partner = guess.id
                iou[true.class_index] += value
        found[true.class_index] += partner is not None
        missed[true.class_index] += partner is None
        taken.add(partner)
    for guess in prediction.segments:
        other = dense(prediction.ids, guess.id)
        crowds = [item for item in truth.segments if item.is_crowd and item.class_index == guess.class_index]
        excused = void | dense(truth.ids, crowds[-1].id) if crowds else void
        wrong[guess.class_index] += guess.id not in taken and not (other & excused).sum() / other.sum() > 0.5
    return iou, found, wrong, missed


def random_case(seed: int) -> tuple[PanopticTruth, PanopticMap]:
    """Blocks of segments with void and crowds, and a prediction that is the same blocks shifted, merged and re-labelled."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((8, 8), int))
    merged = rng.integers(1, 15, 26)
    true_ids = rng.choice(2**24 - 1, 26, replace=False) + 1
    true_ids[rng.random(26) < 0.2] = 0
    ids = true_ids[merged][blocks].astype(np.int32)
    classes = dict(zip(true_ids.tolist(), rng.integers(0, CLASSES - 1, 26).tolist(), strict=True))
    segments = tuple(
        TruthSegment(i, classes[i], int((ids == i).sum()), bool(rng.random() < 0.25)) for i in rng.permutation(np.unique(ids[ids > 0])).tolist()
    )
    shifted = np.roll(blocks, tuple(rng.integers(-2, 3, 2)), (0, 1))
    guess_ids = rng.choice(2**24 - 1, 26, replace=False) + 1
    guess_ids[rng.random(26) < 0.15] = 0
    guesses = guess_ids[merged][shifted].astype(np.int32)
    kinds = dict(zip(guess_ids.tolist(), [classes[i] for i in true_ids.tolist()], strict=True))
    predicted = tuple(
        PanopticSegment(i, kinds[i] if rng.random() < 0.8 else int(rng.integers(0, CLASSES)), 1.0) for i in np.unique(guesses[guesses > 0]).tolist()
    )
    return PanopticTruth(ids, segments), PanopticMap(guesses, predicted)


def test_panoptic_score_is_that_of_the_oracle() -> None:
    total = PanopticScore.zero(CLASSES)
    expected = [np.zeros(CLASSES) for _ in range(4)]
    for seed in range(40):
        truth, prediction = random_case(seed)
        score = panoptic_score(truth, prediction, CLASSES)
        slow = slow_score(truth, prediction)
        for mine, other in zip((score.iou, score.found, score.wrong, score.missed), slow, strict=True):
            assert mine.tolist() == pytest.approx(other, abs=1e-12)
        total += score
        expected = [a + np.array(b) for a, b in zip(expected, slow, strict=True)]
    assert min(total.found.sum(), total.wrong.sum(), total.missed.sum()) > 20  # the cases are not trivial
    iou, found, wrong, missed = expected
    pq = iou / (found + wrong / 2 + missed / 2)
    assert total.quality().pq == pytest.approx(np.nanmean(pq))
    assert total.images == 40


def segments(*rows: tuple[int, int, int, bool]) -> tuple[TruthSegment, ...]:
    return tuple(TruthSegment(*row) for row in rows)


def guess(ids: list[int], *classes: tuple[int, int]) -> PanopticMap:
    return PanopticMap(np.array([ids], np.int32), tuple(PanopticSegment(i, c, 1.0) for i, c in classes))


def counts(truth: PanopticTruth, prediction: PanopticMap) -> tuple[list[float], list[int], list[int], list[int]]:
    score = panoptic_score(truth, prediction, 2)
    return score.iou.tolist(), score.found.tolist(), score.wrong.tolist(), score.missed.tolist()


def test_the_rules_one_by_one() -> None:
    two = PanopticTruth(np.array([[1, 1, 2, 2]], np.int32), segments((1, 0, 2, False), (2, 1, 2, False)))
    assert counts(two, guess([1, 1, 2, 2], (1, 0), (2, 1))) == ([1, 1], [1, 1], [0, 0], [0, 0])
    assert counts(two, guess([1, 1, 2, 2], (1, 1), (2, 1))) == ([0, 1], [0, 1], [0, 1], [1, 0])  # the class must agree
    assert counts(two, guess([1, 0, 2, 2], (1, 0), (2, 1))) == ([0, 1], [0, 1], [1, 0], [1, 0])  # an IoU of 0.5 is not above it
    void = PanopticTruth(np.array([[1, 1, 0, 0, 0]], np.int32), segments((1, 0, 2, False)))
    assert counts(void, guess([5, 5, 5, 5, 0], (5, 0))) == ([1, 0], [1, 0], [0, 0], [0, 0])  # void is left out of the union
    assert counts(void, guess([0, 5, 5, 0, 0], (5, 1))) == ([0, 0], [0, 0], [0, 1], [1, 0])  # half on void
    assert counts(void, guess([0, 5, 5, 5, 0], (5, 1))) == ([0, 0], [0, 0], [0, 0], [1, 0])  # more than half
    crowd = PanopticTruth(np.array([[1, 1, 1, 0]], np.int32), segments((1, 0, 3, True)))
    assert counts(crowd, guess([7, 7, 8, 0], (7, 0), (8, 1))) == ([0, 0], [0, 0], [0, 1], [0, 0])  # excused for its own class only


def test_areas_are_those_of_the_annotation_and_the_last_crowd_of_a_class_excuses() -> None:
    """Two habits of panopticapi that a file may bring out."""
    truth = PanopticTruth(np.array([[1, 1, 1, 1]], np.int32), segments((1, 0, 8, False)))
    assert counts(truth, guess([3, 3, 3, 3], (3, 0))) == ([0, 0], [0, 0], [1, 0], [1, 0])
    crowds = PanopticTruth(np.array([[1, 1, 2, 2]], np.int32), segments((1, 0, 2, True), (2, 0, 2, True)))
    assert counts(crowds, guess([3, 3, 4, 4], (3, 0), (4, 0))) == ([0, 0], [0, 0], [1, 0], [0, 0])


def test_means_are_over_classes_that_occur() -> None:
    score = PanopticScore(np.array([1.6, 0.0, 0.0]), np.array([2, 0, 0]), np.array([0, 1, 0]), np.array([2, 0, 0]))
    assert score.occurs().tolist() == [True, True, False]
    assert score.quality() == pytest.approx(PanopticQuality((1.6 / 3) / 2, 0.8 / 2, (2 / 3) / 2, 2))
    assert score.quality(np.array([True, False, True])) == pytest.approx(PanopticQuality(1.6 / 3, 0.8, 2 / 3, 1))


def test_wrong_panoptic_maps_are_refused() -> None:
    truth = PanopticTruth(np.array([[1, 1]], np.int32), segments((1, 0, 2, False)))
    for prediction, message in [
        (guess([1], (1, 0)), "another size"),
        (guess([1, 4], (1, 0)), "not listed; seen: id 4"),
        (guess([1, 1], (1, 0), (9, 0)), "no pixel in the map; seen: id 9"),
        (guess([1, 1], (1, 0), (1, 1)), "two segments of the prediction have one id; seen: 1"),
        (guess([1, 1], (1, 2)), "prediction is of no class"),
    ]:
        with pytest.raises(DataError, match=message):
            panoptic_score(truth, prediction, 2)
