"""The released stage 1, imported, segments by words: as it is (the frozen baseline), and with an adapter on it.

The release here has its names, depth and widths; its CLIP is the small one of the shapes world, under the release's prefix, in place of 352 M weights.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.parity import fill
from uniovseg import __main__ as command
from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import load, merge
from uniovseg.data.regions import region_cells
from uniovseg.data.shapes import SceneConfig, draw_scene, scene_rng
from uniovseg.data.views import fit_view, render
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.methods.mask_text_alignment import MaskTextAlignment, MaskTextAlignmentConfig
from uniovseg.models import release
from uniovseg.models.clip import CHECKPOINT, ClipConfig, load_clip
from uniovseg.models.text_classifier import build_text_classifier, template_set
from uniovseg.segmenter import Segmenter
from uniovseg.segments import Segment, masks_of
from uniovseg.training import TrainConfig, initial_method

WORDS = ["red star", "blue ring", "water", "grass"]
SMALL = {
    "size": 64,
    "test_points_per_side": 3,
    "regions": {"sizes": [64, 96], "templates": "simple"},
    "proposals": {"min_predicted_iou": 0.0, "max_proposals": 12},
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours made of a released file that holds its CLIP."""
    folder = tmp_path_factory.mktemp("release")
    clip = load_clip(ClipConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "RELEASE_CHANNELS", clip.feature_channels)
        patch.setattr(release, "RELEASE_CLIP", ClipConfig())
        state = {name: fill(name, shape, 0) for name, shape in release.release_names().items()}
        state |= {release.CLIP_PREFIX + name: value for name, value in clip.model.state_dict().items()}
        torch.save({"model": state}, folder / "stage1.pth")
        assert command.main(["import-release", str(folder / "stage1.pth"), "--out", str(folder / "ours")]) == 0
    return folder / "ours"


@pytest.fixture(scope="module")
def aligned(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> MaskTextAlignment:
    """Stage 2 as a run that starts from the imported checkpoint builds it."""
    info = checkpoint.read_info(imported)
    settings = merge(merge(info.method, SMALL), {"name": "mask_text_alignment"})
    method = {name: value for name, value in settings.items() if name in MaskTextAlignmentConfig.model_fields}
    config = load(TrainConfig, None, ["output=none", "data.train=none", f"init={imported}", f"method={method}"])
    found = initial_method(config)
    assert isinstance(found, MaskTextAlignment)
    return found


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.ascontiguousarray(draw_scene(SceneConfig(size=90), scene_rng(0, 0, 1), held_out=True).image[:50])


CALLS: dict[str, Callable[..., list[Segment]]] = {
    "points": lambda segmenter, image, words: segmenter.points(image, [(10.5, 20.0), (70.0, 40.0)], vocabulary=words),
    "point set": lambda segmenter, image, words: segmenter.points(image, [(10, 20), (40, 30), (80, 10)], [1, 1, 0], words),
    "boxes": lambda segmenter, image, words: segmenter.boxes(image, [(5, 5, 30, 40), (0, 0, 90, 50)], words),
    "everything": lambda segmenter, image, words: segmenter.everything(image, vocabulary=words),
}


def expected_scores(image: NDArray[np.uint8], segments: list[Segment]) -> torch.Tensor:
    """Class probabilities by the CLIP that the release was made with, step by step."""
    clip, masks = load_clip(ClipConfig()), masks_of(segments, (50, 90))
    classifier = build_text_classifier(clip, load_vocabulary(WORDS), template_set("simple"))
    scores = []
    with torch.no_grad():
        for size in SMALL["regions"]["sizes"]:  # type: ignore[index]
            view = fit_view(size, 50, 90)
            dense = clip.features(torch.from_numpy(render(image, view))[None]).res5[0]
            scores.append(classifier.scores(clip.embed_regions(dense, region_cells(masks, view, (dense.shape[1], dense.shape[2])))))
    return torch.stack(scores).mean(0)


@pytest.mark.parametrize("call", CALLS)
def test_masks_are_named_by_the_released_clip(call: str, imported: Path, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter.load(imported, changes=SMALL)
    plain, named = CALLS[call](segmenter, image, None), CALLS[call](segmenter, image, WORDS)
    assert named and [segment.rle for segment in named] == [segment.rle for segment in plain]
    best = expected_scores(image, plain).max(1)
    assert [segment.word for segment in named] == [WORDS[index] for index in best.indices.tolist()]
    assert [segment.score for segment in named] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_the_image_is_segmented_by_words(imported: Path, image: NDArray[np.uint8]) -> None:
    segmenter = Segmenter.load(imported, changes=SMALL)
    embedded = segmenter.embed(image)
    masks = [segment.mask() for segment in segmenter.everything(embedded)]
    semantic = segmenter.segment(embedded, WORDS, "semantic")
    assert semantic.ids is not None and semantic.ids.min() >= 0
    assert sum(region.area for region in semantic.regions) == image.shape[0] * image.shape[1]
    panoptic = segmenter.segment(embedded, WORDS, "panoptic")
    assert panoptic.regions
    for region in panoptic.regions:
        assert region.word in WORDS
        assert any(not (region.mask() & ~mask).any() for mask in masks)  # a part of one of the masks
    instances = segmenter.segment(embedded, WORDS, "instance")
    assert instances.regions and all(any(np.array_equal(region.mask(), mask) for mask in masks) for region in instances.regions)


def test_an_adapter_on_it(imported: Path, aligned: MaskTextAlignment, image: NDArray[np.uint8], tmp_path: Path) -> None:
    baseline = Segmenter.load(imported, changes=SMALL)
    info = CheckpointInfo(step=1, method=aligned.config.model_dump(mode="json"))
    assert info.method["clip"]["weights"] == CHECKPOINT
    checkpoint.save(tmp_path / "fresh", info, aligned.state())
    fresh = Segmenter.load(tmp_path / "fresh")
    changed = {name: fill(name, list(value.shape), 1) if ".up." in name else value for name, value in aligned.state().items()}
    checkpoint.save(tmp_path / "trained", info, changed)
    trained = Segmenter.load(tmp_path / "trained")
    for call in CALLS.values():
        frozen = call(baseline, image, WORDS)
        assert call(fresh, image, WORDS) == frozen
        adapted = call(trained, image, WORDS)
        assert [segment.rle for segment in adapted] == [segment.rle for segment in frozen]
        assert [segment.score for segment in adapted] != [segment.score for segment in frozen]
    assert trained.segment(image, WORDS, "panoptic").regions
