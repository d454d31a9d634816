"""Scores of saved predictions: against panopticapi's own numbers, four lines of numpy, and files in the layouts people have."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs import evaluate
from uniovseg.data.label_maps import encode_labels
from uniovseg.data.panoptic import encode_ids

REAL = Path(os.environ.get("UNIOVSEG_REAL_DATA", ""))
needs_real = pytest.mark.skipif("UNIOVSEG_REAL_DATA" not in os.environ, reason="UNIOVSEG_REAL_DATA is not set")
CASE = REAL.parent / "panoptic_case"


class Printed:
    """Runs a command and gives what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def score(self, *arguments: object) -> dict[str, Any]:
        assert evaluate.main([str(item) for item in arguments]) == 0
        output = self.capsys.readouterr().out
        assert output.count("\n") == 1
        parsed: dict[str, Any] = json.loads(output)
        return parsed

    def error(self, *arguments: object) -> str:
        assert evaluate.main([str(item) for item in arguments]) == 1
        shown = self.capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        return shown.err


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


def panoptic_arguments(folder: Path) -> list[object]:
    return [
        "score-panoptic",
        "--gt-json",
        folder / "gt.json",
        "--gt-dir",
        folder / "gt",
        "--pred-json",
        folder / "pred.json",
        "--pred-dir",
        folder / "pred",
    ]


@pytest.mark.skipif(not CASE.exists(), reason="the panoptic case is not beside UNIOVSEG_REAL_DATA")
def test_panoptic_quality_is_that_of_panopticapi(printed: Printed) -> None:
    found = printed.score(*panoptic_arguments(CASE))
    expected = json.loads((CASE / "expected.json").read_text())
    for group in ("All", "Things", "Stuff"):
        assert found[group] == pytest.approx(expected[group], abs=1e-9)
    assert {name for name, row in found["per_class"].items() if row["pq"] > 0} == set(expected["per_class"])
    for name, row in expected["per_class"].items():
        assert found["per_class"][name] == pytest.approx(row, abs=1e-9)


@needs_real
def test_a_real_ground_truth_scores_1_against_itself(printed: Printed) -> None:
    place = REAL / "panopticapi_sample/sample_data"
    found = printed.score(
        "score-panoptic", "--gt-json", place / "panoptic_examples.json", "--gt-dir", place / "panoptic_examples",
        "--pred-json", place / "panoptic_examples.json", "--pred-dir", place / "panoptic_examples",
    )  # fmt: skip
    for group in ("All", "Things", "Stuff"):
        assert (found[group]["pq"], found[group]["sq"], found[group]["rq"]) == (1, 1, 1)
    assert found["All"]["n"] == found["Things"]["n"] + found["Stuff"]["n"] == len(found["per_class"])


