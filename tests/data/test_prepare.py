"""Each data set in miniature, as released: prepared, and read back as a benchmark."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from jobs import prepare as prepare_job
from uniovseg.data.ade20k_full import OBJECTS
from uniovseg.data.benchmarks import BENCHMARKS, UNLABELLED, open_benchmark
from uniovseg.data.coco import iter_records, read_annotations
from uniovseg.data.label_maps import encode_labels
from uniovseg.data.prepare import PREPARATIONS, prepare
from uniovseg.data.promptable_sets import find_promptable_set
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import ConfigError, DataError
from uniovseg.ops.run_length import RunLengthMasks


def save(path: Path, labels: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_labels(np.array(labels)))


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 1)).save(path)


def classes(name: str, root: Path) -> list[list[int]]:
    (sample,) = open_benchmark(name, str(root)).semantic()
    assert Path(sample.image.uri).is_file()
    return [list(row) for row in sample.labels.tolist()]


def test_ade20k_150(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    save(root / "annotations/validation/a.png", [[0, 1, 2, 150]])
    save_image(root / "images/validation/a.jpg")
    assert prepare("ade20k_150", tmp_path) == 1
    assert np.asarray(Image.open(root / "annotations_detectron2/validation/a.png")).tolist() == [[255, 0, 1, 149]]
    assert classes("ade20k_150", tmp_path) == [[UNLABELLED, 0, 1, 149]]


def ade_full(folder: Path, stem: str, objects: list[list[int]], times: int) -> None:
    """An image and its segmentation as released, each object a square of `times` pixels; the blue channel numbers instances."""
    numbers = np.array(objects).repeat(times, 0).repeat(times, 1)
    colours = np.stack([numbers // 256 * 10, numbers % 256, np.arange(numbers.size).reshape(numbers.shape) % 251], -1)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours.astype(np.uint8)).save(folder / f"{stem}_seg.png")
    grey = np.linspace(0, 255, numbers.shape[1]).astype(np.uint8)
    Image.fromarray(np.broadcast_to(grey[:, None], (*numbers.shape, 3)).copy()).save(folder / f"{stem}.jpg", quality=95)


def test_ade20k_847(tmp_path: Path) -> None:
    release = tmp_path / "ADE20K_2021_17_01"
    scenes = release / "images/ADE/validation"
    ade_full(scenes / "urban/street", "ADE_val_00000001", [[2978, 312, 0], [3148, 2420, 1]], 8)  # wall, building; adding machine, sky, no class
    ade_full(scenes / "home_or_hotel/kitchen", "ADE_val_00000002", [[2855, 2131, 1831], [401, 3108, 14]], 300)
    Image.new("RGB", (3, 3)).save(scenes / "urban/street/ADE_val_00000001_parts_1.png")
    ade_full(release / "images/ADE/training/urban/street", "ADE_train_00000001", [[2978]], 4)
    assert prepare("ade20k_847", tmp_path) == 2
    assert Image.open(release / "annotations_detectron2/validation/ADE_val_00000001.tif").mode == "I;16"
    first, second = open_benchmark("ade20k_847", str(tmp_path)).semantic()
    expected = np.array([[0, 1, UNLABELLED], [846, 2, UNLABELLED]])
    assert np.array_equal(first.labels, expected.repeat(8, 0).repeat(8, 1))
    words = [category.name for category in load_vocabulary("ade20k_847").categories]
    reduced = second.labels
    assert reduced.shape == (512, 768)  # from 600 x 900
    assert [[words[index] for index in row] for row in reduced[128::256, 128::256].tolist()] == [
        ["tree", "road", "person"],
        ["car", "altar", "airplane"],
    ]
    assert np.array_equal(reduced, reduced[128::256, 128::256].repeat(256, 0).repeat(256, 1))
    image = np.asarray(Image.open(second.image.uri))
    assert image.shape == (512, 768, 3)
    assert np.abs(image[:, :, 0].astype(float) - np.linspace(0, 255, 768)).max() < 6
    Image.new("RGB", (3, 3)).save(scenes / "urban/street/ADE_val_00000001.jpg")
    with pytest.raises(DataError, match=r"differ in size; seen: .*ADE_val_00000001_seg.png: \(16, 24\); allowed: \(3, 3\)"):
        prepare("ade20k_847", tmp_path)


def test_objects_of_ade20k_are_numbered_by_name() -> None:
    """The release sorts its objects by name, up to number 3,100; four classes have another name in the vocabulary."""
    names = [category.name for category in load_vocabulary("ade20k_847").categories]
    assert len(OBJECTS) == len(set(OBJECTS)) == len(names)
    listed = [name[:3].lower() for number, name in sorted(zip(OBJECTS, names, strict=True)) if number < 3100]
    assert sum(earlier > later for earlier, later in pairwise(listed)) == 4


@pytest.mark.parametrize(("mode", "message"), [("L", "not one of ADE20K; seen: mode L"), (None, "cannot be decoded")])
def test_segmentations_of_another_kind(mode: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/a/b/ADE_val_1_seg.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no image")
    save_image(path.with_name("ADE_val_1.jpg"))
    if mode:
        Image.new(mode, (3, 3)).save(path)
    with pytest.raises(DataError, match=f"ADE_val_1_seg.png, .*{message}"):
        prepare("ade20k_847", tmp_path)


def test_coco_stuff(tmp_path: Path) -> None:
    ids = [category.id for category in load_vocabulary("coco_stuff").categories]
    save(tmp_path / "coco/stuffthingmaps/val2017/a.png", [[255, ids[0] - 1, ids[80] - 1, ids[-1] - 1]])
    save_image(tmp_path / "coco/val2017/a.jpg")
    assert prepare("coco_stuff", tmp_path) == 1
    assert classes("coco_stuff", tmp_path) == [[UNLABELLED, 0, 80, 170]]


@pytest.mark.parametrize(("name", "expected"), [("voc_21", [0, 1, 20, UNLABELLED]), ("voc_20", [UNLABELLED, 0, 19, UNLABELLED])])
def test_voc(name: str, expected: list[int], tmp_path: Path) -> None:
    release = tmp_path / "VOCdevkit/VOC2012"
    for stem in ("2007_1", "2007_2"):
        palette = Image.fromarray(np.array([[0, 1, 20, 255]], np.uint8), "P")
        palette.putpalette([index * 7 % 256 for index in range(768)])
        (release / "SegmentationClass").mkdir(parents=True, exist_ok=True)
        palette.save(release / f"SegmentationClass/{stem}.png")
        save_image(release / f"JPEGImages/{stem}.jpg")
    (release / "ImageSets/Segmentation").mkdir(parents=True)
    (release / "ImageSets/Segmentation/val.txt").write_text("2007_2\n")
    assert prepare(name, tmp_path) == 1
    assert classes(name, tmp_path) == [expected]


def detail(release: Path) -> None:
    """Two images, one of them for validation, with two overlapping annotations."""

    def note(image: int, category: int, columns: list[int]) -> dict[str, object]:
        rle = coco_mask.encode(np.asfortranarray(np.array([columns], np.uint8)))
        return {"image_id": image, "category_id": category, "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}

    images = [
        {"image_id": 1, "file_name": "2008_1.jpg", "phase": "train", "width": 4, "height": 1},
        {"image_id": 2, "file_name": "2008_2.jpg", "phase": "val", "width": 4, "height": 1},
    ]
    notes = [note(2, 2, [1, 1, 0, 0]), note(1, 9, [1, 1, 1, 1]), note(2, 458, [0, 1, 0, 0]), note(2, 3, [0, 0, 1, 0])]
    release.mkdir(parents=True)
    (release / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": notes}))
    save_image(release / "JPEGImages/2008_2.jpg")


def test_pc_59(tmp_path: Path) -> None:
    detail(tmp_path / "VOCdevkit/VOC2010")
    assert prepare("pc_59", tmp_path) == 1
    assert classes("pc_59", tmp_path) == [[0, 58, UNLABELLED, UNLABELLED]]  # 3 is none of the 59
    names = [category.name for category in load_vocabulary("pc_59").categories]
    assert names[0] in ("aeroplane", "airplane")  # raw id 2


def test_pc_459(tmp_path: Path) -> None:
    release = tmp_path / "VOCdevkit/VOC2010"
    detail(release)
    (release / "trainval").mkdir()
    savemat(release / "trainval/2008_2.mat", {"LabelMap": np.array([[0, 1, 459, 300]], np.uint16)})
    assert prepare("pc_459", tmp_path) == 1
    assert classes("pc_459", tmp_path) == [[UNLABELLED, 0, 458, 299]]
    savemat(release / "trainval/2008_2.mat", {"other": 1})
    with pytest.raises(DataError, match="not a label map of PASCAL Context"):
        prepare("pc_459", tmp_path)


def test_cityscapes_panoptic(tmp_path: Path) -> None:
    folder = tmp_path / "cityscapes"
    save(folder / "gtFine/val/ulm/ulm_1_2_gtFine_instanceIds.png", [[7, 7, 26001, 26002], [26, 26, 1, 33000]])
    save_image(folder / "leftImg8bit/val/ulm/ulm_1_2_leftImg8bit.png")
    assert prepare("cityscapes_panoptic", tmp_path) == 1
    (sample,) = open_benchmark("cityscapes_panoptic", str(tmp_path)).panoptic()
    assert Path(sample.image.uri).is_file()
    assert sample.truth.ids.tolist() == [[7, 7, 26001, 26002], [26, 26, 0, 33000]]
    found = {segment.id: (segment.class_index, segment.area, segment.is_crowd) for segment in sample.truth.segments}
    assert found == {7: (0, 2, False), 26: (13, 2, True), 26001: (13, 1, False), 26002: (13, 1, False), 33000: (18, 1, False)}
    parsed = json.loads((folder / "gtFine/cityscapes_panoptic_val.json").read_text())
    boxes = {segment["id"]: segment["bbox"] for segment in parsed["annotations"][0]["segments_info"]}
    assert (boxes[26], boxes[26002]) == ([0, 1, 2, 1], [3, 0, 1, 1])


def test_what_a_benchmark_promises_can_be_done() -> None:
    for name, benchmark in BENCHMARKS.items():
        if "jobs/prepare.py" in benchmark.prepare:
            assert benchmark.prepare.endswith(f"python jobs/prepare.py {name}")
            assert name in PREPARATIONS


@pytest.mark.parametrize("name", PREPARATIONS)
def test_a_missing_release_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_job.main([name, "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "ADEChallengeData2016/annotations/validation/a.png", [[1]])
    assert prepare_job.main(["ade20k_150", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "ade20k_150: 1 images\n"
    assert prepare_job.main(["imagenet"]) == 2
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be prepared; seen: imagenet"):
        prepare("imagenet", tmp_path)


def test_label_maps_become_instances(tmp_path: Path) -> None:
    folder = tmp_path / "promptable/egohos"
    save(folder / "labels/a/1.png", [[0, 7, 7, 300]])
    save(folder / "labels/2.png", [[0, 0, 0, 0]])
    save_image(folder / "images/a/1.jpg")
    save_image(folder / "images/2.PNG")
    save_image(folder / "images/unlabelled.jpg")
    assert prepare("label_maps", folder) == 2
    annotations, images = find_promptable_set("egohos", str(tmp_path))
    found = {record.key: RunLengthMasks.from_counts(record.counts, (1, 4)) for record in iter_records(read_annotations(annotations, images))}
    assert {key: masks.to_dense().tolist() for key, masks in found.items()} == {
        "a/1": [[[False, True, True, False]], [[False, False, False, True]]],
        "2": [],
    }
    (first, _) = json.loads((folder / "instances.json").read_text())["annotations"]
    assert (first["bbox"], first["area"]) == ([1, 0, 2, 1], 2)
    (folder / "images/2.PNG").unlink()
    with pytest.raises(DataError, match=r"no image belongs to a label map; seen: .*2\.png; allowed: .*images/2\.jpg"):
        prepare("label_maps", folder)
