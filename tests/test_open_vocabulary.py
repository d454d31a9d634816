"""Maps and instances against slow loops over pixels. Scores are fractions of powers of two, so that sums are exact in any order."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uniovseg import open_vocabulary
from uniovseg.open_vocabulary import UNKNOWN, SegmentationConfig, best_classes, instances, panoptic_map, semantic_map
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Category, Prediction, Vocabulary

SIZE = (23, 31)


def vocabulary_of(classes: int) -> Vocabulary:
    """Every third class is stuff; ids are not the class indices."""
    return Vocabulary("made up", tuple(Category(3 * c + 5, f"class {c}", (f"class {c}",), is_thing=c % 3 != 0) for c in range(classes)))


def random_prediction(seed: int, masks: int, classes: int) -> Prediction:
    """Overlapping discs of different sizes, one of them empty; scores of 1/256 steps, quality of 1/16 steps."""
    noise = np.random.default_rng(seed)
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    centres, radii = noise.uniform(0, SIZE, (masks, 2)), noise.uniform(1.5, 9, masks)
    dense = np.stack([(ys - y) ** 2 + (xs - x) ** 2 < radius**2 for (y, x), radius in zip(centres, radii, strict=True)])
    dense[masks // 2] = False
    return prediction_of(dense, noise.integers(1, 17, masks) / 16, noise.integers(0, 257, (masks, classes)) / 256)


def prediction_of(dense: NDArray[np.bool_], quality: object, class_scores: object) -> Prediction:
    return Prediction(
        masks=RunLengthMasks.from_dense(torch.from_numpy(dense)),
        quality=torch.tensor(np.asarray(quality), dtype=torch.float32),
        class_scores=torch.tensor(np.asarray(class_scores), dtype=torch.float32),
    )


def slow_semantic(prediction: Prediction, unknown_below: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The class of each pixel inside masks (-1 unknown), and which pixels are inside one."""
    dense, scores, quality = prediction.masks.to_dense().numpy(), prediction.class_scores.numpy(), prediction.quality.numpy()
    classes = np.full(SIZE, UNKNOWN)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            here = [n for n in range(len(dense)) if dense[n, y, x] and scores[n].max() >= unknown_below]
            if here:
                sums = [sum(scores[n, c] * quality[n] for n in here) for c in range(scores.shape[1])]
                classes[y, x] = sums.index(max(sums))
    return classes, np.asarray(dense.any(0))


@pytest.mark.parametrize("values_at_once", [1, 300, 16_000_000])
@pytest.mark.parametrize(("masks", "classes", "unknown_below"), [(9, 5, 0.0), (9, 5, 0.9), (3, 1, 0.0), (14, 300, 0.0)])
def test_semantic_map(monkeypatch: pytest.MonkeyPatch, masks: int, classes: int, unknown_below: float, values_at_once: int) -> None:
    monkeypatch.setattr(open_vocabulary, "VALUES_AT_ONCE", values_at_once)
    for seed in range(2):
        prediction = random_prediction(seed, masks, classes)
        found = semantic_map(prediction, SegmentationConfig(unknown_below=unknown_below))
        expected, inside = slow_semantic(prediction, unknown_below)
        assert found.shape == SIZE
        assert found.dtype == np.int32
        assert np.array_equal(found[inside], expected[inside])
        covered = np.argwhere(inside)
        for y, x in np.argwhere(~inside):
            distances = ((covered - (y, x)) ** 2).sum(1)
            nearest = covered[distances == distances.min()]
            assert found[y, x] in {expected[tuple(place)] for place in nearest}


def test_more_than_255_classes_are_found() -> None:
    found = semantic_map(random_prediction(0, 20, 900), SegmentationConfig())
    assert found.max() > 255


def test_unknown_pixels() -> None:
    dense = np.zeros((2, *SIZE), bool)
    dense[0, :, :10], dense[1, :, 8:20] = True, True
    prediction = prediction_of(dense, [0.5, 1.0], [[0.25, 0.5], [0.125, 0.25]])
    found = semantic_map(prediction, SegmentationConfig(unknown_below=0.5))
    assert (found[:, :10] == 1).all()
    assert (found[:, 10:] == UNKNOWN).all()
    assert (semantic_map(prediction, SegmentationConfig(unknown_below=0.75)) == UNKNOWN).all()
    assert panoptic_map(prediction, vocabulary_of(2), SegmentationConfig(unknown_below=0.5)).ids.tolist() == dense[0].astype(int).tolist()
    assert [item.mask for item in instances(prediction, vocabulary_of(2), SegmentationConfig(unknown_below=0.5))] == [0]


@pytest.mark.parametrize("masks", [0, 2])
def test_an_image_without_masks(masks: int) -> None:
    nothing = prediction_of(np.zeros((masks, *SIZE), bool), np.ones(masks), np.ones((masks, 4)))
    assert np.array_equal(semantic_map(nothing, SegmentationConfig()), np.full(SIZE, UNKNOWN))
    found = panoptic_map(nothing, vocabulary_of(4), SegmentationConfig())
    assert np.array_equal(found.ids, np.zeros(SIZE))
    assert found.segments == ()
    assert instances(nothing, vocabulary_of(4), SegmentationConfig()) == []


