"""The library's front door: errors in one line, results of the right form, embedding once is the same as asking directly."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

import uniovseg
from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.data.shapes import SceneConfig, draw_scene, scene_rng
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import CheckpointError, ConfigError, DataError
from uniovseg.methods.mask_generation import MaskGeneration, MaskGenerationConfig
from uniovseg.methods.promptable import RegionConfig
from uniovseg.models.clip import CHECKPOINT, ClipConfig, weights_digest
from uniovseg.models.mask_generator import build_mask_generator
from uniovseg.open_vocabulary import SegmentationConfig, instances, panoptic_map, semantic_map
from uniovseg.postprocess import ProposalConfig, resize_logits
from uniovseg.records import Category, Vocabulary
from uniovseg.segmenter import Segmenter, to_array
from uniovseg.segments import Segment, Task, masks_of

SHIPPED = Path(uniovseg.__file__).parent / checkpoint.SHIPPED["shapes"] / checkpoint.MANIFEST


@pytest.fixture(scope="module")
def segmenter(tiny_method: MaskGeneration) -> Segmenter:
    return Segmenter(tiny_method)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """An image of 50 x 90, wider than high, so that the canvas has padding."""
    return np.ascontiguousarray(draw_scene(SceneConfig(size=90), scene_rng(0, 0, 1), held_out=True).image[:50])


def check(segment: Segment, size: tuple[int, int]) -> None:
    """A segment agrees with itself and with pycocotools."""
    assert segment.rle["size"] == list(size)
    dense = coco_mask.decode(segment.rle).astype(bool)
    assert np.array_equal(segment.mask(), dense)
    assert segment.area == dense.sum()
    ys, xs = np.nonzero(dense)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if len(xs) else (0, 0, 0, 0)
    assert tuple(segment.box_xyxy) == box
    assert 0 <= segment.predicted_iou <= 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("windows", [(), (0.25, 0.5, 0.8, 2.0)])
def test_points_give_one_mask_each_the_best_that_contains_it(
    tiny_method: MaskGeneration, image: NDArray[np.uint8], windows: tuple[float, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    generator = build_mask_generator(tiny_method.config.generator.model_copy(update={"point_windows": windows}), tiny_method.clip.feature_channels)
    config = tiny_method.config.model_copy(update={"proposals": ProposalConfig(min_predicted_iou=0.5)})
    segmenter = Segmenter(MaskGeneration(config, tiny_method.clip, generator).eval())
    embedded = segmenter.embed(image)
    points = [(float(x), float(y)) for x in range(1, 90, 6) for y in range(1, 50, 6)] + [(0.0, 0.0), (90.0, 50.0)]
    segments = segmenter.points(embedded, points)
    containing = 0
    for segment, point in zip(segments, points, strict=True):
        check(segment, (50, 90))
        at = torch.tensor([point], dtype=torch.float32)
        decoded = segmenter.method.embed_points(embedded, at)
        logits = segmenter.method.mask_logits(embedded, decoded.flat())
        x, y = (embedded.view.to_view(at)[0] / 4).long().tolist()
        masks = [
            (float(iou), bool(mask[min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)] > 0))
            for iou, mask in zip(decoded.iou_probs[0], logits, strict=True)
        ]
        candidates = [iou for iou, contains in masks if contains] or [iou for iou, _ in masks]
        containing += any(contains for _, contains in masks) and not all(contains for _, contains in masks)
        expected = next((iou for iou in candidates if iou >= 0.5), candidates[0]) if windows else max(candidates)
        assert segment.predicted_iou == pytest.approx(expected, abs=1e-5)
    assert containing
    (alone,) = segmenter.points(embedded, points[:1], [1])
    assert alone.predicted_iou == pytest.approx(segments[0].predicted_iou, abs=1e-5)


def test_labels_make_points_one_prompt(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    embedded = segmenter.embed(image)
    points = [(10, 20), (40, 30), (80, 10)]
    (inside,) = segmenter.points(embedded, points, [1, 1, 0])
    (outside,) = segmenter.points(embedded, points, [0, 0, 1])
    check(inside, (50, 90))
    assert inside.predicted_iou != outside.predicted_iou
    (same,) = segmenter.points(embedded, np.array(points), np.array([True, True, False]))
    assert same == inside
    (alone,) = segmenter.points(embedded, (10, 20), [1])
    check(alone, (50, 90))


def test_a_set_of_points_gets_the_mask_with_most_points_on_the_right_side(tiny_method: MaskGeneration, image: NDArray[np.uint8]) -> None:
    embedded = tiny_method.embed(image)
    points, rng = np.array([(10, 20), (40, 30), (80, 10), (60, 44), (25, 5)], np.float32), np.random.default_rng(0)
    cells = (embedded.view.to_view(torch.from_numpy(points)) / 4).long().tolist()
    for _ in range(8):
        labels = rng.permutation([1, 1, 0, 0, 0])
        agreements = []
        for point in points[labels == 1]:
            decoded = tiny_method.embed_points(embedded, torch.from_numpy(point)[None]).flat()
            masks = tiny_method.mask_logits(embedded, decoded) > 0
            agreements += [sum(bool(mask[y, x]) == bool(label) for (x, y), label in zip(cells, labels, strict=True)) for mask in masks]
        best = tiny_method.best_of_point_set(embedded, torch.from_numpy(points), torch.from_numpy(labels))
        (mask,) = tiny_method.mask_logits(embedded, best) > 0
        assert sum(bool(mask[y, x]) == bool(label) for (x, y), label in zip(cells, labels, strict=True)) == max(agreements)


def test_boxes_give_one_mask_each(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    segments = segmenter.boxes(image, [[5, 5, 30, 40], [0, 0, 90, 50]])
    assert len(segments) == 2
    for segment in segments:
        check(segment, (50, 90))
    assert segmenter.boxes(image, [0, 0, 90, 50]) == segmenter.boxes(image, np.array([[0, 0, 90, 50]]))


@pytest.mark.parametrize("seed", [1, 2])
def test_windows_cut_a_boxs_mask_exactly(tiny_method: MaskGeneration, image: NDArray[np.uint8], seed: int) -> None:
    torch.manual_seed(seed)
    generator = build_mask_generator(tiny_method.config.generator.model_copy(update={"box_windows": True}), tiny_method.clip.feature_channels)
    segmenter = Segmenter(MaskGeneration(tiny_method.config, tiny_method.clip, generator).eval())
    embedded, box = segmenter.embed(image), [7, 9, 31, 42]
    decoded = segmenter.method.embed_boxes(embedded, torch.tensor([box], dtype=torch.float32)).flat()
    logits, _ = segmenter.method.uncut_logits(embedded, decoded)
    inside = np.zeros((50, 90), bool)
    inside[9:42, 7:31] = True
    (segment,) = segmenter.boxes(embedded, [box])
    assert np.array_equal(segment.mask(), (resize_logits(logits, embedded.view, (50, 90)) > 0)[0].numpy() & inside)
    assert segment.area > 0


def test_everything_is_sorted_and_without_near_duplicates(tiny_method: MaskGeneration, image: NDArray[np.uint8]) -> None:
    config = tiny_method.config.model_copy(update={"proposals": ProposalConfig(min_predicted_iou=0.0)})
    method = MaskGeneration(config, tiny_method.clip, tiny_method.generator)
    method.eval()
    segmenter = Segmenter(method)
    segments = segmenter.everything(image, points_per_side=3)
    assert segments
    assert [s.predicted_iou for s in segments] == sorted((s.predicted_iou for s in segments), reverse=True)
    for segment in segments:
        check(segment, (50, 90))
        assert segment.area > 0
    default = segmenter.everything(image)
    assert default == segmenter.everything(image, points_per_side=config.test_points_per_side)
    none = tiny_method.config.model_copy(update={"proposals": ProposalConfig(min_predicted_iou=1.0)})
    strict = MaskGeneration(none, tiny_method.clip, tiny_method.generator)
    strict.eval()
    assert Segmenter(strict).everything(image) == []


WORDS = ["red star", "blue ring", "water"]


@pytest.fixture(scope="module")
def eager(tiny_method: MaskGeneration) -> Segmenter:
    """A segmenter that keeps masks of any predicted IoU and looks at regions at two sizes."""
    proposals, regions = ProposalConfig(min_predicted_iou=0.0), RegionConfig(sizes=(64, 128), templates="simple")
    config = tiny_method.config.model_copy(update={"proposals": proposals, "regions": regions})
    return Segmenter(MaskGeneration(config, tiny_method.clip, tiny_method.generator).eval())


def expected_scores(segmenter: Segmenter, image: NDArray[np.uint8], segments: list[Segment]) -> torch.Tensor:
    """Class probabilities [n, 3] of segments, from the method itself."""
    return segmenter.method.classify(segmenter.embed(image), masks_of(segments, (50, 90)), load_vocabulary(WORDS))


def test_prompts_with_words_give_the_same_masks_with_names(eager: Segmenter, image: NDArray[np.uint8]) -> None:
    calls: list[Callable[..., list[Segment]]] = [
        lambda **words: eager.points(image, [(10.5, 20.0), (70.0, 49.0)], **words),
        lambda **words: eager.points(image, [(10, 20), (40, 30), (80, 10)], [1, 1, 0], **words),
        lambda **words: eager.boxes(image, [[5, 5, 30, 40], [0, 0, 90, 50]], **words),
        lambda **words: eager.everything(image, 3, **words),
    ]
    for call in calls:
        plain, named = call(), call(vocabulary=WORDS)
        assert named
        assert [dataclasses.replace(segment, word=None, score=None) for segment in named] == plain
        best = expected_scores(eager, image, plain).max(1)
        assert [segment.word for segment in named] == [WORDS[index] for index in best.indices.tolist()]
        assert [segment.score for segment in named] == pytest.approx(best.values.tolist(), abs=1e-6)
        for segment in call(vocabulary=", ".join(WORDS), config=SegmentationConfig(unknown_below=1.0)):
            assert segment.word is None
            assert segment.score is not None
    assert eager.boxes(image, [0, 0, 90, 50], load_vocabulary(WORDS)) == eager.boxes(image, [0, 0, 90, 50], WORDS)


def test_no_mask_has_no_name(tiny_method: MaskGeneration, image: NDArray[np.uint8]) -> None:
    config = tiny_method.config.model_copy(update={"proposals": ProposalConfig(min_predicted_iou=1.0)})
    strict = Segmenter(MaskGeneration(config, tiny_method.clip, tiny_method.generator).eval())
    assert strict.everything(image, vocabulary=WORDS) == []
    for task in get_args(Task):
        assert strict.segment(image, WORDS, task).regions == ()


@pytest.mark.parametrize("config", [SegmentationConfig(), SegmentationConfig(unknown_below=0.36, max_instances=3)])
def test_segmenting_by_words(eager: Segmenter, image: NDArray[np.uint8], config: SegmentationConfig) -> None:
    vocabulary = Vocabulary("three", tuple(Category(index + 7, word, (word,), word != "water") for index, word in enumerate(WORDS)))
    (prediction,) = eager.method.predict([image], vocabulary)
    semantic = eager.segment(image, vocabulary, "semantic", config)
    assert semantic.ids is not None
    assert np.array_equal(semantic.ids, semantic_map(prediction, config))
    panoptic = eager.segment(eager.embed(image), vocabulary, config=config)
    expected = panoptic_map(prediction, vocabulary, config)
    assert panoptic.ids is not None
    assert np.array_equal(panoptic.ids, expected.ids)
    assert [(item.id, item.class_index, item.score) for item in panoptic.regions] == [
        (item.id, item.class_index, item.score) for item in expected.segments
    ]
    instance = eager.segment(image, vocabulary, "instance", config)
    found = instances(prediction, vocabulary, config)
    assert instance.ids is None
    assert [(item.class_index, item.score) for item in instance.regions] == [(item.class_index, item.score) for item in found]
    dense = prediction.masks.to_dense().numpy()
    assert all(np.array_equal(region.mask(), dense[item.mask]) for region, item in zip(instance.regions, found, strict=True))


def test_tasks_and_vocabularies_that_there_are_not(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match="no such task; seen: pan; allowed: semantic, panoptic, instance"):
        segmenter.segment(image, WORDS, "pan")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"did you mean 'coco_stuff'\?"):
        segmenter.segment(image, "coco_stuf")
    with pytest.raises(DataError, match="repeated"):
        segmenter.points(image, [(1, 2)], vocabulary="cat, cat")


def test_an_image_embedded_once_is_the_same_as_given_each_time(segmenter: Segmenter, image: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    embedded = segmenter.embed(image)
    for given in (image, path, str(path), Image.open(path), Image.open(path).convert("RGBA")):
        assert segmenter.points(given, [(10, 20)]) == segmenter.points(embedded, [(10, 20)])
        assert segmenter.boxes(given, [(5, 5, 30, 40)]) == segmenter.boxes(embedded, [(5, 5, 30, 40)])
        assert segmenter.everything(given, 2) == segmenter.everything(embedded, 2)


@pytest.mark.parametrize(
    ("points", "labels", "what"),
    [
        ([(1, 2, 3)], None, "points has the wrong shape"),
        ([], None, "points has the wrong shape"),
        ([(1, 2), (3,)], None, "points cannot be read as an array of numbers"),
        ([("a", "b")], None, "points cannot be read as an array of numbers"),
        ([(91, 2)], None, "points lies outside the image.*x from 0 to 90, y from 0 to 50"),
        ([(1, -0.1)], None, "points lies outside the image"),
        ([(float("nan"), 1)], None, "points lies outside the image"),
        ([(1, 2)], [1, 0], "labels do not fit the points"),
        ([(1, 2)], [2], "labels do not fit the points"),
        ([(1, 2)], [0], "labels name no point inside"),
        ([(1, 2)], [0.5], "labels do not fit the points"),
        ([(1, 2)], ["in"], "labels cannot be read as an array of numbers"),
    ],
)
def test_points_that_cannot_be_used(segmenter: Segmenter, image: NDArray[np.uint8], points: list[object], labels: list[object], what: str) -> None:
    with pytest.raises(DataError, match=what) as raised:
        segmenter.points(image, points, labels)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("boxes", "what"),
    [
        ([(5, 5, 5, 9)], "a box is empty"),
        ([(5, 9, 7, 5)], "a box is empty"),
        ([(0, 0, 91, 50)], "boxes_xyxy lies outside the image"),
        ([(0, 0, 9)], "boxes_xyxy has the wrong shape"),
        ([(0, 0, float("inf"), 5)], "boxes_xyxy lies outside the image"),
    ],
)
def test_boxes_that_cannot_be_used(segmenter: Segmenter, image: NDArray[np.uint8], boxes: list[object], what: str) -> None:
    with pytest.raises(DataError, match=what):
        segmenter.boxes(image, boxes)  # type: ignore[arg-type]


def test_images_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match="cannot be decoded"):
        to_array(tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"cannot be read; seen: .*none\.jpg; No such file"):
        to_array(tmp_path / "none.jpg")
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match=r"not an image.*uint8 \[H, W, 3\]"):
            to_array(array)  # type: ignore[arg-type]


def info_of(config: MaskGenerationConfig) -> CheckpointInfo:
    return CheckpointInfo(step=3, method=config.model_dump(mode="json"))


def test_a_checkpoint_gives_the_method_back(tiny_method: MaskGeneration, image: NDArray[np.uint8], tmp_path: Path) -> None:
    checkpoint.save(tmp_path, info_of(tiny_method.config), tiny_method.state())
    loaded = Segmenter.load(tmp_path)
    assert not loaded.method.training
    assert loaded.points(image, [(10, 20), (50, 30)]) == Segmenter(tiny_method).points(image, [(10, 20), (50, 30)])


def test_settings_of_a_checkpoint_can_be_changed(tiny_method: MaskGeneration, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, info_of(tiny_method.config), tiny_method.state())
    changed = Segmenter.load(tmp_path, changes={"size": 96, "proposals": {"max_proposals": 7}}).method.config
    assert (changed.size, changed.proposals.max_proposals) == (96, 7)
    assert changed.generator == tiny_method.config.generator
    with pytest.raises(ConfigError, match="sizes"):
        Segmenter.load(tmp_path, changes={"sizes": 96})
    with pytest.raises(CheckpointError):
        Segmenter.load(tmp_path, changes={"generator": {"dim": 64}})


def test_a_checkpoint_may_hold_the_clip(tiny_method: MaskGeneration, image: NDArray[np.uint8], tmp_path: Path) -> None:
    clip = tiny_method.config.clip.model_copy(update={"weights": CHECKPOINT})
    config = tiny_method.config.model_copy(update={"clip": clip})
    checkpoint.save(tmp_path, info_of(config), tiny_method.state_dict())
    assert Segmenter.load(tmp_path).boxes(image, [(5, 5, 30, 40)]) == Segmenter(tiny_method).boxes(image, [(5, 5, 30, 40)])
    checkpoint.save(tmp_path, info_of(config), tiny_method.state())
    with pytest.raises(CheckpointError, match="missing.*clip.model"):
        Segmenter.load(tmp_path)


def test_checkpoints_that_cannot_be_used(tiny_method: MaskGeneration, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        Segmenter.load(tmp_path)
    checkpoint.save(tmp_path, CheckpointInfo(step=1, method={"name": "magic"}), {})
    with pytest.raises(CheckpointError, match="unknown method; seen: magic; allowed: mask_generation"):
        Segmenter.load(tmp_path)
    state = tiny_method.state()
    checkpoint.save(tmp_path, info_of(tiny_method.config), {name: state[name] for name in sorted(state)[1:]})
    with pytest.raises(CheckpointError, match="1 missing"):
        Segmenter.load(tmp_path)


@pytest.mark.skipif(not SHIPPED.exists(), reason="the shapes model is not in the package yet: make shapes-full")
def test_the_packaged_model_segments_the_shapes_world() -> None:
    """On scenes it has never seen, better than the box taken as the mask, and close to most objects when asked for everything."""
    segmenter = Segmenter.load()
    by_box, fill, by_everything = [], [], []
    for index in range(4):
        scene = draw_scene(SceneConfig(), scene_rng(123, 0, index), held_out=True)
        embedded = segmenter.embed(scene.image)
        objects = [item.mask for item in scene.objects if item.mask.sum() > 100]
        boxes = [(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in map(np.nonzero, objects)]
        found = [segment.mask() for segment in segmenter.boxes(embedded, boxes)]
        everything = [segment.mask() for segment in segmenter.everything(embedded)]
        by_box += [(a & b).sum() / (a | b).sum() for a, b in zip(found, objects, strict=True)]
        fill += [mask.sum() / ((x1 - x0) * (y1 - y0)) for mask, (x0, y0, x1, y1) in zip(objects, boxes, strict=True)]
        by_everything += [max((a & b).sum() / (a | b).sum() for a in everything) for b in objects]
    assert len(by_box) > 10
    assert np.mean(by_box) > np.mean(fill) + 0.05
    assert np.mean(by_everything) > 0.4


def test_a_checkpoint_over_another_clip_is_refused(tiny_method: MaskGeneration, tmp_path: Path) -> None:
    digest = weights_digest(tiny_method.config.clip)
    assert digest is not None and digest != weights_digest(ClipConfig())
    info = CheckpointInfo(step=0, method=tiny_method.config.model_dump(mode="json"), clip_digest=digest)
    checkpoint.save(tmp_path, info, tiny_method.state())
    Segmenter.load(tmp_path)
    with pytest.raises(CheckpointError, match=f"trained over another CLIP.*{digest[:12]}"):
        Segmenter.load(tmp_path, changes={"clip": {"weights": None}})
    assert weights_digest(ClipConfig(name="convnext_large_d_320", weights="laion2b_s29b_b131k_ft_soup")) is None
