"""The evaluation jobs on a shapes world of four scenes: the same numbers as without the job, in this process and on actors."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from mlflow.tracking import MlflowClient

from jobs import evaluate
from uniovseg.config import load, validate
from uniovseg.data.benchmarks import BENCHMARKS, open_benchmark
from uniovseg.errors import ConfigError, DataError, UniOVSegError
from uniovseg.evaluation.mask_classification import MaskClassificationConfig, MaskClassificationScore, classify_masks
from uniovseg.evaluation.source import SourceConfig, open_source
from uniovseg.evaluation.words import evaluate_panoptic, evaluate_semantic
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.metrics import PanopticScore, SemanticScore
from uniovseg.models.clip import ClipConfig, load_clip
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.runtime.evaluate_words import WordsJobConfig, evaluate_semantic_job
from uniovseg.runtime.pool import PoolConfig, over_items, use_threads
from uniovseg.segmenter import Segmenter

SETTINGS = ["method.regions.sizes=[64]", "method.regions.templates=simple", "device=cpu", "pictures=1"]


def run(task: str, *arguments: object) -> None:
    assert evaluate.main([task, *(str(item) for item in arguments)]) == 0


def test_semantic_and_panoptic(labelled_scenes: Path, tiny_checkpoint: Path, mlflow_uri: str, tmp_path: Path) -> None:
    found = open_benchmark("shapes", str(labelled_scenes))
    source = [f"checkpoint={tiny_checkpoint}", "benchmark=shapes", f"root={labelled_scenes}", "limit=2", *SETTINGS]
    for task in ("semantic", "panoptic"):
        run(task, *source, f"output={tmp_path}/{task}", f"tracking.uri={mlflow_uri}", "tracking.experiment=words")
    config = load(WordsJobConfig, None, [*source, f"output={tmp_path}"])
    method = Segmenter.load(tiny_checkpoint, "cpu", config.method).method
    items, classes = found.items[:2], len(found.vocabulary)
    results = list(evaluate_semantic(method, found.semantic(items), found.vocabulary, SegmentationConfig()))
    semantic = sum((item.score for item in results), SemanticScore.zero(classes))
    panoptic = sum(
        (item.score for item in evaluate_panoptic(method, found.panoptic(items), found.vocabulary, SegmentationConfig())), PanopticScore.zero(classes)
    )
    written = json.loads((tmp_path / "semantic/report.json").read_text())
    assert written["semantic"] == semantic.summary()
    assert written["images"] == 2
    assert json.loads((tmp_path / "panoptic/report.json").read_text())["panoptic"] == json.loads(json.dumps(panoptic.summary(found.vocabulary)))
    rows = list(csv.DictReader((tmp_path / "semantic/classes.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [category.name for category in found.vocabulary.categories]
    assert [float(row["iou"]) for row in rows if row["iou"]] == pytest.approx([value for value in semantic.iou() if value == value])
    assert [int(row["pixels"]) for row in rows] == semantic.truth.tolist()
    assert [int(row["predicted"]) for row in rows] == semantic.predicted.tolist()
    page = (tmp_path / "semantic/report.html").read_text()
    worst = min(results, key=lambda item: item.score.miou()).sample.key
    assert page.index("Worst images") < page.index(f"<b>{worst}</b>") < page.index("Best images")
    client = MlflowClient(tracking_uri=mlflow_uri)
    runs = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    logged = {item.info.run_name: item for item in runs}
    assert logged["semantic"].data.metrics["semantic.miou"] == pytest.approx(semantic.miou())
    assert logged["panoptic"].data.metrics["panoptic.All.pq"] == pytest.approx(panoptic.quality().pq)
    assert {item.path for item in client.list_artifacts(logged["semantic"].info.run_id)} >= {
        "classes.csv",
        "report.html",
        "report.json",
        "config.yaml",
    }
    assert not [name for name in logged["semantic"].data.metrics if "per_class" in name]
    assert logged["semantic"].data.tags["job"] == "semantic"


def test_mask_classification(labelled_scenes: Path, clip_weights: Path, tmp_path: Path) -> None:
    found = open_benchmark("shapes", str(labelled_scenes))
    sizes = "masks.sizes=[64, 96]"
    run(
        "mask_classification",
        "benchmark=shapes",
        f"root={labelled_scenes}",
        sizes,
        "masks.templates=simple",
        f"clip.weights={clip_weights}",
        f"output={tmp_path}",
    )
    config = MaskClassificationConfig(sizes=(64, 96), templates="simple")
    clip = load_clip(ClipConfig(weights=str(clip_weights)))
    zero = MaskClassificationScore.zero((64, 96), len(found.vocabulary))
    expected = sum(classify_masks(clip, found.panoptic(), found.vocabulary, config), zero).summary()
    written = json.loads((tmp_path / "report.json").read_text())
    assert list(written["mask_classification"]["subsets"]) == ["64", "96", "64+96"]
    for name, row in written["mask_classification"]["subsets"].items():
        assert row["accuracy"] == expected["subsets"][name]["accuracy"]
        assert row["seconds"] > 0
    rows = list(csv.DictReader((tmp_path / "classes.csv").read_text().splitlines()))
    assert sum(int(row["masks"]) for row in rows) == expected["masks"]
    right = sum(int(row["masks"]) * float(row["64+96"]) for row in rows if row["64+96"])
    assert right / expected["masks"] == pytest.approx(expected["subsets"]["64+96"]["accuracy"])


def test_sources(labelled_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(labelled_scenes))
    found = open_source(SourceConfig(benchmark="shapes", limit=2))
    assert (found.name, len(found.items)) == ("shapes", 2)
    folder = labelled_scenes / "evaluation"
    same = open_source(SourceConfig(annotations=str(folder / "panoptic.json"), panoptic=str(folder / "panoptic")))
    assert [(item.id, item.name) for item in same.vocabulary.categories] == [(item.id, item.name) for item in found.vocabulary.categories]
    assert same.items[:2] == tuple(replace(item) for item in found.items)
    words = tmp_path / "words.json"
    listed = [{"id": item.id, "name": f"a {item.name}"} for item in found.vocabulary.categories]
    words.write_text(json.dumps({"name": "mine", "categories": listed}))
    assert open_source(SourceConfig(benchmark="shapes", vocabulary=str(words))).vocabulary.name == "mine"
    words.write_text(json.dumps({"name": "mine", "categories": listed[1:]}))
    with pytest.raises(ConfigError, match="other ids than the set"):
        open_source(SourceConfig(benchmark="shapes", vocabulary=str(words)))
    for wrong in (SourceConfig(), SourceConfig(benchmark="shapes", annotations="x.json")):
        with pytest.raises(ConfigError, match="either benchmark or annotations"):
            open_source(wrong)


def test_a_source_for_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = SourceConfig(annotations="a/b.json", images="s3://bucket/images", vocabulary="shapes").with_absolute_paths()
    assert found == SourceConfig(annotations=f"{tmp_path}/a/b.json", images="s3://bucket/images", vocabulary="shapes")
    assert SourceConfig(benchmark="shapes", root="sets").with_absolute_paths().root == f"{tmp_path}/sets"


@pytest.mark.parametrize(
    ("threads", "pool", "used"),
    [(3, PoolConfig(), 3), (3, PoolConfig(workers=1, cpus_per_worker=2), 3), (0, PoolConfig(workers=1, cpus_per_worker=2), 2)],
)
def test_threads_that_are_given_win_over_an_actors_cpus(threads: int, pool: PoolConfig, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    use_threads(threads, pool)
    use_threads(0, PoolConfig())  # torch's own choice
    assert asked == [used]


def test_each_benchmark_is_tested_by_its_own_settings() -> None:
    for name in BENCHMARKS:
        config = load(WordsJobConfig, None, [f"benchmark={name}", "output=out"])
        assert WordsJobConfig.model_validate_json(config.model_dump_json()) == config
        method = validate(MaskGenerationConfig, config.method)
        if name == "shapes":
            assert (config.method, config.segmentation) == ({}, SegmentationConfig())
        else:
            assert config.method["regions"]["templates"] == "vild14"
            assert (method.size, method.test_points_per_side) == ((2048, 40) if name.startswith("cityscapes") else (1024, 20))
    assert load(WordsJobConfig, None, ["annotations=a.json", "output=out"]).method == {}


def test_what_is_given_wins_over_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("benchmark: cityscapes_panoptic\noutput: out\nmethod: {size: 512}\nsegmentation: {min_visible: 0.8}\n")
    config = load(WordsJobConfig, tmp_path / "mine.yaml", ["method.regions.sizes=[768]"])
    assert config.method == {"size": 512, "test_points_per_side": 40, "regions": {"sizes": [768], "templates": "vild14"}}
    assert (config.segmentation.min_visible, config.segmentation.min_score) == (0.8, 0.0)
    again = WordsJobConfig(benchmark="cityscapes", output="out", segmentation=SegmentationConfig(unknown_below=0.5))
    assert (again.segmentation.unknown_below, again.method["size"]) == (0.5, 2048)


def test_what_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["semantic", "benchmark=pc_459", f"root={tmp_path}", f"output={tmp_path}/out"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pc_459 is not here" in error
    assert error.endswith("python jobs/prepare.py pc_459\n")
    assert evaluate.main(["semantic", f"output={tmp_path}/out"]) == 2
    assert evaluate.main(["panoptic", "benchmark=shapes"]) == 2


def refuse_three() -> "partial[int]":
    return partial(_refuse, 3)


def _refuse(wrong: int, item: int) -> int:
    if item == wrong:
        raise DataError("not this one", seen=item)
    return item * item


def test_items_in_this_process() -> None:
    assert list(over_items(PoolConfig(), refuse_three, [2, 5, 4])) == [4, 25, 16]
    with pytest.raises(DataError, match="not this one; seen: 3"):
        list(over_items(PoolConfig(), refuse_three, [2, 3]))


def in_pairs() -> Callable[[int], int]:
    """A function that only returns while another thread is in it too."""
    barrier = Barrier(2, timeout=30)

    def wait(item: int) -> int:
        barrier.wait()
        return item

    return wait


def test_items_at_once_in_this_process() -> None:
    assert list(over_items(PoolConfig(at_once=2), in_pairs, range(6))) == list(range(6))


@pytest.mark.cluster
def test_items_at_once_in_an_actor(ray_cluster: None) -> None:
    assert list(over_items(PoolConfig(workers=1, at_once=2), in_pairs, range(6))) == list(range(6))


@pytest.mark.cluster
def test_actors_give_the_same(labelled_scenes: Path, tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None) -> None:
    settings = [f"checkpoint={tiny_checkpoint}", "benchmark=shapes", f"root={labelled_scenes}", "limit=2", *SETTINGS]
    alone = evaluate_semantic_job(load(WordsJobConfig, None, [*settings, f"output={tmp_path}/alone"]))
    spread = evaluate_semantic_job(load(WordsJobConfig, None, [*settings, f"output={tmp_path}/spread", "pool.workers=2"]))
    assert spread["semantic"] == alone["semantic"]
    assert (tmp_path / "spread/classes.csv").read_text() == (tmp_path / "alone/classes.csv").read_text()
    assert list(over_items(PoolConfig(workers=2), refuse_three, range(4, 20))) == [item * item for item in range(4, 20)]
    with pytest.raises(DataError, match="not this one; seen: 3"):
        list(over_items(PoolConfig(workers=2), refuse_three, range(10)))


def cannot_build() -> "partial[int]":
    raise ConfigError("no such checkpoint", seen="here")


def _end(item: int) -> int:
    os._exit(1)


@pytest.mark.cluster
def test_what_fails_in_an_actor_is_one_of_our_errors(ray_cluster: None) -> None:
    with pytest.raises(ConfigError, match="no such checkpoint; seen: here"):
        list(over_items(PoolConfig(workers=2, at_once=2), cannot_build, range(6)))
    with pytest.raises(UniOVSegError, match="a process of the pool has died; seen: .*run the same command again"):
        list(over_items(PoolConfig(workers=1), lambda: _end, range(2)))
