"""What the service adds to the model: time of a lone request, throughput of many, what a cached image saves, and a plain FastAPI server beside it.

The model is the packaged one, whose step takes a quarter of a second or more on a CPU; prompts on a cached image are measured with the
paper's trunk at random weights. Every model runs on one thread of torch, in its own process; the library, the service and the plain server take
turns, so that nothing but two idle servers is beside what is measured.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve.load import free_port
from uniovseg import checkpoint
from uniovseg.api import PromptRequest, SegmentRequest
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.client import Client, ClientConfig
from uniovseg.config import Config
from uniovseg.data.images import decode_image
from uniovseg.data.shapes import SceneConfig, draw_scene, encode_image, scene_rng
from uniovseg.errors import DataError
from uniovseg.methods.mask_generation import MaskGenerationConfig, build_mask_generation
from uniovseg.models.clip import CHECKPOINT, ClipConfig
from uniovseg.segmenter import Segmenter

WORDS = ("red circle", "blue square", "green triangle", "grass")

STEP_TARGET = 0.25
"""Seconds that a model step takes at least, for the comparison to mean something."""

PATIENCE = ClientConfig(deadline_s=1800)


class ServeBenchmarkConfig(Config):
    """What is measured, and how often."""

    output: str = Field("runs/benchmark_serve", description="folder of report.json")
    seed: int = Field(0, ge=0, description="of the images")
    size: int = Field(256, ge=32, multiple_of=32, description="canvas of the packaged model, pixels: so large that a step takes 0.25 s or more")
    image: int = Field(256, ge=32, description="side of the images, pixels")
    images: int = Field(8, ge=1, description="different images")
    alone: int = Field(20, ge=1, description="requests of one client that are timed, and library calls; medians count")
    clients: tuple[int, ...] = Field((1, 8, 32), description="clients at a time")
    requests: int = Field(32, ge=1, description="requests of all clients together in a round")
    rounds: int = Field(2, ge=1, description="rounds for each number of clients")
    batch: int = Field(8, ge=1, description="images whose features are computed in one call, offline and in the service")
    trunk: str = Field("convnext_large_d_320", description="open_clip's name of the trunk whose prompts are measured, at random weights")
    trunk_size: int = Field(896, ge=32, multiple_of=32, description="its canvas, pixels")
    cold: int = Field(3, ge=0, description="prompts on images that the service has not seen; 0 leaves the trunk out")
    cached: int = Field(20, ge=1, description="prompts on a cached image")


Ask = Callable[[httpx2.AsyncClient, bytes], Awaitable[None]]
"""Sends one image and waits for its segments."""


def run(config: ServeBenchmarkConfig) -> dict[str, Any]:
    """Measure everything in one run, print it, and return seconds, images a second, and ratios with their targets."""
    torch.set_num_threads(1)
    files = [
        encode_image(draw_scene(SceneConfig(size=config.image), scene_rng(config.seed, index, 1), held_out=False).image, 91)
        for index in range(config.images)
    ]
    report: dict[str, Any] = {"model": f"shapes at {config.size} px", "threads": 1, "cores": os.cpu_count()}
    options = [f"replica.max_batch={config.batch}", f"changes={{size: {config.size}}}", "checkpoint=shapes"]
    service = served([sys.executable, "-m", "serve", *options], "/readyz", port_option=True)
    peer = served([sys.executable, "-m", "serve.peer", str(config.size)], "/openapi.json", port_option=False)
    with service as service_url, peer as peer_url:
        servers: dict[str, Ask] = {"service": partial(_ask_service, service_url), "peer": partial(_ask_peer, peer_url)}
        report |= asyncio.run(measure(config, Segmenter.load("shapes", changes={"size": config.size}), servers, files))
    if config.cold:
        report["prompts"] = measure_prompts(config)
    report["ratios"] = _ratios(report)
    _print(report)
    return report


async def measure(config: ServeBenchmarkConfig, segmenter: Segmenter, servers: dict[str, Ask], files: Sequence[bytes]) -> dict[str, Any]:
    """The median seconds of a library call and of a lone request, and images a second in batches and by the number of clients.

    They take turns, request by request and then round by round, since a shared machine's speed changes within a minute by more than they differ.
    """
    alone, throughput = defaultdict[str, list[float]](list), defaultdict[str, dict[int, float]](dict)
    async with httpx2.AsyncClient(timeout=1800, limits=httpx2.Limits(max_connections=None)) as http:
        segmenter.segment(decode_image(files[0]), WORDS)
        for ask in servers.values():
            await ask(http, files[0])
        for number in track(range(config.alone), "lone requests"):
            file = files[number % len(files)]
            alone["library"].append(_seconds(lambda file=file: segmenter.segment(decode_image(file), WORDS)))  # type: ignore[misc]
            for name, ask in servers.items():
                since = time.perf_counter()
                await ask(http, file)
                alone[name].append(time.perf_counter() - since)
        offline = list[float]()
        for clients in track(config.clients, "numbers of clients"):
            taken = dict.fromkeys(servers, 0.0)
            for _ in range(config.rounds):
                offline.append(_seconds(lambda: _in_batches(config, segmenter, files)))
                for name, ask in servers.items():
                    taken[name] += await _together(clients, config.requests, http, ask, files)
            for name, seconds in taken.items():
                throughput[name][clients] = config.rounds * config.requests / seconds
    return {
        "step": float(np.median(alone["library"])),
        "offline": config.requests * len(offline) / sum(offline),
        **{name: {"alone": float(np.median(alone[name])), "throughput": throughput[name]} for name in servers},
    }


def _in_batches(config: ServeBenchmarkConfig, segmenter: Segmenter, files: Sequence[bytes]) -> None:
    """All images of a round by the library."""
    for begin in range(0, config.requests, config.batch):
        numbers = range(begin, min(begin + config.batch, config.requests))
        for embedded in segmenter.method.embed_many([decode_image(files[number % len(files)]) for number in numbers]):
            segmenter.segment(embedded, WORDS)


async def _together(clients: int, requests: int, http: httpx2.AsyncClient, ask: Ask, files: Sequence[bytes]) -> float:
    """Seconds that some clients need for all requests."""
    left = iter(range(requests))

    async def client() -> None:
        for number in left:
            await ask(http, files[number % len(files)])

    since = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - since


async def _ask_service(url: str, http: httpx2.AsyncClient, file: bytes) -> None:
    request = SegmentRequest(vocabulary=WORDS).model_dump_json(exclude_none=True)
    reply = await http.post(f"{url}/v1/segment", files={"image": ("image", file), "request": (None, request, "application/json")})
    reply.raise_for_status()


async def _ask_peer(url: str, http: httpx2.AsyncClient, file: bytes) -> None:
    reply = await http.post(f"{url}/segment", files={"image": ("image", file)}, data={"words": ",".join(WORDS)})
    reply.raise_for_status()


def measure_prompts(config: ServeBenchmarkConfig) -> dict[str, Any]:
    """Median seconds of a point on an image that the service has not seen, and on one whose features it keeps; the real trunk at random weights."""
    rng = np.random.default_rng(config.seed)
    files = [encode_image(rng.integers(0, 255, (config.trunk_size, config.trunk_size, 3)).astype(np.uint8), 91) for _ in range(config.cold + 1)]
    point = PromptRequest(points=((config.trunk_size / 2, config.trunk_size / 3),))
    with tempfile.TemporaryDirectory() as folder:
        save_random(config, Path(folder) / "model")
        options = [f"checkpoint={folder}/model", "limits.seconds=1800"]
        with served([sys.executable, "-m", "serve", *options], "/readyz", port_option=True) as url, Client(url, config=PATIENCE) as client:
            cold = [_seconds(lambda file=file: client.prompt(file, point)) for file in files[1:]]  # type: ignore[misc]
            kept = client.upload(files[0])
            client.prompt(kept, point)
            cached = [_seconds(lambda: client.prompt(kept, point)) for _ in range(config.cached)]
    return {"trunk": config.trunk, "size": config.trunk_size, "cold": float(np.median(cold)), "cached": float(np.median(cached))}


def save_random(config: ServeBenchmarkConfig, folder: Path) -> None:
    """A checkpoint of stage 1 with the trunk, all weights random; the CLIP's own come with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = ClipConfig(name=config.trunk, weights=CHECKPOINT)
        method = build_mask_generation(MaskGenerationConfig(clip=clip, size=config.trunk_size), 0)
    checkpoint.save(folder, CheckpointInfo(step=0, method=method.config.model_dump(mode="json")), method.state())


