"""Evaluation jobs: a checkpoint on a labelled set, streaming, with a report and pictures."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import Field
from rich.progress import track

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.data.coco import iter_records, read_annotations
from uniovseg.data.shards import ShardSet
from uniovseg.evaluation.promptable import NO_SCORES, LabelledImage, PromptableConfig, evaluate_promptable, labelled
from uniovseg.pictures import encode_picture
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig, open_run
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location
from uniovseg.training import everything_picture, pick_device


class PromptableJobConfig(Config):
    """Promptable evaluation of a checkpoint: 1-point IoU (oracle over a grid) and 1-box IoU."""

    checkpoint: str = Field("shapes", description="checkpoint folder or URI; 'shapes': the packaged model of the shapes world")
    annotations: str = Field(..., description="COCO JSON (instances or panoptic), or a shard set")
    images: str | None = Field(None, description="folder of the images; null: images/ beside the JSON")
    panoptic: str | None = Field(None, description="folder of the panoptic PNGs; null: beside the JSON, with its name")
    limit: int | None = Field(None, ge=1, description="images taken from the start; null: all")
    output: str = Field("runs/promptable", description="folder of report.json and the picture")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(0, ge=0, description="CPU threads of torch, for each image of those at once; 0: torch's own choice")
    images_at_once: int = Field(1, ge=1, description="images evaluated at a time, a thread each; on a CPU best with threads=1")
    promptable: PromptableConfig = Field(PromptableConfig(), description="grid and chunks")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


def labelled_images(annotations: str, images: str | None, panoptic: str | None, limit: int | None) -> tuple[int, Iterator[LabelledImage]]:
    """Number of images, and the images with ground truth, of a COCO JSON file or a shard set."""
    if annotations.endswith(".json"):
        folder = images or f"{Location.of(annotations).uri.rpartition('/')[0]}/images"
        items = read_annotations(annotations, folder, panoptic)[:limit]
        return len(items), labelled(iter_records(items))
    shards = ShardSet(annotations)
    return min(shards.manifest.samples, limit or shards.manifest.samples), labelled(shards.records(limit))


@tracked("promptable")
def evaluate_promptable_job(config: PromptableJobConfig) -> dict[str, Any]:
    """Evaluate; writes ``everything.png`` of the first images beside the report, and returns the scores."""
    if config.threads:
        torch.set_num_threads(config.threads)
    started = time.perf_counter()
    segmenter = Segmenter.load(config.checkpoint, str(pick_device(config.device)))
    count, samples = labelled_images(config.annotations, config.images, config.panoptic, config.limit)
    scores = NO_SCORES
    for item in track(evaluate_promptable(segmenter.method, samples, config.promptable, config.images_at_once), "evaluating prompts", total=count):
        scores += item
    first = list(islice(labelled_images(config.annotations, config.images, config.panoptic, 6)[1], 6))
    picture = everything_picture(segmenter.method, first)
    storage.write_bytes(Location.of(config.output) / "everything.png", encode_picture(picture))
    open_run().log_pictures(0, {"everything": picture})
    return {"promptable": scores.summary(), "picture": f"{config.output}/everything.png", "seconds": round(time.perf_counter() - started, 1)}
