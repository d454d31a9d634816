"""Training on Ray Train: the loop of `uniovseg.training` on N workers, fed by Ray Data, with Ray's checkpoints and one MLflow run.

The driver opens the MLflow run and closes it. Each worker builds the same method, takes its slice of every global batch, and reports; rank 0 logs. When a
worker dies Ray starts the group again, which goes on from the newest checkpoint; the same happens when a run's name is submitted again. As the plan of
samples and every random draw depend on the step alone, the losses then are those of a run without the failure, also with another number of workers.
"""

import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

import ray.train
import torch
from pydantic import Field, model_validator
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from uniovseg import checkpoint, storage
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import validate
from uniovseg.data.shards import ShardSet
from uniovseg.errors import CheckpointError, DeviceMemoryError, StorageError, TrainingError, TrainingStoppedError, UniOVSegError
from uniovseg.records import Batch
from uniovseg.runtime import doctor
from uniovseg.runtime.datasets import PlannedRows, ray_batches
from uniovseg.runtime.failures import FailureBudget, explained
from uniovseg.runtime.ray_storage import ray_filesystem
from uniovseg.runtime.recorder import RayRecorder
from uniovseg.runtime.registry import register_finished, with_files
from uniovseg.runtime.session import quiet_ray_data, ray_session
from uniovseg.runtime.stopping import WorkerRequests, stopped_by_sigterm
from uniovseg.runtime.system_metrics import SystemMetrics
from uniovseg.runtime.tracking import Resume, Run, TrackingConfig, log_datasets, tracked_run
from uniovseg.storage import Location
from uniovseg.training import TrainConfig, initial_method, local_batches, make_match, make_validation, sample_maker, train

logger = logging.getLogger(__name__)


class TrainJobConfig(TrainConfig):
    """A training run on Ray."""

    workers: int = Field(1, ge=1, description="training workers (processes); batch_size is divided over them")
    min_workers: int | None = Field(
        None, ge=1, description="with how many of the workers the run begins or goes on, as nodes come and go; null: with all of them only"
    )
    resize_seconds: float = Field(
        60,
        gt=0,
        description="with min_workers: how often a run looks for places for more (Ray knows of them within 20 s); it goes on from its newest checkpoint",
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs a worker; 0 trains on the CPU")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs a worker")
    placement: Literal["PACK", "SPREAD"] = Field("PACK", description="PACK: workers on as few nodes as they fit; SPREAD: on as many as there are")
    start_minutes: float = Field(10, gt=0, description="how long to wait until all workers have their places, for example while nodes start")
    autoscaled: bool = Field(
        False, description="the cluster adds nodes on demand: too few places at the launch are no error, the run waits for start_minutes"
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="how often the workers are started again after failures without a new checkpoint in between; lost spot nodes do not count",
    )
    failed_checkpoints: int = Field(2, ge=0, description="how many checkpoints in a row may be lost to a failing store or a full disk")
    resume: bool = Field(
        False, description="refuse to begin anew: the output must hold a checkpoint to go on from. Without it a run goes on if it can"
    )
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")

    @model_validator(mode="after")
    def _fewer_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers must be at most workers, which is {self.workers}")
        return self

    @property
    def describe_workers(self) -> str:
        """How many workers there are and what each takes, for people."""
        count = f"{self.workers}" if self.min_workers is None else f"{self.min_workers} to {self.workers}"
        return f"{count} of {self.cpus_per_worker:g} CPUs" + (f" and {self.gpus_per_worker:g} GPUs" if self.gpus_per_worker else "")


PATIENCE_SECONDS = 6 * 3600
"""How long workers wait for one another: while rank 0 validates, the others stand. (Ray itself sees a worker that has died.)"""


def train_worker(settings: dict[str, Any], uri: str | None = None) -> dict[str, str] | None:
    """What each Ray Train worker runs; returns ``error`` and ``kind`` of what all ranks have found and starting them again would not mend, if so.

    Args:
        settings: Ray shows them to people, and writes them to files.
        uri: the tracking URI, which may hold credentials.
    """
    quiet_ray_data()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train reports each checkpoint by a logger below the root
    try:
        _train(settings, uri)
    except DeviceMemoryError:
        raise  # of one rank alone: the others wait for it, so Ray has to end them
    except (CheckpointError, TrainingError) as error:
        return {"kind": type(error).__name__, "error": str(error)}
    return None


