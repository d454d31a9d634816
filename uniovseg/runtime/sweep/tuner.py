"""Ray Tune: from a sweep's configuration to its trials' results; a sweep that was stopped goes on where it was."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS, RESULT_DUPLICATE
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from uniovseg import storage
from uniovseg.config import Config, to_yaml
from uniovseg.errors import ConfigError, TrainingError
from uniovseg.runtime.ray_storage import ray_filesystem
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.spaces import Space
from uniovseg.storage import Location

TUNE = "tune"
"""Folder of the sweep that Tune writes to; TensorBoard reads it."""

SWEEP = "sweep.yaml"
"""Written when a sweep begins: what it is."""

MAY_CHANGE = {"resume", "verbose", "tracking"}
"""Keys that a sweep may be resumed with other values of."""

BOOKKEEPING = {*AUTO_RESULT_KEYS, "done", "trial_id", "experiment_tag", "should_checkpoint", RESULT_DUPLICATE}
"""What Tune adds to a report."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial gave.

    Attributes:
        trial: its id.
        values: its values by key; empty where it made no report.
        metrics: its last report, ``score`` among it; empty where it made none.
        seconds: how long it ran.
        ended: it is over; a sweep that is resumed does not try it again.
        error: why it failed; empty where it did not.
    """

    trial: str
    values: Mapping[str, Any]
    metrics: Mapping[str, Any]
    seconds: float
    ended: bool = True
    error: str = ""


def begin(config: SweepConfig, job: Config) -> None:
    """Refuse an output that holds another sweep, or one that is not to be resumed; else write down what this one is.

    Args:
        config: the sweep.
        job: what its files and overrides make of the job that is varied.

    Raises:
        ConfigError: `config` does not fit what the output holds.
    """
    file = Location.of(config.output) / SWEEP
    written = config.model_copy(update={key: SweepConfig.model_fields[key].default for key in MAY_CHANGE})
    plain = job.model_dump(mode="json", exclude={"tracking"})
    now = to_yaml(written) + yaml.safe_dump({"job": plain}, sort_keys=False)
    if storage.exists(file):
        if not config.resume:
            raise ConfigError("the output holds a sweep", seen=config.output, fix="--resume goes on with it; another output begins anew")
        if storage.read_bytes(file).decode() != now:
            raise ConfigError(
                "the output holds another sweep", seen=file.uri, allowed=f"changes of {', '.join(sorted(MAY_CHANGE))}",
                fix="the files that it is made of must be as they were too",
            )  # fmt: skip
    else:
        storage.write_bytes(file, now.encode())


def run_trials(config: SweepConfig, trainable: Any, steps: int | None) -> list[TrialResult]:
    """Run the trials that are left.

    Args:
        config: the sweep.
        trainable: what Tune runs, with its resources.
        steps: optimizer steps of a training; None for trials that report once.

    Raises:
        TrainingError: the sweep was interrupted, or no trial gave a score.
    """
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    _leave_credentials_where_they_are()
    filesystem, path = ray_filesystem(Location.of(config.output))
    place = f"{path}/{TUNE}"
    if tune.Tuner.can_restore(place, storage_filesystem=filesystem):
        tuner = tune.Tuner.restore(place, trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=filesystem)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=_param_space(config),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=_search(config),
                scheduler=_scheduler(config, steps),
                num_samples=1 if config.search.name == "grid" else config.search.trials,
                max_concurrent_trials=config.max_concurrent if config.search.name == "optuna" else None,  # the other search has its own limit
                reuse_actors=steps is None,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False) if steps is None else None,  # such a trial has nothing to keep
                verbose=config.verbose,
            ),
        )
    results = [_result(found) for found in tuner.fit()]
    done, expected = sum(result.ended for result in results), count_trials(config)
    if done < expected:
        raise TrainingError("the sweep was interrupted", seen=f"{done} of {expected} trials have ended", fix="--resume goes on with it")
    if all(result.error for result in results):
        raise TrainingError("every trial failed", seen=results[0].error[-600:])
    return results


def _leave_credentials_where_they_are() -> None:
    """Keep Tune from sending the driver's AWS keys to its trials: they would go in a runtime environment, which Ray writes to its logs.

    Every node has credentials of its own (`uniovseg.storage`).
    """
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update([name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


def count_trials(config: SweepConfig) -> int:
    """How many trials the sweep has."""
    if config.search.name != "grid":
        return config.search.trials
    return math.prod(len(space.samples) for space in config.space.values())


def _trial_id(trial: Trial) -> str:
    return str(trial.trial_id)


def _param_space(config: SweepConfig) -> dict[str, Any]:
    if config.search.name == "grid":
        return {key: tune.grid_search(space.listed) for key, space in config.space.items()}
    return {key: space.sampled() for key, space in config.space.items()}


def _search(config: SweepConfig) -> Searcher | SearchAlgorithm:
    if config.search.name == "optuna":
        return OptunaSearch(seed=config.search.seed)
    return BasicVariantGenerator(max_concurrent=config.max_concurrent, random_state=config.search.seed)


def _scheduler(config: SweepConfig, steps: int | None) -> TrialScheduler:
    settings = config.scheduler
    if settings.name == "asha":
        assert steps is not None
        return ASHAScheduler(time_attr="step", max_t=steps, grace_period=settings.grace_steps, reduction_factor=settings.reduction)
    if settings.name == "pbt":
        return PopulationBasedTraining(
            time_attr="step",
            perturbation_interval=settings.interval_steps,
            hyperparam_mutations={key: space.listed or space.sampled() for key, space in config.space.items()},
            quantile_fraction=settings.share,
            resample_probability=settings.resample,
            synch=settings.synchronous,
            custom_explore_fn=partial(within, config.space),
        )
    return FIFOScheduler()


def within(space: Mapping[str, Space], values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values, those of ranges moved to the nearest end where they have left it: Tune's population based training does not look."""

    def nearest(key: str, value: Any) -> Any:
        bounds = space[key].uniform or space[key].log_uniform
        return min(max(value, bounds[0]), bounds[1]) if bounds else value

    return {key: nearest(key, value) for key, value in values.items()}


def _result(found: tune.Result) -> TrialResult:
    last = found.metrics or {}
    error = " ".join(str(found.error).split()) if found.error else ""
    return TrialResult(
        trial=Path(found.path).name,
        values=dict(found.config or {}),
        metrics={key: value for key, value in last.items() if key not in BOOKKEEPING},
        seconds=float(last.get("time_total_s", 0.0)),
        ended=bool(last.get("done")) or bool(error),
        error=error,
    )
