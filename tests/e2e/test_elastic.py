"""A training that grows and shrinks with its cluster."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.test_jobs import SMALL, TRACKED, logged_losses, report_of, shards
from uniovseg import storage, training
from uniovseg.storage import Location

__all__ = ["shards"]  # a fixture, found here by its name

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def workers_at(output: str) -> dict[int, int]:
    """With how many workers each step was done that is logged by now."""
    found = Location.of(output) / "metrics.jsonl"
    lines = storage.read_bytes(found).decode().splitlines() if storage.exists(found) else []
    return {line["step"]: int(line["workers"]) for line in map(json.loads, lines) if "workers" in line}


def wait_until(happened: Callable[[], bool], job: "Future[str]") -> None:
    while not happened():
        assert not job.done(), job.result()
        threading.Event().wait(0.2)


def test_a_run_grows_and_shrinks_with_the_cluster(cluster: Cluster, bucket: str, shards: str, tmp_path: Path) -> None:
    """Workers as large as a node: two, three while there is a third node, and two. The losses are those of a single process."""
    validation = f"validation={{shards: {shards}, images: 2, points_per_side: 8, every: 1}}"  # makes the steps long enough
    same = (f"data.train={shards}", "init=shapes", "data.feed=threads", *SMALL, "steps=90")
    places = (f"output={bucket}/elastic", "workers=3", "min_workers=1", "cpus_per_worker=3", "resize_seconds=1")
    config = ("--config", "jobs/configs/stage1_shapes.yaml")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(cluster.submit, "jobs/train.py", *config, *same, *places, validation, *TRACKED)
        wait_until(lambda: len(workers_at(f"{bucket}/elastic")) > 3, job)
        with cluster.another_node(3):  # long enough for Ray to have heard of a checkpoint of the three: it asks every other second
            wait_until(lambda: list(workers_at(f"{bucket}/elastic").values()).count(3) > 20, job)
        job.result()
    assert report_of(f"{bucket}/elastic")["workers"] == [2, 3, 2]
    assert training.main([*config, *same, f"output={tmp_path}/alone", "validation.shards=null"]) == 0
    alone = {line["step"]: line["loss"] for line in map(json.loads, (tmp_path / "alone/metrics.jsonl").read_text().splitlines())}
    # Not closer: where rounding, which differs with the number of workers, exchanges two points of equal uncertainty, a loss changes by 3e-4.
    assert logged_losses(f"{bucket}/elastic") == pytest.approx(alone, rel=1e-3)
