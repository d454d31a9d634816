"""The whole method as a user of a cluster runs it: submitted jobs, each of which reads from the store what the one before has written."""

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.e2e.cluster import Cluster
from tests.object_store import SECRET
from uniovseg import checkpoint, storage
from uniovseg.config import validate
from uniovseg.data import entities
from uniovseg.data.coco import write_sa1b_tars
from uniovseg.data.shapes import TEXT_STREAM, SceneConfig, draw_scene, encode_image, image_masks, scene_rng
from uniovseg.data.shapes import entities as names_of
from uniovseg.data.shards import ShardSet
from uniovseg.records import ImageEntities
from uniovseg.runtime.match import MatchConfig
from uniovseg.runtime.shards import PartRange, write_manifest, write_records
from uniovseg.runtime.tracking import PARENT
from uniovseg.storage import Location

pytestmark = [pytest.mark.cluster, pytest.mark.e2e]

SCENE, SEED = SceneConfig(size=96), 5
SCENES, TEXTS, STEPS = 12, 6, 4
REGIONS = "{sizes: [64], templates: simple}"
EXPERIMENT = "cluster"
TRACKED = ("tracking.uri=null", f"tracking.experiment={EXPERIMENT}")
"""The shipped configurations name an SQLite file; a cluster's jobs take MLFLOW_TRACKING_URI."""

SMALL = ("batch_size=4", f"steps={STEPS}", "checkpoint_every=2", "log_every=1", "data.view.size=64", "method.size=64", f"method.regions={REGIONS}")


