"""Training on a real local cluster: one run of two workers, the same submitted again, one whose worker is killed, and one that is stopped and goes on."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import psutil
import pytest
import ray
import torch
from mlflow.tracking import MlflowClient

from uniovseg import checkpoint
from uniovseg.config import flatten, to_yaml
from uniovseg.data import entities
from uniovseg.data.samples import MaskSampleConfig
from uniovseg.data.views import ViewConfig
from uniovseg.errors import CheckpointError, ConfigError, TrainingError
from uniovseg.methods.base import OptimConfig
from uniovseg.methods.mask_generation import MaskGenerationConfig
from uniovseg.records import ImageEntities, ImageMasks
from uniovseg.runtime import train as runtime_train
from uniovseg.runtime.recorder import RayRecorder
from uniovseg.runtime.shards import PartRange, write_manifest, write_part, write_records
from uniovseg.runtime.tracking import Run, TrackingConfig
from uniovseg.runtime.train import TrainJobConfig, fit, scaling, with_absolute_paths
from uniovseg.storage import Location
from uniovseg.training import DataConfig, TrainConfig, ValidationConfig, run

STEPS, EVERY = 12, 3
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def job(tiny_config: MaskGenerationConfig, shapes_shards: Path, mlflow_uri: str, folder: Path) -> TrainJobConfig:
    """Two workers, a checkpoint every third step, validation at the end."""
    return TrainJobConfig(
        output=str(folder / "whole"),
        seed=3,
        steps=STEPS,
        batch_size=4,
        threads=1,
        method=tiny_config,
        data=DataConfig(train=str(shapes_shards), view=ViewConfig(size=64), sample=MaskSampleConfig(max_masks=6), window_groups=2),
        optim=OptimConfig(lr=1e-3, warmup_steps=2, schedule="cosine"),
        validation=ValidationConfig(shards=str(shapes_shards), images=2, points_per_side=2, every=100),
        log_every=1,
        checkpoint_every=EVERY,
        workers=2,
        tracking=TrackingConfig(uri=mlflow_uri, experiment="training"),
    )


@pytest.fixture(scope="module")
def whole(ray_cluster: None, job: TrainJobConfig) -> dict[str, object]:
    """The report of the run that nothing disturbs."""
    return fit(job)


def lines(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def learned(output: Path) -> dict[int, dict[str, float]]:
    """By step, what a run must repeat: all logged values but the rates of this machine."""
    kept = [{name: value for name, value in line.items() if name not in ("images_per_second", "data_wait_share")} for line in lines(output)]
    assert [line["step"] for line in kept if "loss" in line] == list(range(1, STEPS + 1))
    return {int(line["step"]): line for line in kept if "loss" in line}


def tracked(job: TrainJobConfig, report: dict[str, object]) -> tuple[MlflowClient, str]:
    return MlflowClient(tracking_uri=job.tracking.uri), str(report["mlflow"]).split()[0]


@pytest.mark.cluster
@pytest.mark.e2e
def test_a_run_leaves_its_report_checkpoints_and_curve(job: TrainJobConfig, whole: dict[str, object]) -> None:
    output = Path(job.output)
    assert (whole["steps"], whole["checkpoint"]) == (STEPS, f"{output}/model")
    info = checkpoint.read_info(output / "model")
    assert info.step == STEPS and info.method == job.method.model_dump(mode="json")
    assert (info.workers, whole["workers"]) == (2, [2])
    assert info.metrics == whole["metrics"] and set(info.metrics) == {"val_point_iou", "val_box_iou", "val_box_fill_iou"}
    kept = sorted(path.parent.name for path in output.glob(f"*/{checkpoint.MANIFEST}"))
    assert kept == ["model", "step_0000009", "step_0000012"]  # keep_checkpoints is 2
    curve = learned(output)
    assert all(value == value for line in curve.values() for value in line.values())
    assert curve[STEPS]["loss"] < curve[1]["loss"] and curve[1]["lr"] == pytest.approx(job.optim.lr * job.optim.warmup_factor, rel=0.05)
    assert (output / f"pictures/everything_{STEPS:07d}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.cluster
@pytest.mark.e2e
def test_mlflow_holds_one_finished_run(job: TrainJobConfig, whole: dict[str, object]) -> None:
    client, run_id = tracked(job, whole)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "whole")
    assert run.data.params == {name: str(value)[:500] for name, value in flatten(job).items()}
    for name in ("loss", "lr", "grad_norm", "images_per_second"):
        assert [(item.step, item.value) for item in client.get_metric_history(run_id, name)] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines(Path(job.output)) if name in line
        ]
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("val_")} == pytest.approx(whole["metrics"])
    assert [item.path for item in client.list_artifacts(run_id, f"pictures/step_{STEPS:07d}")] == [f"pictures/step_{STEPS:07d}/everything.png"]


@pytest.mark.cluster
@pytest.mark.e2e
def test_a_finished_run_submitted_again_ends_at_once_from_another_folder_with_other_workers(
    job: TrainJobConfig, whole: dict[str, object], folder: Path, shapes_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in Path(job.output).rglob("*") if path.name in ("metrics.jsonl", checkpoint.MODEL)}
    base = folder.parent
    monkeypatch.chdir(base)
    data = job.data.model_copy(update={"train": str(shapes_shards.relative_to(base))})
    output = str(Path(job.output).relative_to(base))
    again = fit(job.model_copy(update={"output": output, "data": data, "workers": 1, "tracking": TrackingConfig()}))
    assert (again["steps"], again["metrics"], again["mlflow"]) == (STEPS, whole["metrics"], "off (no tracking URI)")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.cluster
@pytest.mark.e2e
def test_another_configuration_in_the_same_folder_is_refused_at_once(job: TrainJobConfig, whole: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"seen: optim\.lr, optim\.schedule, optim\.warmup_steps;"):
        fit(job.model_copy(update={"optim": OptimConfig(lr=2e-3), "workers": 1, "tracking": TrackingConfig()}))


def newest_training_worker() -> psutil.Process | None:
    """Of the processes that this one started; Ray writes what a worker does into its command line."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
    return max(found, key=psutil.Process.create_time, default=None)


