from pathlib import Path

import pytest

from uniovseg.benchmarks.data import DataBenchmarkConfig, measure_ray, synthetic_record, write_shards


@pytest.mark.cluster
def test_ray_s_cpu_time_is_counted_beside_our_own(ray_cluster: None, tmp_path: Path) -> None:
    """A sample through Ray Data costs some CPU time, mostly that of other processes than this one."""
    config = DataBenchmarkConfig(samples=4, masks=40, height=96, width=140, points=50, repeats=1, ray_epochs=2)
    shards = write_shards(tmp_path, [synthetic_record(config, index) for index in range(config.samples)])
    assert 0 < measure_ray(shards, config) < 60
