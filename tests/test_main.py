import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity import fill
from uniovseg import checkpoint
from uniovseg.__main__ import main
from uniovseg.data import shapes
from uniovseg.data.label_maps import decode_labels
from uniovseg.data.panoptic import decode_ids
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.models.release import from_release, release_names


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = shapes.SceneConfig()
    drawn = shapes.draw_scene(config, shapes.scene_rng(3, shapes.EVALUATION_STREAM, 1), held_out=True)
    path = tmp_path_factory.mktemp("scene") / "scene.jpg"
    path.write_bytes(shapes.encode_image(drawn.image, config.jpeg_quality))
    return path


def test_segment_writes_a_picture_and_the_masks(scene: Path, tmp_path: Path) -> None:
    assert main(["segment", str(scene), "--out", str(tmp_path), "--box", "10,20,60,70", "--box", "5,5,100,90"]) == 0
    found = json.loads((tmp_path / "scene_masks.json").read_text())
    assert found["size"] == [128, 128]
    assert len(found["segments"]) == 2
    assert {"rle", "predicted_iou", "box_xyxy", "area"} == set(found["segments"][0])
    picture = cv2.imread(str(tmp_path / "scene_masks.png"))
    assert picture is not None
    assert picture.shape == (128, 128, 3)


def test_the_image_is_kept_where_the_output_is_its_own_folder(scene: Path, tmp_path: Path) -> None:
    picture = tmp_path / "scene.png"
    Image.open(scene).save(picture)
    before = picture.read_bytes()
    assert main(["segment", str(picture), "--out", str(tmp_path), "--box", "10,20,60,70"]) == 0
    assert picture.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"scene.png", "scene_masks.png", "scene_masks.json"}


def test_points_inside_and_outside_give_one_mask(scene: Path, tmp_path: Path) -> None:
    assert main(["segment", str(scene), "--out", str(tmp_path), "--point", "64,64", "--point", "70,64", "--not-point", "5,5"]) == 0
    assert len(json.loads((tmp_path / "scene_masks.json").read_text())["segments"]) == 1


def test_words_give_a_panoptic_map_and_the_shapes_model_is_named(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(scene), "--out", str(tmp_path), "--words", "red star, blue ring, grass"]) == 0
    found = json.loads((tmp_path / "scene_masks.json").read_text())
    ids = decode_ids((tmp_path / "scene_panoptic.png").read_bytes())
    assert found["segments"]
    for item in found["segments"]:
        assert {"id", "word", "class_index", "category_id", "is_thing", "score", "rle", "box_xyxy", "area"} == set(item)
        assert item["word"] in ("red star", "blue ring", "grass")
        assert item["area"] == (ids == item["id"]).sum()
    assert sorted(set(np.unique(ids).tolist()) - {0}) == [item["id"] for item in found["segments"]]
    picture = cv2.imread(str(tmp_path / "scene_masks.png"))
    assert picture is not None
    assert picture.shape == (640, 640, 3)
    said = capsys.readouterr().out
    assert "shapes, the packaged model" in said
    assert "scene_panoptic.png" in said


def test_words_give_a_map_of_classes(scene: Path, tmp_path: Path) -> None:
    assert main(["segment", str(scene), "--out", str(tmp_path), "--words", "red star,grass", "--task", "semantic", "--unknown-below", "0.6"]) == 0
    found = json.loads((tmp_path / "scene_masks.json").read_text())["segments"]
    labels = decode_labels((tmp_path / "scene_semantic.png").read_bytes())
    areas = dict(zip(*(values.tolist() for values in np.unique(labels, return_counts=True)), strict=True))
    areas.pop(255, None)
    assert {item["class_index"]: item["area"] for item in found} == areas


def test_prompts_with_words(scene: Path, tmp_path: Path) -> None:
    assert main(["segment", str(scene), "--out", str(tmp_path), "--box", "10,20,60,70", "--words", "red star, grass"]) == 0
    (segment,) = json.loads((tmp_path / "scene_masks.json").read_text())["segments"]
    assert segment["word"] in ("red star", "grass")
    assert 0.5 <= segment["score"] <= 1
    assert not list(tmp_path.glob("*_panoptic.png"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--task", "panoptic"], 2, "--task is for a whole image by words; seen: no words"),
        (["--task", "panoptic", "--words", "cat,", "--point", "1,2"], 2, "seen: points or boxes"),
        (["--words", "cat"], 1, "a single word needs a comma"),
        (["--words", "cat, cat"], 1, "repeated"),
        (["--words", "cat, dog", "--unknown-below", "2"], 2, "unknown_below"),
        (["--point", "1;2"], 2, "x,y"),
        (["--box", "1,2,3"], 2, "x0,y0,x1,y1"),
        (["--point", "1000,2"], 1, "x from 0 to 128"),
        (["--box", "30,30,20,40"], 1, "x0 < x1"),
        (["--checkpoint", "nowhere"], 1, "checkpoint.json"),
        (["--pont", "1,2"], 2, "unrecognized arguments: --pont"),
        (["--task", "words"], 2, "invalid choice: 'words' (choose from"),
        (["--out", "s3://bucket/found"], 2, "seen: s3://bucket/found; allowed: a local path"),
    ],
)
def test_wrong_calls_are_one_line(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(["segment", str(scene), "--out", str(tmp_path), *arguments]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message


def test_not_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")
    assert main(["segment", str(tmp_path / "no.jpg"), "--out", str(tmp_path)]) == 1
    assert "cannot be decoded" in capsys.readouterr().err


def test_import_release(tmp_path: Path) -> None:
    released = {name: fill(name, shape, 0) for name, shape in release_names().items()}
    torch.save({"model": released}, tmp_path / "stage1.pth")
    assert main(["import-release", str(tmp_path / "stage1.pth"), "--out", str(tmp_path / "ours")]) == 0
    info, weights = checkpoint.read_info(tmp_path / "ours"), checkpoint.read_weights(tmp_path / "ours")
    config = MaskGenerationConfig.model_validate(info.method)
    assert (config.generator.decoder_layers, config.generator.position, config.clip.name) == (9, "random_independent", "convnext_large_d_320")
    assert len(weights) == 358
    for name, value in released.items():
        assert torch.equal(weights[f"generator.{from_release(name)}"], value)


def test_import_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(release_names().items())[1:]
    torch.save({"model": {name: fill(name, shape, 0) for name, shape in names}}, tmp_path / "stage1.pth")
    assert main(["import-release", str(tmp_path / "stage1.pth"), "--out", str(tmp_path / "ours")]) == 1
    assert "1 missing" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("command", ["inspect", "import-release"])
def test_an_output_elsewhere_is_refused_before_anything_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, "nowhere", "--out", "s3://bucket/out"]) == 2
    assert "seen: s3://bucket/out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
