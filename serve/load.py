"""Load and faults: many clients, a replica of the model that is killed again and again, a model swapped meanwhile; then the HTTP process killed.

The clients of the first part are plain: they repeat a request only where the answer was 503 with Retry-After. Those of the second are `uniovseg.client`.
The replica that is killed is always the youngest, so that the other lives through it all and its memory can be watched.
"""

import asyncio
import logging
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx2
import numpy as np
import psutil
from pydantic import Field
from rich.console import Console
from rich.table import Table

from serve.settings import ModelSource
from uniovseg.api import PromptRequest, SegmentRequest
from uniovseg.client import AsyncClient, ClientConfig
from uniovseg.config import Config
from uniovseg.data.shapes import SceneConfig, draw_scene, encode_image, scene_rng
from uniovseg.errors import UniOVSegError

APPLICATION = "uniovseg"

MODEL, HTTP = "Segmenter", "Ingress"
"""The deployments that are killed."""

LIVING = (f"ray::ServeReplica:{APPLICATION}", "ray::ProxyActor", "ray::ServeController")
"""Names of the processes whose memory is watched."""

SLOPE_TARGET = 1.0
"""MiB a minute."""


class LoadConfig(Config):
    """How hard and how long."""

    output: str = Field("runs/load_test", description="folder of report.json")
    clients: int = Field(50, ge=1, description="clients at a time")
    warm: float = Field(
        180.0, ge=0, description="seconds of the same load before the first part: processes that just began fill their pools meanwhile"
    )
    seconds: float = Field(120.0, gt=0, description="duration of the first part")
    kill_every: float = Field(20.0, gt=0, description="seconds between kills")
    settle: float = Field(30.0, ge=0, description="seconds after which memory is watched; the model is swapped when a sixth of it is over")
    http_seconds: float = Field(60.0, ge=0, description="duration of the second part")
    deadline: float = Field(120.0, gt=0, description="seconds for one call of `uniovseg.client`, and for one plain request")
    size: int = Field(128, ge=32, description="side of the images, pixels")
    seed: int = Field(0, ge=0, description="of the images and of what is asked")


@dataclass
class Tally:
    """What clients saw.

    Attributes:
        answers: how often which outcome, ``ok`` or what failed.
        models: how often a model of which name answered, where the caller counts it.
        waits: answers 503 with Retry-After.
        seconds: of each good answer.
    """

    answers: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    waits: int = 0
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Counts and latencies."""
        good = self.answers["ok"]
        latencies = {f"p{share}": float(np.percentile(self.seconds, share)) for share in (50, 95, 100)} if self.seconds else {}
        failed = {what: count for what, count in self.answers.items() if what != "ok"}
        return {"answered": good, "failed": sum(failed.values()), "failures": failed, "waits": self.waits, "seconds": latencies}


def run(config: LoadConfig) -> dict[str, Any]:
    """Run both parts on a cluster of its own, print a table, and return what was seen."""
    import ray
    from ray import serve

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    files = [
        encode_image(draw_scene(SceneConfig(size=config.size), scene_rng(config.seed, index, 1), held_out=False).image, 91) for index in range(8)
    ]
    ray.init(num_cpus=4, object_store_memory=256 * 1024**2, include_dashboard=False, logging_level=logging.WARNING)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy(port, config, "first")
        url = f"http://127.0.0.1:{port}"
        asyncio.run(_wait_until_ready(url, "first"))
        report = {"replica killed": asyncio.run(_first_part(url, port, config, files))}
        if config.http_seconds:
            report["HTTP process killed"] = asyncio.run(_second_part(url, config, files))
    finally:
        serve.shutdown()
        ray.shutdown()
    report["replica killed"]["targets"] = {
        "failed": {"value": report["replica killed"]["failed"], "target": "0", "met": not report["replica killed"]["failed"]},
        "MiB a minute": _slope_target(report["replica killed"]["memory"]),
    }
    _print(report)
    return report


def deploy(port: int, config: LoadConfig, name: str) -> None:
    """Declare the service with two replicas of the packaged model, called `name`; another name is an update of the configuration."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    arguments = {"replicas": 2, "cpus": 0.5, "replica": {"decoders": 1}, "queued": 4 * config.clients, "limits": {"seconds": config.deadline}}
    model = {"name": MODEL, "user_config": ModelSource(name=name).model_dump()}
    application = {"name": APPLICATION, "route_prefix": "/", "import_path": "serve.app:build", "args": arguments, "deployments": [model]}
    declared = {"http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": config.deadline + 30}, "applications": [application]}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(declared))


