import json
import os
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.data.sa1b_samples import make_files, make_record
from uniovseg.data.coco import iter_records, load_image, read_annotations, write_sa1b_tars
from uniovseg.data.sa1b import parse_sample
from uniovseg.errors import DataError, StorageError
from uniovseg.records import ImageMasks, Rejected

REAL = Path(os.environ.get("UNIOVSEG_REAL_DATA", ""))
needs_real = pytest.mark.skipif("UNIOVSEG_REAL_DATA" not in os.environ, reason="UNIOVSEG_REAL_DATA is not set")


def dense(record: ImageMasks) -> np.ndarray:
    size = [record.height, record.width]
    return np.stack([coco_mask.decode({"size": size, "counts": counts}) for counts in record.counts]).astype(bool)


PANOPTIC = {
    "coco128 train": ("coco128/panoptic_segmentation/annotations/panoptic_train2017.json", "coco128/images/train2017", 1111),
    "coco128 val": ("coco128/panoptic_segmentation/annotations/panoptic_val2017.json", "coco128/images/val2017", 1078),
    "panopticapi": ("panopticapi_sample/sample_data/panoptic_examples.json", "panopticapi_sample/sample_data/input_images", None),
}


@needs_real
@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_masks_are_those_of_the_png(name: str) -> None:
    annotations, images, segments = PANOPTIC[name]
    parsed = json.loads((REAL / annotations).read_text())
    entries = {entry["id"]: entry for entry in parsed["images"]}
    records = list(iter_records(read_annotations(REAL / annotations, REAL / images)))
    assert len(records) == len(parsed["images"])
    by_key = {record.key: record for record in records}
    total = 0
    for note in parsed["annotations"]:
        entry = entries[note["image_id"]]
        record = by_key[Path(entry["file_name"]).stem]
        kept = [segment for segment in note["segments_info"] if not segment["iscrowd"]]
        assert (record.height, record.width) == (entry["height"], entry["width"])
        assert record.image == (REAL / images / entry["file_name"]).read_bytes()
        assert [int(mask.sum()) for mask in dense(record)] == [segment["area"] for segment in kept]
        png = cv2.imread(str((REAL / annotations).with_suffix("") / note["file_name"]))
        assert png is not None
        colours = png.astype(np.int64)  # blue, green, red
        ids = colours[..., 2] + 256 * colours[..., 1] + 256 * 256 * colours[..., 0]
        for mask, segment in zip(dense(record), kept, strict=True):
            assert np.array_equal(mask, ids == segment["id"])
        total += len(note["segments_info"])
    assert segments is None or total == segments


@needs_real
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_instance_masks_are_those_of_pycocotools(split: str, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = REAL / f"coco_mini/annotations/instances_{split}.json"
    oracle = COCO(str(annotations))
    records = list(iter_records(read_annotations(annotations, REAL / "coco_mini" / split)))
    assert len(records) == len(oracle.imgs) > 70
    for record, (image_id, entry) in zip(records, oracle.imgs.items(), strict=True):
        assert record.key == Path(entry["file_name"]).stem
        expected = [oracle.annToMask(note) for note in oracle.imgToAnns[image_id] if not note["iscrowd"]]
        expected = [mask for mask in expected if mask.any()]
        assert len(record.counts) == len(expected)
        assert not expected or np.array_equal(dense(record), np.stack(expected).astype(bool))


def write_set(folder: Path, notes: list[dict[str, Any]], *, image_id: object = 1, size: tuple[int, int] = (24, 32)) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images/a.b.jpg").write_bytes(make_record(1, (24, 32)).image)
    entry = {"id": image_id, "file_name": "a.b.jpg", "height": size[0], "width": size[1]}
    path = folder / "set.json"
    path.write_text(json.dumps({"images": [entry], "annotations": notes, "categories": []}))
    return path


def test_every_form_of_an_instance_mask(tmp_path: Path) -> None:
    square = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]
    runs = [24 * 2, 24, 24 * 29]
    compressed = coco_mask.frPyObjects({"size": [24, 32], "counts": runs}, 24, 32)["counts"].decode()
    forms: list[Any] = [
        [square],
        [square, [20.0, 1.0, 28.0, 1.0, 28.0, 6.0], [1.0, 2.0, 3.0, 4.0]],  # two parts; a line is no polygon
        {"size": [24, 32], "counts": runs},
        {"size": [24, 32], "counts": compressed},
    ]
    dropped: list[dict[str, Any]] = [
        {"segmentation": [square], "iscrowd": 1},
        {"segmentation": []},
        {"segmentation": [[1.0, 2.0, 3.0, 4.0]]},
        {"bbox": [1, 2, 3, 4]},
    ]
    notes: list[dict[str, Any]] = [{"image_id": "1", "segmentation": form} for form in forms] + [{"image_id": "1"} | note for note in dropped]
    (record,) = iter_records(read_annotations(write_set(tmp_path, notes), tmp_path / "images"))
    assert record.key == "a.b"
    masks = dense(record)
    assert len(masks) == 4
    assert masks[0].sum() == 36 and masks[0][3:9, 2:8].all()
    assert masks[1].sum() > 36 and masks[1][3:9, 2:8].all()
    assert np.array_equal(masks[2], masks[3]) and masks[2].sum() == 24 and masks[2][:, 2].all()


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path: Path) -> None:
    def reason() -> str:
        record = load_image(item)
        assert isinstance(record, Rejected) and record.key == "a.b" and record.source.endswith("images/a.b.jpg")
        with pytest.raises(DataError, match=r"a\.b"):
            list(iter_records([item]))
        return record.reason

    (item,) = read_annotations(write_set(tmp_path, [], size=(24, 33)), tmp_path / "images")
    assert reason() == "size_mismatch"
    bad = {"image_id": 1, "segmentation": {"size": [24, 32], "counts": [7]}}
    (item,) = read_annotations(write_set(tmp_path, [bad]), tmp_path / "images")
    assert reason() == "bad_mask"
    panoptic = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1}]}
    (item,) = read_annotations(write_set(tmp_path, [panoptic]), tmp_path / "images")
    assert reason() == "missing_annotation"
    (tmp_path / "set").mkdir()
    cv2.imwrite(str(tmp_path / "set/a.png"), np.zeros((23, 32, 3), np.uint8))
    assert reason() == "size_mismatch"
    (tmp_path / "set/a.png").write_bytes(b"")
    assert reason() == "bad_mask"
    (tmp_path / "images/a.b.jpg").write_bytes(b"\xff\xd8")
    assert reason() == "truncated_image"
    (tmp_path / "images/a.b.jpg").unlink()
    assert reason() == "missing_image"


