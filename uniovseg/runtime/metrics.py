"""Our figures on a node's Prometheus endpoint, where Ray shows them as ``ray_uniovseg_...`` beside its own; `cluster/monitoring` holds the dashboard.

A process that is not part of a Ray cluster may call these functions too: then nobody reads the figures.
"""

import functools
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

TRAINING = {
    "step": ("uniovseg_step", "optimizer steps done"),
    "loss": ("uniovseg_loss", "training loss, mean since the last line"),
    "images_per_second": ("uniovseg_images_per_second", "images trained on a second, over all workers"),
    "data_wait_share": ("uniovseg_data_wait_share", "share of the time that rank 0 waits for its next batch, 0 to 1"),
    "pairs": ("uniovseg_pairs_per_image", "matched pairs an image: of masks in stage 1, of mask and entity in stage 2"),
}
"""The gauges of a training run by the training loop's names: name and meaning. They are tagged with the run."""

PARTS = {
    "samples": ("uniovseg_samples", "samples kept"),
    "pairs": ("uniovseg_pairs", "pairs of a mask and an entity"),
    "rejects": ("uniovseg_rejects", "samples rejected, by reason"),
}
"""The counters of the jobs that write shard sets: name and meaning. They are tagged with the set's folder; Prometheus sees them end in ``_total``."""


@functools.cache
def _gauge(name: str, meaning: str) -> Gauge:
    return Gauge(name, description=meaning, tag_keys=("run",))


@functools.cache
def _counter(name: str, meaning: str, tags: tuple[str, ...]) -> Counter:
    return Counter(name, description=meaning, tag_keys=tags)


def show_training(run: str, step: int, metrics: Mapping[str, float]) -> None:
    """Show what a training run logs at a step; metrics that are not in `TRAINING` are left to MLflow."""
    for key, value in {"step": step, **metrics}.items():
        if key in TRAINING:
            _gauge(*TRAINING[key]).set(float(value), tags={"run": run})


def count_part(output: str, *, samples: int, pairs: int, rejects: Mapping[str, int]) -> None:
    """Count what one finished part of a shard set holds.

    Args:
        output: name of the set's folder.
        samples: rows it keeps.
        pairs: pairs of a mask and an entity in them.
        rejects: rejected samples by reason.
    """
    for key, count in (("samples", samples), ("pairs", pairs)):
        if count:
            _counter(*PARTS[key], ("output",)).inc(count, tags={"output": output})
    for reason, count in rejects.items():
        _counter(*PARTS["rejects"], ("output", "reason")).inc(count, tags={"output": output, "reason": reason})
