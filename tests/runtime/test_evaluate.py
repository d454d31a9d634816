"""The promptable evaluation job on a shapes world of three scenes: the same numbers as without the job, from either kind of set and on actors."""

import csv
import json
from pathlib import Path

import pytest

from jobs import evaluate
from uniovseg.config import load
from uniovseg.data.coco import iter_records, read_annotations
from uniovseg.errors import DataError
from uniovseg.evaluation.promptable import NO_SCORES, PromptableConfig, evaluate_promptable, labelled
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.records import ImageMasks
from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job, labelled_parts
from uniovseg.runtime.shards import write_manifest
from uniovseg.storage import Location

SETTINGS = ["promptable.points_per_side=3", "device=cpu", "pictures=1", "limit=3"]


def test_scores_table_and_page(labelled_scenes: Path, tiny_checkpoint: Path, tiny_method: MaskGeneration, tmp_path: Path) -> None:
    annotations = f"{labelled_scenes}/evaluation/panoptic.json"
    assert (
        evaluate.main(
            ["promptable", f"annotations={annotations}", f"checkpoint={tiny_checkpoint}", f"output={tmp_path}", *SETTINGS, "pool.at_once=2"]
        )
        == 0
    )
    samples = labelled(iter_records(read_annotations(annotations, f"{labelled_scenes}/evaluation/images")[:3]))
    expected = sum(evaluate_promptable(tiny_method, samples, PromptableConfig(points_per_side=3)), NO_SCORES)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["promptable"] == pytest.approx(expected.summary()) and report["images"] == 3
    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    assert [(row["image"], int(row["masks"])) for row in rows] == list(expected.images)
    by_image = {row["image"]: float(row["point_iou"]) for row in rows}
    assert by_image == pytest.approx({row["image"]: row["point_iou"] for row in expected.by_image()})
    page = (tmp_path / "report.html").read_text()
    worst, best = (f"<b>{choose(by_image, key=lambda key: by_image[key])}</b>" for choose in (min, max))
    assert page.index("Worst images") < page.index(worst) < page.index("Best images") < page.index(best)
    assert (tmp_path / "everything.png").stat().st_size > 0


def test_a_shard_set_is_read_by_row_groups(shapes_shards: Path, scenes: list[ImageMasks], tmp_path: Path) -> None:
    for limit, lengths in ((None, [3, 3, 1, 3]), (4, [3, 1]), (99, [3, 3, 1, 3])):
        parts = labelled_parts(PromptableJobConfig(annotations=str(shapes_shards), limit=limit))
        assert [len(part) for part in parts] == lengths
        assert [sample.key for part in parts for sample in part.read()] == [record.key for record in scenes[: sum(lengths)]]
        assert [sample.key for sample in parts[0].one(1).read()] == [scenes[1].key]
    write_manifest(Location.of(tmp_path), [])
    with pytest.raises(DataError, match="the set has no images"):
        labelled_parts(PromptableJobConfig(annotations=str(tmp_path)))


@pytest.mark.cluster
def test_actors_give_the_same(labelled_scenes: Path, tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None) -> None:
    settings = [f"annotations={labelled_scenes}/evaluation/panoptic.json", f"checkpoint={tiny_checkpoint}", *SETTINGS]
    alone = evaluate_promptable_job(load(PromptableJobConfig, None, [*settings, f"output={tmp_path}/alone"]))
    spread = evaluate_promptable_job(load(PromptableJobConfig, None, [*settings, f"output={tmp_path}/spread", "pool.workers=2"]))
    assert spread["promptable"] == pytest.approx(alone["promptable"])
    assert [row[:2] for row in read(tmp_path / "spread")] == [row[:2] for row in read(tmp_path / "alone")]


def read(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "images.csv").read_text().splitlines()))
