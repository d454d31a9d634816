"""Mask classification against a slow oracle (one mask, one size at a time), and its cost."""

import os
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from uniovseg.data.benchmarks import LabelledSet, PanopticSample, open_benchmark, open_panoptic
from uniovseg.data.images import decode_image
from uniovseg.data.regions import region_cells
from uniovseg.data.shapes import SceneConfig, draw_scene, encode_image, scene_rng
from uniovseg.data.shapes_sets import write_panoptic
from uniovseg.data.views import fit_view, render
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import DataError
from uniovseg.evaluation.mask_classification import (
    MaskClassificationConfig,
    MaskClassificationScore,
    classify_image,
    classify_masks,
    subsets,
)
from uniovseg.evaluation.true_masks import truth_masks
from uniovseg.models.clip import Clip, ClipConfig, load_clip
from uniovseg.models.text_classifier import TextClassifier, build_text_classifier, template_set
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Category, PanopticTruth, TruthSegment, Vocabulary
from uniovseg.storage import Location

REAL = Path(os.environ.get("UNIOVSEG_REAL_DATA", ""))
SIZES = (128, 64, 96)
WORDS = MaskClassificationConfig(sizes=SIZES, templates="simple")


@pytest.fixture(scope="module")
def clip(clip_weights: Path) -> Clip:
    return load_clip(ClipConfig(weights=str(clip_weights)))


@pytest.fixture(scope="module")
def scenes_on_disk(tmp_path_factory: pytest.TempPathFactory) -> LabelledSet:
    folder = tmp_path_factory.mktemp("shapes")
    scene = SceneConfig(size=96)
    write_panoptic((draw_scene(scene, scene_rng(0, 9, index), held_out=True) for index in range(3)), folder / "evaluation", scene)
    return open_benchmark("shapes", str(folder))


@pytest.fixture(scope="module")
def few_words(scenes_on_disk: LabelledSet) -> Vocabulary:
    """Few classes, so that random weights name some masks right."""
    return Vocabulary("few", tuple(Category(index, word, (word,)) for index, word in enumerate(("star", "red ring", "blue bar", "grass"))))


def regrouped(sample: PanopticSample, classes: int) -> PanopticSample:
    kept = tuple(replace(segment, class_index=segment.class_index % classes) for segment in sample.truth.segments)
    return replace(sample, truth=PanopticTruth(sample.truth.ids, kept))


def slow_probs(clip: Clip, classifier: TextClassifier, sample: PanopticSample, size: int) -> list[np.ndarray]:
    """One row a segment, from its own pass through the CLIP."""
    image = decode_image(Path(sample.image.uri).read_bytes())
    view = fit_view(size, *sample.truth.ids.shape)
    rows = []
    for segment in sample.truth.segments:
        mask = RunLengthMasks.from_dense(torch.from_numpy(sample.truth.ids == segment.id)[None])
        dense = clip.features(torch.from_numpy(render(image, view))[None]).res5[0]
        cells = region_cells(mask, view, (dense.shape[1], dense.shape[2]))[0]
        embedded = F.normalize(clip.project(dense[:, cells].mean(1)[None]), dim=-1)
        rows.append((classifier.logit_scale * embedded @ classifier.embeddings.T).softmax(-1)[0].detach().numpy())
    return rows


def test_every_subset_is_the_mean_of_its_sizes(clip: Clip, scenes_on_disk: LabelledSet, few_words: Vocabulary) -> None:
    samples = [regrouped(sample, 4) for sample in scenes_on_disk.panoptic()]
    classifier = build_text_classifier(clip, few_words, template_set("simple"))
    chosen = [subset for count in (1, 2, 3) for subset in combinations(SIZES, count)]
    assert subsets(SIZES) == chosen
    hits: dict[tuple[int, ...], list[tuple[int, bool]]] = {subset: [] for subset in chosen}
    for sample in samples:
        probs = {size: slow_probs(clip, classifier, sample, size) for size in SIZES}
        for subset in chosen:
            for row, segment in enumerate(sample.truth.segments):
                best = int(np.mean([probs[size][row] for size in subset], axis=0).argmax())
                hits[subset].append((segment.class_index, best == segment.class_index))
    score = sum(classify_masks(clip, samples, few_words, WORDS), MaskClassificationScore.zero(SIZES, 4))
    summary = score.summary()
    assert summary["images"] == 3
    assert summary["masks"] == len(hits[SIZES]) == sum(len(sample.truth.segments) for sample in samples)
    assert list(summary["subsets"]) == ["+".join(map(str, subset)) for subset in chosen]
    for subset, row in zip(chosen, summary["subsets"].values(), strict=True):
        assert row["accuracy"] == pytest.approx(np.mean([right for _, right in hits[subset]]))
        by_class = [np.mean([right for c, right in hits[subset] if c == index]) for index in {c for c, _ in hits[subset]}]
        assert row["class_accuracy"] == pytest.approx(np.mean(by_class))
        assert row["seconds"] == pytest.approx(sum(summary["subsets"][str(size)]["seconds"] for size in subset))
    assert len({row["accuracy"] for row in summary["subsets"].values()}) > 1  # the sizes differ