def _seconds(work: Callable[[], object]) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


@contextmanager
def served(command: Sequence[str], ready: str, *, port_option: bool) -> Iterator[str]:
    """A server in a process of its own, until the end of the block; its address, once it answers `ready`."""
    port = free_port()
    process = subprocess.Popen(
        [*command, f"port={port}" if port_option else str(port)], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    try:
        asyncio.run(_wait_for(process, f"http://127.0.0.1:{port}", ready))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def _wait_for(process: subprocess.Popen[bytes], url: str, path: str) -> None:
    """Wait for the first answer 200. Raises DataError where the process ends before."""
    async with httpx2.AsyncClient(timeout=60) as http:
        while process.poll() is None:
            try:
                if (await http.get(url + path)).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.2)
    raise DataError("a server that is measured ended before it answered", seen=f"exit code {process.returncode}", fix="its own message stands above")


def _ratios(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    step, service, peer = report["step"], report["service"], report["peer"]
    overhead = service["alone"] - step
    best, best_peer = max(service["throughput"].values()), max(peer["throughput"].values())
    ratios = {
        "model step, s": {"value": step, "target": f"at least {STEP_TARGET:g}", "met": step >= STEP_TARGET},
        "HTTP overhead, s": {"value": overhead, "target": "at most 0.010, or 10 % of the step", "met": overhead <= max(0.010, 0.1 * step)},
        "throughput at saturation / offline": {"value": best / report["offline"], "target": "at least 0.9", "met": best >= 0.9 * report["offline"]},
        "throughput at saturation / peer": {"value": best / best_peer, "target": "at least 1", "met": best >= best_peer},
        "lone request, peer / service": {"value": peer["alone"] / service["alone"], "target": "", "met": None},
    }
    if "prompts" in report:
        gain = report["prompts"]["cold"] / report["prompts"]["cached"]
        ratios["prompt, cold / cached"] = {"value": gain, "target": "at least 15", "met": gain >= 15}
    return ratios


def _print(report: dict[str, Any]) -> None:
    counts = report["service"]["throughput"]
    table = Table(
        title=f"{report['model']}, one thread, {report['cores']} cores; step {report['step'] * 1e3:.0f} ms, offline {report['offline']:.2f} images a second"
    )
    for heading in ("server", "lone request, ms", *(f"{count} clients, images a second" for count in counts)):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for name in ("service", "peer"):
        table.add_row(name, f"{report[name]['alone'] * 1e3:.1f}", *(f"{value:.2f}" for value in report[name]["throughput"].values()))
    console = Console()
    console.print(table)
    if prompts := report.get("prompts"):
        console.print(f"prompt with {prompts['trunk']} at {prompts['size']} px: cold {prompts['cold']:.3f} s, cached {prompts['cached']:.3f} s")
    for name, ratio in report["ratios"].items():
        target = f" (target: {ratio['target']}, {'met' if ratio['met'] else 'missed'})" if ratio["target"] else ""
        console.print(f"{name}: {ratio['value']:.3f}{target}")
