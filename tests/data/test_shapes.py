"""The shapes world: what its scenes, captions and files promise."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pydantic import ValidationError

from uniovseg.data import shapes
from uniovseg.data.shapes import CATEGORIES, CLASS_NAMES, GROUNDS, HELD_OUT, THING_CLASSES, UNSEEN, Scene, SceneConfig, category_of
from uniovseg.data.shapes_sets import ShapesConfig, write_shapes
from uniovseg.errors import ConfigError

CONFIG = SceneConfig()
COUNT = 60


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    """Scenes of the image-mask set."""
    return [shapes.draw_scene(CONFIG, shapes.scene_rng(0, shapes.MASK_STREAM, index), held_out=True) for index in range(COUNT)]


def test_a_scene_depends_on_seed_stream_and_index_alone(drawn: list[Scene]) -> None:
    again = shapes.image_masks(CONFIG, 0, 3)
    assert again == shapes.scene_to_image_masks(drawn[3], "sa_4", CONFIG.jpeg_quality)
    others = {shapes.image_masks(CONFIG, 1, 3).image, shapes.image_masks(CONFIG, 0, 4).image, shapes.image_text(CONFIG, 0, 3, 0.0).image}
    assert again.image not in others
    assert shapes.image_text(CONFIG, 0, 3, 0.5) == shapes.image_text(CONFIG, 0, 3, 0.5)


def test_objects_and_grounds_tile_the_image(drawn: list[Scene]) -> None:
    for scene in drawn:
        cover = sum(mask.astype(int) for mask in [*(item.mask for item in scene.objects), *(mask for _, mask in scene.grounds)])
        assert scene.image.shape == (CONFIG.size, CONFIG.size, 3)
        assert np.array_equal(cover, np.ones((CONFIG.size, CONFIG.size)))
        for item in scene.objects:
            assert item.mask.any()
            assert item.part is None or not (item.part & ~item.mask).any()


def test_sizes_and_numbers_of_objects(drawn: list[Scene]) -> None:
    counts = [len(scene.objects) for scene in drawn]
    assert max(counts) <= CONFIG.max_objects
    assert np.mean(np.array(counts) >= CONFIG.min_objects) > 0.9  # hidden ones do not count
    extents = [max(np.ptp(axis) + 1 for axis in np.nonzero(item.mask)) / CONFIG.size for scene in drawn for item in scene.objects]
    assert max(extents) <= CONFIG.max_extent + 2 / CONFIG.size
    assert np.quantile(extents, 0.5) < 0.2  # log-uniform: the median is below the middle of the range
    only_two = [shapes.draw_scene(SceneConfig(min_objects=2, max_objects=2), shapes.scene_rng(0, 0, i), held_out=True) for i in range(5)]
    assert max(len(scene.objects) for scene in only_two) <= 2


def test_shapes_do_not_fill_their_boxes(drawn: list[Scene]) -> None:
    fills = []
    for index in range(COUNT):
        record = shapes.scene_to_image_masks(drawn[index], "x", 90)
        rles = [{"size": [record.height, record.width], "counts": counts} for counts in record.counts]
        boxes = coco_mask.toBbox(rles)
        fills += list(coco_mask.area(rles) / (boxes[:, 2] * boxes[:, 3]))
    assert 0.4 < np.mean(fills) <= 0.60


def test_masks_of_several_granularities(drawn: list[Scene]) -> None:
    """Objects, parts, unions of touching objects, grounds; nothing else, each once, none tiny."""
    kinds = {"object": 0, "part": 0, "group": 0, "ground": 0}
    for scene in drawn:
        members = [{i for i, item in enumerate(scene.objects) if item.group == group} for group in {item.group for item in scene.objects}]
        groups = [np.logical_or.reduce([scene.objects[i].mask for i in found]) for found in members if len(found) > 1]
        named = {
            "object": [item.mask for item in scene.objects],
            "part": [item.part for item in scene.objects if item.part is not None],
            "group": groups,
            "ground": [mask for _, mask in scene.grounds],
        }
        for mask in shapes.annotated_masks(scene):
            assert mask.sum() >= shapes.MIN_MASK_AREA
            kind = next(kind for kind, masks in named.items() if any(np.array_equal(mask, other) for other in masks))
            kinds[kind] += 1
        large = [mask for kind in ("object", "group", "ground") for mask in named[kind] if mask.sum() >= shapes.MIN_MASK_AREA]
        found = {mask.tobytes() for mask in shapes.annotated_masks(scene)}
        assert {mask.tobytes() for mask in large} <= found
    assert kinds["object"] > 4 * COUNT
    assert min(kinds["part"], kinds["group"], kinds["ground"]) > COUNT / 2
    assert 8 <= sum(kinds.values()) / COUNT <= 16  # about a dozen an image


def test_parts_are_smaller_than_their_objects(drawn: list[Scene]) -> None:
    for scene in drawn:
        found = {mask.tobytes() for mask in shapes.annotated_masks(scene)}
        for item in scene.objects:
            if item.part is not None and item.part.tobytes() in found:
                assert item.part.sum() < 0.8 * item.mask.sum()


def test_held_out_classes() -> None:
    assert len(HELD_OUT) == len(THING_CLASSES) / 8
    named = [THING_CLASSES[index] for index in range(256) if index not in HELD_OUT]
    assert [len({words[place] for words in named}) for place in range(3)] == [4, 8, 8]  # every word occurs in training
    assert [len({THING_CLASSES[index][place] for index in HELD_OUT}) for place in range(3)] == [4, 4, 8]
    assert {CATEGORIES[category_of(index)].name for index in range(256) if index not in HELD_OUT}.isdisjoint(UNSEEN)


def test_categories_are_patterns_with_colours_and_grounds() -> None:
    for index, name in enumerate(CLASS_NAMES):
        category = CATEGORIES[category_of(index)]
        assert category.id == category_of(index) and name in category.synonyms
        assert category.name == (name if name in GROUNDS else " ".join([*name.split()[:2], "shape"]))
    assert sum(len(category.synonyms) for category in CATEGORIES) == len(CLASS_NAMES)


def things_named(caption: str) -> set[str]:
    pattern = rf"({'|'.join(shapes.PATTERNS)}) ({'|'.join(shapes.COLOURS)}) ({'|'.join(shapes.SHAPES)})"
    return {" ".join(words) for words in re.findall(pattern, caption)}


def test_captions_name_what_is_there_and_never_a_held_out_class() -> None:
    held_out = {CLASS_NAMES[index] for index in HELD_OUT}
    for index in range(COUNT):
        rng = shapes.scene_rng(0, shapes.TEXT_STREAM, index)
        scene = shapes.draw_scene(CONFIG, rng, held_out=False)
        names = shapes.entities(scene)
        seen = {CLASS_NAMES[item.class_index] for item in scene.objects if item.mask.sum() >= shapes.MIN_MASK_AREA}
        assert not seen & held_out
        grounds = {CLASS_NAMES[ground] for ground, _ in scene.grounds}
        assert set(names) == seen | grounds
        clean = shapes.write_caption(names, rng, noise_share=0.0)
        assert things_named(clean) == seen
        assert {name for name in GROUNDS if name in clean} == grounds
        for noise in (0.0, 1.0):
            assert not things_named(shapes.image_text(CONFIG, 0, index, noise).caption) & held_out


def test_a_set_share_of_captions_is_noisy() -> None:
    rng = np.random.default_rng(0)
    names = ["plain red star", "dotted blue ring", "striped cyan bar", "sand"]

    def wrong(share: float) -> list[set[str]]:
        captions = [things_named(shapes.write_caption(names, rng, share)) for _ in range(600)]
        return [found for found in captions if found != set(names[:3])]

    assert wrong(0.0) == []
    assert len(wrong(1.0)) >= 590  # a wrong name may be the right one by chance
    some = wrong(0.15)
    assert 0.10 < len(some) / 600 < 0.20
    missing = sum(len(found) == 2 for found in some)
    assert 0 < missing < len(some)  # missing entities and wrong ones
    assert all(len(found & set(names)) == 2 for found in some)


def test_text_scenes_hold_no_held_out_class_but_evaluation_scenes_do() -> None:
    def classes(stream: int, held_out: bool) -> set[int]:
        scenes = [shapes.draw_scene(CONFIG, shapes.scene_rng(0, stream, index), held_out=held_out) for index in range(COUNT)]
        return {item.class_index for scene in scenes for item in scene.objects}

    assert not classes(shapes.TEXT_STREAM, False) & HELD_OUT
    assert len(classes(shapes.EVALUATION_STREAM, True) & HELD_OUT) > 5


@pytest.mark.parametrize("values", [{"min_objects": 5, "max_objects": 4}, {"min_extent": 0.5, "max_extent": 0.2}])
def test_ranges_that_are_upside_down_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="must not exceed"):
        SceneConfig.model_validate(values)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three sets on disk: 5 image-mask scenes in tars of 2, 4 captions, 3 evaluation scenes."""
    folder = tmp_path_factory.mktemp("world")
    config = ShapesConfig(output=str(folder), image_masks=5, image_text=4, evaluation=3, per_tar=2, processes=1)
    assert write_shapes(config) == {"image_masks": 5, "image_text": 4, "evaluation": 3}
    return folder