SEGMENTS = [{"id": 1, "category_id": 5, "area": 8, "iscrowd": 0}, {"id": 70000, "category_id": 9, "area": 8, "iscrowd": 0}]
CATEGORIES = [{"id": 5, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Ground truth of one image, and a prediction that has one of its two segments; the prediction's file has no categories."""
    ids = np.array([[1, 1, 70000, 70000]] * 4, np.int32)
    for name, segments, kept in (("gt", SEGMENTS, ids), ("pred", [{"id": 3, "category_id": 9}], np.where(ids == 1, 0, 3))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode_ids(kept.astype(np.int32)))
        parsed: dict[str, Any] = {"annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": segments}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(parsed | ({"categories": CATEGORIES} if name == "gt" else {})))
    return tmp_path


def test_a_small_case(case: Path, printed: Printed) -> None:
    assert printed.score(*panoptic_arguments(case)) == {
        "All": {"pq": 0.5, "sq": 0.5, "rq": 0.5, "n": 2},
        "Things": {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1},
        "Stuff": {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 1},
        "per_class": {"5": {"pq": 0.0, "sq": 0.0, "rq": 0.0}, "9": {"pq": 1.0, "sq": 1.0, "rq": 1.0}},
    }


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_group_without_segments_is_null(case: Path, printed: Printed) -> None:
    change(case / "gt.json", '"isthing": 1', '"isthing": 0')
    assert printed.score(*panoptic_arguments(case))["Things"] == {"pq": None, "sq": None, "rq": None, "n": 0}


def test_what_is_wrong_with_panoptic_files_is_said(case: Path, printed: Printed) -> None:
    kept = case / "kept"
    shutil.copytree(case, kept)

    def error(*changes: tuple[str, str, str]) -> str:
        broken = case / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(kept, broken)
        for name, old, new in changes:
            change(broken / name, old, new)
        return printed.error(*panoptic_arguments(broken))

    assert "image a: segment 3 of image a is of an unknown category; seen: 8" in error(("pred.json", '"category_id": 9', '"category_id": 8'))
    assert "image a: the predicted map has a segment that is not listed; seen: id 3" in error(("pred.json", '"id": 3', '"id": 4'))
    assert "there is no prediction for image a" in error(("pred.json", '"image_id": "a"', '"image_id": "b"'))
    assert "lists no categories" in error(("gt.json", '"categories"', '"kinds"'))
    assert "b.png: not found" in error(("pred.json", "a.png", "b.png"))
    (kept / "pred" / "a.png").write_bytes(encode_ids(np.zeros((4, 5), np.int32)))
    assert "image a: the prediction is of another size than the ground truth; seen: (4, 5); allowed: (4, 4)" in error()
    shutil.rmtree(kept / "pred")
    assert "there is no such folder; seen: " in error()
    (kept / "gt.json").unlink()
    (kept / "pred").mkdir()
    assert "gt.json: not found" in error()


def four_lines(pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]], classes: int, ignore: int) -> float:
    counts = [np.bincount(t[t != ignore] * classes + p[t != ignore], minlength=classes**2) for t, p in pairs]
    matrix = np.sum(counts, axis=0).reshape(classes, classes)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float(np.mean((np.diag(matrix) / np.maximum(union, 1))[matrix.sum(1) > 0]))


def semantic_arguments(truth: Path, predictions: Path, classes: int, ignore: int) -> list[object]:
    return ["score-semantic", "--gt-dir", truth, "--pred-dir", predictions, "--num-classes", classes, "--ignore", ignore]


@needs_real
def test_ade_sample(tmp_path: Path, printed: Printed) -> None:
    """The sample's own annotations and predictions, as released (0: unlabelled) and prepared (less 1, 255: ignored)."""
    place = REAL / "ade20k_150_sample/sampleData"
    pairs, prepared = [], []
    for path in sorted((place / "annotations").glob("*.png")):
        truth, guess = (np.asarray(Image.open(place / name / path.name)) for name in ("annotations", "predictions"))
        pairs.append((truth.astype(int), guess.astype(int)))
        prepared.append(((truth - np.uint8(1)).astype(int), (guess - np.uint8(1)).astype(int)))
        for name, labels in (("gt", truth), ("pred", guess)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / path.name).write_bytes(encode_labels(labels - np.uint8(1)))
    raw = printed.score(*semantic_arguments(place / "annotations", place / "predictions", 151, 0))
    less = printed.score(*semantic_arguments(tmp_path / "gt", tmp_path / "pred", 150, 255))
    assert raw["miou"] == pytest.approx(four_lines(pairs, 151, 0), abs=1e-12)
    assert less["miou"] == raw["miou"] > 0.3
    assert {str(int(name) + 1) for name in less["per_class"]} == set(raw["per_class"])
    assert np.mean(list(raw["per_class"].values())) == pytest.approx(raw["miou"])


