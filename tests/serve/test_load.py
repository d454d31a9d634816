"""The load test itself, short: no failed request while a replica, then the HTTP process, is killed and the model is swapped."""

from pathlib import Path

import numpy as np
import pytest

from serve.load import LoadConfig, _memory, run


@pytest.mark.slow
@pytest.mark.cluster
def test_no_request_fails(tmp_path: Path) -> None:
    report = run(LoadConfig(output=str(tmp_path), clients=8, warm=0, seconds=45, kill_every=15, settle=10, http_seconds=30, deadline=300))
    for part in report.values():
        assert part["answered"] and part["kills"] and not part["failed"], part
    assert report["replica killed"]["models"].keys() == {"first", "second"}, "the update came while requests were under way"


def test_the_slope_is_that_of_processes_that_last() -> None:
    """One grows by 3 MiB a minute after a start that is not counted, one of its name by 2 that are shared, one is steady, one ends early."""
    samples = []
    for second in range(120):
        grown = 500 if second < 30 else 100 + 3 * second / 60
        sizes = {
            1: ("ray::ServeReplica:uniovseg:Segmenter", int(grown * 2**20), int(grown * 2**20)),
            2: ("ray::ProxyActor", 50 * 2**20, 40 * 2**20),
            4: ("ray::ServeReplica:uniovseg:Segmenter", int((100 + 2 * second / 60) * 2**20), 100 * 2**20),
        }
        samples.append((float(second), sizes | ({3: ("ray::ServeController", second * 2**20, 0)} if second < 100 else {})))
    found = _memory(samples, 30)
    assert (found["slope"], found["private_slope"]) == pytest.approx((5, 3), abs=1e-3)
    slopes = {name: np.round([item["slope"], item["private_slope"]], 3).tolist() for name, item in found["processes"].items()}
    assert slopes == {"Segmenter 1": [3, 3], "ProxyActor 2": [0, 0], "Segmenter 4": [2, 0]}
    assert _memory(samples[:35], 30)["slope"] is None
