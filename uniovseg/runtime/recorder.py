"""Where a training worker's results go: the run's folder, MLflow, and Ray, to which each checkpoint is reported once it is whole.

A checkpoint is written to this machine's disk while the training waits, and uploaded by a thread while it goes on. When every rank's part is up, rank 0
writes the manifest, and only then all ranks report the checkpoint to Ray, which from then on counts it as the newest. A checkpoint that cannot be written
or uploaded, after the retries of `uniovseg.storage`, is given up; the training ends when that happens too often in a row. (Ray has uploads of its own, but
ends the training at the first that fails, and cannot be told that a checkpoint was not kept.)
"""

import hashlib
import json
import logging
import math
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from uniovseg import checkpoint, storage
from uniovseg.errors import StorageError, TrainingError
from uniovseg.parallel import largest_over_ranks
from uniovseg.pictures import Picture, encode_picture
from uniovseg.runtime.metrics import show_training
from uniovseg.runtime.tracking import Run
from uniovseg.storage import Location

logger = logging.getLogger(__name__)

AWAY_SECONDS = 60.0
"""How long a store that did not take metrics or pictures is left alone, so that the training goes on meanwhile."""

METRICS_BYTES = 20_000
"""Bytes a second that metrics.jsonl, which is written whole as a store knows no other way, may take at most; a checkpoint's lines are there with it."""


def _prefix(checkpoint: Location) -> str:
    """How the names of local folders begin that hold a checkpoint of the same run."""
    return f"checkpoint-{hashlib.sha256(checkpoint.uri.rpartition('/')[0].encode()).hexdigest()[:16]}-"


class Upload:
    """This rank's part of a checkpoint on its way to the run's folder, all but the manifest.

    Args:
        step, metrics: of the checkpoint.
        target: its folder.
        write: fills an empty local folder with this rank's part; None: there is none.
    """

    def __init__(self, step: int, metrics: dict[str, float], target: Location, write: Callable[[Path], None] | None) -> None:
        self.step, self.metrics, self.target = step, metrics, target
        self.error: Exception | None = None
        self.folder = Path(tempfile.gettempdir()) / f"{_prefix(target)}{uuid.uuid4().hex}"
        self._guarded(lambda: self.folder.mkdir(0o700))  # a full disk may have no room for a folder either
        if write is not None:
            self._guarded(lambda: write(self.folder), always=True)  # the other ranks may be waiting for this one in it
        self.thread = threading.Thread(target=self._guarded, args=(self._send,), daemon=True)
        self.thread.start()

    def commit(self) -> None:
        """Write the manifest, which makes the checkpoint one, and forget the local folder."""
        self._guarded(lambda: self._put(checkpoint.MANIFEST))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self) -> None:
        manifest = self.target / checkpoint.MANIFEST
        if (self.folder / checkpoint.MANIFEST).exists() and storage.exists(manifest):
            storage.delete(manifest)  # of an earlier attempt at this step: while the parts are replaced there is no checkpoint
        for name in sorted(path.name for path in self.folder.iterdir()):
            if name != checkpoint.MANIFEST:
                self._put(name)

    def _put(self, name: str) -> None:
        if (self.folder / name).exists():
            storage.upload_file(self.folder / name, self.target / name)

    def _guarded(self, call: Callable[[], None], *, always: bool = False) -> None:
        """Call and keep the first error; after an error only what is `always` to be done."""
        if self.error is None or always:
            try:
                call()
            except (OSError, StorageError) as error:
                self.error = self.error or error