async def _wait_until_ready(url: str, name: str) -> None:
    """Wait until both replicas answer with the model of a name."""
    async with AsyncClient(url, config=ClientConfig(deadline_s=600)) as client:
        while len(pids_of(MODEL)) < 2 or (await client.models()).models[0].name != name:
            await asyncio.sleep(0.5)


async def _first_part(url: str, port: int, config: LoadConfig, files: Sequence[bytes]) -> dict[str, Any]:
    kills = list[int]()
    async with httpx2.AsyncClient(base_url=url, timeout=config.deadline, limits=httpx2.Limits(max_connections=None)) as http:

        async def ask(tally: Tally, rng: random.Random) -> str:
            request = _drawn(rng)
            path = "/v1/segment" if isinstance(request, SegmentRequest) else "/v1/prompt"
            parts: dict[str, Any] = {
                "image": ("image", rng.choice(files)),
                "request": (None, request.model_dump_json(exclude_none=True), "application/json"),
            }
            while True:
                reply = await http.post(path, files=parts)
                if reply.status_code != 503 or "Retry-After" not in reply.headers:
                    break
                tally.waits += 1
                await asyncio.sleep(float(reply.headers["Retry-After"]))
            if reply.status_code == 200:
                tally.models[reply.json()["model"]["name"]] += 1
                return "ok"
            return f"{reply.status_code} {reply.text[:100]}"

        async def all_ask(until: float) -> Tally:
            tally = Tally()
            draws = (random.Random(config.seed * 1000 + number) for number in range(config.clients))
            await asyncio.gather(*(_ask_until(until, partial(ask, tally), tally, rng) for rng in draws))
            return tally

        warm = (await all_ask(time.monotonic() + config.warm)).summary()
        until = time.monotonic() + config.seconds
        watch = asyncio.create_task(_watch_memory(until))
        update = asyncio.create_task(_later(config.settle / 6, lambda: deploy(port, config, "second")))
        killer = asyncio.create_task(_kill_often(MODEL, config.kill_every, until, kills))
        tally = await all_ask(until)
        await asyncio.gather(update, killer)
        samples = await watch
    return tally.summary() | {"warm": warm, "kills": len(kills), "models": dict(tally.models), "memory": _memory(samples, config.settle)}


async def _second_part(url: str, config: LoadConfig, files: Sequence[bytes]) -> dict[str, Any]:
    tally, kills = Tally(), list[int]()
    until = time.monotonic() + config.http_seconds
    async with AsyncClient(url, config=ClientConfig(deadline_s=config.deadline)) as client:

        async def ask(rng: random.Random) -> str:
            request = _drawn(rng)
            if isinstance(request, SegmentRequest):
                await client.segment(rng.choice(files), request)
            else:
                await client.prompt(await client.upload(rng.choice(files)), request)
            return "ok"

        killer = asyncio.create_task(_kill_often(HTTP, config.kill_every, until, kills))
        await asyncio.gather(*(_ask_until(until, ask, tally, random.Random(number)) for number in range(config.clients)))
        await killer
    summary = tally.summary() | {"kills": len(kills)}
    return summary | {"targets": {"failed": {"value": summary["failed"], "target": "0", "met": not summary["failed"]}}}


def _drawn(rng: random.Random) -> SegmentRequest | PromptRequest:
    if rng.random() < 0.3:
        return SegmentRequest(vocabulary=("red circle", "blue square", "grass"))
    return PromptRequest(points=((rng.uniform(1, 30), rng.uniform(1, 30)),))


async def _ask_until(until: float, ask: Callable[[random.Random], Awaitable[str]], tally: Tally, rng: random.Random) -> None:
    while time.monotonic() < until:
        since = time.monotonic()
        try:
            outcome = await ask(rng)
        except (httpx2.HTTPError, UniOVSegError) as error:
            outcome = f"{type(error).__name__} {error}"[:120]
        tally.answers[outcome] += 1
        if outcome == "ok":
            tally.seconds.append(time.monotonic() - since)
        else:
            await asyncio.sleep(0.1)  # a client that fails at once must not fill the table


async def _later(seconds: float, work: Callable[[], None]) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(work)