class Killer(threading.Thread):
    """Kills (SIGKILL) one training worker as soon as Ray knows of a checkpoint."""

    def __init__(self, output: Path) -> None:
        super().__init__(daemon=True)
        self.output = output
        self.over = threading.Event()
        self.last_step = STEPS

    def run(self) -> None:
        snapshot, metrics = self.output / "checkpoint_manager_snapshot.json", self.output / "metrics.jsonl"
        worker: psutil.Process | None = None
        while not self.over.wait(0.02):
            if not metrics.exists():
                continue
            worker = worker or newest_training_worker()
            if worker and snapshot.exists() and "step_0" in snapshot.read_text():
                worker.kill()
                self.last_step = int(lines(self.output)[-1]["step"])
                return


@pytest.mark.cluster
@pytest.mark.e2e
def test_a_run_whose_worker_is_killed_goes_on_to_the_same_losses(job: TrainJobConfig, whole: dict[str, object], folder: Path) -> None:
    killer = Killer(folder / "killed")
    killer.start()
    try:
        report = fit(job.model_copy(update={"output": str(killer.output)}))
    finally:
        killer.over.set()
        killer.join()
    assert killer.last_step < STEPS - 1  # one worker alone can end the step it is in, and no more: the rest came after a restart

    client, run_id = tracked(job, report)
    steps = [item.step for item in sorted(client.get_metric_history(run_id, "loss"), key=lambda item: item.timestamp)]
    jumps = [index for index in range(1, len(steps)) if steps[index] != steps[index - 1] + 1]
    assert steps[0] == 1 and steps[-1] == STEPS and len(jumps) <= 1, steps
    assert all(steps[index] > EVERY and steps[index] % EVERY == 1 for index in jumps), steps  # it went on from a checkpoint

    expected, found = learned(Path(job.output)), learned(killer.output)
    for step in range(1, STEPS + 1):
        assert found[step] == pytest.approx(expected[step], rel=0, abs=1e-5), step
    assert report["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    assert client.get_run(run_id).info.status == "FINISHED"


def driver(job: TrainJobConfig, folder: Path) -> subprocess.Popen[str]:
    """A job's own process on this module's cluster, as ``ray job submit`` starts one."""
    file = folder / f"{Path(job.output).name}.yaml"
    file.write_text(to_yaml(job))
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    return subprocess.Popen(
        [sys.executable, "jobs/train.py", "--config", str(file)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.cluster
@pytest.mark.e2e
def test_a_run_stopped_by_a_signal_goes_on_from_its_last_step_with_another_number_of_workers(
    job: TrainJobConfig, whole: dict[str, object], folder: Path
) -> None:
    """The stopped run is sharded; what goes on is not. Validation after every step makes the steps long enough to be interrupted."""
    slow = ValidationConfig(shards=job.data.train, images=10, points_per_side=20, every=1)
    stopped = job.model_copy(update={"output": str(folder / "stopped"), "parallel": "fsdp", "validation": slow, "checkpoint_every": 100})
    output = Path(stopped.output)
    process = driver(stopped, folder)
    try:
        while not (output / "metrics.jsonl").exists() and process.poll() is None:
            threading.Event().wait(0.05)
        process.terminate()
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 1 and "the training was stopped after step" in said, said
    last = int(lines(output)[-1]["step"])
    assert last < STEPS and [path.parent.name for path in output.glob(f"*/{checkpoint.MANIFEST}")] == [f"step_{last:07d}"]
    assert not (output / "stop").exists()

    validation = job.validation.model_copy(update={"every": EVERY})
    changes = {"output": str(output), "workers": 1, "resume": True, "validation": validation, "keep_metric": "val_box_iou"}
    report = fit(job.model_copy(update=changes))
    assert report["workers"] == [2, 1]
    expected, found = learned(Path(job.output)), learned(output)
    for step in range(1, STEPS + 1):
        assert found[step]["loss"] == pytest.approx(expected[step]["loss"], rel=0, abs=1e-5), step
    assert report["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    assert report["best"]["checkpoint"].startswith(f"{output}/step_")


@pytest.mark.slow
@pytest.mark.cluster
def test_workers_without_a_place_are_not_waited_for_without_end(
    whole: dict[str, object], job: TrainJobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    others = ray.util.placement_group([{"CPU": 4}])
    ray.get(others.ready())
    try:
        with pytest.raises(TrainingError, match="could not be started together; seen: 2 of 1 CPUs; .*ray status"):
            fit(job.model_copy(update={"output": str(folder / "crowded"), "start_minutes": 0.02}))
    finally:
        ray.util.remove_placement_group(others)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_loss_that_is_not_finite_ends_the_run_at_once_and_leaves_the_samples(ray_cluster: None, job: TrainJobConfig, folder: Path) -> None:
    changes = {"output": str(folder / "wild"), "steps": 3, "max_failures": 0, "tracking": TrackingConfig()}
    wild = job.model_copy(update=changes | {"optim": OptimConfig(lr=1e30, warmup_steps=0)})
    with pytest.raises(TrainingError, match="not finite at step [12];"):
        fit(wild)
    kept = sorted((folder / "wild" / "not_finite").iterdir())
    assert len(kept) == 2
    assert all(len(torch.load(path, weights_only=True)["batches"][0]["images"]) == 2 for path in kept)


class Survived(ray.train.UserCallback):  # type: ignore[misc]
    """Writes down each failure after which the run went on."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        self.file.write_text(str(worker_exceptions))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("feed", ["ray", "threads"])
def test_a_sample_that_cannot_be_made_ends_the_run_at_once_and_is_named(
    ray_cluster: None, job: TrainJobConfig, scenes: list[ImageMasks], folder: Path, feed: str
) -> None:
    spoilt = Location.of(folder / f"spoilt_{feed}")
    records = [replace(scene, image=b"no jpeg") if index == 2 else scene for index, scene in enumerate(scenes[:4])]
    part = PartRange(name="part_0", source="shapes", begin=0, end=4)
    write_manifest(spoilt, [write_part(part, enumerate(records), spoilt, 2)])
    data = job.data.model_copy(update={"train": spoilt.uri, "feed": feed, "threads": 1})
    changes = {"output": str(folder / f"on_spoilt_{feed}"), "data": data, "steps": 1, "validation": ValidationConfig(), "tracking": TrackingConfig()}
    survived = folder / f"survived_{feed}"
    with pytest.raises(TrainingError, match=f"worker [01] failed: sample {scenes[2].key}: the image cannot be decoded.*verify=decode"):
        fit(job.model_copy(update=changes), callbacks=[Survived(survived)])
    assert not survived.exists()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_that_matches_online_is_fed_by_ray(ray_cluster: None, job: TrainJobConfig, scenes: list[ImageMasks], folder: Path) -> None:
    """Its losses are those of the loop without Ray."""
    entity_set = Location.of(folder / "entities")
    part = PartRange(name="text-0", source="text.parquet", begin=0, end=4)
    named = [ImageEntities(key=scene.key, image=scene.image, caption="", entities=("red star", "sand")) for scene in scenes[:4]]
    write_manifest(entity_set, [write_records(part, enumerate(named), entity_set, 2, entities.to_table)])
    online = {"blend": True, "regions": {"sizes": [64], "templates": "simple"}, "pairing": {"points_per_side": 3}}
    method = {"name": "mask_text_alignment", "clip": job.method.clip, "generator": job.method.generator, "size": 64}
    changes = {
        "output": str(folder / "online"), "steps": 2, "accumulate": 1, "workers": 1, "tracking": {"uri": None}, "validation": {},
        "method": method | {"proposals": {"min_predicted_iou": 0.0}, "regions": online["regions"]},
        "data": {"train": entity_set.uri, "match": "online", "online": online, "view": {"size": 64}, "threads": 1},
    }  # fmt: skip
    config = TrainJobConfig.model_validate(job.model_dump() | changes)
    assert fit(config)["steps"] == 2
    run(TrainConfig.model_validate({name: getattr(config, name) for name in TrainConfig.model_fields} | {"output": str(folder / "online_alone")}))
    found, expected = (lines(folder / name) for name in ("online", "online_alone"))
    assert [line["step"] for line in found] == [1, 2] and all(line["pairs"] > 0 for line in found)
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], abs=1e-6)


def test_what_ray_shows_of_a_run_holds_no_credentials(job: TrainJobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "http://me:hunter2@mlflow.example"
    monkeypatch.setattr(runtime_train, "tracked_run", lambda *_, **__: contextlib.nullcontext(Run(secret, None)))
    monkeypatch.setattr(runtime_train, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(runtime_train, "doctor", MagicMock())
    trainer = MagicMock(side_effect=InterruptedError)
    monkeypatch.setattr(runtime_train, "TorchTrainer", trainer)
    with pytest.raises(InterruptedError):
        fit(job.model_copy(update={"output": str(tmp_path)}))
    (worker,), shown = trainer.call_args
    assert worker.keywords == {"uri": secret} and "hunter2" not in str(shown)


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(job: TrainJobConfig) -> None:
    with pytest.raises(ConfigError, match="4 over 3 workers x 1"):
        fit(job.model_copy(update={"workers": 3}))
    with pytest.raises(ConfigError, match="at least 5"):
        fit(job.model_copy(update={"workers": 5, "min_workers": 1}))


def test_what_ray_is_asked_for(job: TrainJobConfig) -> None:
    asked = scaling(job.model_copy(update={"workers": 5, "min_workers": 2, "resize_seconds": 7.0, "gpus_per_worker": 0.5, "placement": "SPREAD"}))
    assert (asked.min_workers, asked.max_workers, asked.elastic_resize_monitor_interval_s) == (2, 5, 7)
    assert (asked.resources_per_worker, asked.use_gpu, asked.placement_strategy) == ({"CPU": 1, "GPU": 0.5}, True, "SPREAD")
    fixed = scaling(job)
    assert (fixed.num_workers, fixed.resources_per_worker, fixed.use_gpu) == (2, {"CPU": 1}, False)


def test_fewer_workers_are_not_more(job: TrainJobConfig) -> None:
    with pytest.raises(ValueError, match="min_workers must be at most workers, which is 2"):
        TrainJobConfig.model_validate(job.model_dump() | {"min_workers": 3})


def test_a_resume_of_nothing_is_refused_before_anything_starts(job: TrainJobConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        fit(job.model_copy(update={"resume": True, "output": str(tmp_path / "new")}))


def test_local_paths_become_absolute_and_others_stay(job: TrainJobConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.safetensors").write_bytes(b"")
    clip = job.method.clip.model_copy(update={"weights": "clip.safetensors"})
    relative = job.model_copy(
        update={
            "output": "runs/a",
            "data": job.data.model_copy(update={"train": "s3://bucket/shards"}),
            "validation": job.validation.model_copy(update={"shards": "runs/b"}),
            "method": job.method.model_copy(update={"clip": clip}),
        }
    )
    found = with_absolute_paths(relative)
    assert (found.output, found.data.train, found.validation.shards) == (f"{tmp_path}/runs/a", "s3://bucket/shards", f"{tmp_path}/runs/b")
    assert found.method.clip.weights == f"{tmp_path}/clip.safetensors"
    tagged = job.method.model_copy(update={"clip": clip.model_copy(update={"weights": "laion2b"})})
    assert with_absolute_paths(relative.model_copy(update={"method": tagged})).method.clip.weights == "laion2b"


def test_a_later_attempt_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    first = RayRecorder(Run(None, None), Location.of(tmp_path), 0)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    first.write()
    second = RayRecorder(Run(None, None), Location.of(tmp_path), 2)
    second.log(3, {"loss": 30.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
