import platform
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mlflow.entities import Run as StoredRun
from mlflow.tracking import MlflowClient
from pydantic import Field

from uniovseg.config import Config
from uniovseg.errors import ConfigError
from uniovseg.runtime.tracking import Run, TrackingConfig, tracked_run


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


def test_an_exception_ends_the_run_as_failed_and_goes_on(tracking: TrackingConfig) -> None:
    with pytest.raises(KeyboardInterrupt), tracked_run(tracking, "name", Outer()):
        raise KeyboardInterrupt
    assert only_run(tracking).info.status == "FAILED"


def test_credentials_are_refused_in_the_configuration_and_hidden_from_the_environment() -> None:
    secret = "postgresql://person:hunter2@db.example/mlflow"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught, tracked_run(TrackingConfig(uri=secret), "name", Outer()):
        pass
    assert "hunter2" not in str(caught.value)
    assert Run(secret, "abc").describe() == "abc in postgresql://db.example/mlflow"
    assert Run("https://mlflow.example", "abc").describe() == "abc in https://mlflow.example"
