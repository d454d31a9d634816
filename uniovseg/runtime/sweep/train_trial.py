"""A trial of a training sweep: one training run, whose validation goes to Tune, with a Tune checkpoint that says where the run's own checkpoint is.

Ray Train keeps the weights; Tune sees only the small `Origin`. A trial that population based training gives a better trial's checkpoint, and other
values, starts a new run from the better one's weights.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from ray import train, tune
from ray.util.queue import Empty, Queue

from uniovseg import checkpoint, storage
from uniovseg.config import Config, validate
from uniovseg.runtime.evaluate_words import WordsJobConfig, evaluate_semantic_job
from uniovseg.runtime.sweep.values import with_values
from uniovseg.runtime.tracking import IDENTITY, Run
from uniovseg.runtime.train import TrainJobConfig, fit, with_absolute_paths
from uniovseg.storage import Location

ORIGIN = "origin.json"

AFTER = "-after-"
"""In the name of a run: between the trial whose run it is and what it began from."""

PROMPT_METRICS = ("val_box_iou", "val_point_iou")
"""What the score of a validation is the mean of."""

PAUSE = 1.0
"""Seconds between two looks at whether the training has ended."""


class Origin(Config):
    """What a trial's Tune checkpoint holds."""

    values: dict[str, Any] = Field(..., description="the values it was trained with")
    output: str = Field(..., description="folder of the training run")
    checkpoint: str = Field(..., description="the run's own checkpoint")
    step: int = Field(..., ge=0, description="optimizer steps taken")


class TrialSettings(Config):
    """What all trials of a training sweep share."""

    base: TrainJobConfig = Field(..., description="the training, paths absolute, with the sweep's MLflow run as parent")
    trials: str = Field(..., description="folder of the trials' runs")
    words: dict[str, Any] | None = Field(None, description="settings of the evaluation with words that gives the score; null: validation")


class Forward(train.UserCallback):  # type: ignore[misc]
    """Puts what rank 0 reports with a checkpoint into a queue, from Ray Train's controller."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: train.Checkpoint | None) -> None:
        """Wait until the trial has taken the last report, so that the run does not go far ahead of the scheduler.

        A checkpoint between two validations has no score to report.
        """
        if checkpoint is not None and all(metrics[0].get(name, -math.inf) > -math.inf for name in PROMPT_METRICS):
            self.queue.put((metrics[0], Path(checkpoint.path).name))


def prompt_score(metrics: Mapping[str, float]) -> float:
    """The score of a validation: the mean of its 1-box and 1-point IoU."""
    return sum(metrics[name] for name in PROMPT_METRICS) / len(PROMPT_METRICS)


def train_trial(values: dict[str, Any], settings: str, uri: str | None = None) -> None:
    """What Tune runs for each trial.

    Args:
        values: the trial's, by key.
        settings: a `TrialSettings` as JSON.
        uri: the tracking URI of the sweep, which may be known to its driver alone; None: it has none.
    """
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    shared = validate(TrialSettings, json.loads(settings))
    job = with_values(shared.base, values)
    given = tune.get_checkpoint()
    job, start = _run_of(job, shared, values, tune.get_context().get_trial_id(), _origin(given) if given else None)
    if start is not None and (info := _info(start)).step >= job.steps:
        _report(
            {"step": info.step, "score": prompt_score(info.metrics)} | info.metrics,
            Origin(values=values, output=job.output, checkpoint=start, step=info.step),
        )
        return
    queue = Queue(maxsize=1, actor_options={"num_cpus": 0})
    training = _Training(job, start, Forward(queue))
    training.start()
    reported = False
    for metrics, name in _reports(queue, training):
        if shared.words is None:
            uri = (Location.of(job.output) / name).uri
            _report(metrics | {"score": prompt_score(metrics)}, Origin(values=values, output=job.output, checkpoint=uri, step=metrics["step"]))
            reported = True
    queue.shutdown()
    found = training.result()
    if not reported:  # the run had ended before, or its score comes at the end
        metrics = {"step": found["steps"]} | found["metrics"]
        metrics["score"] = _word_score(shared.words, job) if shared.words is not None else prompt_score(metrics)
        _report(metrics, Origin(values=values, output=job.output, checkpoint=f"{job.output}/model", step=found["steps"]))


class _Training(threading.Thread):
    """The training run, beside the trial's reports."""

    def __init__(self, job: TrainJobConfig, start: str | None, forward: Forward) -> None:
        super().__init__(daemon=True)
        self.job, self.begin, self.forward = job, start, forward
        self.found: dict[str, Any] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.found = fit(self.job, callbacks=[self.forward], start=self.begin)
        except Exception as error:
            self.error = error

    def result(self) -> dict[str, Any]:
        """The run's report, when it has ended; its error is raised."""
        self.join()
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found


