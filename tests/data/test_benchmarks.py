"""Every benchmark's layout, in miniature, with labels as each is stored."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniovseg.data.benchmarks import (
    BENCHMARKS,
    CITYSCAPES_IDS,
    UNLABELLED,
    LabelFolder,
    PanopticFiles,
    as_semantic,
    open_benchmark,
    open_panoptic,
    read_image,
    with_ids_of,
)
from uniovseg.data.images import decode_image
from uniovseg.data.label_maps import encode_labels
from uniovseg.data.panoptic import encode_ids
from uniovseg.data.shapes import CATEGORIES, SceneConfig, draw_scene, scene_rng
from uniovseg.data.shapes_sets import write_panoptic
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import ConfigError, DataError, MissingFileError
from uniovseg.records import TruthSegment
from uniovseg.storage import Location

REAL = Path(os.environ.get("UNIOVSEG_REAL_DATA", ""))
needs_real = pytest.mark.skipif("UNIOVSEG_REAL_DATA" not in os.environ, reason="UNIOVSEG_REAL_DATA is not set")

CLASSES = {"coco_panoptic": 133, "coco_semantic": 133, "coco_stuff": 171, "ade20k_150": 150, "ade20k_panoptic": 150, "ade20k_847": 847}
CLASSES |= {"pc_59": 59, "pc_459": 459, "voc_20": 20, "voc_21": 21, "cityscapes": 19, "cityscapes_panoptic": 19}

LABEL_LAYOUTS = [(name, number) for name, item in BENCHMARKS.items() for number, layout in enumerate(item.layouts) if isinstance(layout, LabelFolder)]


def test_vocabularies_and_stored_values_agree() -> None:
    assert set(BENCHMARKS) == {*CLASSES, "shapes"}
    for name, classes in CLASSES.items():
        benchmark = BENCHMARKS[name]
        assert benchmark.vocabulary is not None
        assert len(load_vocabulary(benchmark.vocabulary)) == classes
        for layout in benchmark.layouts:
            stored = layout.values if isinstance(layout, LabelFolder) else layout.category_ids
            assert stored is None or len(stored) == classes


def test_a_vocabulary_gets_the_ids_of_the_ground_truth() -> None:
    words = load_vocabulary("cityscapes")
    found = with_ids_of("cityscapes_panoptic", words)
    assert [item.id for item in found.categories] == list(CITYSCAPES_IDS)
    assert [item.name for item in found.categories] == [item.name for item in words.categories]
    assert with_ids_of("coco_panoptic", load_vocabulary("coco_panoptic")) == load_vocabulary("coco_panoptic")
    with pytest.raises(ConfigError, match="does not have the classes of ade20k_panoptic; seen: 19 classes; allowed: 150 classes"):
        with_ids_of("ade20k_panoptic", words)
    for name in ("cityscapes", "nothing_such"):
        with pytest.raises(ConfigError, match=f"no such panoptic benchmark; seen: {name}; allowed: coco_panoptic, "):
            with_ids_of(name, words)


def pixels(image: Location) -> tuple[int, int]:
    shape = decode_image(Path(image.uri).read_bytes()).shape
    return shape[0], shape[1]


def save(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    else:
        path.write_bytes(encode_labels(labels))


@pytest.mark.parametrize(("name", "number"), LABEL_LAYOUTS)
def test_label_maps_become_class_indices(name: str, number: int, tmp_path: Path) -> None:
    layout = BENCHMARKS[name].layouts[number]
    assert isinstance(layout, LabelFolder)
    last = CLASSES[name] - 1
    stored = np.array([[0, 1, last, layout.ignore]])
    if layout.values is not None:
        stored = np.array([[layout.values[0], layout.values[1], layout.values[last], next(v for v in range(256) if v not in layout.values)]])
    for stem in ("ulm/b", "a"):
        save(tmp_path / f"{layout.labels}/{stem}{layout.label_suffix}", stored)
        (tmp_path / f"{layout.images}/{stem}{layout.image_suffix}").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{layout.images}/{stem}{layout.image_suffix}").touch()
    found = open_benchmark(name, str(tmp_path))
    assert len(found.vocabulary) == CLASSES[name]
    samples = list(found.semantic())
    assert [sample.key for sample in samples] == ["a", "ulm/b"]
    for sample in samples:
        assert Path(sample.image.uri).exists()
        assert sample.labels.tolist() == [[0, 1, last, UNLABELLED]]
    assert [sample.key for sample in found.semantic(found.items[1:])] == ["ulm/b"]
    with pytest.raises(DataError, match=f"{name} has no panoptic ground truth"):
        next(found.panoptic())


def test_a_prepared_set_is_read_before_the_one_as_released(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    save(root / "annotations/validation/a.png", np.array([[7]]))
    save(root / "annotations_detectron2/validation/a.png", np.array([[9]]))
    (sample,) = open_benchmark("ade20k_150", str(tmp_path)).semantic()
    assert sample.labels.tolist() == [[9]]


def test_a_value_of_no_class_is_kept_to_be_refused_by_the_score(tmp_path: Path) -> None:
    save(tmp_path / "pascal_voc_d2/annotations_pascal20/validation/a.png", np.array([[200]]))
    (sample,) = open_benchmark("voc_20", str(tmp_path)).semantic()
    assert sample.labels.tolist() == [[200]]


PANOPTIC = [name for name, item in BENCHMARKS.items() if isinstance(item.layouts[0], PanopticFiles) and name != "shapes"]


@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_sets(name: str, tmp_path: Path) -> None:
    (layout,) = BENCHMARKS[name].layouts
    assert isinstance(layout, PanopticFiles)
    vocabulary = load_vocabulary(str(BENCHMARKS[name].vocabulary))
    stored = list(layout.category_ids or [category.id for category in vocabulary.categories])
    ids = np.array([[70000, 0, 5, 5, 3]], np.int32)
    segments = [
        {"id": 70000, "category_id": stored[2], "area": 1, "iscrowd": 0},
        {"id": 5, "category_id": stored[-1], "area": 2, "iscrowd": 1},
    ]
    annotation = {"image_id": "ulm_1", "file_name": "x_panoptic.png", "segments_info": segments}
    images = [{"id": "ulm_1", "file_name": "ulm_1.jpg", "width": 5, "height": 1}]
    (tmp_path / layout.maps).mkdir(parents=True)
    (tmp_path / layout.maps / "x_panoptic.png").write_bytes(encode_ids(ids))
    (tmp_path / layout.annotations).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / layout.annotations).write_text(json.dumps({"images": images, "annotations": [annotation]}))
    image = tmp_path / layout.images / (f"ulm/ulm_1{layout.image_suffix}" if layout.image_suffix else "ulm_1.jpg")
    image.parent.mkdir(parents=True)
    image.touch()
    found = open_benchmark(name, str(tmp_path))
    (sample,) = found.panoptic()
    assert (sample.key, Path(sample.image.uri)) == ("ulm_1", image)
    assert sample.truth.ids.tolist() == ids.tolist()
    last = CLASSES[name] - 1
    assert sample.truth.segments == (TruthSegment(70000, 2, 1), TruthSegment(5, last, 2, True))
    (semantic,) = found.semantic()
    assert semantic.labels.tolist() == [[2, UNLABELLED, last, last, UNLABELLED]]
    image.unlink()
    if layout.image_suffix:
        with pytest.raises(DataError, match="no image belongs to annotation ulm_1"):
            open_benchmark(name, str(tmp_path))


def test_cityscapes_things_are_the_last_eight() -> None:
    things = [category.is_thing for category in load_vocabulary("cityscapes").categories]
    assert things == [False] * 11 + [True] * 8
    assert len(CITYSCAPES_IDS) == 19


def test_the_shapes_world(tmp_path: Path) -> None:
    scene = SceneConfig(size=96)
    write_panoptic((draw_scene(scene, scene_rng(0, 9, index), held_out=True) for index in range(2)), tmp_path / "evaluation", scene)
    found = open_benchmark("shapes", str(tmp_path))
    assert [category.name for category in found.vocabulary.categories] == [category.name for category in CATEGORIES]
    assert [category.is_thing for category in found.vocabulary.categories] == [True] * 32 + [False] * 6
    samples = list(found.panoptic())
    assert len(samples) == 2
    for sample, labels in zip(samples, found.semantic(), strict=True):
        assert np.array_equal(as_semantic(sample).labels, labels.labels)
        for segment in sample.truth.segments:
            mask = sample.truth.ids == segment.id
            assert mask.sum() == segment.area
            assert set(labels.labels[mask]) == {segment.class_index}
        assert read_image(sample).shape == read_image(labels).shape == (96, 96, 3)
    with pytest.raises(DataError, match="1: the ground truth is of another size than the image"):
        read_image(replace(labels, labels=labels.labels[:50]))


def test_what_is_missing_is_said_with_the_layout_and_what_to_do(tmp_path: Path) -> None:
    for name, benchmark in BENCHMARKS.items():
        with pytest.raises(DataError) as caught:
            open_benchmark(name, str(tmp_path))
        message = str(caught.value)
        assert message.startswith(f"{name} is not here; seen: {tmp_path}")
        assert message.endswith(benchmark.prepare)
        for layout in benchmark.layouts:
            assert layout.describe() in message
    with pytest.raises(ConfigError, match=r"no such benchmark; seen: pc59; .*did you mean 'pc_59'"):
        open_benchmark("pc59", str(tmp_path))


def test_broken_files_are_named(tmp_path: Path) -> None:
    save(tmp_path / "coco/stuffthingmaps_detectron2/val2017/a.png", np.array([[0]]))
    path = tmp_path / "coco/stuffthingmaps_detectron2/val2017/a.png"
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match=f"a: the label map cannot be decoded.*{path}"):
        next(open_benchmark("coco_stuff", str(tmp_path)).semantic())
    annotations = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}]}
    (tmp_path / "x.json").write_text(json.dumps(annotations))
    with pytest.raises(DataError, match="lists no categories"):
        open_panoptic(str(tmp_path / "x.json"), str(tmp_path))
    found = open_panoptic(str(tmp_path / "x.json"), str(tmp_path), vocabulary=load_vocabulary("coco_panoptic"))
    with pytest.raises(MissingFileError, match=f"{tmp_path}/x/1.png"):
        next(found.panoptic())


@needs_real
def test_coco128() -> None:
    place = REAL / "coco128/panoptic_segmentation/annotations/panoptic_val2017.json"
    vocabulary = load_vocabulary("coco_panoptic")
    found = open_panoptic(str(place), str(REAL / "coco128/images/val2017"), vocabulary=vocabulary)
    parsed = json.loads(place.read_text())
    samples = list(found.panoptic())
    assert len(samples) == len(parsed["annotations"])
    assert sum(len(sample.truth.segments) for sample in samples) == 1078
    assert len({segment.class_index for sample in samples for segment in sample.truth.segments}) == 124
    names = {item["id"]: item["name"] for item in parsed["categories"]}
    things = {item["id"]: bool(item["isthing"]) for item in parsed["categories"]}
    for category in vocabulary.categories:
        assert category.is_thing == things[category.id]
    assert len(names) == len(vocabulary)
    for sample in samples[:5]:
        assert pixels(sample.image) == sample.truth.ids.shape
        for segment in sample.truth.segments:
            assert (sample.truth.ids == segment.id).sum() > 0


@needs_real
def test_ade_as_released(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for name, source in (("images", "images"), ("annotations", "annotations")):
        (root / name).mkdir(parents=True)
        (root / name / "validation").symlink_to(REAL / "ade20k_150_sample/sampleData" / source)
    samples = list(open_benchmark("ade20k_150", str(tmp_path)).semantic())
    assert [sample.key for sample in samples] == [f"ADE_val_0000000{n}" for n in (1, 2, 3)]
    for sample in samples:
        raw = np.asarray(Image.open(REAL / f"ade20k_150_sample/sampleData/annotations/{sample.key}.png")).astype(int)
        assert np.array_equal(sample.labels, raw - 1)
        assert pixels(sample.image) == sample.labels.shape
