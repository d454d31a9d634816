"""Paths of one machine on a cluster of several, without a cluster."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray

from uniovseg.errors import ConfigError
from uniovseg.runtime import pool
from uniovseg.runtime.parts import run_parts
from uniovseg.runtime.pool import PoolConfig, over_items
from uniovseg.runtime.session import ray_session, require_shared

LOCAL = {"source": "s3://bucket/tars", "output": "runs/x"}


def nodes(*cpus: float) -> list[dict[str, Any]]:
    """Ray's own description of living nodes with these CPUs, and of one that has gone."""
    return [{"Alive": True, "Resources": {"CPU": count} if count else {}} for count in cpus] + [{"Alive": False, "Resources": {"CPU": 4.0}}]


@pytest.mark.parametrize(("cluster", "said"), [((8.0, 8.0), "has 2 nodes"), ((0.0,), "adds nodes on demand"), ((0.0, 8.0), "has 2 nodes")])
def test_parts_are_not_written_to_the_disks_of_several_nodes(monkeypatch: pytest.MonkeyPatch, cluster: tuple[float, ...], said: str) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(*cluster))
    work = MagicMock()
    with pytest.raises(
        ConfigError, match=f"the cluster {said}, and a path of one machine is not seen by the others; seen: output=runs/x; allowed: s3"
    ):
        run_parts([MagicMock()], work, "ingesting parts", 1, LOCAL)
    work.assert_not_called()
    require_shared({"source": "s3://bucket/tars", "output": "s3://bucket/x"})


def test_actors_of_several_nodes_do_not_read_and_write_their_own_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(8.0, 8.0))
    monkeypatch.setattr(pool, "ray_session", lambda _: nullcontext())
    with pytest.raises(ConfigError, match="the cluster has 2 nodes.*seen: output=runs/x"):
        next(over_items(PoolConfig(workers=2), lambda: str, [1, 2], LOCAL))
    assert list(over_items(PoolConfig(), lambda: str, [1, 2], LOCAL)) == ["1", "2"]  # in this process all paths are its own


def test_one_node_may_have_its_own_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(8.0))
    require_shared(LOCAL)


def test_an_address_that_is_none_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(ConfigError, match="cannot be reached; seen: RAY_ADDRESS=nowhere: "), ray_session(1):
        pass
