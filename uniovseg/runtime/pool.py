"""One function over many items: in this process, or on a pool of actors that each build it once. The results come in the items' order."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import ray
import torch
from pydantic import Field
from ray.util import ActorPool

from uniovseg.config import Config
from uniovseg.errors import UniOVSegError
from uniovseg.runtime.session import ray_session, require_shared
from uniovseg.threads import map_threads

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class PoolConfig(Config):
    """Where work is done."""

    workers: int = Field(0, ge=0, description="actors; 0: this process")
    at_once: int = Field(
        1, ge=1, description="items that an actor, or this process, works on at a time, a thread each; on few cores cheaper than actors"
    )
    cpus_per_worker: float = Field(1, ge=0, description="CPUs of an actor")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of an actor; a fraction shares one")


THREADS = "CPU threads of torch for each of the items at once; 0: as many as an actor has CPUs, in this process torch's own choice"
"""What `use_threads` does, as the description of a job's key."""


def use_threads(threads: int, pool: PoolConfig) -> None:
    """Have torch use that many threads in this process, an actor of the pool where there is one; 0: as many as an actor has CPUs, else unchanged."""
    wanted = threads or (int(pool.cpus_per_worker) if pool.workers else 0)
    if wanted:
        torch.set_num_threads(wanted)


class _Worker:
    """What an actor holds. It builds with the first item: what is raised then is that call's error, and not the actor's end."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._build, self._turn = build, threading.Lock()
        self._call: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> Any:
        with self._turn:
            self._call = self._call or self._build()
        return self._call(item)


def over_items(
    config: PoolConfig, build: Callable[[], Callable[[ItemT], ResultT]], items: Iterable[ItemT], uris: Mapping[str, str] | None = None
) -> Iterator[ResultT]:
    """Call what `build` returns on each item.

    Args:
        config: how many actors.
        build: makes the function (it loads the model); called once in each actor, so that it and the items must pickle. ``at_once`` threads call
            that function.
        items: what to call it on.
        uris: what the function reads and writes, by key, which all nodes must see; None: nothing but its item.

    Raises:
        ConfigError: one of `uris` is a local path, and the actors run on several nodes.
        UniOVSegError: as `build` or the function raises it; or an actor has died.
    """
    if not config.workers:
        yield from map_threads(build(), items, config.at_once)
        return
    with ray_session(config.workers + 1):
        require_shared(uris or {})
        worker = ray.remote(_Worker).options(num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker, max_concurrency=config.at_once)
        actors = [worker.remote(build) for _ in range(config.workers)]
        try:
            yield from ActorPool(actors * config.at_once).map(lambda actor, item: actor.run.remote(item), items)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UniOVSegError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            said = " ".join(str(error).split())[:300]
            raise UniOVSegError("a process of the pool has died", seen=said, fix="is its memory enough? then run the same command again") from None
        finally:
            for actor in actors:
                ray.kill(actor)
