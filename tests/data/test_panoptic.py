import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniovseg.data.panoptic import (
    annotation,
    categories,
    category_indices,
    decode_ids,
    encode_ids,
    prediction_of,
    read_entries,
    semantic_truth,
    truth_of,
)
from uniovseg.errors import DataError
from uniovseg.records import Category, PanopticMap, PanopticSegment, PanopticTruth, TruthSegment, Vocabulary
from uniovseg.storage import Location

WORDS = Vocabulary("words", (Category(7, "cat", ("cat",)), Category(3, "grass", ("grass",), is_thing=False)))


def test_colours_are_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 256], [65536, 2**24 - 1, 70000]], np.int32)
    data = encode_ids(ids)
    assert decode_ids(data).tolist() == ids.tolist()
    (tmp_path / "x.png").write_bytes(data)
    red, green, blue = (np.asarray(Image.open(tmp_path / "x.png"))[..., channel].astype(int) for channel in range(3))
    assert (red + 256 * green + 65536 * blue).tolist() == ids.tolist()


@pytest.mark.parametrize("mode", ["L", "I;16", "nothing"])
def test_a_png_that_is_not_rgb_is_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    if mode == "nothing":
        path.write_bytes(b"")
    else:
        Image.fromarray(np.zeros((2, 2), np.uint8 if mode == "L" else np.uint16)).save(path)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_ids(path.read_bytes())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    prediction = PanopticMap(np.array([[1, 1, 0], [2, 2, 2]], np.int32), (PanopticSegment(1, 0, 0.5), PanopticSegment(2, 1, 0.25)))
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"annotations": [annotation("a", "a.png", prediction, WORDS)], "categories": categories(WORDS)}))
    vocabulary, (entry,) = read_entries(Location.of(path))
    assert vocabulary is not None
    assert vocabulary.categories == WORDS.categories
    assert (entry.image_id, entry.png, entry.image) == ("a", "a.png", None)
    assert [segment["area"] for segment in entry.segments] == [2, 3]
    assert prediction_of(entry, prediction.ids, category_indices(WORDS)) == prediction


def test_ground_truth_has_areas_and_crowds(tmp_path: Path) -> None:
    segments = [{"id": 1, "category_id": 3, "area": 9, "iscrowd": 1}, {"id": 2, "category_id": 7}]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": [{"id": 5, "file_name": "5.jpg"}], "annotations": [{"image_id": "5", "file_name": "5.png", "segments_info": segments}]})
    )
    vocabulary, (entry,) = read_entries(Location.of(path))
    assert (vocabulary, entry.image_id, entry.image) == (None, "5", "5.jpg")
    truth = truth_of(entry, np.array([[2, 2, 1]], np.int32), category_indices(WORDS))
    assert truth.segments == (TruthSegment(1, 1, 9, True), TruthSegment(2, 0, 2, False))
    with pytest.raises(DataError, match="segment 1 of image 5 is of an unknown category; seen: 3"):
        truth_of(entry, np.array([[2, 2, 1]], np.int32), {7: 0})


def test_classes_of_a_panoptic_map() -> None:
    truth = PanopticTruth(np.array([[90, 0, 5, 12, 99999]], np.int32), (TruthSegment(90, 4, 1), TruthSegment(5, 2, 1, True)))
    assert semantic_truth(truth, -1).tolist() == [[4, -1, 2, -1, -1]]
    assert semantic_truth(PanopticTruth(truth.ids, ()), 255).tolist() == [[255] * 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a panoptic annotation file"),
        ("{", "not a panoptic annotation file"),
        ('{"annotations": [{"image_id": 1}]}', "file_name"),
        ('{"annotations": [{"image_id": 1, "file_name": "a", "segments_info": [{"id": 1}]}]}', "category_id"),
        ('{"annotations": [' + ", ".join(['{"image_id": 1, "file_name": "a", "segments_info": []}'] * 2) + "]}", "two annotations; seen: 1 in"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_entries(Location.of(tmp_path / "x.json"))
