"""Frozen against adapted naming: each figure again, from the ground truth's own files and without the code that merges scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import load, validate
from uniovseg.data.benchmarks import LabelledSet, open_panoptic, read_image
from uniovseg.methods.catalog import build_method
from uniovseg.methods.mask_text_alignment import MaskTextAlignment, MaskTextAlignmentConfig
from uniovseg.methods.promptable import PromptableSegmenter
from uniovseg.models.feature_adapter import LowRank
from uniovseg.open_vocabulary import SegmentationConfig, panoptic_map, semantic_map
from uniovseg.records import Prediction
from uniovseg.runtime.alignment import AlignmentConfig, compare_alignment
from uniovseg.runtime.match import MatchConfig
from uniovseg.segmenter import Segmenter

Map = NDArray[np.int32]

LIMIT, POINTS = 3, 4
SIZES = ((128,), (96, 192))


@pytest.fixture(scope="module")
def world(labelled_scenes: Path) -> Path:
    """Four labelled scenes of 96 px."""
    return labelled_scenes / "evaluation"


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 2 with an adapter that changes something, and with another mask generator than the baseline's."""
    settings = {
        "clip": {"name": "shapes"}, "generator": "shapes", "size": 128, "regions": {"sizes": [160], "templates": "simple"},
        "proposals": {"min_predicted_iou": 0.0},
    }  # fmt: skip
    method = build_method(validate(MaskTextAlignmentConfig, settings), 0)
    assert isinstance(method, MaskTextAlignment) and method.adapter is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for branch in method.adapter.branches:
            assert isinstance(branch, LowRank)
            torch.nn.init.normal_(branch.up.weight, std=0.05)
    folder = tmp_path_factory.mktemp("aligned")
    checkpoint.save(folder, CheckpointInfo(step=0, method=method.config.model_dump(mode="json")), method.state())
    return folder


@dataclass
class Expected:
    """Figures of one naming."""

    miou: float
    unseen_miou: float
    pq: float
    oracle_mask_miou: float


def mean_iou(truths: list[Map], found: list[Map], classes: set[int]) -> float:
    """Mean IoU over the classes among `classes` that any ground truth has; -1 is no class."""
    truth, predicted = (np.concatenate([item.ravel() for item in items]) for items in (truths, found))
    predicted = np.where(truth >= 0, predicted, -1)
    ious = [np.sum((truth == c) & (predicted == c)) / np.sum((truth == c) | (predicted == c)) for c in sorted(classes & set(truth.tolist()) - {-1})]
    return float(np.mean(ious))


def panoptic_quality(pairs: list[tuple[Map, dict[int, int], Map, dict[int, int]]]) -> float:
    """PQ of (ids, class by id) of ground truth and prediction, an image each, by its definition; there are no crowds."""
    scores: dict[int, list[float]] = {}
    for truth, truth_classes, found, found_classes in pairs:
        matched: set[int] = set()
        for segment, index in truth_classes.items():
            entry = scores.setdefault(index, [0.0, 0.0])
            mask, best = truth == segment, 0.0
            for other, guess in found_classes.items():
                mine = (found == other) & (truth != 0)
                iou = np.sum(mask & mine) / np.sum(mask | mine)
                if guess == index and iou > 0.5:
                    best = float(iou)
                    matched.add(other)
            entry[0] += best
            entry[1] += 1.0 if best else 0.5
        for other, guess in found_classes.items():
            inside = found == other
            if other not in matched and np.sum(inside & (truth == 0)) <= np.sum(inside) / 2:
                scores.setdefault(guess, [0.0, 0.0])[1] += 0.5
    return float(np.mean([total / count for total, count in scores.values()]))