def _train(settings: dict[str, Any], uri: str | None) -> None:
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

    output = Location.of(config.output)
    newest = ray.train.get_checkpoint()
    begin = settings["start"] if newest is None else (output / Path(newest.path).name).uri
    match, validate_fn = make_match(config, method), make_validation(config) if rank == 0 else None
    tracked = Run(uri, settings["run_id"] if rank == 0 else None, output, config.tracking.patience)
    elsewhere = tracked.run_id is not None and socket.gethostname() != settings["host"]  # else the driver says how busy this machine is
    system = SystemMetrics(tracked.log, settings["started"], "system/rank_0") if elsewhere else nullcontext()
    with tracked as run, system, checkpoint.opened(begin) if begin else nullcontext() as folder:
        begun = _resumed_step(folder, rank, world_size) if folder else 0
        recorder = RayRecorder(run, output, begun, config.failed_checkpoints, config.keep_metric)
        requests = WorkerRequests(output, recorder, rank)
        try:
            train(
                config,
                method,
                batches,
                recorder,
                match=match,
                validate=validate_fn,
                ask=requests,
                resume=folder,
                layout=settings["layout"],
                rank=rank,
                world_size=world_size,
            )
        except DeviceMemoryError:
            raise  # of this rank alone: there is nobody to settle with
        except TrainingError:
            recorder.settle()
            raise
        finally:
            requests.over.set()
            recorder.write()
        recorder.settle()
        recorder.write()  # what the store did not take before


def _resumed_step(folder: Path, rank: int, world_size: int) -> int:
    """The step of the checkpoint to go on from; rank 0 says so when as many workers did not write it."""
    info = checkpoint.read_info(folder)
    if rank == 0 and info.workers != world_size:
        logger.warning("going on after step %d with world size %d; %d workers wrote the checkpoint", info.step, world_size, info.workers)
    return info.step


def with_absolute_paths(config: TrainJobConfig) -> TrainJobConfig:
    """`config` with the local paths made absolute: Ray's workers have another working directory."""
    data = config.data.model_copy(update={"train": Location.of(config.data.train).uri})
    shards, words = config.validation.shards, config.validation.words
    sets = {"shards": None if shards is None else Location.of(shards).uri, "words": None if words is None else words.with_absolute_paths()}
    validation = config.validation.model_copy(update=sets)
    method, weights = config.method, config.method.clip.weights
    if weights is not None and Path(weights).is_file():
        method = method.model_copy(update={"clip": method.clip.model_copy(update={"weights": Location.of(weights).uri})})
    init = None if config.init is None else checkpoint.located(config.init)
    paths = {"output": Location.of(config.output).uri, "init": init, "data": data, "validation": validation, "method": method}
    return config.model_copy(update=paths)


@contextmanager
def progress_bar(output: Location, steps: int) -> Iterator[None]:
    """Show the training's progress on the terminal while the block runs, from the metrics that rank 0 writes to the run's folder."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
    done = threading.Event()

    def watch(progress: Progress) -> None:
        task = progress.add_task("training", total=steps, shown="starting the workers")
        file, size = output / "metrics.jsonl", 0
        while not done.wait(2.0):
            with suppress(StorageError):  # not there yet, or the store is away for a while
                if (now := storage.size(file)) == size:
                    continue
                size = now
                lines = [json.loads(line) for line in storage.read_bytes(file).decode().splitlines()]
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


def scaling(config: TrainJobConfig) -> ScalingConfig:
    """How many workers Ray starts, where, and with what."""
    return ScalingConfig(
        num_workers=config.workers if config.min_workers is None else (config.min_workers, config.workers),
        elastic_resize_monitor_interval_s=config.resize_seconds,
        placement_strategy=config.placement,
        use_gpu=config.gpus_per_worker > 0,
        resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
    )


def start_tries(config: TrainJobConfig) -> int:
    """How often Ray may try to start all workers: each try waits for RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S."""
    return math.ceil(config.start_minutes * 60 / float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")))


def workers_of(output: Location) -> list[int]:
    """How many workers trained together, in the order of the run's steps, each change once."""
    lines = map(json.loads, storage.read_bytes(output / "metrics.jsonl").decode().splitlines())
    return [count for count, _ in groupby(int(line["workers"]) for line in lines if "workers" in line)]


