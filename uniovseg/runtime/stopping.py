"""How a training on many nodes is asked to stop, or to keep a checkpoint at once.

The driver turns a SIGTERM (``ray job stop``, ``kill``) into a file ``stop`` in the run's folder, which every node sees; writing that file by hand does the
same. A thread of rank 0 looks for it. After each step the ranks agree on what is asked, so that all keep the checkpoint of the same step. A node that is
about to be taken away (a spot instance) is known to Ray, which each rank asks every few steps; the training then keeps a checkpoint and goes on until it goes.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray.train

from uniovseg import storage
from uniovseg.errors import StorageError
from uniovseg.parallel import largest_over_ranks
from uniovseg.runtime.recorder import RayRecorder
from uniovseg.storage import Location
from uniovseg.training import Request

logger = logging.getLogger(__name__)

STOP = "stop"
"""Name of the file in the run's folder."""

LOOK_SECONDS = 1.0
"""How often rank 0 looks for the file."""

STEPS_A_PREEMPTION_CHECK = 10
"""How often the ranks ask Ray whether a node is about to go: a message to one actor, and a wait for all ranks."""

STOP_SECONDS = 110.0
"""How long the driver waits for the workers after a SIGTERM; then it ends without them. Spot nodes have 120 seconds."""


class WorkerRequests:
    """What is asked of this worker after each step (`uniovseg.training.Ask`); every rank has one.

    Args:
        output: the run's folder.
        recorder: its checkpoint on the way is settled in passing.
        rank: this worker's.
    """

    def __init__(self, output: Location, recorder: RayRecorder, rank: int) -> None:
        self.recorder = recorder
        self.stopped, self.over = threading.Event(), threading.Event()
        self.answered: object = None
        if rank == 0:
            threading.Thread(target=self._look, args=(output / STOP,), daemon=True).start()

    def _look(self, file: Location) -> None:
        while not self.over.is_set():
            try:
                if storage.exists(file):
                    self.stopped.set()
                    return
            except StorageError as error:
                logger.warning("cannot see whether the run is asked to stop: %s", error)
            self.over.wait(LOOK_SECONDS)

    def __call__(self, done: int) -> Request:
        """The ranks' answer after `done` steps."""
        self.recorder.settle(wait=False)
        request = Request.STOP if self.stopped.is_set() else Request.GO_ON
        if done % STEPS_A_PREEMPTION_CHECK == 0:
            interruption = ray.train.get_preemption_info()
            if interruption is not None and interruption != self.answered:
                self.answered = interruption
                request = max(request, Request.CHECKPOINT)
        return Request(largest_over_ranks([request])[0])


@contextmanager
def stopped_by_sigterm(output: Location) -> Iterator[None]:
    """While the block runs, a first SIGTERM asks the workers to keep a checkpoint and end, and a second one, or `STOP_SECONDS`, ends this process.

    In a thread other than the main one, where Python handles no signals, only the file is looked after.
    """
    asked, over = threading.Event(), threading.Event()

    def on_signal(*_: object) -> None:
        if asked.is_set():
            raise SystemExit(128 + signal.SIGTERM)
        asked.set()

    def watch() -> None:
        asked.wait()
        if over.is_set():
            return
        logger.warning("the run is asked to stop: it keeps a checkpoint and ends")
        try:
            storage.write_bytes(output / STOP, b"asked by a signal\n")
        except StorageError as error:
            logger.warning("the workers cannot be asked to stop: %s", error)
        if not over.wait(STOP_SECONDS):
            os.kill(os.getpid(), signal.SIGTERM)

    if storage.exists(output / STOP):
        storage.delete(output / STOP)
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, on_signal) if in_main else None
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        asked.set()
        watcher.join()
        if in_main:
            signal.signal(signal.SIGTERM, previous)
        if storage.exists(output / STOP):
            storage.delete(output / STOP)
