"""Training on Ray Train: the loop of `uniovseg.training` on N workers, fed by Ray Data, with Ray's checkpoints and one MLflow run.

The driver opens the MLflow run and closes it. Each worker builds the same method, takes its slice of every global batch, and reports; rank 0 logs. When a
worker dies Ray starts the group again, which goes on from the newest checkpoint; the same happens when a run's name is submitted again. As the plan of
samples and every random draw depend on the step alone, the losses then are those of a run without the failure.
"""

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray.train
import torch
from pydantic import Field
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uniovseg import checkpoint, storage
from uniovseg.config import validate
from uniovseg.data.shards import ShardSet
from uniovseg.errors import CheckpointError, TrainingError
from uniovseg.pictures import Picture
from uniovseg.records import Batch
from uniovseg.runtime import doctor
from uniovseg.runtime.datasets import PlannedRows, ray_batches
from uniovseg.runtime.metrics import show_training
from uniovseg.runtime.registry import register_finished, with_files
from uniovseg.runtime.session import quiet_ray_data, ray_session
from uniovseg.runtime.tracking import Run, TrackingConfig, log_datasets, tracked_run
from uniovseg.storage import Location
from uniovseg.training import TrainConfig, initial_method, local_batches, make_match, make_validation, sample_maker, train


class TrainJobConfig(TrainConfig):
    """A training run on Ray."""

    workers: int = Field(1, ge=1, description="training workers (processes); batch_size is divided over them")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs a worker; 0 trains on the CPU")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs a worker")
    max_failures: int = Field(3, ge=0, description="how often the workers are started again after a failure")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


class RayRecorder:
    """Sends a worker's results to the run's folder, to MLflow and to Ray.

    Args:
        run: the driver's MLflow run.
        output: the run's folder; metrics.jsonl and pictures/ are written there by rank 0.
        start: the step at which this attempt began; later lines of an earlier attempt are dropped from metrics.jsonl.
    """

    def __init__(self, run: Run, output: Location, start: int) -> None:
        self.run, self.output = run, output
        self.lines: list[str] = []
        if storage.exists(output / "metrics.jsonl"):
            old = storage.read_bytes(output / "metrics.jsonl").decode().splitlines()
            self.lines = [line for line in old if json.loads(line)["step"] <= start]
        for line in map(json.loads, self.lines):
            run.log(line.pop("step"), line)  # what an earlier attempt could not deliver; what MLflow has is left out

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line to metrics.jsonl, show it on Ray's metrics endpoint and log to MLflow."""
        self.lines.append(json.dumps({"step": step} | metrics))
        storage.write_bytes(self.output / "metrics.jsonl", ("\n".join(self.lines) + "\n").encode())
        show_training(self.output.name, step, metrics)
        self.run.log(step, metrics)

    def pictures(self, step: int, pictures: dict[str, Picture]) -> None:
        """Write pictures beside the metrics and to MLflow."""
        for name, picture in pictures.items():
            done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
            assert done
            storage.write_bytes(self.output / f"pictures/{name}_{step:07d}.png", data.tobytes())
        self.run.log_pictures(step, pictures)

    def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
        """Report a checkpoint to Ray; every rank takes part."""
        kept = None
        folder = tempfile.mkdtemp()
        if write is not None:
            write(Path(folder))
            kept = Checkpoint.from_directory(folder)
        ray.train.report({"step": step} | metrics, checkpoint=kept, checkpoint_dir_name=f"step_{step:07d}")
        shutil.rmtree(folder, ignore_errors=True)


