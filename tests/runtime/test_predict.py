"""Prediction as a job: files that pycocotools and our own scorer read, equal to what the library says; going on after a stop; broken images."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jobs import _cli, evaluate
from jobs import predict as predict_job
from uniovseg import storage
from uniovseg.config import load
from uniovseg.data.benchmarks import CITYSCAPES_IDS, open_benchmark
from uniovseg.data.panoptic import decode_ids
from uniovseg.data.shapes import SceneConfig, draw_scene, scene_rng
from uniovseg.data.shapes_sets import write_panoptic
from uniovseg.errors import ConfigError, DataError, StorageError
from uniovseg.evaluation.words import evaluate_panoptic
from uniovseg.metrics import PanopticScore
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.runtime.predict import PredictConfig, png_names, predict
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location, write_bytes

FAST = ["method.test_points_per_side=6", "method.regions.templates=simple", "device=cpu"]
COUNT = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shapes scenes of 96 px, with panoptic ground truth."""
    folder = tmp_path_factory.mktemp("world")
    scene = SceneConfig(size=96)
    write_panoptic((draw_scene(scene, scene_rng(0, 9, index), held_out=True) for index in range(COUNT)), folder / "evaluation", scene)
    return folder


@pytest.fixture(scope="module")
def predicted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them predicted by the packaged model, through the command line."""
    output = tmp_path_factory.mktemp("predicted")
    assert (
        _cli.run(
            PredictConfig, predict_job.main, settings(world / "evaluation/images", output, "vocabulary=shapes", "images_per_part=3", "pictures=2")
        )
        == 0
    )
    return output


def settings(images: object, output: object, *changes: str) -> list[str]:
    return [f"images={images}", f"output={output}", "vocabulary=red star, blue ring, grass, sand", *FAST, *changes]


def run(images: object, output: object, *changes: str) -> dict[str, Any]:
    return predict(load(PredictConfig, None, settings(images, output, *changes)))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_scores_of_the_files_are_those_of_evaluation(world: Path, predicted: Path) -> None:
    found = open_benchmark("shapes", str(world))
    method = Segmenter.load("shapes", "cpu", {"test_points_per_side": 6, "regions": {"templates": "simple"}}).method
    results = evaluate_panoptic(method, found.panoptic(), found.vocabulary, SegmentationConfig())
    expected = sum((item.score for item in results), PanopticScore.zero(len(found.vocabulary))).summary(found.vocabulary)
    truth = world / "evaluation"
    files = {"--gt-json": truth / "panoptic.json", "--gt-dir": truth / "panoptic", "--pred-json": predicted / "panoptic.json"}
    printed = StringIO()
    with redirect_stdout(printed):
        arguments = [str(part) for item in files.items() for part in item]
        assert evaluate.main(["score-panoptic", *arguments, "--pred-dir", str(predicted / "panoptic")]) == 0
    score = json.loads(printed.getvalue())
    assert score == json.loads(json.dumps(expected))
    assert score["All"]["pq"] > 0.05


def test_instances_are_coco_results(world: Path, predicted: Path) -> None:
    segmenter = Segmenter.load("shapes", "cpu", {"test_points_per_side": 6, "regions": {"templates": "simple"}})
    listed = read(predicted / "images.json")["images"]
    assert [(item["id"], item["file_name"], item["height"]) for item in listed] == [(n, f"{n:06d}.jpg", 96) for n in range(COUNT)]
    with redirect_stdout(StringIO()):
        coco = COCO(str(predicted / "images.json")).loadRes(str(predicted / "instances.json"))
    total = 0
    for number in range(COUNT):
        expected = segmenter.segment(world / f"evaluation/images/{number:06d}.jpg", "shapes", "instance").regions
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        total += len(rows)
        for row, region in zip(rows, expected, strict=True):
            assert (row["category_id"], row["image_id"], row["file_name"]) == (region.category_id, number, f"{number:06d}.jpg")
            assert row["score"] == pytest.approx(region.score, abs=1e-5)
            assert np.array_equal(coco.annToMask(row).astype(bool), region.mask())
            x0, y0, x1, y1 = region.box_xyxy
            assert row["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert total > COUNT
    assert read(predicted / "report.json")["instances"] == total


def test_cocoeval_reads_them(world: Path, predicted: Path, tmp_path: Path) -> None:
    """Ground truth made of the panoptic PNGs: a good part of the things is found, whatever they are called."""
    truth = read(world / "evaluation/panoptic.json")
    things = {item["id"] for item in truth["categories"] if item["isthing"]}
    notes: list[dict[str, Any]] = []
    for entry in truth["annotations"]:
        ids = decode_ids((world / "evaluation/panoptic" / entry["file_name"]).read_bytes())
        for segment in entry["segments_info"]:
            if segment["category_id"] in things:
                rle = coco_mask.encode(np.asfortranarray(ids == segment["id"], np.uint8))
                shape = {"size": rle["size"], "counts": rle["counts"].decode()}
                notes.append({**segment, "id": len(notes) + 1, "image_id": entry["image_id"], "segmentation": shape})
    (tmp_path / "truth.json").write_text(json.dumps({**truth, "annotations": notes}))
    with redirect_stdout(StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        scorer = COCOeval(coco, coco.loadRes(str(predicted / "instances.json")), "segm")
        scorer.params.useCats = 0
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    assert scorer.stats[8] > 0.1  # recall over IoUs of 0.5 to 0.95; parts and groups are found too, so that precision says little


def test_what_is_written(predicted: Path) -> None:
    report = read(predicted / "report.json")
    assert (report["images"], report["rejected"], report["images_already_done"]) == (COUNT, {}, 0)
    assert report["pictures"] == ["pictures/000_000000.png", "pictures/001_000003.png"]
    panoptic = read(predicted / "panoptic.json")
    assert [item["name"] for item in panoptic["categories"]] == [item["name"] for item in read(predicted / "images.json")["categories"]]
    for entry in panoptic["annotations"]:
        ids = decode_ids((predicted / "panoptic" / entry["file_name"]).read_bytes())
        areas = {segment["id"]: segment["area"] for segment in entry["segments_info"]}
        assert areas == {int(i): int((ids == i).sum()) for i in np.unique(ids) if i}
    assert report["segments"] == sum(len(entry["segments_info"]) for entry in panoptic["annotations"])
    for name in report["pictures"]:
        picture = cv2.imread(str(predicted / name))
        assert picture is not None and picture.shape == (672, 672, 3)
    assert len(list((predicted / "parts").iterdir())) == 2


def broken_folder(world: Path, folder: Path) -> Path:
    """Two images below a folder in a folder, one with a name in capitals, and two files that are no images."""
    source = sorted((world / "evaluation/images").iterdir())
    (folder / "a").mkdir(parents=True)
    (folder / "a/one.JPG").write_bytes(source[0].read_bytes())
    (folder / "two.jpg").write_bytes(source[1].read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "cut.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("none")
    return folder


def test_a_broken_image_is_a_row_with_its_reason_and_is_tried_again(world: Path, tmp_path: Path) -> None:
    images = broken_folder(world, tmp_path / "images")
    output = images / "out"  # in the folder of images: what is written there is not read again
    report = run(images, output)
    assert (report["images"], report["rejected"]) == (2, {"undecodable_image": 2})
    rejected = read(output / "rejected.json")
    assert [item["name"] for item in rejected] == ["broken.png", "cut.jpg"]
    assert "cannot be decoded" in rejected[0]["detail"]
    assert {item["file_name"]: item["id"] for item in read(output / "images.json")["images"]} == {"a/one.JPG": 1, "two.jpg": 4}
    assert (output / "panoptic/a/one.png").is_file()
    before = read(output / "panoptic.json")
    (images / "broken.png").write_bytes((images / "two.jpg").read_bytes())
    report = run(images, output)
    assert (report["images"], report["rejected"], report["images_already_done"]) == (3, {"undecodable_image": 1}, 2)
    after = {entry["file_name"]: entry["segments_info"] for entry in read(output / "panoptic.json")["annotations"]}
    assert all(after[entry["file_name"]] == entry["segments_info"] for entry in before["annotations"])
    assert after["broken.png"] == after["two.png"]


def test_a_run_goes_on_where_it_was_stopped(world: Path, predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = world / "evaluation/images"
    written: list[str] = []

    def fails_at_the_third(location: Location, data: bytes) -> None:
        if "/parts/" in location.uri and len(written) == 2:
            raise StorageError("the disk is full")
        if "/parts/" in location.uri:
            written.append(location.uri)
        write_bytes(location, data)

    monkeypatch.setattr(storage, "write_bytes", fails_at_the_third)
    with pytest.raises(StorageError, match="the disk is full"):
        run(images, tmp_path, "vocabulary=shapes", "images_per_part=1")
    monkeypatch.undo()
    assert not (tmp_path / "panoptic.json").exists()
    report = run(images, tmp_path, "vocabulary=shapes", "images_per_part=1")
    assert (report["images"], report["images_already_done"]) == (COUNT, 2)
    for name in ("panoptic.json", "instances.json", "images.json", "rejected.json"):
        assert read(tmp_path / name) == read(predicted / name)


def test_ids_and_images_by_a_coco_file(world: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.json"
    wanted = [{"id": "b", "file_name": "elsewhere/000003.jpg"}, {"id": 7, "file_name": "000001.jpg"}, {"id": 9, "file_name": "gone.jpg"}]
    listing.write_text(json.dumps({"images": wanted}))
    report = run(world / "evaluation/images", tmp_path / "out", f"image_ids={listing}", "tasks=[instance]", "pictures=1")
    assert (report["images"], report["rejected"], report["segments"]) == (2, {"missing_file": 1}, 0)
    assert [(item["id"], item["file_name"]) for item in read(tmp_path / "out/images.json")["images"]] == [("b", "000003.jpg"), (7, "000001.jpg")]
    assert {item["image_id"] for item in read(tmp_path / "out/instances.json")} == {"b", 7}
    assert not (tmp_path / "out/panoptic.json").exists()
    assert (tmp_path / "out" / report["pictures"][0]).is_file()
    listing.write_text(json.dumps([1]))
    with pytest.raises(DataError, match="not a list of images"):
        run(world / "evaluation/images", tmp_path / "other", f"image_ids={listing}")


def test_what_cannot_be_done_is_one_line(world: Path, predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = world / "evaluation/images"
    assert _cli.run(PredictConfig, predict_job.main, settings(tmp_path / "none", tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"there are no images; seen: {tmp_path}/none; allowed: files ending .jpg, " in error
    assert _cli.run(PredictConfig, predict_job.main, settings(images, images)) == 2
    assert "the output is the folder of the images" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="begun with other settings; seen: vocabulary: "):
        run(images, predicted)
    with pytest.raises(ConfigError, match="begun with other settings; seen: method: "):
        run(images, predicted, "vocabulary=shapes", "method.test_points_per_side=5")


def test_results_have_the_ids_of_a_benchmarks_ground_truth(world: Path, tmp_path: Path) -> None:
    run(world / "evaluation/images", tmp_path, "vocabulary=cityscapes", "category_ids=cityscapes_panoptic", "pictures=1")
    panoptic, instances = read(tmp_path / "panoptic.json"), read(tmp_path / "instances.json")
    assert [item["id"] for item in panoptic["categories"]] == list(CITYSCAPES_IDS)
    used = {segment["category_id"] for entry in panoptic["annotations"] for segment in entry["segments_info"]}
    used |= {item["category_id"] for item in instances}
    assert used and used <= set(CITYSCAPES_IDS)


def test_pngs_have_names_of_their_own() -> None:
    assert png_names(["a.jpg", "a.png", "b/a.jpg", "c.d.jpg"]) == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "b/a.jpg": "b/a.png",
        "c.d.jpg": "c.d.png",
    }


def test_images_and_results_on_s3(world: Path, predicted: Path, s3_bucket: str) -> None:
    for path in sorted((world / "evaluation/images").iterdir())[:2]:
        write_bytes(Location.of(f"{s3_bucket}/photos/{path.name}"), path.read_bytes())
    report = run(f"{s3_bucket}/photos", f"{s3_bucket}/out", "vocabulary=shapes", "pictures=1")
    assert (report["images"], report["images_already_done"]) == (2, 0)
    found = json.loads(storage.read_bytes(Location.of(f"{s3_bucket}/out/panoptic.json")))
    assert found["annotations"] == read(predicted / "panoptic.json")["annotations"][:2]
    assert run(f"{s3_bucket}/photos", f"{s3_bucket}/out", "vocabulary=shapes")["images_already_done"] == 2


@pytest.mark.cluster
def test_actors_give_the_same(world: Path, predicted: Path, tmp_path: Path, ray_cluster: None) -> None:
    run(world / "evaluation/images", tmp_path, "vocabulary=shapes", "images_per_part=1", "pool.workers=2", "threads=1")
    for name in ("panoptic.json", "instances.json"):
        assert read(tmp_path / name) == read(predicted / name)
