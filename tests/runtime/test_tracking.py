import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mlflow.entities import Run as StoredRun
from mlflow.tracking import MlflowClient
from pydantic import Field

from uniovseg.config import Config
from uniovseg.errors import ConfigError, TrainingStoppedError
from uniovseg.runtime import provenance
from uniovseg.runtime.system_metrics import SystemMetrics
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import Run, TrackingConfig, numbers, open_run, tracked_run
from uniovseg.storage import Location


class Inner(Config):
    lr: float = Field(3e-4, description="")


class Outer(Config):
    steps: int = Field(7, description="")
    optim: Inner = Field(Inner(), description="")
    tracking: TrackingConfig = Field(TrackingConfig(), description="")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and nothing of the caller's MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def tracking(mlflow_uri: str, request: pytest.FixtureRequest) -> TrackingConfig:
    """An experiment for each test."""
    return TrackingConfig(uri=mlflow_uri, experiment=request.node.name)


def only_run(tracking: TrackingConfig) -> StoredRun:
    client = MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_without_an_uri_nothing_is_tracked_or_written(tmp_path: Path) -> None:
    with tracked_run(TrackingConfig(), "name", Outer()) as run:
        run.log(1, {"loss": 1.0})
        run.log_pictures(1, {"a": np.zeros((4, 4, 3), np.uint8)})
        run.log_file(tmp_path / "not there")
    assert run.run_id is None and run.describe() == "off (no tracking URI)"
    assert list(tmp_path.iterdir()) == []


def test_mlflow_is_not_imported_before_it_is_used() -> None:
    code = "import sys, uniovseg.runtime.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_configuration_goes_before_the_environment_and_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/environment.db")
    assert TrackingConfig().resolve() == f"sqlite:///{tmp_path}/runs/environment.db"
    assert TrackingConfig(uri="sqlite:////data/own.db").resolve() == "sqlite:////data/own.db"
    assert TrackingConfig(uri="https://mlflow.example:5000").resolve() == "https://mlflow.example:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert TrackingConfig().resolve() is None


