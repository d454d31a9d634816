"""What each further scale costs: seconds and memory of matching and of inference, on scenes of the shapes world."""

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from uniovseg.config import Config
from uniovseg.data.shapes import CLASS_NAMES, TEXT_STREAM, SceneConfig, draw_scene, encode_image, entities, scene_rng
from uniovseg.data.views import CanvasSide
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.models.text_classifier import TEMPLATE_SETS, template_set
from uniovseg.pairing import PairingConfig, pair_image
from uniovseg.records import ImageEntities
from uniovseg.segmenter import Segmenter
from uniovseg.training import pick_device

TASKS = ("matching", "inference")


class CostConfig(Config):
    """What is measured."""

    checkpoint: str = Field("shapes", description="checkpoint; 'shapes': the packaged model of the shapes world")
    sizes: tuple[CanvasSide, ...] = Field(
        (256, 384, 512), min_length=1, description="canvas sides, pixels; measured are the first, the first two, and so on"
    )
    images: int = Field(8, ge=1, description="images timed, after one that is not")
    scene: SceneConfig = Field(SceneConfig(), description="what the images look like")
    templates: str = Field("simple", pattern=f"^({'|'.join(TEMPLATE_SETS)})$", description="prompt templates")
    points_per_side: int = Field(12, ge=1, description="grid of point prompts, points a side")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(1, ge=1, description="CPU threads of torch")


def measure_cost(config: CostConfig) -> list[dict[str, Any]]:
    """A row for each task and number of scales: ``seconds`` an image; ``memory_mib``, the most that the process held (on CUDA: that torch held there),
    and ``model_mib``, what it held of that before the first image. Each task has a process of its own, as the most that one held never falls.

    *Matching* is proposals, region embeddings at every scale, costs and assignment. *Inference* is proposals and their classes among all of the shapes
    world's; the words are embedded once, before.
    """
    rows = []
    for task in TASKS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows += process.submit(measure_task, config, task).result()
    return rows


def measure_task(config: CostConfig, task: str) -> list[dict[str, Any]]:
    """The rows of one task, measured in this process: with ever more scales, so that the most it ever held is what the last scale set takes."""
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    scenes = [draw_scene(config.scene, scene_rng(0, TEXT_STREAM, index), held_out=False) for index in range(config.images + 1)]
    records = [ImageEntities(key="", image=encode_image(one.image, 90), caption="", entities=tuple(entities(one))) for one in scenes]
    rows: list[dict[str, Any]] = []
    for count in range(1, len(config.sizes) + 1):
        sizes = config.sizes[:count]
        changes = {"regions": {"sizes": sizes, "templates": config.templates}, "test_points_per_side": config.points_per_side}
        work = _work(task, Segmenter.load(config.checkpoint, str(device), changes))
        before = rows[0]["model_mib"] if rows else _peak_mib(device)
        work(records[0], scenes[0].image)
        started = time.perf_counter()
        for record, scene in zip(records[1:], scenes[1:], strict=True):
            work(record, scene.image)
        seconds = (time.perf_counter() - started) / config.images
        figures = {"seconds": seconds, "memory_mib": _peak_mib(device), "model_mib": before}
        rows.append({"task": task, "scales": count, "sizes": "+".join(map(str, sizes))} | figures)
    return rows


def _work(task: str, segmenter: Segmenter) -> Callable[[ImageEntities, NDArray[np.uint8]], object]:
    method = segmenter.method
    if task == "matching":
        phrases = PhraseEmbeddings(method.clip, template_set(method.config.regions.templates))
        return lambda record, image: pair_image(PairingConfig(), method, phrases, record, image)
    vocabulary = load_vocabulary(list(CLASS_NAMES))
    method.classifier(vocabulary)

    def infer(_: ImageEntities, image: NDArray[np.uint8]) -> object:
        embedded = method.embed(image)
        return method.classify(embedded, method.propose(embedded).masks, vocabulary)

    return infer


def _peak_mib(device: torch.device) -> float:
    """The most memory held so far, MiB: torch's on a GPU, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