def fit(config: TrainJobConfig, *, callbacks: Sequence[UserCallback] = (), start: str | None = None) -> dict[str, Any]:
    """Train; the run's folder then holds ``model/`` (the final checkpoint), checkpoints, metrics.jsonl and pictures. Returns the report.

    Args:
        config: the run.
        callbacks: Ray Train's, called in its controller, such as at each checkpoint.
        start: URI of a checkpoint, of a run with this configuration, that a run without checkpoints of its own goes on from; None: it begins.

    Raises:
        ConfigError, StorageError, DataError, CheckpointError: what `uniovseg.runtime.doctor` finds wrong before anything is launched.
        TrainingStoppedError: a SIGTERM, or the file ``stop`` in the run's folder, asked for it; a checkpoint is kept.
        TrainingError: the training failed for good; the message says why.
    """
    started = time.perf_counter()
    named = with_absolute_paths(config)
    config, output = with_files(named), Location.of(config.output)
    doctor.require(doctor.first_checks(config) + doctor.storage_checks(config))
    shards = ShardSet(config.data.train)
    filesystem, path = ray_filesystem(output)
    parent, _, name = path.rpartition("/")
    resume: Resume = "always" if doctor.run_checkpoints(output) else "same"  # what has a checkpoint is the same run, as the doctor has seen
    tracked = tracked_run(config.tracking, name, config, {"job": "train", "init": str(named.init)}, folder=output, resume=resume)
    with tracked as run, ray_session(doctor.slots(config)):
        log_datasets(run, config)
        doctor.require(doctor.cluster_checks(config, doctor.cluster_nodes(config)))
        trainer = TorchTrainer(
            partial(train_worker, uri=run.uri),
            train_loop_config={
                "config": config.model_dump_json(),
                "rows_per_group": [group.rows for group in shards.groups],
                "layout": shards.layout,
                "run_id": run.run_id,
                "started": run.started,
                "host": socket.gethostname(),
                "start": start,
            },
            torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo", timeout_s=PATIENCE_SECONDS),
            scaling_config=scaling(config),
            run_config=RunConfig(
                name=name,
                storage_path=parent,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=start_tries(config) - 1),
                checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints, checkpoint_score_attribute=config.keep_metric),
                logging_config=LoggingConfig(log_level="WARNING"),
                callbacks=[FailureBudget(config.max_failures, config.describe_workers), *callbacks],
            ),
        )
        try:
            with progress_bar(output, config.steps), stopped_by_sigterm(output):
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise explained(error, config.describe_workers) from error
        if result.return_value is not None:
            kinds: dict[str, type[UniOVSegError]] = {"CheckpointError": CheckpointError, "TrainingStoppedError": TrainingStoppedError}
            raise kinds.get(result.return_value["kind"], TrainingError)(result.return_value["error"])
        if result.checkpoint is None:
            raise TrainingError("the training ended without a checkpoint", seen=config.output)
        last = output / Path(result.checkpoint.path).name
        for file in (checkpoint.MODEL, checkpoint.MANIFEST):
            storage.write_bytes(output / "model" / file, storage.read_bytes(last / file))
        info = CheckpointInfo.model_validate_json(storage.read_bytes(last / checkpoint.MANIFEST))
        report = {
            "steps": info.step,
            "seconds": round(time.perf_counter() - started, 1),
            "checkpoint": f"{config.output}/model",
            "mlflow": run.describe(),
        }
        report |= {"metrics": info.metrics, "workers": workers_of(output)}
        if config.keep_metric and result.best_checkpoints:
            best, metrics = max(result.best_checkpoints, key=lambda kept: kept[1].get(config.keep_metric, -math.inf))
            report["best"] = {"checkpoint": f"{config.output}/{Path(best.path).name}", config.keep_metric: metrics.get(config.keep_metric)}
        report["registered"] = register_finished(run, config.tracking, output / "model")
        run.log_report(report, info.step)
        return report