def test_the_clip_runs_once_a_size_and_image(clip: Clip, scenes_on_disk: LabelledSet, few_words: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Clip.features

    def counted(self: Clip, images: torch.Tensor) -> object:
        seen.append(images.shape[-1])
        return original(self, images)

    monkeypatch.setattr(Clip, "features", counted)
    samples = [regrouped(sample, 4) for sample in scenes_on_disk.panoptic()]
    list(classify_masks(clip, samples, few_words, WORDS))
    assert seen == [*SIZES] * 3


def test_crowds_and_segments_without_pixels_are_no_masks() -> None:
    truth = PanopticTruth(np.array([[1, 1, 2, 0]], np.int32), (TruthSegment(2, 5, 1), TruthSegment(1, 3, 2, True), TruthSegment(9, 4, 7)))
    masks, classes = truth_masks(truth)
    assert classes.tolist() == [5]
    assert masks.to_dense().tolist() == [[[False, False, True, False]]]
    masks, classes = truth_masks(PanopticTruth(truth.ids, ()))
    assert (len(masks), masks.size, len(classes)) == (0, (1, 4), 0)


def test_masks_that_vanish_are_counted_by_size(clip: Clip, few_words: Vocabulary, tmp_path: Path) -> None:
    ids = np.ones((128, 128), np.int32)
    ids[34:50, 34:50] = 2  # a quarter of a cell at 128 px; of four cells that are half as wide, it fills one
    sample = write_sample(tmp_path, ids, (TruthSegment(1, 0, 1), TruthSegment(2, 1, 1)))
    classifier = build_text_classifier(clip, few_words, template_set("simple"))
    score = classify_image(clip, classifier, sample, (128, 256))
    assert score.summary()["vanished"] == {"128": 0.5, "256": 0.0}


def write_sample(folder: Path, ids: np.ndarray, segments: tuple[TruthSegment, ...]) -> PanopticSample:
    (folder / "a.jpg").write_bytes(encode_image(np.full((*ids.shape, 3), 90, np.uint8), 90))
    return PanopticSample(key="a", image=Location.of(folder / "a.jpg"), truth=PanopticTruth(ids, segments))


def test_an_image_without_masks_counts_as_an_image(clip: Clip, few_words: Vocabulary, tmp_path: Path) -> None:
    sample = write_sample(tmp_path, np.zeros((40, 50), np.int32), ())
    classifier = build_text_classifier(clip, few_words, template_set("simple"))
    summary = classify_image(clip, classifier, sample, (64,)).summary()
    assert summary == {
        "subsets": {"64": {"accuracy": None, "class_accuracy": None, "seconds": 0.0}},
        "vanished": {"64": 0.0},
        "masks": 0,
        "images": 1,
    }
    wrong = replace(sample, truth=PanopticTruth(np.zeros((40, 51), np.int32), ()))
    with pytest.raises(DataError, match="a: the ground truth is of another size than the image"):
        classify_image(clip, classifier, wrong, (64,))


@pytest.mark.skipif("UNIOVSEG_REAL_DATA" not in os.environ, reason="UNIOVSEG_REAL_DATA is not set")
def test_all_masks_of_real_images_are_counted(clip: Clip) -> None:
    vocabulary = load_vocabulary("coco_panoptic")
    place = REAL / "coco128/panoptic_segmentation/annotations/panoptic_val2017.json"
    found = open_panoptic(str(place), str(REAL / "coco128/images/val2017"), vocabulary=vocabulary)
    config = MaskClassificationConfig(sizes=(128, 192), templates="simple")
    score = sum(classify_masks(clip, found.panoptic(found.items[:6]), vocabulary, config), MaskClassificationScore.zero(config.sizes, 133))
    expected = chain.from_iterable(sample.truth.segments for sample in found.panoptic(found.items[:6]))
    kept = [segment.class_index for segment in expected if not segment.is_crowd]
    assert score.total.tolist() == np.bincount(kept, minlength=133).tolist()
    assert 0 < score.summary()["vanished"]["192"] < score.summary()["vanished"]["128"] < 1