def slow_panoptic(prediction: Prediction, vocabulary: Vocabulary, config: SegmentationConfig) -> list[tuple[int, float, NDArray[np.bool_]]]:
    """Class, score and pixels of each segment."""
    dense, quality = prediction.masks.to_dense().numpy(), prediction.quality.numpy()
    best, classes = (values.numpy() for values in prediction.class_scores.max(1))
    score = best * quality
    ranked = [n for n in sorted(range(len(dense)), key=lambda n: (-score[n], n)) if score[n] >= config.min_score]
    segments: list[tuple[int, float, NDArray[np.bool_]]] = []
    taken = np.zeros(SIZE, bool)
    for n in ranked:
        pixels = dense[n] & ~taken
        taken |= dense[n]
        if not pixels.any() or pixels.sum() / dense[n].sum() < config.min_visible:
            continue
        index = int(classes[n])
        same = [place for place, item in enumerate(segments) if item[0] == index]
        if same and not vocabulary.categories[index].is_thing:
            first = segments[same[0]]
            segments[same[0]] = (index, first[1], first[2] | pixels)
        else:
            segments.append((index, float(score[n]), pixels))
    return segments


@pytest.mark.parametrize("values_at_once", [1, 300, 16_000_000])
@pytest.mark.parametrize("config", [{}, {"min_visible": 0.0}, {"min_visible": 1.0}, {"min_score": 0.5}])
@pytest.mark.parametrize("classes", [2, 6, 400])
def test_panoptic_map(monkeypatch: pytest.MonkeyPatch, config: dict[str, float], classes: int, values_at_once: int) -> None:
    monkeypatch.setattr(open_vocabulary, "VALUES_AT_ONCE", values_at_once)
    settings, vocabulary = SegmentationConfig.model_validate(config), vocabulary_of(classes)
    for seed in range(4):
        prediction = random_prediction(seed, 25, classes)
        found = panoptic_map(prediction, vocabulary, settings)
        expected = slow_panoptic(prediction, vocabulary, settings)
        assert [(item.id, item.class_index, item.score) for item in found.segments] == [
            (rank, index, score) for rank, (index, score, _) in enumerate(expected, 1)
        ]
        ids = np.zeros(SIZE, np.int32)
        for rank, (_, _, pixels) in enumerate(expected, 1):
            ids[pixels] = rank
        assert found.ids.dtype == np.int32
        assert np.array_equal(found.ids, ids)


def test_a_segment_is_dropped_below_its_visible_share_and_leaves_a_hole() -> None:
    dense = np.zeros((3, 10, 10), bool)
    dense[0, :, :6], dense[1], dense[2, :, 8:] = True, True, True  # 4 of 10 columns of the second are left, none of the third
    prediction = prediction_of(dense, [1, 0.5, 0.25], [[0, 1.0], [0, 1.0], [0, 1.0]])
    assert [item.id for item in panoptic_map(prediction, vocabulary_of(2), SegmentationConfig()).segments] == [1, 2]
    found = panoptic_map(prediction, vocabulary_of(2), SegmentationConfig(min_visible=0.41))
    assert [item.score for item in found.segments] == [1.0]
    assert (found.ids[:, 6:] == 0).all()


def test_stuff_of_one_class_is_one_segment_and_things_are_not() -> None:
    dense = np.zeros((2, 4, 9), bool)
    dense[0, :, :3], dense[1, :, 6:] = True, True
    for index, count in ((0, 1), (1, 2)):
        scores = np.eye(2)[[index, index]]
        found = panoptic_map(prediction_of(dense, [0.5, 0.75], scores), vocabulary_of(2), SegmentationConfig())
        assert [item.score for item in found.segments] == [0.75, 0.5][:count]
        assert (found.ids[:, 6:] == 1).all()
        assert (found.ids[:, :3] == count).all()


@pytest.mark.parametrize(("config", "classes"), [({}, 7), ({"max_instances": 5}, 300), ({"min_score": 0.4}, 7), ({"unknown_below": 0.8}, 7)])
def test_instances(config: dict[str, float], classes: int) -> None:
    settings, vocabulary = SegmentationConfig.model_validate(config), vocabulary_of(classes)
    prediction = random_prediction(1, 30, classes)
    area = prediction.masks.area().tolist()
    expected = []
    for n in range(30):
        for c in range(classes):
            score = float(prediction.class_scores[n, c] * prediction.quality[n])
            wanted = score > 0 and score >= settings.min_score and float(prediction.class_scores[n, c]) >= settings.unknown_below
            if wanted and area[n] and vocabulary.categories[c].is_thing:
                expected.append((-score, n, c))
    found = instances(prediction, vocabulary, settings)
    assert [(-item.score, item.mask, item.class_index) for item in found] == sorted(expected)[: settings.max_instances]


def test_best_classes() -> None:
    classes, scores = best_classes(torch.tensor([[0.25, 0.5, 0.5], [0.125, 0.0, 0.25]]), SegmentationConfig(unknown_below=0.5))
    assert classes.tolist() == [1, UNKNOWN]
    assert scores.tolist() == [0.5, 0.25]