@pytest.fixture(scope="module")
def shards(cluster: Cluster, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tars in the store to a shard set in the store, by a submitted ingest."""
    records = [image_masks(SCENE, SEED, index) for index in range(SCENES)]
    for path in write_sa1b_tars(records, tmp_path_factory.mktemp("tars"), per_tar=5, number=lambda index: index):
        storage.upload_file(path, Location.of(bucket) / f"tars/{path.name}")
    sizes = ("part_bytes=10000", "rows_per_group=3")
    cluster.submit("jobs/ingest.py", f"source={bucket}/tars", f"output={bucket}/shards", *sizes, *TRACKED)
    return f"{bucket}/shards"


@pytest.fixture(scope="module")
def stage1(cluster: Cluster, bucket: str, shards: str) -> str:
    """Stage 1 from the packaged model, two workers on two nodes, fed by Ray Data."""
    validation = f"validation={{shards: {shards}, images: 2, points_per_side: 2, every: {STEPS}}}"
    places = (f"output={bucket}/stage1", f"data.train={shards}", "init=shapes", "placement=SPREAD", "data.feed=ray")
    prompts = ("method.train_points_per_side=2", "method.max_boxes=3", "method.test_points_per_side=4")
    cluster.submit("jobs/train.py", "--config", "jobs/configs/stage1_shapes.yaml", *places, validation, *prompts, *SMALL, *TRACKED)
    return f"{bucket}/stage1"


@pytest.fixture(scope="module")
def named(bucket: str) -> str:
    """Scenes with the names of what is in them, an image-entities set."""
    scenes = [draw_scene(SCENE, scene_rng(SEED, TEXT_STREAM, index), held_out=False) for index in range(TEXTS)]
    records = [
        ImageEntities(key=f"text_{number}", image=encode_image(scene.image, SCENE.jpeg_quality), caption="", entities=tuple(names_of(scene)))
        for number, scene in enumerate(scenes, start=1)
    ]
    place, part = Location.of(bucket) / "entities", PartRange(name="text", source="text", begin=0, end=TEXTS)
    write_manifest(place, [write_records(part, enumerate(records), place, 2, entities.to_table)])
    return place.uri


@pytest.fixture(scope="module")
def pairs(cluster: Cluster, bucket: str, stage1: str, named: str) -> str:
    """Masks that the trained model proposes, matched with the names."""
    places = (f"entities={named}", f"checkpoint={stage1}/model", f"output={bucket}/matched")
    small = (f"regions={REGIONS}", "pairing.points_per_side=4", "pairing.max_masks=10", "pool.workers=2")
    cluster.submit("jobs/match.py", "--config", "jobs/configs/match_shapes.yaml", *places, *small, *TRACKED)
    return f"{bucket}/matched"


@pytest.fixture(scope="module")
def stage2(cluster: Cluster, bucket: str, stage1: str, pairs: str) -> str:
    """Stage 2 on the pairs, from stage 1's model, two workers."""
    places = (f"output={bucket}/stage2", f"data.train={pairs}", f"init={stage1}/model", "workers=2")
    cluster.submit("jobs/train.py", "--config", "jobs/configs/stage2_shapes.yaml", *places, *SMALL, *TRACKED)
    return f"{bucket}/stage2"


@pytest.fixture(scope="module")
def swept(cluster: Cluster, bucket: str, stage1: str, named: str) -> str:
    """Three scale sets and two costs."""
    matching = f"[entities={named}, checkpoint={stage1}/model, pairing.points_per_side=4, pairing.max_masks=10]"
    truth = f"{{name: shapes, seed: {SEED}, scene: {{size: {SCENE.size}}}}}"
    space = "space={sizes: {subsets: [64, 96]}, matching.cost: {grid: [clip_softmax, raw]}, matching.confidence: {grid: [all]}}"
    task = (f"task.overrides={matching}", "task.sizes=[64, 96]", f"task.truth={truth}")
    cluster.submit("jobs/tune.py", "--config", "jobs/configs/sweep_scales_shapes.yaml", f"output={bucket}/sweep", *task, space, *TRACKED)
    return f"{bucket}/sweep"


def tracked(cluster: Cluster, name: str, job: str) -> tuple[MlflowClient, Run]:
    """The one run of this name, by the server's interface; it is over."""
    client = MlflowClient(tracking_uri=cluster.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}' and tags.job = '{job}'")
    assert run.info.status == "FINISHED"
    return client, run


def artifacts(client: MlflowClient, run: Run, folder: str | None = None) -> set[str]:
    found = client.list_artifacts(run.info.run_id, folder)
    return {item.path for item in found if not item.is_dir}.union(*(artifacts(client, run, item.path) for item in found if item.is_dir))


def report_of(output: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(storage.read_bytes(Location.of(output) / "report.json"))
    return report


def history(client: MlflowClient, run: Run, name: str) -> dict[int, float]:
    return {item.step: item.value for item in client.get_metric_history(run.info.run_id, name)}


def weights(uri: str) -> Mapping[str, torch.Tensor]:
    with checkpoint.opened(uri) as folder:
        return checkpoint.read_weights(folder)


def logged_losses(output: str) -> dict[int, float]:
    lines = [json.loads(line) for line in storage.read_bytes(Location.of(output) / "metrics.jsonl").decode().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_ingest_writes_every_sample(cluster: Cluster, shards: str) -> None:
    found = {record.key: record.image for record in ShardSet(shards).records()}
    assert sorted(found.values()) == sorted(image_masks(SCENE, SEED, index).image for index in range(SCENES))
    report = report_of(shards)
    assert (report["samples"], report["rejected"]) == (SCENES, 0) and report["parts"] > 4
    client, run = tracked(cluster, "shards", "ingest")
    assert run.data.metrics["samples"] == SCENES
    assert run.data.params["output"] == shards
    assert {"config.yaml", "report.json"} <= artifacts(client, run)


def test_stage_1_trains_on_both_nodes(cluster: Cluster, shards: str, stage1: str) -> None:
    client, run = tracked(cluster, "stage1", "train")
    assert (run.data.params["steps"], run.data.params["data.train"], run.data.params["init"]) == (str(STEPS), shards, "shapes")
    losses = history(client, run, "loss")
    assert sorted(losses) == list(range(1, STEPS + 1)) and all(map(math.isfinite, losses.values()))
    assert losses == pytest.approx(logged_losses(stage1), rel=1e-6)
    assert {"val_point_iou", "val_box_iou"} <= run.data.metrics.keys()
    assert {"config.yaml", "report.json", f"pictures/step_{STEPS:07d}/everything.png"} <= artifacts(client, run)

    report = report_of(stage1)
    assert (report["steps"], report["checkpoint"], report["workers"]) == (STEPS, f"{stage1}/model", [2])
    assert all(list(folder.rglob("logs/train/ray-train-app-worker-*")) for folder in cluster.ray_folders)  # each node's own logs: it had a worker
    with checkpoint.opened(f"{stage1}/model") as folder:
        info = checkpoint.read_info(folder)
    assert (info.step, info.workers, info.metrics) == (STEPS, 2, report["metrics"])
    packaged, trained = weights("shapes"), weights(f"{stage1}/model")
    assert packaged.keys() == trained.keys()
    assert 0 < max(float((packaged[name] - trained[name]).abs().max()) for name in packaged) < 0.5


def test_match_pairs_the_trained_models_masks(cluster: Cluster, stage1: str, pairs: str) -> None:
    manifest = ShardSet(pairs).manifest
    assert manifest.samples == TEXTS and manifest.masks > 0 and manifest.pairs > 0
    client, run = tracked(cluster, "matched", "match")
    assert run.data.params["checkpoint"] == f"{stage1}/model"
    assert [run.data.metrics[name] for name in ("images", "masks", "pairs")] == [manifest.samples, manifest.masks, manifest.pairs]
    assert {"config.yaml", "report.json"} <= artifacts(client, run)


def test_stage_2_trains_the_adapter_alone(cluster: Cluster, stage1: str, pairs: str, stage2: str) -> None:
    client, run = tracked(cluster, "stage2", "train")
    assert (run.data.params["init"], run.data.params["data.train"]) == (f"{stage1}/model", pairs)
    losses = history(client, run, "loss")
    assert sorted(losses) == list(range(1, STEPS + 1)) and losses == pytest.approx(logged_losses(stage2), rel=1e-6)
    first, second = weights(f"{stage1}/model"), weights(f"{stage2}/model")
    frozen = [name for name in second if name in first]
    assert frozen and all(torch.equal(first[name], second[name]) for name in frozen)
    adapter = [name for name in second if name.startswith("adapter.")]
    assert adapter and set(second) == {*frozen, *adapter}
    with checkpoint.opened(f"{stage2}/step_{2:07d}") as folder:
        before = checkpoint.read_weights(folder)
    assert any(not torch.equal(before[name], second[name]) for name in adapter)


def test_tune_ranks_every_set_and_cost(cluster: Cluster, swept: str, named: str) -> None:
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(Location.of(swept) / "trials.csv").decode())))
    assert {(row["sizes"], row["matching.cost"]) for row in rows} == {(s, c) for s in ("64", "96", "64+96") for c in ("clip_softmax", "raw")}
    scores = [float(row["f1"]) for row in rows]
    assert len(rows) == 6 and scores == sorted(scores, reverse=True)

    client, run = tracked(cluster, "sweep", "tune")
    below = client.search_runs([run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}' and tags.job = 'trial'")
    assert {child.info.run_name: child.data.metrics["f1"] for child in below} == pytest.approx({row["trial"]: float(row["f1"]) for row in rows})
    assert {child.info.status for child in below} == {"FINISHED"}
    assert {"best.yaml", "trials.csv", "parallel.html", "parallel.png", "scale_sets.html", "scale_sets.png"} <= artifacts(client, run)
    best = validate(MatchConfig, yaml.safe_load(storage.read_bytes(Location.of(swept) / "best.yaml")))
    assert (best.entities, "+".join(map(str, best.regions.sizes)), best.pairing.matching.cost) == (named, rows[0]["sizes"], rows[0]["matching.cost"])


def test_no_job_writes_a_secret_anywhere(cluster: Cluster, bucket: str, shards: str, stage2: str, swept: str) -> None:
    written = [storage.read_bytes(item) for item in storage.list_files(Location.of(bucket), recursive=True)]
    printed = [path.read_bytes() for path in cluster.logs.iterdir() if path.is_file()]  # also what the tracking server keeps
    ray_logs = [path.read_bytes() for folder in cluster.ray_folders for path in folder.rglob("logs/**/*") if path.is_file()]
    assert len(written) > 60 and len(printed) > 3 and len(ray_logs) > 10
    secrets = (SECRET.encode(), cluster.environment["RAY_AUTH_TOKEN"].encode())
    assert [data[:200] for data in (*written, *printed, *ray_logs) if any(secret in data for secret in secrets)] == []
