"""A sweep from its configuration to its report: trials, a table, plots, runs in MLflow, and the best configuration as a file."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from uniovseg import storage
from uniovseg.config import to_yaml
from uniovseg.runtime.evaluate_words import to_csv
from uniovseg.runtime.reproduce.rows import wide_console
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.sweep import plots
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.sweep.tasks import Scales, Task, task_of
from uniovseg.runtime.sweep.trial_runs import close_training_trials, log_scale_trials
from uniovseg.runtime.sweep.tuner import TUNE, TrialResult, begin, run_trials
from uniovseg.runtime.sweep.values import with_values
from uniovseg.runtime.tracking import Run, tracked_run
from uniovseg.storage import Location

ROWS = 20
"""Trials that the table on the terminal has; the rest are in trials.csv."""


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Run the trials that are left; the output then holds trials.csv, best.yaml, plots, and what Tune wrote. Returns the report.

    Raises:
        ConfigError: a key or value cannot be used, or the output holds another sweep.
        TrainingError: the sweep was interrupted, or every trial failed.
        UniOVSegError: as the matching job.
    """
    started = time.perf_counter()
    output, task = Location.of(config.output), task_of(config)
    task.check(config)
    begin(config, task.job)
    tracked = tracked_run(config.tracking, output.name, config, {"job": "tune"}, folder=output, resume="always")
    with ray_session(task.slots), tracked as run:
        trainable = task.trainable(run)
        prepared = time.perf_counter() - started
        results = run_trials(config, trainable, task.steps)
        (log_scale_trials if task.steps is None else close_training_trials)(run, results)
        report = _write(config, task, results, run)
        report["seconds"] = round(time.perf_counter() - started, 1)
        if isinstance(task, Scales) and task.measured_now:
            report["cost"] = cost(task, results, prepared, report["seconds"])
        run.log_report(report)
    return report


def cost(task: Scales, results: Sequence[TrialResult], prepared: float, seconds: float) -> dict[str, float]:
    """What the sweep cost beside one run of matching and scoring with all sizes, and what a run for each set would cost.

    Args:
        task: the sweep's.
        results: its trials.
        prepared: seconds until everything was matched at all sizes.
        seconds: of the whole sweep.
    """
    sets = {with_values(task.base, result.values).sizes for result in results}
    scoring = [result.metrics["seconds"] for result in results if set(with_values(task.base, result.values).sizes) == set(task.task.sizes)]
    one = prepared + max(scoring, default=0.0)
    return {
        "one_run_seconds": round(one, 1),
        "sweep_over_one_run": round(seconds / one, 3),
        "naive_over_one_run": sum(len(sizes) for sizes in sets) / len(task.task.sizes),
        "scale_sets": len(sets),
    }


def _write(config: SweepConfig, task: Task, results: Sequence[TrialResult], run: Run) -> dict[str, Any]:
    """Write the table, the plots and the best configuration, to the output and to MLflow."""
    good = sorted((result for result in results if not result.error), key=lambda result: -float(result.metrics["score"]))
    failed = [result for result in results if result.error]
    files = {"trials.csv": to_csv([_row(config, task, result) for result in [*good, *failed]]).encode()}
    files["best.yaml"] = to_yaml(task.winner(good[0].values)).encode()
    files |= _plots(config, task, good)
    for name, data in files.items():
        storage.write_bytes(Location.of(config.output) / name, data)
        run.log_bytes(name, data)
    wide_console().print(table(config, task, good))
    for result in failed:
        Console().print(f"trial {result.trial} failed: {result.error[-300:]}", soft_wrap=True)
    return {
        "best": {"trial": good[0].trial, "values": dict(good[0].values), "figures": {name: good[0].metrics[name] for name in task.figures}},
        "best_config": f"{config.output}/best.yaml",
        "checkpoint": good[0].metrics.get("train_checkpoint"),
        "trials": len(results),
        "failed": len(failed),
        "table": f"{config.output}/trials.csv",
        "plots": [f"{config.output}/{name}" for name in files if name.endswith((".html", ".png"))],
        "tensorboard": f"{config.output}/{TUNE}",
        "mlflow": run.describe(),
    }


def _row(config: SweepConfig, task: Task, result: TrialResult) -> dict[str, Any]:
    """A trial as a line of trials.csv."""
    values = {key: plots.shown(result.values.get(key, "")) for key in config.space}
    figures = {name: result.metrics.get(name) for name in (*task.figures, *(["step"] if task.steps else []))}
    return {"trial": result.trial} | values | figures | {"seconds": round(result.seconds, 2), "error": result.error}


def table(config: SweepConfig, task: Task, results: Sequence[TrialResult]) -> Table:
    """The best trials for a terminal, given best first."""
    keys, figures = list(config.space), [*task.figures, *(["step"] if task.steps else [])]
    shown = Table(*keys, *figures, title=f"{config.output}: the best {min(ROWS, len(results))} of {len(results)} trials by {task.figures[-1]}")
    for result in results[:ROWS]:
        shown.add_row(*(plots.shown(result.values[key]) for key in keys), *(plots.shown(result.metrics[name]) for name in figures))
    return shown


def _plots(config: SweepConfig, task: Task, results: Sequence[TrialResult]) -> dict[str, bytes]:
    """The plots' files by name."""
    axes, title = plots.axes_of(config, results, task.figures), f"{len(results)} trials by {task.figures[-1]}"
    files = {"parallel.html": plots.parallel_html(title, axes).encode(), "parallel.png": plots.parallel_png(title, axes)}
    if "sizes" in config.space:
        bars, title, ranked = plots.best_by_set(results), "each set of canvas sizes with its best cost and rule", task.figures[-1]
        files |= {"scale_sets.html": plots.bars_html(title, bars, ranked).encode(), "scale_sets.png": plots.bars_png(title, bars, ranked)}
    return files
