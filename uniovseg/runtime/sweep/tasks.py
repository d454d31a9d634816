"""The two tasks as a sweep needs them: what its values change, what a trial is, and the configuration that the best values make."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ray import tune

from uniovseg import storage
from uniovseg.checkpoint import located
from uniovseg.config import Config, load, validate
from uniovseg.errors import ConfigError
from uniovseg.runtime import doctor
from uniovseg.runtime.evaluate_words import WordsJobConfig
from uniovseg.runtime.match import MatchConfig
from uniovseg.runtime.sweep.config import LabelledTruth, ScalesTask, SweepConfig, TrainingTask
from uniovseg.runtime.sweep.measuring import measure
from uniovseg.runtime.sweep.scale_sets import ScaleSet
from uniovseg.runtime.sweep.scale_trial import ScaleTrial
from uniovseg.runtime.sweep.train_trial import TrialSettings, train_trial
from uniovseg.runtime.sweep.values import with_values
from uniovseg.runtime.tracking import Run
from uniovseg.runtime.train import TrainJobConfig, with_absolute_paths
from uniovseg.storage import Location


class Task(ABC):
    """What a sweep asks of its task.

    Attributes:
        base: what a trial's values change.
        job: the job as its file and the task's overrides say.
        figures: names of the figures that are shown, the one that ranks the trials last.
        slots: CPU slots that the sweep takes on a cluster of this machine.
        steps: optimizer steps of a trial; None where it is no training.
    """

    base: Config
    job: Config
    figures: tuple[str, ...]
    slots: int
    steps: int | None = None

    def check(self, config: SweepConfig) -> None:
        """Raise ConfigError where a value of the space is none that its key can have."""
        for key, space in config.space.items():
            for value in space.samples:
                with_values(self.base, {key: value})

    @abstractmethod
    def trainable(self, run: Run) -> Any:
        """What Tune runs, with its resources; `run` is the sweep's."""

    @abstractmethod
    def winner(self, values: Mapping[str, Any]) -> Config:
        """The job's configuration with the best values."""


class Scales(Task):
    """Scale sets: `base` is a set of all sizes with the matching rules of the job."""

    def __init__(self, config: SweepConfig, task: ScalesTask) -> None:
        self.task, self.output = task, Location.of(config.output)
        job = load(MatchConfig, task.match, task.overrides)
        self.job: MatchConfig = job.model_copy(update={"checkpoint": located(job.checkpoint)})
        self.base: ScaleSet = ScaleSet(sizes=task.sizes, matching=job.pairing.matching)
        self.figures = ("class_accuracy", "accuracy") if isinstance(task.truth, LabelledTruth) else ("precision", "recall", "f1")
        self.slots = max(job.pool.workers, config.max_concurrent) + 1
        self.measured_now = False

    def check(self, config: SweepConfig) -> None:
        """Also the sizes must be among the task's; ground-truth masks have no pairs to be confident of."""
        super().check(config)
        sizes = config.space.get("sizes")
        for value in sizes.samples if sizes else ():
            if strange := set(with_values(self.base, {"sizes": value}).sizes) - set(self.task.sizes):
                raise ConfigError("space.sizes: a size that is not measured", seen=min(strange), allowed=self.task.sizes, fix="add it to task.sizes")
        rules = [key for key in config.space if key.startswith("matching.") and key != "matching.cost"]
        if rules and isinstance(self.task.truth, LabelledTruth):
            raise ConfigError("every ground-truth mask is classified, so there is no confidence rule", seen=rules[0], allowed="sizes, matching.cost")

    def trainable(self, run: Run) -> Any:
        """Measure at all sizes, unless that is done, and write the matrices for the trials."""
        matrices = self.output / "matrices.npz"
        if not storage.exists(matrices):
            self.measured_now = not storage.list_files(self.output / "pairs", recursive=True)
            measure(self.task, self.job, self.output).save(matrices)
        trial = tune.with_parameters(ScaleTrial, matrices=matrices.uri, base=self.base, metric=self.figures[-1])
        return tune.with_resources(trial, {"CPU": 1})

    def winner(self, values: Mapping[str, Any]) -> MatchConfig:
        """The matching job with the best sizes and rules."""
        chosen = with_values(self.base, values)
        regions = self.job.regions.model_copy(update={"sizes": chosen.sizes})
        return self.job.model_copy(update={"regions": regions, "pairing": self.job.pairing.model_copy(update={"matching": chosen.matching})})


class Training(Task):
    """Training runs: `base` is the training job, its paths absolute, as trials have another working directory."""

    def __init__(self, config: SweepConfig, task: TrainingTask) -> None:
        self.task, self.trials = task, (Location.of(config.output) / "trials").uri
        tracking = config.tracking
        if tracking.uri is not None:
            tracking = tracking.model_copy(update={"uri": tracking.resolve()})
        self.job = load(TrainJobConfig, task.train, task.overrides)
        job = with_absolute_paths(self.job)
        kept = job.steps // job.checkpoint_every + 1 if config.scheduler.name == "pbt" else job.keep_checkpoints  # another trial may ask for any
        self.base: TrainJobConfig = job.model_copy(
            update={"tracking": tracking, "keep_checkpoints": kept, "output": (Location.of(config.output) / "best").uri}
        )
        self.figures = ("score",) if task.words is not None else ("val_box_iou", "val_point_iou", "score")
        self.slots = config.max_concurrent * doctor.slots(job) + 1
        self.steps = job.steps
        self.words = None if task.words is None else _absolute(task.words)

    def check(self, config: SweepConfig) -> None:
        """Also there must be something to score a trial by."""
        super().check(config)
        job, settings = self.base, config.scheduler
        if settings.name == "asha" and settings.grace_steps > job.steps:
            raise ConfigError(
                "scheduler.grace_steps: no trial is that long", seen=settings.grace_steps, allowed=f"at most steps, which is {job.steps}"
            )
        if self.words is not None:
            validate(WordsJobConfig, self.words | {"output": ""})
        elif job.validation.shards is None or not job.checkpoints_meet_validations:
            raise ConfigError(
                "a trial is scored by validations at the steps of its checkpoints",
                seen=f"validation.shards={job.validation.shards}, validation.every={job.validation.every}, checkpoint_every={job.checkpoint_every}",
                allowed="a validation set, and one of the two a multiple of the other", fix="set them in task.overrides",
            )  # fmt: skip

    def trainable(self, run: Run) -> Any:
        """A training below the sweep's MLflow run. The trial itself only waits; its workers take the CPUs."""
        tracking = self.base.tracking.model_copy(update={"parent": run.run_id, "register_as": None})
        settings = TrialSettings(base=self.base.model_copy(update={"tracking": tracking}), trials=self.trials, words=self.words).model_dump_json()
        # With parameters, not a partial: Tune writes that to a file, and the URI may hold credentials.
        return tune.with_resources(tune.with_parameters(train_trial, settings=settings, uri=run.uri), {"CPU": 0.01})

    def winner(self, values: Mapping[str, Any]) -> TrainJobConfig:
        """The training with the best values, to the folder ``best/``."""
        return with_values(self.base, values)


def _absolute(words: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an evaluation with absolute local paths."""
    paths = {key: Location.of(words[key]).uri for key in ("annotations", "images", "panoptic", "root") if words.get(key) is not None}
    return dict(words) | paths


def task_of(config: SweepConfig) -> Task:
    """The sweep's task. Raises ConfigError where its job's configuration cannot be used."""
    task = config.task
    return Scales(config, task) if isinstance(task, ScalesTask) else Training(config, task)
