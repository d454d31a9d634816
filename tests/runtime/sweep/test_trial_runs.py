"""The MLflow runs of a training sweep's trials when the sweep is over."""

from typing import Any

from mlflow.tracking import MlflowClient

from uniovseg.runtime.sweep.trial_runs import close_training_trials
from uniovseg.runtime.sweep.tuner import TrialResult
from uniovseg.runtime.tracking import PARENT, Run


def result(trial: str, run: str, score: float, error: str = "") -> TrialResult:
    metrics: dict[str, Any] = {"score": score, "step": 4, "train_checkpoint": f"s3://bucket/sweep/trials/{run}/step_0000004"}
    return TrialResult(trial, {"optim.lr": 1e-3}, metrics, 1.0, error=error)


def test_runs_are_closed_and_the_one_that_a_trial_ended_with_has_its_score(mlflow_uri: str) -> None:
    client = MlflowClient(tracking_uri=mlflow_uri)
    parent = client.create_run("0").info.run_id
    # Tune ends a trial that it stops, whose run has then no time to close itself, or takes that for a failure.
    states = {"a": "FAILED", "a-after-b-2-ffffff": "FINISHED", "b": "RUNNING", "c": "FAILED", "d": "FAILED"}
    ids = {name: client.create_run("0", run_name=name, tags={PARENT: parent}).info.run_id for name in states}
    for name, status in states.items():
        client.update_run(ids[name], status=status)
    last = [result("a", "a-after-b-2-ffffff", 0.7), result("b", "b", 0.5), result("c", "c", 0.9), result("d", "d", 0.1, error="out of memory")]
    close_training_trials(Run(mlflow_uri, parent), last)
    found = {name: client.get_run(run_id) for name, run_id in ids.items()}
    assert {name: run.info.status for name, run in found.items()} == {
        "a": "KILLED", "a-after-b-2-ffffff": "FINISHED", "b": "KILLED", "c": "KILLED", "d": "FAILED",
    }  # fmt: skip
    scores = {name: run.data.metrics["score"] for name, run in found.items() if "score" in run.data.metrics}
    assert scores == {"a-after-b-2-ffffff": 0.7, "b": 0.5, "c": 0.9}