def test_tars_are_those_of_sa1b(written: Path) -> None:
    paths = sorted((written / "image_masks").iterdir())
    assert [path.name for path in paths] == ["sa_000000.tar", "sa_000001.tar", "sa_000002.tar"]
    members: dict[str, bytes] = {}
    order = []
    for path in paths:
        with tarfile.open(path) as archive:
            for member in archive:
                extracted = archive.extractfile(member)
                assert extracted is not None
                members[member.name] = extracted.read()
                order.append(member.name)
    assert order == [f"sa_{number}.{ending}" for number in range(1, 6) for ending in ("jpg", "json")]
    for number in range(1, 6):
        record = shapes.image_masks(SceneConfig(), 0, number - 1)
        note = json.loads(members[f"sa_{number}.json"])
        assert members[f"sa_{number}.jpg"] == record.image
        assert note["image"] == {"image_id": number, "width": 128, "height": 128, "file_name": f"sa_{number}.jpg"}
        assert len(note["annotations"]) == len(record.counts)
        for annotation, counts in zip(note["annotations"], record.counts, strict=True):
            rle = {"size": [128, 128], "counts": counts}
            assert annotation["segmentation"] == {"size": [128, 128], "counts": counts.decode()}
            assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
            assert annotation["area"] == coco_mask.area(rle)
            (x, y) = annotation["point_coords"][0]
            assert coco_mask.decode(rle)[int(y), int(x)] == 1
            assert not {"category_id", "category", "label"} & annotation.keys()