def write(path: Path, labels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    else:
        path.write_bytes(encode_labels(labels))


@pytest.mark.parametrize("named", ["{city}/{city}_{n}_gtFine_labelTrainIds.png", "{city}_{n}_leftImg8bit.png", "sub/{city}_{n}.png"])
def test_cityscapes_layout(named: str, tmp_path: Path, printed: Printed) -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for city, n in (("ulm", "000000_000019"), ("ulm", "000001_000019"), ("bonn", "000000_000019")):
        truth = rng.choice([0, 1, 5, 18, 255], (6, 8))
        guess = np.where(rng.random((6, 8)) < 0.5, truth % 255, rng.integers(0, 19, (6, 8)))
        pairs.append((truth, guess))
        write(tmp_path / f"gt/{city}/{city}_{n}_gtFine_labelTrainIds.png", truth)
        write(tmp_path / f"gt/{city}/{city}_{n}_gtFine_labelIds.png", truth % 30)  # beside it, as in the release
        Image.new("RGB", (8, 6)).save(tmp_path / f"gt/{city}/{city}_{n}_gtFine_color.png")
        write(tmp_path / "pred" / named.format(city=city, n=n), guess)
    found = printed.score(*semantic_arguments(tmp_path / "gt", tmp_path / "pred", 19, 255))
    assert found["miou"] == pytest.approx(four_lines(pairs, 19, 255), abs=1e-12)
    assert set(found["per_class"]) == {"0", "1", "5", "18"}  # present in the ground truth


def test_sixteen_bit_maps_and_other_endings(tmp_path: Path, printed: Printed) -> None:
    truth = np.array([[846, 300, 65535, 2]])
    write(tmp_path / "gt/x.tif", truth)
    write(tmp_path / "pred/x.png", np.array([[846, 2, 400, 2]]))
    assert printed.score(*semantic_arguments(tmp_path / "gt", tmp_path / "pred", 847, 65535)) == {
        "miou": 0.5,
        "per_class": {"2": 0.5, "300": 0.0, "846": 1.0},
    }


def test_what_is_wrong_with_label_maps_is_said(tmp_path: Path, printed: Printed) -> None:
    truth, predictions = tmp_path / "gt", tmp_path / "pred"
    arguments = semantic_arguments(truth, predictions, 3, 255)
    assert f"there is no such folder; seen: {truth}" in printed.error(*arguments)
    truth.mkdir()
    assert f"there is no such folder; seen: {predictions}" in printed.error(*arguments)
    predictions.mkdir()
    assert "there are no label maps" in printed.error(*arguments)
    write(truth / "a.png", np.array([[0, 1, 2, 255]]))
    assert "ground truth a needs one prediction; seen: 0 of this name" in printed.error(*arguments)
    write(predictions / "x/a.png", np.array([[0, 1, 2, 3]]))
    write(predictions / "y/a.png", np.array([[0, 1, 2, 3]]))
    assert "ground truth a needs one prediction; seen: 2 of this name" in printed.error(*arguments)
    write(predictions / "a.png", np.array([[0, 1, 2]]))
    assert "a: the prediction is of another size than the ground truth" in printed.error(*arguments)
    write(predictions / "a.png", np.array([[0, 1, 3, 0]]))
    assert "a: a value of the prediction is no class; seen: 3; allowed: 0 to 2, or 255 (ignored)" in printed.error(*arguments)
    write(truth / "a.png", np.array([[0, 1, 9, 0]]))
    assert "a: a value of the ground truth is no class; seen: 9" in printed.error(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["score-panoptic", "--gt-json", "x"],
        ["score-semantic", "--gt-dir", "x", "--pred-dir", "y", "--num-classes", "150"],
        ["score-semantic", "--gt-dir", "x", "--pred-dir", "y", "--num-classes", "0", "--ignore", "255"],
        ["score-semantic", "--gt-dir", "x", "--pred-dir", "y", "--num-classes", "many", "--ignore", "255"],
        ["score-semantic", "--gt-dir", "x", "--pred-dir", "y", "--num-classes", "5", "--ignore", "-1"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
