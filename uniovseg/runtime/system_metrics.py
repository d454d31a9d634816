"""How busy the driver's machine is, and that of a training's rank 0, beside a run's own metrics: CPU, memory, disk, network and GPUs, as MLflow's pages
show them.

MLflow's monitors take the figures. Its thread, which would send them, ends for good at the first request that fails; so they go through the run's delivery.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

EVERY = 15.0
"""Seconds between two samples, in a short run."""

SAMPLES = 2000
"""In a long run samples are this share of its age apart: a run of months has some thousand samples, not a million."""


class SystemMetrics:
    """Samples while the block runs, and once at its end.

    Args:
        log: takes a step (seconds since `started`) and the figures.
        started: when the run began, seconds since 1970.
        prefix: of the figures' names; MLflow's page of system metrics shows those that begin with system/.
    """

    def __init__(self, log: Callable[[int, dict[str, float]], None], started: float, prefix: str = "system") -> None:
        self.log, self.started, self.prefix = log, started, prefix
        self._done = threading.Event()
        self._monitors = _monitors()
        self._thread = threading.Thread(target=self._work, daemon=True, name="system-metrics")

    def __enter__(self) -> "SystemMetrics":
        self.sample()  # the CPU's figure is over the time since the last sample: this one sets the clock
        for monitor in self._monitors:
            monitor.clear_metrics()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._log()

    def sample(self) -> dict[str, float]:
        """The figures now."""
        figures: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            figures |= {f"{self.prefix}/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return figures

    def _log(self) -> None:
        self.log(int(time.time() - self.started), self.sample())

    def _work(self) -> None:
        while not self._done.wait(max(EVERY, (time.time() - self.started) / SAMPLES)):
            self._log()


def _monitors() -> list[Any]:
    """MLflow's monitors of what there is: a container may have no network, a machine no GPU; that of NVIDIA's GPUs needs nvidia-ml-py."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(ImportError, RuntimeError, AttributeError):
            monitors.append(monitor())
    return monitors
