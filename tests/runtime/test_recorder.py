"""Checkpoints on their way to the run's folder, with a store and a disk that fail, without a cluster."""

import errno
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray.train

from uniovseg import checkpoint, storage
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.errors import StorageError, TrainingError
from uniovseg.runtime import recorder as recorder_module
from uniovseg.runtime.recorder import RayRecorder, Upload
from uniovseg.runtime.tracking import Run
from uniovseg.storage import Location


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the checkpoints that Ray is told of, of which each is whole by then."""
    names: list[str] = []
    place = SimpleNamespace(experiment_fs_path=str(tmp_path), storage_filesystem=Location.of(tmp_path).filesystem()[0])
    context = SimpleNamespace(get_world_rank=lambda: 0, get_storage=lambda: place)

    def report(metrics: dict[str, float], checkpoint: ray.train.Checkpoint, **_: object) -> None:
        assert {path.name for path in Path(checkpoint.path).iterdir()} >= {"checkpoint.json", "model.safetensors"}
        names.append(Path(checkpoint.path).name)

    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "report", report)
    return names


def writer(step: int) -> Callable[[Path], None]:
    return lambda folder: checkpoint.save(folder, CheckpointInfo(step=step, method={}), {})


def full(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half of i")
    raise OSError(errno.ENOSPC, "No space left on device")


def whole(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{checkpoint.MANIFEST}"))


def test_a_checkpoint_is_reported_when_it_is_whole(reported: list[str], tmp_path: Path) -> None:
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0)
    recorder.settle()  # nothing is on its way
    recorder.checkpoint(3, writer(3), {})
    recorder.checkpoint(6, writer(6), {})
    assert reported == ["step_0000003"]
    assert whole(tmp_path) == ["step_0000003"]
    recorder.settle()
    assert reported == whole(tmp_path) == ["step_0000003", "step_0000006"]


def test_a_checkpoint_between_validations_is_reported_as_the_lowest(reported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray logs an error for each comparison with a checkpoint that lacks the metric."""
    told: list[dict[str, float]] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, **_: told.append(metrics))
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0, metric="val_box_iou")
    recorder.checkpoint(3, writer(3), {})
    recorder.checkpoint(6, writer(6), {"val_box_iou": 0.5, "val_point_iou": 0.25})
    recorder.settle()
    assert told == [{"step": 3, "val_box_iou": -math.inf}, {"step": 6, "val_box_iou": 0.5, "val_point_iou": 0.25}]


def test_lost_checkpoints_are_tolerated_and_leave_nothing_that_is_trusted(
    reported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0, tolerated=1)
    recorder.checkpoint(3, writer(3), {})
    recorder.checkpoint(6, full, {})
    recorder.settle()
    with monkeypatch.context() as patch:
        recorder.checkpoint(9, writer(9), {})  # a good one between: failures are counted in a row
        recorder.settle()

        def away(source: Path, target: Location) -> None:
            raise StorageError("uploading", seen="503")

        patch.setattr(storage, "upload_file", away)
        recorder.checkpoint(12, writer(12), {})
        recorder.settle()
        assert whole(tmp_path) == reported == ["step_0000003", "step_0000009"]
        recorder.checkpoint(15, writer(15), {})
        with pytest.raises(TrainingError, match="2 checkpoints in a row could not be kept, the last at step 15; seen: uploading; seen: 503"):
            recorder.settle()
    assert whole(tmp_path) == reported == ["step_0000003", "step_0000009"]


def test_a_disk_without_room_for_a_folder_loses_a_checkpoint_and_no_more(
    reported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path / "run"), 0, tolerated=1)
    with monkeypatch.context() as patch:
        (tmp_path / "nowhere").write_bytes(b"no folder")
        patch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        recorder.checkpoint(3, writer(3), {})
        recorder.settle()
        with pytest.raises(TrainingError, match="nowhere"):
            recorder.checkpoint(6, writer(6), {})
            recorder.settle()
    assert reported == whole(tmp_path / "run") == []


