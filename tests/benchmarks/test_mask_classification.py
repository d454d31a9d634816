"""The benchmark on a coco128 of three made-up images: the accuracy is evaluation's own, the arithmetic of the costs holds, the single runs are single."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import benchmark
from uniovseg.benchmarks import mask_classification as module
from uniovseg.data.panoptic import encode_ids
from uniovseg.data.shapes import SceneConfig, draw_scene, encode_image, scene_rng
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.evaluation.mask_classification import MaskClassificationConfig, MaskClassificationScore, classify_image, classify_masks
from uniovseg.models.clip import ClipConfig, load_clip

SIZES = (64, 96, 128)
VOCABULARY = load_vocabulary("coco_panoptic")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    scene = SceneConfig(size=96)
    for half, numbers in {"train": (0, 1), "val": (2,)}.items():
        notes, images = folder / "coco128/panoptic_segmentation/annotations", folder / f"coco128/images/{half}2017"
        for place in (notes / f"panoptic_{half}2017", images):
            place.mkdir(parents=True)
        listed: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        for number in numbers:
            drawn = draw_scene(scene, scene_rng(1, 2, number), held_out=True)
            ids = np.zeros((96, 96), np.int32)
            for index, item in enumerate(drawn.objects, 1):
                ids[item.mask] = index
            segments = [{"id": int(i), "category_id": VOCABULARY.categories[int(i) * 7].id, "iscrowd": 0} for i in np.unique(ids) if i]
            (images / f"{number}.jpg").write_bytes(encode_image(drawn.image, 90))
            (notes / f"panoptic_{half}2017/{number}.png").write_bytes(encode_ids(ids))
            listed["images"].append({"id": number, "file_name": f"{number}.jpg"})
            listed["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        (notes / f"panoptic_{half}2017.json").write_text(json.dumps(listed))
    return folder


def test_accuracy_and_costs(
    root: Path, clip_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def noted(clip: Any, words: Any, sample: Any, sizes: tuple[int, ...]) -> MaskClassificationScore:
        seen.append((sample.key, sizes))
        return classify_image(clip, words, sample, sizes)

    monkeypatch.setattr(module, "classify_image", noted)
    weights = [f"{trunk}={{name: shapes, weights: {clip_weights}}}" for trunk in ("small", "real")]
    settings = [*weights, f"masks.sizes={list(SIZES)}", "masks.templates=simple", "real_images=1", f"root={root}", f"output={tmp_path}"]
    assert benchmark.main(["mask_classification", *settings]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    singles = [(size,) for size in SIZES]
    assert len(seen) == (3 + 1) * 4
    assert sorted(seen) == sorted((key, sizes) for key in ("0", "1", "2", "0") for sizes in (SIZES, *singles))
    sets = module.coco128(str(root), VOCABULARY)
    clip = load_clip(ClipConfig(weights=str(clip_weights)))
    samples = [sample for found in sets for sample in found.panoptic()]
    config = MaskClassificationConfig(sizes=SIZES, templates="simple")
    expected = sum(classify_masks(clip, samples, VOCABULARY, config), MaskClassificationScore.zero(SIZES, 133)).summary()
    small, real = report["small"], report["real"]
    assert (small["images"], small["masks"], real["images"]) == (3, expected["masks"], 1)
    assert list(small["subsets"]) == ["64", "96", "128", "64+96", "64+128", "96+128", "64+96+128"] == list(real["subsets"])
    for name, row in small["subsets"].items():
        assert row["accuracy"] == expected["subsets"][name]["accuracy"]
        assert list(real["subsets"][name]) == ["seconds"]
    for trunk in (small, real):
        together, alone = trunk["cpu_seconds"]["all subsets"], trunk["cpu_seconds"]["alone"]
        assert list(alone) == ["64", "96", "128"] and min(together, *alone.values()) > 0
        assert trunk["ratio"]["value"] == pytest.approx(together / sum(alone.values()))
        assert trunk["ratio"]["met"] == (trunk["ratio"]["value"] <= 1.15)
    assert "64+96+128" in capsys.readouterr().out


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("UNIOVSEG_REAL_DATA", raising=False)
    assert benchmark.main(["mask_classification", f"output={tmp_path}"]) == 1
    assert "coco128 is not here; seen: no root; give root=FOLDER, or set UNIOVSEG_REAL_DATA" in capsys.readouterr().err
    assert benchmark.main(["mask_classification", f"output={tmp_path}", f"root={tmp_path}"]) == 1
    assert f"seen: {tmp_path}/coco128" in capsys.readouterr().err
