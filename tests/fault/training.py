"""The training that faults are caused in, and what must come out of it, whatever happens on the way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from mlflow.tracking import MlflowClient

from tests.fault.deployment import Deployment, Job, logged, s3
from uniovseg import checkpoint, storage
from uniovseg.storage import Location

STEPS, EVERY = 80, 4
"""Steps of the run, and between its checkpoints, all of which are kept."""

EXPERIMENT = "faults"
TOLERANCE = 1e-5

GENERATOR = (
    "{dim: 32, encoder_layers: 1, encoder_heads: 4, encoder_points: 2, encoder_ffn_dim: 48, decoder_layers: 2, decoder_heads: 4, decoder_ffn_dim: 48}"
)

SETTINGS = (
    *("--config", "jobs/configs/stage1_shapes.yaml", f"steps={STEPS}", f"checkpoint_every={EVERY}", "keep_checkpoints=1000", "log_every=1"),
    *("batch_size=4", "data.view.size=64", "method.size=64", f"method.generator={GENERATOR}", "method.matching.grid=16", "method.loss.num_points=32"),
    *("method.train_points_per_side=2", "method.max_boxes=3", "optim.warmup_steps=5"),
    *("tracking.uri=null", f"tracking.experiment={EXPERIMENT}", "tracking.patience=300"),
)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has left.

    Attributes:
        losses: by step.
        checkpoints: weights and optimizer state of each whole checkpoint, by step.
        model: the final weights.
        delivered: the losses that MLflow has, in the order of their steps.
        status: of the MLflow run.
    """

    losses: Mapping[int, float]
    checkpoints: Mapping[int, Tensors]
    model: Tensors
    delivered: list[tuple[int, float]]
    status: str


class Training:
    """Starts runs of one configuration, and reads what they leave."""

    def __init__(self, deployment: Deployment, shards: str) -> None:
        self.deployment, self.shards = deployment, shards

    def output(self, name: str) -> str:
        """Where a run's files are."""
        return f"{self.deployment.bucket}/{name}"

    def start(self, name: str, *changes: str, variables: Mapping[str, str] | None = None) -> Job:
        """Submit a run, or submit it again."""
        places = (f"output={self.output(name)}", f"data.train={self.shards}")
        return self.deployment.submit("jobs/train.py", *SETTINGS, *places, *changes, variables=variables)

    def outcome(self, name: str) -> Outcome:
        """What the run has left; each file must be readable that says that it is whole."""
        output = Location.of(self.output(name))
        lines = [line for line in logged(output.uri) if "loss" in line]
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        files = storage.list_files(output, recursive=True)
        self._require_no_leftovers(output)
        kept = [file for file in files if file.name == checkpoint.MANIFEST and "/step_" in file.uri]
        client = MlflowClient(tracking_uri=self.deployment.tracking_uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
        points = sorted(client.get_metric_history(run.info.run_id, "loss"), key=lambda point: point.step)
        return Outcome(
            losses={int(line["step"]): line["loss"] for line in lines},
            checkpoints=dict(_read(file.uri.removesuffix(f"/{checkpoint.MANIFEST}")) for file in kept),
            model=_read(f"{output.uri}/model")[1],
            delivered=[(point.step, point.value) for point in points],
            status=run.info.status,
        )

    def _require_no_leftovers(self, output: Location) -> None:
        """No upload is left half done in the store, and no temporary file in the run's folder."""
        bucket, _, prefix = output.uri.removeprefix("s3://").partition("/")
        found = s3().list_multipart_uploads(Bucket=bucket, Prefix=prefix)
        assert not found.get("Uploads")
        assert not [file.uri for file in storage.list_files(output, (".tmp", ".part"), recursive=True)]


def _read(uri: str) -> tuple[int, Tensors]:
    """The step and all tensors of a checkpoint; a step's folder is named by its step."""
    with checkpoint.opened(uri) as folder:
        info = checkpoint.read_info(folder)
        tensors = dict(checkpoint.read_weights(folder))
        if (folder / checkpoint.OPTIMIZER).exists():
            tensors |= {f"optimizer.{name}": value for name, value in checkpoint.read_weights(folder, checkpoint.OPTIMIZER).items()}
    assert uri.endswith(("/model", f"/step_{info.step:07d}"))
    return info.step, tensors


def require_same(found: Outcome, expected: Outcome, lost: frozenset[int] = frozenset()) -> None:
    """A disturbed run ends where the undisturbed one does, with the same checkpoints but for those that may be `lost`, and MLflow has all of it."""
    assert all(map(math.isfinite, expected.losses.values())) and expected.losses[STEPS] < expected.losses[1]
    assert found.losses == pytest.approx(expected.losses, rel=0, abs=TOLERANCE)
    assert set(found.checkpoints) == set(range(EVERY, STEPS + 1, EVERY)) - lost
    for step, tensors in found.checkpoints.items():
        _require_close(tensors, expected.checkpoints[step])
    _require_close(found.model, expected.model)
    assert found.status == "FINISHED"
    assert [step for step, _ in found.delivered] == list(range(1, STEPS + 1))
    assert dict(found.delivered) == pytest.approx(found.losses, rel=1e-6)


def _require_close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=TOLERANCE, msg=name)
