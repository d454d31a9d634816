"""A sweep in MLflow: each trial is a run below the sweep's."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uniovseg.runtime.delivery import connect, said
from uniovseg.runtime.sweep.train_trial import AFTER
from uniovseg.runtime.sweep.tuner import TrialResult
from uniovseg.runtime.tracking import PARENT, Run

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)


@contextmanager
def _unless_away(run: Run) -> Iterator[None]:
    """A tracking server that does not answer costs the trials' runs, not the sweep."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        logger.warning("the trials of run %s are not all logged: %s", run.run_id, said(error))


def _children(client: "MlflowClient", run: Run, experiment: str) -> "dict[str, StoredRun]":
    """The runs below a run, by name."""
    found: list[StoredRun] = []
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{PARENT}` = '{run.run_id}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return {child.info.run_name: child for child in found}


def log_scale_trials(run: Run, results: Sequence[TrialResult]) -> None:
    """Make a run of each trial that has none: its values are the parameters, its figures the metrics."""
    if run.uri is None or run.run_id is None:
        return
    from mlflow.entities import Metric, Param

    with _unless_away(run):
        client = connect(run.uri)
        experiment = client.get_run(run.run_id).info.experiment_id
        known = _children(client, run, experiment)
        for result in results:
            if result.trial in known:
                continue
            now = int(time.time() * 1000)
            child = client.create_run(experiment, run_name=result.trial, tags={PARENT: run.run_id, "job": "trial"}).info.run_id
            figures = [Metric(name, float(value), now, 0) for name, value in result.metrics.items() if np.isfinite(value)]
            client.log_batch(child, figures, [Param(key, str(value)[:500]) for key, value in result.values.items()])
            client.set_terminated(child, "FAILED" if result.error else "FINISHED")


def close_training_trials(run: Run, results: Sequence[TrialResult]) -> None:
    """Give the run that each trial ended with its score, and close as KILLED those that Tune stopped: they had no time to do it, or called it a failure.

    A trial that has taken over another's weights ended with another run than it began with: the one whose folder its last checkpoint is in.
    """
    if run.uri is None or run.run_id is None:
        return
    with _unless_away(run):
        client = connect(run.uri)
        experiment = client.get_run(run.run_id).info.experiment_id
        good = [result for result in results if not result.error]
        scores = {Path(result.metrics["train_checkpoint"]).parent.name: result.metrics for result in good}
        well = {result.trial for result in good}
        for name, child in _children(client, run, experiment).items():
            if child.info.status == "RUNNING" or (child.info.status == "FAILED" and name.partition(AFTER)[0] in well):
                client.set_terminated(child.info.run_id, "KILLED")
            if (metrics := scores.get(name)) is not None:
                client.log_metric(child.info.run_id, "score", float(metrics["score"]), step=int(metrics["step"]))