class RayRecorder:
    """Sends a worker's results to the run's folder, to MLflow and to Ray. What killed workers of the run left on this machine's disk goes at the start.

    Args:
        run: the driver's MLflow run.
        output: the run's folder; metrics.jsonl and pictures/ are written there by rank 0.
        start: the step at which this attempt began; later lines of an earlier attempt are dropped from metrics.jsonl.
        tolerated: checkpoints in a row that may be lost.
        metric: by which Ray ranks checkpoints; one without it ranks lowest, and Ray logs an error for each that does not say so.
    """

    def __init__(self, run: Run, output: Location, start: int, tolerated: int = 0, metric: str | None = None) -> None:
        self.run, self.output, self.tolerated = run, output, tolerated
        self.unranked = {metric: -math.inf} if metric else {}
        self.lost = 0
        self.upload: Upload | None = None
        self.lines: list[str] = []
        for left in Path(tempfile.gettempdir()).glob(f"{_prefix(output / 'step')}*"):  # no rank keeps a checkpoint before all ranks have begun
            shutil.rmtree(left, ignore_errors=True)
        self.unwritten, self.next_write, self.away = False, 0.0, False
        self.files: dict[str, bytes] = {}
        if storage.exists(output / "metrics.jsonl"):
            old = storage.read_bytes(output / "metrics.jsonl").decode().splitlines()
            self.lines = [line for line in old if json.loads(line)["step"] <= start]
        for line in map(json.loads, self.lines):
            run.log(line.pop("step"), line)  # what an earlier attempt could not deliver; what MLflow has is left out

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line to metrics.jsonl, where it may appear a while later, show it on Ray's metrics endpoint and log to MLflow."""
        self.lines.append(json.dumps({"step": step} | metrics))
        self.unwritten = True
        if time.monotonic() >= self.next_write:
            self.write()
        show_training(self.output.name, step, metrics)
        self.run.log(step, metrics)

    def write(self) -> None:
        """Write the pictures and the lines of metrics.jsonl that are not there yet. What the store does not take is written later."""
        try:
            for name in list(self.files):
                storage.write_bytes(self.output / name, self.files[name])
                del self.files[name]
            if self.unwritten:
                data = ("\n".join(self.lines) + "\n").encode()
                storage.write_bytes(self.output / "metrics.jsonl", data)
                self.unwritten, self.next_write = False, time.monotonic() + len(data) / METRICS_BYTES
            self.away = False
        except StorageError as error:
            if not self.away:
                logger.warning("metrics and pictures are written later: %s", error)
            self.away, self.next_write = True, time.monotonic() + AWAY_SECONDS

    def pictures(self, step: int, pictures: dict[str, Picture]) -> None:
        """Write pictures beside the metrics and to MLflow."""
        self.files |= {f"pictures/{name}_{step:07d}.png": encode_picture(picture) for name, picture in pictures.items()}
        if not self.away or time.monotonic() >= self.next_write:
            self.write()
        self.run.log_pictures(step, pictures)

    def keep(self, name: str, data: bytes) -> str:
        """Write a file into the run's folder; where that fails the answer says so, as what the file is kept for is worse."""
        file = self.output / name
        try:
            storage.write_bytes(file, data)
        except StorageError as error:
            return f"{file.uri} (not kept: {error})"
        return file.uri

    def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
        """Begin to keep a checkpoint, after the one before it is settled."""
        self.settle()
        self.write()
        self.upload = Upload(step, metrics, self.output / f"step_{step:07d}", write)

    def settle(self, *, wait: bool = True) -> None:
        """Report the checkpoint that is being uploaded to Ray, when every rank's part is up. Every rank must call this, equally often.

        Args:
            wait: until it is; else a checkpoint that is not yet whole is left for a later call.

        Raises:
            TrainingError: more than `tolerated` checkpoints in a row could not be kept.
        """
        upload = self.upload
        if upload is None:
            return
        if wait:
            upload.thread.join()
        unfinished, failed = largest_over_ranks([upload.thread.is_alive(), upload.error is not None])
        if unfinished:
            return
        self.upload = None
        if not failed:
            upload.commit()
            (failed,) = largest_over_ranks([upload.error is not None])
        shutil.rmtree(upload.folder, ignore_errors=True)
        self.lost = self.lost + 1 if failed else 0
        if not failed:
            self._report(upload)
        elif self.lost > self.tolerated:
            raise TrainingError(
                f"{self.lost} checkpoints in a row could not be kept, the last at step {upload.step}", seen=upload.error or "another worker's error",
                fix="is there room, and may these workers write there? failed_checkpoints says how many may be lost",
            )  # fmt: skip
        else:
            logger.warning("the checkpoint of step %d is lost: %s", upload.step, upload.error or "another worker's part of it")

    def _report(self, upload: Upload) -> None:
        context = ray.train.get_context()
        kept = None
        if context.get_world_rank() == 0:
            place = context.get_storage()
            kept = Checkpoint(f"{place.experiment_fs_path}/{upload.target.name}", place.storage_filesystem)
        ray.train.report(
            {"step": upload.step} | self.unranked | upload.metrics, checkpoint=kept, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD
        )