def test_a_rank_without_room_for_a_folder_still_meets_the_others(reported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    met: list[Path] = []
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path / "run"), 0, tolerated=1)
    recorder.checkpoint(3, met.append, {})  # what writes shards waits for every rank
    recorder.settle()
    assert len(met) == 1 and reported == []


def test_metrics_are_written_now_and_then_and_with_each_checkpoint(reported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(recorder_module, "time", SimpleNamespace(monotonic=lambda: now))

    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0)
    recorder.log(1, {"loss": 1.0})
    recorder.log(2, {"loss": 1.0})
    assert steps() == [1]
    now += (tmp_path / "metrics.jsonl").stat().st_size / recorder_module.METRICS_BYTES
    recorder.log(3, {"loss": 1.0})
    recorder.log(4, {"loss": 1.0})
    assert steps() == [1, 2, 3]
    recorder.checkpoint(4, writer(4), {})
    assert steps() == [1, 2, 3, 4]
    recorder.settle()
    again = RayRecorder(Run(None, None), Location.of(tmp_path), 2)
    again.write()
    assert steps() == [1, 2, 3, 4]  # nothing new
    again.log(3, {"loss": 2.0})
    assert steps() == [1, 2, 3]


def test_a_store_that_is_away_delays_metrics_and_pictures_and_stops_nothing(
    reported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, tries = 100.0, []
    monkeypatch.setattr(recorder_module, "time", SimpleNamespace(monotonic=lambda: now))
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0)

    def away(file: Location, data: bytes) -> None:
        tries.append(file.name)
        raise StorageError("writing", seen="503")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", away)
        recorder.log(1, {"loss": 1.0})
        recorder.log(2, {"loss": 2.0})
        recorder.pictures(2, {"everything": np.zeros((4, 4, 3), np.uint8)})
        assert tries == ["metrics.jsonl"]  # the training does not wait for it at every step
        now += recorder_module.AWAY_SECONDS
        recorder.log(3, {"loss": 3.0})
        assert tries == ["metrics.jsonl", "everything_0000002.png"]
    assert [record.getMessage() for record in caplog.records] == ["metrics and pictures are written later: writing; seen: 503"]
    recorder.log(4, {"loss": 4.0})
    assert list(tmp_path.iterdir()) == []
    recorder.checkpoint(4, writer(4), {})
    recorder.settle()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert (tmp_path / "pictures/everything_0000002.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_killed_worker_left_on_the_disk_goes_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uploads = [Upload(3, {}, Location.of(tmp_path / run / "step_0000003"), writer(3)) for run in ("run", "other")]
    for upload in uploads:
        upload.thread.join()
    RayRecorder(Run(None, None), Location.of(tmp_path / "run"), 0)
    assert [upload.folder.exists() for upload in uploads] == [False, True]


def test_a_batch_that_cannot_be_kept_hides_nothing(tmp_path: Path) -> None:
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0)
    assert Path(recorder.keep("kept/a.pt", b"batch")).read_bytes() == b"batch"
    (tmp_path / "not_finite").write_bytes(b"no folder")
    assert recorder.keep("not_finite/b.pt", b"batch").startswith(f"{tmp_path}/not_finite/b.pt (not kept: writing")


def test_while_a_checkpoint_is_replaced_there_is_none(reported: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = RayRecorder(Run(None, None), Location.of(tmp_path), 0)
    recorder.checkpoint(3, writer(3), {})
    recorder.settle()
    upload, seen = storage.upload_file, []

    def watched(source: Path, target: Location) -> None:
        seen.append((source.name, whole(tmp_path)))
        upload(source, target)

    monkeypatch.setattr(storage, "upload_file", watched)
    recorder.checkpoint(3, writer(3), {})
    recorder.settle()
    assert seen == [("model.safetensors", []), ("checkpoint.json", [])]
    assert whole(tmp_path) == ["step_0000003"]