def train_worker(settings: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs; returns why a checkpoint does not fit the run, if so: all ranks find that, and starting them again would not mend it."""
    quiet_ray_data()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train reports each checkpoint by a logger below the root
    try:
        _train(settings)
    except CheckpointError as error:
        return str(error)
    return None


def _train(settings: dict[str, Any]) -> None:
    config = validate(TrainJobConfig, json.loads(settings["config"]))
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.threads or max(1, int(config.cpus_per_worker)))
    method = initial_method(config)
    rows = PlannedRows(
        uri=config.data.train,
        rows_per_group=tuple(settings["rows_per_group"]),
        seed=config.seed,
        batch_size=config.batch_size,
        window_groups=config.data.window_groups,
        rank=rank,
        world_size=world_size,
        parts=config.accumulate,
    )
    maker = sample_maker(config, method)

    def batches(start: int) -> Iterator[Batch]:
        if config.data.feed == "threads":
            return local_batches(config, maker, start, rank, world_size)
        return ray_batches(rows, maker, start, config.steps)

    latest = ray.train.get_checkpoint()
    if latest is None and settings["start"] is not None:
        filesystem, path = Location.of(settings["start"]).filesystem()
        latest = Checkpoint(path, filesystem)
    output = Location.of(config.output)
    match, validate_fn = make_match(config, method), make_validation(config) if rank == 0 else None
    with Run(settings["uri"], settings["run_id"] if rank == 0 else None, output, config.tracking.patience) as run:
        if latest is None:
            train(config, method, batches, RayRecorder(run, output, 0), match=match, validate=validate_fn, rank=rank, world_size=world_size)
            return
        with latest.as_directory() as folder:
            recorder = RayRecorder(run, output, checkpoint.read_info(Path(folder)).step)
            train(config, method, batches, recorder, match=match, validate=validate_fn, resume=Path(folder), rank=rank, world_size=world_size)


def with_absolute_paths(config: TrainJobConfig) -> TrainJobConfig:
    """`config` with the local paths made absolute: Ray's workers have another working directory."""
    data = config.data.model_copy(update={"train": Location.of(config.data.train).uri})
    shards = config.validation.shards
    validation = config.validation.model_copy(update={"shards": None if shards is None else Location.of(shards).uri})
    method, weights = config.method, config.method.clip.weights
    if weights is not None and Path(weights).is_file():
        method = method.model_copy(update={"clip": method.clip.model_copy(update={"weights": Location.of(weights).uri})})
    init = config.init
    if init is not None and init not in checkpoint.SHIPPED and not init.startswith(doctor.REGISTERED):
        init = Location.of(init).uri
    paths = {"output": Location.of(config.output).uri, "init": init, "data": data, "validation": validation, "method": method}
    return config.model_copy(update=paths)


@contextmanager
def progress_bar(output: Location, steps: int) -> Iterator[None]:
    """Show the training's progress on the terminal while the block runs, from the metrics that rank 0 writes to the run's folder."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
    done = threading.Event()

    def watch(progress: Progress) -> None:
        task = progress.add_task("training", total=steps, shown="starting the workers")
        while not done.wait(2.0):
            if storage.exists(output / "metrics.jsonl"):
                lines = [json.loads(line) for line in storage.read_bytes(output / "metrics.jsonl").decode().splitlines()]
                trained = [line for line in lines if "loss" in line]
                if trained:
                    last = trained[-1]
                    progress.update(task, completed=last["step"], shown=f"loss {last['loss']:.3f}, {last['images_per_second']:.1f} images/s")

    with Progress(*columns) as progress:
        watcher = threading.Thread(target=watch, args=(progress,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def fit(config: TrainJobConfig, *, callbacks: Sequence[UserCallback] = (), start: str | None = None) -> dict[str, Any]:
    """Train; the run's folder then holds ``model/`` (the final checkpoint), checkpoints, metrics.jsonl and pictures. Returns the report.

    Args:
        config: the run.
        callbacks: Ray Train's, called in its controller, such as at each checkpoint.
        start: URI of a checkpoint, of a run with this configuration, that a run without checkpoints of its own goes on from; None: it begins.

    Raises:
        ConfigError, StorageError, DataError, CheckpointError: what `uniovseg.runtime.doctor` finds wrong before anything is launched.
        TrainingError: the training failed for good; the message says why.
    """
    started = time.perf_counter()
    named = with_absolute_paths(config)
    config, output = with_files(named), Location.of(config.output)
    doctor.require(doctor.first_checks(config) + doctor.storage_checks(config))
    shards = ShardSet(config.data.train)
    filesystem, path = output.filesystem()
    parent, _, name = path.rpartition("/")
    tracked = tracked_run(config.tracking, name, config, {"job": "train", "init": str(named.init)}, folder=output, resume=True)
    with tracked as run, ray_session(doctor.slots(config)):
        log_datasets(run, config)
        doctor.require(doctor.cluster_checks(config, doctor.cluster_nodes(output)))
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "config": config.model_dump_json(),
                "rows_per_group": [group.rows for group in shards.groups],
                "uri": run.uri,
                "run_id": run.run_id,
                "start": start,
            },
            torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=parent,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=config.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
                logging_config=LoggingConfig(log_level="WARNING"),
                callbacks=list(callbacks),
            ),
        )
        try:
            with progress_bar(output, config.steps):
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError("the training failed", seen=" ".join(str(error).split())[-600:]) from error
        if result.return_value is not None:
            raise CheckpointError(result.return_value)
        if result.checkpoint is None:
            raise TrainingError("the training ended without a checkpoint", seen=config.output)
        with result.checkpoint.as_directory() as folder:
            for file in (checkpoint.MODEL, checkpoint.MANIFEST):
                storage.write_bytes(output / "model" / file, (Path(folder) / file).read_bytes())
            info = checkpoint.read_info(Path(folder))
        report = {
            "steps": info.step,
            "seconds": round(time.perf_counter() - started, 1),
            "checkpoint": f"{config.output}/model",
            "mlflow": run.describe(),
        }
        report |= {"metrics": info.metrics}
        report["registered"] = register_finished(run, config.tracking, output / "model")
        run.log_report(report, info.step)
        return report
