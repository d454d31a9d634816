import subprocess
import sys
from pathlib import Path

import pytest

from uniovseg.benchmarks import data
from uniovseg.benchmarks.data import DataBenchmarkConfig, cpu_seconds, measure_ray, synthetic_record, write_shards


@pytest.mark.cluster
def test_cpu_time_through_ray_is_that_of_the_epochs_after_the_first_by_their_samples(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataBenchmarkConfig(samples=4, masks=40, height=96, width=140, points=50, repeats=1, ray_epochs=2)
    shards = write_shards(tmp_path, [synthetic_record(config, index) for index in range(config.samples)])
    times = iter([10.0, 16.0])
    monkeypatch.setattr(data, "cpu_seconds", lambda: next(times))
    assert measure_ray(shards, config) == 6 / (2 * 4)


def test_cpu_time_of_other_processes_is_counted_unless_it_is_not_to_be() -> None:
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        with_it, without = cpu_seconds(), cpu_seconds([child.pid])
        child.stdin.write("\n")
    assert with_it - without > 0.2
