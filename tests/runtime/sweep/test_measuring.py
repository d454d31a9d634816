"""What is measured for a scale sweep: the shapes world's truth, and cosines of ground-truth masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.data.benchmarks import open_panoptic
from uniovseg.data.shapes import CLASS_NAMES, EVALUATION_STREAM, TEXT_STREAM, SceneConfig, draw_scene, encode_image, scene_rng
from uniovseg.data.shapes_sets import write_panoptic
from uniovseg.errors import DataError
from uniovseg.evaluation.mask_classification import classify_image, subsets
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.models.text_classifier import build_text_classifier, template_set
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImagePairs
from uniovseg.runtime.match import MatchConfig
from uniovseg.runtime.sweep.config import LabelledTruth, ScalesTask, ShapesTruth
from uniovseg.runtime.sweep.measuring import measure, measured_pairs, named_masks
from uniovseg.runtime.sweep.scale_sets import ScaleSet, score
from uniovseg.storage import Location

SCENE = SceneConfig(size=96)


def record_of(index: int) -> tuple[ImagePairs, list[tuple[str, np.ndarray]]]:
    """The image-text scene `index`, with proposals near its objects, and its named masks."""
    scene = draw_scene(SCENE, scene_rng(5, TEXT_STREAM, index), held_out=False)
    named = [(CLASS_NAMES[item.class_index], item.mask) for item in scene.objects] + [(CLASS_NAMES[i], mask) for i, mask in scene.grounds]
    moved = [np.roll(mask, shift, axis=1) for (_, mask), shift in zip(named, (0, 2, 5, 40, 0, 1, 3, 0, 0, 0), strict=False)]
    masks = RunLengthMasks.from_dense(torch.from_numpy(np.stack(moved)))
    entities = tuple(dict.fromkeys([name for name, _ in named] + ["plain red bar", "snow"]))
    costs = np.random.default_rng(index).random((2, len(moved), len(entities))).astype(np.float32)
    return ImagePairs(
        key=f"text_{index + 1}", image=encode_image(scene.image, SCENE.jpeg_quality), height=96, width=96, counts=tuple(masks.to_counts()),
        quality=np.ones(len(moved), np.float32), entities=entities, sizes=(64, 96), costs=costs,
        pairs=np.zeros((0, 2), np.int64), pair_costs=np.zeros(0, np.float32),
    ), named  # fmt: skip


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_pair_is_right_where_the_mask_covers_an_object_of_that_name(index: int) -> None:
    record, named = record_of(index)
    cosines, right, wanted = measured_pairs(ShapesTruth(seed=5, scene=SCENE), record)
    np.testing.assert_array_equal(cosines, 1 - record.costs)
    seen = [(name, mask) for name, mask in named if mask.sum() >= 16]
    truth = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for _, mask in seen]
    iou = coco_mask.iou([{"size": [96, 96], "counts": counts} for counts in record.counts], truth, [0] * len(truth))
    expected = [
        [any(iou[q, o] >= 0.5 and name == entity for o, (name, _) in enumerate(seen)) for entity in record.entities] for q in range(len(right))
    ]
    np.testing.assert_array_equal(right, expected)
    assert right.any() and not right.all(axis=1).any()
    assert wanted == sum(entity in {name for name, _ in seen} for entity in record.entities)


def test_the_truth_of_another_world_is_refused() -> None:
    record, _ = record_of(1)
    for truth, changed in [(ShapesTruth(seed=6, scene=SCENE), record), (ShapesTruth(seed=5, scene=SCENE), replace(record, key="photo_1"))]:
        with pytest.raises(DataError, match="not of the shapes world that the truth is of; seen: "):
            measured_pairs(truth, changed)


def test_an_entity_of_nothing_is_not_wanted() -> None:
    scene = draw_scene(SCENE, scene_rng(5, TEXT_STREAM, 0), held_out=False)
    right, wanted = named_masks(scene, RunLengthMasks.empty((96, 96)), ("no such thing",))
    assert right.shape == (0, 1) and wanted == 0


def test_scores_on_a_labelled_set_are_those_of_mask_classification(tiny_method: MaskGeneration, tmp_path: Path) -> None:
    scenes = [draw_scene(SCENE, scene_rng(3, EVALUATION_STREAM, index), held_out=True) for index in range(3)]
    write_panoptic(iter(scenes), tmp_path / "set", SCENE)
    info = CheckpointInfo(step=0, method=tiny_method.config.model_dump(mode="json"))
    checkpoint.save(tmp_path / "model", info, tiny_method.state())
    annotations = str(tmp_path / "set/panoptic.json")
    base = MatchConfig(entities="-", output="-", checkpoint=str(tmp_path / "model"), device="cpu")
    task = ScalesTask(match="-", sizes=(64, 96, 128), truth=LabelledTruth(annotations=annotations))
    matrices = measure(task, base, Location.of(tmp_path))
    dataset = open_panoptic(annotations, str(tmp_path / "set/images"))
    classifier = build_text_classifier(tiny_method.clip, dataset.vocabulary, template_set(base.regions.templates))
    expected = sum(classify_image(tiny_method.clip, classifier, sample, task.sizes).correct.sum(1) for sample in dataset.panoptic(dataset.items))
    assert matrices.wanted.sum() > 10
    for chosen, correct in zip(subsets(task.sizes), expected, strict=True):
        assert score(matrices, ScaleSet(sizes=chosen))["accuracy"] == pytest.approx(correct / matrices.wanted.sum())