def _reports(queue: Queue, training: threading.Thread) -> Iterator[tuple[dict[str, Any], str]]:
    """The queue's items until the training has ended and all are taken."""
    while True:
        ended = not training.is_alive()
        try:
            yield queue.get(timeout=PAUSE)
        except Empty:
            if ended:
                return


def _report(metrics: dict[str, Any], origin: Origin) -> None:
    folder = tempfile.mkdtemp()
    (Path(folder) / ORIGIN).write_text(origin.model_dump_json())
    tune.report(metrics | {"train_checkpoint": origin.checkpoint}, checkpoint=tune.Checkpoint.from_directory(folder))
    shutil.rmtree(folder, ignore_errors=True)


def _origin(given: tune.Checkpoint) -> Origin:
    with given.as_directory() as folder:
        return Origin.model_validate_json((Path(folder) / ORIGIN).read_text())


def _run_of(
    job: TrainJobConfig, shared: TrialSettings, values: dict[str, Any], trial: str, origin: Origin | None
) -> tuple[TrainJobConfig, str | None]:
    """The run that a trial goes on with, or begins, and the checkpoint that it begins from.

    From another trial's checkpoint, or one of other values, a new run begins, named by what it comes from.
    """
    first = Location.of(shared.trials) / trial
    if origin is None:
        return job.model_copy(update={"output": first.uri}), None
    donor = Location.of(origin.output).name.partition(AFTER)[0]
    if donor == trial and origin.values == values:
        return job.model_copy(update={"output": origin.output}), None
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    output = Location.of(shared.trials) / f"{trial}{AFTER}{donor}-{origin.step}-{digest[:6]}"
    job = job.model_copy(update={"output": output.uri})
    return job, transplant(origin.checkpoint, job)


def transplant(source: str, job: TrainJobConfig) -> str:
    """Copy a checkpoint of a run with other values to ``start/`` of the run `job`, as one of its own; returns its URI."""
    dumped = with_absolute_paths(job).model_dump(mode="json")
    target = Location.of(job.output) / "start"
    with storage.local_copy(source) as folder, tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        info = checkpoint.read_info(folder).model_copy(update={"config": dumped, "method": dumped["method"]})
        (Path(copy) / checkpoint.MANIFEST).write_text(info.model_dump_json(indent=2))
        storage.upload_folder(Path(copy), target, checkpoint.MANIFEST)
    return target.uri


def _info(uri: str) -> checkpoint.CheckpointInfo:
    return checkpoint.CheckpointInfo.model_validate_json(storage.read_bytes(Location.of(uri) / checkpoint.MANIFEST))


def _word_score(words: dict[str, Any], job: TrainJobConfig) -> float:
    """Mean IoU of the run's final model; the evaluation is a run of its own below the trial's."""
    run = _tracked(job)
    tracking = job.tracking.model_copy(update={"parent": run.run_id, "register_as": None})
    output = f"{job.output}/words"
    report = evaluate_semantic_job(
        validate(WordsJobConfig, words | {"checkpoint": f"{job.output}/model", "output": output, "tracking": tracking.model_dump(), "pictures": 0})
    )
    miou = float(report["semantic"]["miou"])
    with run:
        run.log(job.steps, {"miou": miou})
    return miou


def _tracked(job: TrainJobConfig) -> Run:
    """The MLflow run of a training; one that is off without tracking."""
    uri, identity = job.tracking.resolve(), Location.of(job.output) / IDENTITY
    if uri is None:
        return Run(None, None)
    return Run(uri, json.loads(storage.read_bytes(identity))["run_id"], Location.of(job.output), job.tracking.patience)