async def _kill_often(deployment: str, every: float, until: float, kills: list[int]) -> None:
    """SIGKILL the youngest replica of a deployment; of two, only while both are there."""
    least = 2 if deployment == MODEL else 1
    while time.monotonic() + every < until:
        await asyncio.sleep(every)
        alive = await asyncio.to_thread(pids_of, deployment)
        if len(alive) >= least:
            os.kill(alive[-1], signal.SIGKILL)
            kills.append(alive[-1])


_Sizes = dict[int, tuple[str, int, int]]


async def _watch_memory(until: float) -> list[tuple[float, _Sizes]]:
    """Each second: the time since the start, and name, resident and private bytes of each process of the service."""
    begin, samples = time.monotonic(), []
    while time.monotonic() < until:
        samples.append((time.monotonic() - begin, await asyncio.to_thread(_resident)))
        await asyncio.sleep(1)
    return samples


def _serving() -> list[tuple[str, psutil.Process]]:
    """Names and processes of the service, the oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            name = " ".join(process.cmdline())
            if name.startswith(LIVING):
                found.append((process.create_time(), name, process))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return [(name, process) for _, name, process in sorted(found, key=lambda item: item[0])]


def pids_of(deployment: str) -> list[int]:
    """Processes of a deployment, the oldest first."""
    return [process.pid for name, process in _serving() if name.startswith(f"ray::ServeReplica:{APPLICATION}:{deployment}")]


def _resident() -> _Sizes:
    sizes = {}
    for name, process in _serving():
        try:
            memory = process.memory_info()
            sizes[process.pid] = (name.split()[0], memory.rss, memory.rss - memory.shared)
        except psutil.NoSuchProcess:
            continue
    return sizes


def _memory(samples: Sequence[tuple[float, _Sizes]], settle: float) -> dict[str, Any]:
    """The slope in MiB a minute of each process that lived from `settle` to the end, and of all together; None where there was too little time.

    Of resident memory, and beside it of what is not shared: files and objects of Ray's store count as resident once they are touched. Each process'
    memory about every 10 s tells one that is still filling from one that leaks.
    """
    kept = [(at, sizes) for at, sizes in samples if at >= settle]
    if len(kept) < 10:
        return {"slope": None, "private_slope": None, "processes": {}}
    lasting = set.intersection(*(set(sizes) for _, sizes in kept))
    minutes = np.array([at for at, _ in kept]) / 60
    processes: dict[str, dict[str, Any]] = {}
    for pid in sorted(lasting):
        mib, private = np.array([sizes[pid][1:] for _, sizes in kept]).T / 1024**2
        name = kept[0][1][pid][0].removeprefix(f"ray::ServeReplica:{APPLICATION}:").removeprefix("ray::")
        processes[f"{name} {pid}"] = {
            "MiB": float(mib[-1]),
            "slope": float(np.polyfit(minutes, mib, 1)[0]),
            "private_slope": float(np.polyfit(minutes, private, 1)[0]),
            "every_10_s": [round(float(value), 1) for value in mib[::10]],
        }
    return {kind: sum(item[kind] for item in processes.values()) for kind in ("slope", "private_slope")} | {"processes": processes}


def _slope_target(memory: dict[str, Any]) -> dict[str, Any]:
    slope = memory["slope"]
    return {"value": slope, "target": f"below {SLOPE_TARGET:g}", "met": slope is not None and slope < SLOPE_TARGET}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def _print(report: dict[str, Any]) -> None:
    table = Table("part", "answered", "failed", "waits (503)", "kills", "p50 s", "p95 s", "longest s", title="Load and faults")
    for part, row in report.items():
        latencies = [f"{value:.2f}" for value in row["seconds"].values()]
        table.add_row(part, *(str(row[name]) for name in ("answered", "failed", "waits", "kills")), *latencies)
    console = Console()
    console.print(table)
    for part, row in report.items():
        for what, count in row["failures"].items():
            console.print(f"{part}: {count} x {what}")
        for name, target in row["targets"].items():
            console.print(f"{part}, {name}: {target['value']} (target: {target['target']}, {'met' if target['met'] else 'missed'})")
    for name, item in report["replica killed"]["memory"]["processes"].items():
        console.print(f"memory of {name}: {item['MiB']:.0f} MiB, {item['slope']:+.2f} MiB a minute ({item['private_slope']:+.2f} private)")
