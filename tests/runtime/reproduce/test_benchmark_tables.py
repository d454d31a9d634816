"""The paper's tables where little is there: rows that run give what the evaluation gives, the others say what they lack."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from uniovseg.data.benchmarks import BENCHMARKS, open_benchmark
from uniovseg.data.coco import iter_records, read_annotations
from uniovseg.data.images import decode_image
from uniovseg.data.promptable_sets import PROMPTABLE_SETS, find_promptable_set
from uniovseg.data.shapes import SceneConfig, draw_scene, encode_image, scene_rng
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import DataError
from uniovseg.evaluation.mask_classification import MaskClassificationConfig, MaskClassificationScore, classify_masks
from uniovseg.evaluation.promptable import NO_SCORES, PromptableConfig, evaluate_promptable, labelled
from uniovseg.evaluation.words import evaluate_panoptic, evaluate_semantic
from uniovseg.metrics import PanopticScore, SemanticScore
from uniovseg.models.clip import ClipConfig, load_clip
from uniovseg.open_vocabulary import SegmentationConfig, panoptic_map, semantic_map
from uniovseg.runtime.reproduce.benchmark_tables import BenchmarkTablesConfig, benchmark_rows
from uniovseg.runtime.reproduce.rows import Row
from uniovseg.segmenter import Segmenter

SCENE = SceneConfig(size=96)
SETTINGS: dict[str, Any] = {"regions": {"sizes": [64], "templates": "simple"}, "proposals": {"min_predicted_iou": 0.0}}


@pytest.fixture(scope="module")
def root(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC-20, COCO panoptic and instances, each of two drawn scenes. Of the first, the labels are what the model predicts, so that no figure is zero; of
    the second, its objects under classes of the set."""
    folder = tmp_path_factory.mktemp("datasets")
    for name in ("pascal_voc_d2/images/validation", "pascal_voc_d2/annotations_pascal20/validation", "coco/val2017", "coco/panoptic_val2017"):
        (folder / name).mkdir(parents=True)
    (folder / "coco/annotations").mkdir()
    method = Segmenter.load(tiny_checkpoint, "cpu", SETTINGS).method
    voc, coco = load_vocabulary("voc_20"), load_vocabulary("coco_panoptic")
    images, entries = [], []
    instances: list[dict[str, object]] = []
    for number in range(2):
        scene = draw_scene(SCENE, scene_rng(3, 9, number), held_out=True)
        jpeg = encode_image(scene.image, 90)
        ids = np.zeros((96, 96), np.int32)
        for place, item in enumerate(scene.objects, start=1):
            ids[item.mask] = place
        classes = {place: place for place in range(1, len(scene.objects) + 1)}
        labels = np.where(ids > 0, ids, 255)
        for place, item in enumerate(scene.objects, start=1):
            runs = np.flatnonzero(np.diff(np.concatenate([[0], item.mask.T.flatten().astype(np.int8), [0]])))
            counts = np.diff(np.concatenate([[0], runs, [96 * 96]])).tolist()
            instances.append(
                segment_of(item.mask, place) | {"id": len(instances) + 1, "image_id": number, "segmentation": {"size": [96, 96], "counts": counts}}
            )
        if number == 0:
            image = decode_image(jpeg)
            labels = semantic_map(method.predict([image], voc)[0], SegmentationConfig())
            found = panoptic_map(method.predict([image], coco)[0], coco, SegmentationConfig())
            ids, classes = found.ids, {segment.id: coco.categories[segment.class_index].id for segment in found.segments}
        (folder / f"pascal_voc_d2/images/validation/{number}.jpg").write_bytes(jpeg)
        (folder / f"coco/val2017/{number}.jpg").write_bytes(jpeg)
        cv2.imwrite(str(folder / f"pascal_voc_d2/annotations_pascal20/validation/{number}.png"), labels.astype(np.uint8))
        cv2.imwrite(str(folder / f"coco/panoptic_val2017/{number}.png"), np.stack([0 * ids, 0 * ids, ids], axis=-1).astype(np.uint8))
        segments = [segment_of(ids == place, category) | {"id": place} for place, category in classes.items()]
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 96})
        entries.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": item.id, "name": item.name, "isthing": int(item.is_thing)} for item in coco.categories]
    panoptic = {"images": images, "annotations": entries, "categories": categories}
    (folder / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(panoptic))
    objects = {"images": images, "annotations": instances, "categories": categories}
    (folder / "coco/annotations/instances_val2017.json").write_text(json.dumps(objects))
    return folder


def segment_of(mask: NDArray[np.bool_], category: int) -> dict[str, object]:
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    return {"category_id": category, "iscrowd": 0, "bbox": box, "area": int(mask.sum())}


def table(name: str, output: Path, **settings: object) -> list[Row]:
    config = BenchmarkTablesConfig.model_validate(settings | {"device": "cpu", "method": SETTINGS})
    return [row for rows in benchmark_rows(name, config, str(output)) for row in rows]