@pytest.mark.parametrize("corner", [None, float("nan"), float("inf"), -float("inf"), 3e8, 1e300, "x", [1, 2]])
def test_a_corner_that_is_none_is_rejected_and_the_process_goes_on(corner: Any, tmp_path: Path) -> None:
    note = {"image_id": 1, "segmentation": [[2.0, 3.0, 8.0, 3.0, 8.0, corner]]}
    (item,) = read_annotations(write_set(tmp_path, [note]), tmp_path / "images")
    record = load_image(item)
    assert isinstance(record, Rejected) and record.reason == "bad_mask"


def test_ids_of_segments_may_be_text(tmp_path: Path) -> None:
    note = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": "7"}]}
    (item,) = read_annotations(write_set(tmp_path, [note]), tmp_path / "images")
    (tmp_path / "set").mkdir()
    cv2.imwrite(str(tmp_path / "set/a.png"), np.full((24, 32, 3), (0, 0, 7), np.uint8))
    record = load_image(item)
    assert isinstance(record, ImageMasks) and dense(record).sum() == 24 * 32


def test_a_file_that_cannot_be_read_is_no_missing_file(tmp_path: Path) -> None:
    (item,) = read_annotations(write_set(tmp_path, []), tmp_path / "images")
    (tmp_path / "images/a.b.jpg").unlink()
    (tmp_path / "images/a.b.jpg").mkdir()
    with pytest.raises(StorageError):
        load_image(item)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"images": []}', "annotations"),
        ('{"images": [], "annotations": [{"image_id": 5}]}', "image '5', which is not among"),
        ('{"images": [{"id": 5, "file_name": 7}], "annotations": []}', "AttributeError"),
        ('{"images": [{"id": 5, "file_name": "a"}], "annotations": [{"image_id": 5, "file_name": "a", "segments_info": [{}]}]}', "KeyError 'id'"),
        ('{"images": [{"id": 5, "file_name": "a"}], "annotations": [{"image_id": 5, "file_name": "a", "segments_info": ["x"]}]}', "TypeError"),
        (
            '{"images": [{"id": 5, "file_name": "a"}], "annotations": [%s, %s]}' % (('{"image_id": 5, "file_name": "a", "segments_info": []}',) * 2),
            "'5' has two annotations",
        ),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_annotations(path, tmp_path)


def test_sa1b_tars_have_the_layout_of_sa1b(tmp_path: Path) -> None:
    records = [make_record(number) for number in range(1, 6)]
    paths = write_sa1b_tars(records, tmp_path / "tars", per_tar=2)
    assert [path.name for path in paths] == ["sa_000000.tar", "sa_000001.tar", "sa_000002.tar"]
    with tarfile.open(paths[1]) as archive:
        assert archive.getnames() == ["sa_3.jpg", "sa_3.json", "sa_4.jpg", "sa_4.json"]
        member = archive.extractfile("sa_4.json")
        assert member is not None
        data = member.read()
    parsed = json.loads(data)
    assert parsed["image"] == {"image_id": 4, "width": 32, "height": 24, "file_name": "sa_4.jpg"}
    assert len(parsed["annotations"]) == 3
    for note, counts, score in zip(parsed["annotations"], records[3].counts, records[3].predicted_iou, strict=True):
        assert set(note) == {"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords"}
        assert note["segmentation"] == {"size": [24, 32], "counts": counts.decode()}
        assert note["bbox"] == coco_mask.toBbox(note["segmentation"]).tolist()
        assert note["area"] == int(coco_mask.area(note["segmentation"]))
        assert note["predicted_iou"] == note["stability_score"] == score
        assert note["crop_box"] == [0, 0, 32, 24]
        ((x, y),) = note["point_coords"]
        assert coco_mask.decode(note["segmentation"])[int(y), int(x)] == 1
    assert len({note["id"] for note in parsed["annotations"]}) == 3
    assert parse_sample({"jpg": records[3].image, "json": data}, "sa_4", "", 0) == records[3]
    assert make_files(4)["json"] == data


def test_equal_records_give_equal_tars(tmp_path: Path) -> None:
    first, second = (write_sa1b_tars([make_record(1)], tmp_path / name, per_tar=1)[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()