def expect(naming: PromptableSegmenter, proposer: PromptableSegmenter, dataset: LabelledSet, unseen: set[int]) -> Expected:
    """Name the proposer's masks, and the ground truth's, image by image."""
    config, everything = SegmentationConfig(), set(range(len(dataset.vocabulary)))
    truths, found, perfect, panoptic = [], [], [], []
    for sample in dataset.panoptic(dataset.items[:LIMIT]):
        image = read_image(sample)
        proposals = proposer.propose(proposer.embed(image), POINTS)
        named = Prediction(
            masks=proposals.masks,
            quality=proposals.quality,
            class_scores=naming.classify(naming.embed(image), proposals.masks, dataset.vocabulary),
        )
        truth_classes = {segment.id: segment.class_index for segment in sample.truth.segments}
        truth = np.full(sample.truth.ids.shape, -1, np.int32)
        dense = np.stack([sample.truth.ids == segment for segment in truth_classes])
        for mask, index in zip(dense, truth_classes.values(), strict=True):
            truth[mask] = index
        masks = type(proposals.masks).from_dense(torch.from_numpy(dense))
        scores = naming.classify(naming.embed(image), masks, dataset.vocabulary)
        perfect.append(semantic_map(Prediction(masks=masks, quality=torch.ones(len(masks)), class_scores=scores), config))
        truths.append(truth)
        found.append(semantic_map(named, config))
        drawn = panoptic_map(named, dataset.vocabulary, config)
        panoptic.append((sample.truth.ids, truth_classes, drawn.ids, {segment.id: segment.class_index for segment in drawn.segments}))
    return Expected(
        miou=mean_iou(truths, found, everything),
        unseen_miou=mean_iou(truths, found, unseen),
        pq=panoptic_quality(panoptic),
        oracle_mask_miou=mean_iou(truths, perfect, everything),
    )


def test_the_figures_are_those_of_the_best_frozen_setting_and_of_the_adapter(world: Path, aligned: Path) -> None:
    dataset = open_panoptic(f"{world}/panoptic.json", f"{world}/images")
    present = sorted({segment.class_index for sample in dataset.panoptic(dataset.items[:LIMIT]) for segment in sample.truth.segments})
    unseen = set(present[::2])
    names = {dataset.vocabulary.categories[index].name for index in unseen}
    config = AlignmentConfig(
        baseline="shapes", aligned=str(aligned), annotations=f"{world}/panoptic.json", sizes=SIZES, templates=("simple",), points_per_side=POINTS,
        limit=LIMIT, masks_of=(str(aligned),),
    )  # fmt: skip
    report = compare_alignment(config, names)

    def check(report: Mapping[str, Any], masks_of: str | Path) -> float:
        """Check one proposer's figures; returns the aligned mIoU."""
        proposer = Segmenter.load(masks_of).method
        frozen = {
            f"{'+'.join(map(str, sizes))} px, simple": expect(
                Segmenter.load("shapes", changes={"regions": {"sizes": sizes, "templates": "simple"}}).method, proposer, dataset, unseen
            )
            for sizes in SIZES
        }
        adapted = expect(Segmenter.load(aligned).method, proposer, dataset, unseen)
        setting = max(frozen, key=lambda name: frozen[name].miou)
        assert len({item.miou for item in frozen.values()}) == 2
        assert report["baseline_setting"] == setting
        for label, expected in (("baseline", frozen[setting]), ("aligned", adapted)):
            for name in ("miou", "unseen_miou", "pq"):
                assert report[f"{label}_{name}"] == pytest.approx(getattr(expected, name), abs=1e-9), (label, name)
        assert report["oracle_mask_miou"] == pytest.approx(adapted.oracle_mask_miou, abs=1e-9)
        assert report["baseline_oracle_mask_miou"] == pytest.approx(frozen[setting].oracle_mask_miou, abs=1e-9)
        return adapted.miou

    own, other = check(report, "shapes"), check(report["masks_of"][str(aligned)], aligned)
    assert report["baseline_pq"] > 0 and own != other


def test_without_an_unseen_class_there_is_no_figure_of_them(world: Path, aligned: Path) -> None:
    config = AlignmentConfig(
        baseline="shapes",
        aligned=str(aligned),
        annotations=f"{world}/panoptic.json",
        vocabulary="shapes",
        sizes=((96,),),
        templates=("simple",),
        points_per_side=2,
        limit=1,
    )
    report = compare_alignment(config, [])
    assert report["baseline_unseen_miou"] is None and report["aligned_unseen_miou"] is None
    assert report["baseline_setting"] == "96 px, simple"


def test_the_scale_set_of_matching_and_each_of_its_scales_are_tried() -> None:
    sizes = load(MatchConfig, Path(__file__).parents[2] / "jobs/configs/match_shapes.yaml").regions.sizes
    tried = AlignmentConfig(baseline="a", aligned="b", annotations="c").sizes
    assert {sizes, *((size,) for size in sizes)} <= set(tried)