def test_table_1(root: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = table("1", tmp_path, root=str(root), checkpoint=str(tiny_checkpoint))
    found = open_benchmark("voc_20", str(root))
    results = evaluate_semantic(Segmenter.load(tiny_checkpoint, "cpu", SETTINGS).method, found.semantic(), found.vocabulary, SegmentationConfig())
    miou = sum((item.score for item in results), SemanticScore.zero(20)).miou()
    assert [row["dataset"] for row in rows if not row["missing"]] == ["voc_20"]
    (row,) = [row for row in rows if not row["missing"]]
    assert 0.1 < row["ours"] == miou and row["minus_v1"] == pytest.approx(miou - 0.919)
    for row in rows:
        if row["missing"]:
            expected = BENCHMARKS[row["dataset"]].prepare
            assert row["ours"] is None and row["v1"] is not None and row["missing"].endswith(expected)
    assert len(rows) == 7


def test_table_2_and_the_rows_of_table_3_that_have_weights(root: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = open_benchmark("coco_panoptic", str(root))
    method = Segmenter.load(tiny_checkpoint, "cpu", SETTINGS).method
    results = evaluate_panoptic(method, found.panoptic(), found.vocabulary, SegmentationConfig())
    whole = sum((item.score for item in results), PanopticScore.zero(133)).summary(found.vocabulary)["All"]
    rows = table("2", tmp_path, root=str(root), checkpoint=str(tiny_checkpoint))
    ours = {row["metric"]: row["ours"] for row in rows if row["dataset"] == "coco_panoptic"}
    assert ours["pq"] > 0.1 and ours == {name: whole[name] for name in ("pq", "sq", "rq")}
    assert all("is not here" in row["missing"] for row in rows if row["dataset"] != "coco_panoptic")

    rows = table("3", tmp_path, root=str(root), ablation={"nltk": str(tiny_checkpoint)})
    ran = {(row["method"], row["dataset"]): row["ours"] for row in rows if not row["missing"]}
    assert ran[("nltk", "coco_panoptic")] == whole["pq"]
    assert set(ran) == {("nltk", "coco_panoptic"), ("nltk", "coco_semantic")} and 0.1 < ran[("nltk", "coco_semantic")] < 1
    (lacking,) = [row["missing"] for row in rows if (row["method"], row["dataset"]) == ("baseline", "coco_semantic")]
    assert lacking.startswith("no weights") and lacking.endswith("as ablation.baseline=FOLDER")
    assert len(rows) == 15


def test_table_4(root: Path, clip_weights: Path, tmp_path: Path) -> None:
    masks = {"sizes": [64, 96], "templates": "simple"}
    rows = table("4", tmp_path, root=str(root), clip={"weights": str(clip_weights), "name": "shapes"}, masks=masks)
    found, clip = open_benchmark("coco_panoptic", str(root)), load_clip(ClipConfig(weights=str(clip_weights)))
    config = MaskClassificationConfig(sizes=(64, 96), templates="simple")
    scores = classify_masks(clip, found.panoptic(), found.vocabulary, config)
    subsets = sum(scores, MaskClassificationScore.zero((64, 96), 133)).summary()["subsets"]
    here = [row for row in rows if row["dataset"] == "coco_panoptic"]
    assert {row["method"]: row["ours"] for row in here if row["metric"] == "accuracy"} == {name: row["accuracy"] for name, row in subsets.items()}
    assert all(row["ours"] > 0 for row in here if row["metric"] == "seconds")
    assert {row["missing"][:15] for row in rows if row["dataset"] != "coco_panoptic"} == {"ade20k_panoptic"}


def test_promptable(root: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = table("promptable", tmp_path, root=str(root), checkpoint=str(tiny_checkpoint))
    annotations, images = find_promptable_set("coco_instances", str(root))
    samples = labelled(iter_records(read_annotations(annotations, images)))
    expected = sum(evaluate_promptable(Segmenter.load(tiny_checkpoint).method, samples, PromptableConfig()), NO_SCORES).summary()
    ran = {row["metric"]: row["ours"] for row in rows if not row["missing"]}
    assert ran == {name: expected[name] for name in ("point_iou", "box_iou")}
    assert len(rows) == 2 * len(PROMPTABLE_SETS)


def test_without_data_and_weights_both_are_named(tmp_path: Path) -> None:
    (row, *_) = table("1", tmp_path, root=str(tmp_path))
    assert "ade20k_847 is not here" in row["missing"] and " | no weights" in row["missing"]


def test_weights_that_cannot_be_read_are_a_missing_row(root: Path, tmp_path: Path) -> None:
    (row,) = [row for row in table("1", tmp_path, root=str(root), checkpoint=str(tmp_path / "none")) if row["dataset"] == "voc_20"]
    assert "no checkpoint here" in row["missing"] and row["ours"] is None


def test_a_promptable_set_says_its_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"seginw_Rail is not here; .*seginw/Rail/valid/_annotations_min1cat.coco.json"):
        find_promptable_set("seginw_Rail", str(tmp_path))