def test_a_run_holds_parameters_metrics_pictures_and_ends_finished(tracking: TrackingConfig, tmp_path: Path) -> None:
    picture = np.zeros((5, 6, 3), np.uint8)
    picture[..., 0] = 200
    (tmp_path / "note.txt").write_text("hello")
    with tracked_run(tracking, "run name", Outer(tracking=tracking), tags={"who": "test"}) as run:
        assert run.describe() == f"{run.run_id} in {tracking.uri}"
        with Run(run.uri, run.run_id) as worker:  # what a worker makes of the two strings
            worker.log(1, {"loss": 2.0, "broken": float("nan"), "endless": float("inf")})
            worker.log(2, {"loss": 1.0, "share of 1+2": 0.5})
            worker.log_pictures(2, {"masks": picture})
            worker.log_file(tmp_path / "note.txt")
        assert only_run(tracking).info.status == "RUNNING"
    assert TrackingConfig().resolve() is None  # the next job of this process is not tracked unless it says so
    found = only_run(tracking)
    assert (found.info.status, found.info.run_name, found.data.tags["who"]) == ("FINISHED", "run name", "test")
    expected = {"steps": "7", "optim.lr": "0.0003", "tracking.uri": tracking.uri, "tracking.experiment": tracking.experiment}
    assert found.data.params == expected | {"tracking.parent": "None", "tracking.register_as": "None", "tracking.patience": "30.0"}
    client = MlflowClient(tracking_uri=tracking.uri)
    assert [(item.step, item.value) for item in client.get_metric_history(found.info.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    own = {name for name in found.data.metrics if not name.startswith("system/")}
    assert own == {"loss", "share of 1_2"}
    assert 0 <= found.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert found.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert found.data.tags["environment.torch"] == torch.__version__.partition("+")[0] or found.data.tags["environment.torch"] == torch.__version__
    assert found.data.tags["environment.python"] == platform.python_version()
    assert client.list_artifacts(found.info.run_id) and Path(found.info.artifact_uri).is_relative_to(Path(str(tracking.uri)[10:]).parent)
    assert Path(client.download_artifacts(found.info.run_id, "note.txt")).read_text() == "hello"
    assert "steps: 7\noptim:\n  lr: 0.0003\n" in Path(client.download_artifacts(found.info.run_id, "config.yaml")).read_text()
    stored = cv2.imread(client.download_artifacts(found.info.run_id, "pictures/step_0000002/masks.png"))
    assert stored is not None and np.array_equal(stored[..., ::-1], picture)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED"), (TrainingStoppedError("stopped"), "KILLED")], ids=repr
)
def test_an_exception_ends_the_run_as_failed_or_killed_and_goes_on(tracking: TrackingConfig, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), tracked_run(tracking, "name", Outer()):
        raise error
    assert only_run(tracking).info.status == status


def test_credentials_are_refused_in_the_configuration_and_hidden_from_the_environment() -> None:
    secret = "postgresql://person:hunter2@db.example/mlflow"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught, tracked_run(TrackingConfig(uri=secret), "name", Outer()):
        pass
    assert "hunter2" not in str(caught.value)
    assert Run(secret, "abc").describe() == "abc in postgresql://db.example/mlflow"
    assert Run("https://mlflow.example", "abc").describe() == "abc in https://mlflow.example"


def test_a_run_inside_another_is_its_child(tracking: TrackingConfig) -> None:
    with tracked_run(tracking, "outer", Outer()) as outer:
        with tracked_run(tracking, "inner", Outer()) as inner:
            assert open_run() is inner
        assert open_run() is outer
    with tracked_run(tracking, "elsewhere", Outer(), parent=outer.run_id) as given:
        pass
    with tracked_run(tracking.model_copy(update={"parent": outer.run_id}), "trial", Outer()) as configured:
        pass
    client = MlflowClient(tracking_uri=tracking.uri)
    parents = [client.get_run(run.run_id).data.tags.get("mlflow.parentRunId") for run in (outer, inner, given, configured)]
    assert parents == [None, outer.run_id, outer.run_id, outer.run_id]
    assert open_run().run_id is None


def test_the_machine_of_rank_0_has_figures_of_its_own() -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    with SystemMetrics(lambda step, figures: logged.append((step, figures)), time.time() - 100, "system/rank_0"):
        pass
    ((step, figures),) = logged
    assert step >= 100 and 0 <= figures["system/rank_0/cpu_utilization_percentage"] <= 100
    assert all(name.startswith("system/rank_0/") for name in figures)


def test_a_job_submitted_again_is_one_run_and_another_folder_another(tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = []
    for folder, steps in (("a", 1), ("a", 2), ("b", 2)):
        with tracked_run(tracking, "job", Outer(steps=steps), folder=Location.of(tmp_path / folder), resume="always") as run:
            ids.append(run.run_id)
            run.log(steps, {"loss": 1.0})
    assert ids[0] == ids[1] != ids[2]
    client = MlflowClient(tracking_uri=tracking.uri)
    found = client.get_run(ids[0])
    assert (found.info.status, found.data.params["steps"]) == ("FINISHED", "1")
    assert [item.step for item in client.get_metric_history(ids[0], "loss")] == [1, 2]


def test_a_job_that_has_kept_nothing_yet_is_the_same_run_only_with_the_same_configuration(tracking: TrackingConfig, tmp_path: Path) -> None:
    """A run keeps the parameters that it began with, so that another configuration would be shown as the first one's."""
    runs = []
    for steps in (1, 1, 2, 1):
        with tracked_run(tracking, "job", Outer(steps=steps), folder=Location.of(tmp_path), resume="same") as run:
            runs.append(run.run_id)
    assert runs[0] == runs[1] and len(set(runs)) == 3
    client = MlflowClient(tracking_uri=tracking.uri)
    assert [client.get_run(run).data.params["steps"] for run in runs] == ["1", "1", "2", "1"]


@pytest.mark.parametrize("uri", ["https://me:hunter2@mlflow.example", "https://mlflow.example?token=hunter2"])
def test_a_tracking_uri_with_secrets_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ConfigError, match="tracking.uri holds credentials or a query") as caught:
        TrackingConfig(uri=uri).resolve()
    assert "hunter2" not in str(caught.value)


def test_a_report_s_numbers_without_tables_and_lists() -> None:
    report = {"a": 1, "b": {"c": 0.5, "per_class": {"1": 2.0}, "d": {"e": 2}}, "yes": True, "text": "x", "list": [1], "none": None}
    assert numbers(report | {"table": {str(index): index for index in range(51)}}) == {"a": 1.0, "b.c": 0.5, "b.d.e": 2.0}


class TrackedJob(Config):
    output: str = Field(..., description="")
    data: str = Field(..., description="")
    missing: str = Field("no/such/folder", description="")
    tracking: TrackingConfig = Field(TrackingConfig(), description="")


@tracked("example")
def example(config: TrackedJob) -> dict[str, Any]:
    open_run().log(1, {"loss": 2.0})
    return {"score": {"iou": 0.5}}


def test_a_tracked_job_has_its_report_its_data_and_its_kind(tracking: TrackingConfig, shapes_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_shards, tmp_path / "result")
    job = TrackedJob(output=str(tmp_path / "result"), data=str(shapes_shards), tracking=tracking)
    assert example(job) == {"score": {"iou": 0.5}}
    found = only_run(tracking)
    assert (found.info.run_name, found.info.status, found.data.tags["job"]) == ("result", "FINISHED", "example")
    assert {name: value for name, value in found.data.metrics.items() if not name.startswith("system/")} == {"loss": 2.0, "score.iou": 0.5}
    digest = hashlib.sha256((shapes_shards / "manifest.json").read_bytes()).hexdigest()[:16]
    assert {key: value for key, value in found.data.tags.items() if key.startswith("manifest.")} == {
        "manifest.data": digest,
        "manifest.output": digest,
    }
    assert {(item.dataset.digest, item.tags[0].value) for item in found.inputs.dataset_inputs} >= {(digest, "data")}
    client = MlflowClient(tracking_uri=tracking.uri)
    assert json.loads(Path(client.download_artifacts(found.info.run_id, "report.json")).read_text()) == {"score": {"iou": 0.5}}


def test_the_commit_is_the_repository_s_or_the_environment_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(provenance.__file__).parents[2]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    monkeypatch.setenv("UNIOVSEG_GIT_COMMIT", "0" * 40)
    if head.returncode == 0:
        assert provenance.code_version()["git_commit"] == head.stdout.strip()
    copied = tmp_path / "job/uniovseg/runtime/provenance.py"  # as Ray unpacks a working directory: no repository
    monkeypatch.setattr(provenance, "__file__", str(copied))
    copied.parent.mkdir(parents=True)
    assert provenance.code_version() == {"git_commit": "0" * 40}
    monkeypatch.setenv("UNIOVSEG_GIT_DIRTY", "true")
    assert provenance.code_version() == {"git_commit": "0" * 40, "git_dirty": "true"}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # somebody else's repository around it says nothing of this code
    assert provenance.code_version()["git_commit"] == "0" * 40


@pytest.mark.slow
def test_jobs_that_begin_together_do_not_break_an_empty_store(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom uniovseg.config import Config\nfrom uniovseg.runtime.tracking import TrackingConfig, tracked_run\n"
        "with tracked_run(TrackingConfig(uri=sys.argv[1]), 'name', Config()): pass\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    jobs = [subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], errors
    client = MlflowClient(tracking_uri=command[-1])
    experiment = client.get_experiment_by_name("uniovseg")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 3