def test_image_text_pairs_on_disk(written: Path) -> None:
    rows = pq.read_table(written / "image_text" / "pairs.parquet").to_pylist()
    pairs = [shapes.image_text(SceneConfig(), 0, index, 0.15) for index in range(4)]
    assert rows == [{"key": pair.key, "image": pair.image, "caption": pair.caption} for pair in pairs]


def test_panoptic_png_and_json_agree(written: Path) -> None:
    folder = written / "evaluation"
    notes = json.loads((folder / "panoptic.json").read_text())
    names = {category["id"]: category["name"] for category in notes["categories"]}
    assert list(names.values()) == [category.name for category in CATEGORIES]
    assert sum(category["isthing"] for category in notes["categories"]) == 32
    assert [image["file_name"] for image in notes["images"]] == ["000000.jpg", "000001.jpg", "000002.jpg"]
    for index, (image, annotation) in enumerate(zip(notes["images"], notes["annotations"], strict=True)):
        assert annotation["image_id"] == image["id"] == index
        scene = shapes.draw_scene(SceneConfig(), shapes.scene_rng(0, shapes.EVALUATION_STREAM, index), held_out=True)
        assert Image.open(io.BytesIO((folder / "images" / image["file_name"]).read_bytes())).size == (image["width"], image["height"])
        colours = np.asarray(Image.open(folder / "panoptic" / annotation["file_name"])).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        expected = [(item.class_index, item.mask) for item in scene.objects] + list(scene.grounds)
        expected = [(category_of(index), mask) for index, mask in expected if mask.sum() >= shapes.MIN_MASK_AREA]
        assert [segment["category_id"] for segment in annotation["segments_info"]] == [number for number, _ in expected]
        for segment, (_, mask) in zip(annotation["segments_info"], expected, strict=True):
            assert np.array_equal(ids == segment["id"], mask)
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()
        assert {int(i) for i in np.unique(ids)} - {0} == {segment["id"] for segment in annotation["segments_info"]}


def test_equal_configurations_give_equal_files(written: Path, tmp_path: Path) -> None:
    write_shapes(ShapesConfig(output=str(tmp_path), image_masks=5, image_text=0, evaluation=0, per_tar=2, processes=2))
    assert [path.name for path in tmp_path.iterdir()] == ["image_masks"]
    for path in (written / "image_masks").iterdir():
        assert (tmp_path / "image_masks" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match=r"tars of another set; seen: sa_000001.tar and 1 more"):
        write_shapes(ShapesConfig(output=str(tmp_path), image_masks=2, image_text=0, evaluation=0, per_tar=2, processes=1))
