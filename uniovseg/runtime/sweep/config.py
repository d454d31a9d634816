"""What a sweep is: the task whose keys are varied, the spaces of the keys, how they are searched, and what stops a trial."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from uniovseg.config import Config
from uniovseg.data.shapes import SceneConfig
from uniovseg.data.views import CanvasSide
from uniovseg.evaluation.source import SourceConfig
from uniovseg.runtime.sweep.spaces import LISTS, Space
from uniovseg.runtime.tracking import TrackingConfig


class ShapesTruth(Config):
    """Pairs are right where the mask has an IoU of 0.5 with an object of the shapes world that the entity names."""

    name: Literal["shapes"] = Field("shapes", description="the shapes world's image-text set, drawn again")
    seed: int = Field(0, ge=0, description="the world's seed")
    scene: SceneConfig = Field(SceneConfig(), description="what its scenes look like")


class LabelledTruth(SourceConfig):
    """Ground-truth masks of a labelled set, and their classes (mask classification)."""

    name: Literal["labelled"] = Field("labelled", description="a labelled set")


class ScalesTask(Config):
    """Which canvas sizes, cost and confidence rule match masks and words best. Matching runs once, with all sizes; a trial reads what it found."""

    name: Literal["scales"] = Field("scales", description="sets of canvas sizes")
    match: str = Field(..., description="configuration of jobs/match.py")
    overrides: tuple[str, ...] = Field((), description="key=value changes of it")
    sizes: tuple[CanvasSide, ...] = Field(..., min_length=1, description="all canvas sides that the sets are made of, pixels")
    truth: ShapesTruth | LabelledTruth = Field(ShapesTruth(), discriminator="name", description="what is right")


class TrainingTask(Config):
    """Which settings of a training give the best model. A trial is a training run."""

    name: Literal["training"] = Field("training", description="training runs")
    train: str = Field(..., description="configuration of jobs/train.py")
    overrides: tuple[str, ...] = Field((), description="key=value changes of it")
    words: dict[str, Any] | None = Field(
        None,
        description="settings of jobs/evaluate.py semantic: the score is the final model's mIoU; null: the mean of 1-box and 1-point IoU of validation",
    )


class SearchConfig(Config):
    """How values are chosen."""

    name: Literal["grid", "random", "optuna"] = Field("grid", description="grid: every combination; random: independent draws; optuna: its TPE")
    trials: int = Field(8, ge=1, description="trials of random and optuna")
    seed: int = Field(0, ge=0, description="seed of random and optuna")


class SchedulerConfig(Config):
    """What stops a trial, or gives it another's weights."""

    name: Literal["none", "asha", "pbt"] = Field("none", description="asha: the worse trials end early; pbt: they take over a better one's weights")
    grace_steps: int = Field(1, ge=1, description="asha: optimizer steps before which no trial is stopped")
    reduction: int = Field(2, ge=2, description="asha: one trial of so many goes on")
    interval_steps: int = Field(1, ge=1, description="pbt: optimizer steps between two comparisons")
    synchronous: bool = Field(False, description="pbt: at each comparison all trials wait for one another; each then starts its workers anew")
    share: float = Field(0.25, gt=0, le=0.5, description="pbt: share of the trials that take over, and that are taken over")
    resample: float = Field(0.25, ge=0, le=1, description="pbt: probability that a value is drawn anew rather than moved a little")


class SweepConfig(Config):
    """A sweep."""

    output: str = Field(..., description="folder of the report, plots, trials and best.yaml")
    task: Annotated[ScalesTask | TrainingTask, Field(discriminator="name")] = Field(..., description="what is varied")
    space: dict[str, Space] = Field(
        ..., min_length=1, description="by key of the task, the values it takes: choice, grid, subsets, uniform, log_uniform"
    )
    search: SearchConfig = Field(SearchConfig(), description="how values are chosen")
    scheduler: SchedulerConfig = Field(SchedulerConfig(), description="what stops a trial")
    max_concurrent: int = Field(1, ge=1, description="trials at a time")
    resume: bool = Field(False, description="go on with the sweep in the output; on the command line also --resume")
    verbose: int = Field(1, ge=0, le=2, description="Tune's table of progress: 0 none, 2 with every result")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """A key's parts may also be nested, as the override ``space.optim.lr={...}`` makes them; it wins over the file's dotted key."""

        def leaves(prefix: str, item: Any) -> dict[str, Any]:
            if isinstance(item, dict) and item and all(isinstance(inner, dict) for inner in item.values()):
                return {name: leaf for key, inner in item.items() for name, leaf in leaves(f"{prefix}.{key}", inner).items()}
            return {prefix: item}

        if not isinstance(value, dict):
            return value
        return {name: leaf for key, item in value.items() for name, leaf in leaves(str(key), item).items()}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ranges = [key for key, space in self.space.items() if space.listed is None]
        if self.search.name == "grid" and ranges:
            raise ValueError(f"a grid search cannot try all of a range: {', '.join(ranges)}; allowed: {', '.join(LISTS)}, or search.name=random")
        stops_early = self.scheduler.name != "none"
        if stops_early and (self.task.name != "training" or self.task.words is not None):
            raise ValueError(f"scheduler {self.scheduler.name} needs scores during training; these trials have one at the end; allowed: none")
        if self.scheduler.name == "pbt" and self.search.name != "random":
            raise ValueError("scheduler pbt draws values itself; allowed with it: search.name=random")
        return self
