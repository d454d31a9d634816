import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from uniovseg.benchmarks import feed
from uniovseg.benchmarks.object_store import ObjectStore
from uniovseg.data.makers import MaskSampleMaker
from uniovseg.data.samples import MaskSampleConfig
from uniovseg.data.views import ViewConfig
from uniovseg.errors import StorageError
from uniovseg.records import ImageMasks, MaskSample
from uniovseg.runtime.feeding import take_steps

ROOT = Path(__file__).parents[2]


def test_the_loader_s_processes_share_each_epoch(shapes_shards: Path, scenes: list[ImageMasks], monkeypatch: pytest.MonkeyPatch) -> None:
    maker = MaskSampleMaker(ViewConfig(size=32), MaskSampleConfig(), 0)
    keys = []
    for process in range(2):
        monkeypatch.setattr(feed, "get_worker_info", lambda process=process: SimpleNamespace(id=process, num_workers=2))
        samples: Iterator[MaskSample] = iter(feed._Rows(str(shapes_shards), maker))
        keys.append([sample.key for sample in islice(samples, 10)])
    expected = {scene.key for scene in scenes}
    cut = [next(number for number in range(1, 10) if set(keys[0][:number]) | set(keys[1][: 10 - number]) == expected)]
    assert cut  # there is a place at which the two first epochs together are the set


def test_waiting_is_what_the_next_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("uniovseg.runtime.feeding.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("uniovseg.runtime.feeding.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def batches() -> Iterator[SimpleNamespace]:
        while True:
            now[0] += 1.0
            yield SimpleNamespace(keys=("a", "b"))

    taken = take_steps(batches(), 5, 3.0)
    assert (taken.samples, taken.seconds, taken.waited) == (10, 20.0, 5.0)


def test_a_round_that_the_machine_disturbed_does_not_decide() -> None:
    def of_round(ray: float, late: float) -> dict[str, feed.Line]:
        loader, worker = feed.Line("DataLoader", 10, 1.0, 2.0, 1.0), feed.Line("Ray Data, 1 worker", 10, 1.0, 2.0 * ray, 1.0)
        one, two = feed.Line("late requests, 1 worker", 10, 6.0, 1.0, 6.0), feed.Line("late requests, 2 workers", 20, 12.0 / late, 1.0, 1.0)
        return {line.name: line for line in (loader, worker, one, two)}

    cpu, late = feed._ratios([of_round(1.05, 1.9), of_round(1.6, 1.95), of_round(1.0, 0.7)]).values()
    assert cpu["value"] == pytest.approx(1.05) and cpu["met"] and cpu["rounds"] == pytest.approx([1.05, 1.6, 1.0])
    assert late["value"] == pytest.approx(1.9) and late["met"] and late["rounds"] == pytest.approx([1.9, 1.95, 0.7])


def test_without_the_store_s_programs_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StorageError, match=r"uniovseg\[dev\]"):
        ObjectStore(tmp_path / "store")


@pytest.mark.slow
def test_the_job_reports_rates_cpu_time_and_waiting(tmp_path: Path) -> None:
    kind = "samples: 16, masks: 40, height: 96, width: 140, view: 64, rows_per_group: 2"
    settings = [
        f"output={tmp_path}",
        f"large={{{kind}}}",
        f"small={{{kind}}}",
        "batch=2",
        "first=2",
        "steps=2",
        "rounds=1",
        "latency=0.01",
        "loader_processes=1",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/benchmark.py"), "feed", *settings], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    lines = report["lines"]
    assert len(lines) == 9 and all(line["samples_a_second"] > 0 and line["cpu_seconds_a_sample"] > 0 for line in lines.values())
    assert all(0 <= line["waiting"] <= 1 for line in lines.values())
    cpu = report["ratios"]["cpu: Ray Data / DataLoader"]
    assert cpu["value"] == pytest.approx(lines["Ray Data, 1 worker"]["cpu_seconds_a_sample"] / lines["DataLoader"]["cpu_seconds_a_sample"])
    late = report["ratios"]["late requests: 2 workers / 1 worker"]
    assert late["value"] == pytest.approx(
        lines["late requests, 2 workers"]["samples_a_second"] / lines["late requests, 1 worker"]["samples_a_second"]
    )
    assert late["met"] == (late["value"] >= 1.8)
