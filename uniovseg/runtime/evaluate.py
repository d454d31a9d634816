"""Promptable evaluation as a job: a checkpoint on a labelled set, with a report, a CSV of the images, an HTML page and a picture."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

from pydantic import Field
from rich.progress import track

from uniovseg import storage
from uniovseg.checkpoint import located
from uniovseg.config import Config
from uniovseg.data.coco import CocoImage, iter_records, read_annotations
from uniovseg.data.promptable_sets import PROMPTABLE_SETS, find_promptable_set
from uniovseg.data.shards import ShardSet, to_record
from uniovseg.errors import ConfigError, DataError
from uniovseg.evaluation.promptable import NO_SCORES, LabelledImage, PromptableConfig, PromptableScores, evaluate_promptable, labelled, masks_by_box
from uniovseg.evaluation.report import Extremes, masks_row, render_html
from uniovseg.evaluation.source import ROOT_VARIABLE, images_beside, root_of
from uniovseg.methods.promptable import PromptableSegmenter
from uniovseg.pictures import encode_picture
from uniovseg.runtime.evaluate_words import to_csv
from uniovseg.runtime.pool import THREADS, PoolConfig, over_items, use_threads
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig, open_run
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location
from uniovseg.training import everything_picture, pick_device


class PromptableJobConfig(Config):
    """Promptable evaluation of a checkpoint: 1-point IoU (oracle over a grid) and 1-box IoU."""

    checkpoint: str = Field("shapes", description="checkpoint folder or URI; 'shapes': the packaged model of the shapes world")
    benchmark: str | None = Field(None, description=f"one of {', '.join(PROMPTABLE_SETS)}")
    root: str | None = Field(None, description=f"folder that benchmarks lie below; null: {ROOT_VARIABLE}, else datasets")
    annotations: str | None = Field(None, description="instead of a benchmark: COCO JSON (instances or panoptic), or a shard set")
    images: str | None = Field(None, description="with annotations: folder of the images; null: images/ beside the JSON")
    panoptic: str | None = Field(None, description="with annotations: folder of the panoptic PNGs; null: beside the JSON, with its name")
    limit: int | None = Field(None, ge=1, description="images taken from the start; null: all")
    output: str = Field("runs/promptable", description="folder of report.json, images.csv, report.html and everything.png")
    pictures: int = Field(8, ge=0, description="worst and best images each that report.html shows")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(0, ge=0, description=THREADS)
    promptable: PromptableConfig = Field(PromptableConfig(), description="grid and shortlist")
    pool: PoolConfig = Field(PoolConfig(), description="actors; an item is an image, or a row group of a shard set")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


@dataclass(frozen=True, slots=True)
class LabelledPart:
    """Some images of a labelled set, not yet read: one of a COCO JSON, or the rows [begin, end) of a shard set's row group."""

    coco: CocoImage | None = None
    shards: str = ""
    group: int = 0
    begin: int = 0
    end: int = 0

    def __len__(self) -> int:
        return 1 if self.coco else self.end - self.begin

    def one(self, number: int) -> "LabelledPart":
        """The image of this number alone."""
        if self.coco:
            return self
        return replace(self, begin=self.begin + number, end=self.begin + number + 1)

    def read(self) -> Iterator[LabelledImage]:
        """The images, one at a time. Raises DataError for an image or a mask that cannot be read."""
        if self.coco:
            return labelled(iter_records([self.coco]))
        source = ShardSet(self.shards)
        table = source.read_group(self.group)
        return labelled(source.record(to_record, table, row) for row in range(self.begin, self.end))


def labelled_parts(config: PromptableJobConfig) -> list[LabelledPart]:
    """The set that `config` names, its images in order, in parts that one worker evaluates.

    Raises:
        ConfigError: it names none or two.
        DataError: it is not there, or has no images.
    """
    if (config.benchmark is None) == (config.annotations is None):
        seen = "both" if config.benchmark else "neither"
        raise ConfigError("give either benchmark or annotations", seen=seen, allowed=f"a benchmark is one of {', '.join(PROMPTABLE_SETS)}")
    annotations, images = config.annotations, config.images
    if config.benchmark is not None:
        annotations, images = find_promptable_set(config.benchmark, root_of(config.root))
    assert annotations is not None
    if annotations.endswith(".json"):
        found = read_annotations(annotations, images or images_beside(annotations), config.panoptic)[: config.limit]
        parts = [LabelledPart(image) for image in found]
    else:
        source, parts = ShardSet(annotations), []
        left = source.manifest.samples if config.limit is None else config.limit
        for group, ref in enumerate(source.groups):
            if left > 0:
                parts.append(LabelledPart(shards=source.location.uri, group=group, end=min(ref.rows, left)))
            left -= ref.rows
    if not parts:
        raise DataError("the set has no images", seen=annotations)
    return parts


@tracked("promptable")
def evaluate_promptable_job(config: PromptableJobConfig) -> dict[str, Any]:
    """Evaluate; writes images.csv, report.html, and ``everything.png`` of the first images beside the report, and returns the scores."""
    started = time.perf_counter()
    parts = labelled_parts(config)
    config = config.model_copy(update={"checkpoint": located(config.checkpoint)})  # actors have another working directory
    method = _load(config)
    count = sum(map(len, parts))
    total = NO_SCORES
    for scores in track(_scores(config, method, parts), "evaluating prompts", total=count):
        total += scores
    summary, rows = total.summary(), total.by_image()
    first = list(islice(_read(parts), 6))
    picture = everything_picture(method, first)
    seconds = round(time.perf_counter() - started, 1)
    page = render_html(
        f"promptable: {config.benchmark or config.annotations}", summary | {"seconds": seconds}, [], _extremes(config, method, parts, rows)
    )
    files = {"images.csv": to_csv(rows).encode(), "report.html": page.encode(), "everything.png": encode_picture(picture)}
    for name, data in files.items():
        storage.write_bytes(Location.of(config.output) / name, data)
        open_run().log_bytes(name, data)
    written = {key: f"{config.output}/{name}" for key, name in (("by_image", "images.csv"), ("page", "report.html"), ("picture", "everything.png"))}
    return {"promptable": summary, "images": count, **written, "seconds": seconds}


def _load(config: PromptableJobConfig) -> PromptableSegmenter:
    use_threads(config.threads, config.pool)
    return Segmenter.load(config.checkpoint, str(pick_device(config.device))).method


def _read(parts: Sequence[LabelledPart]) -> Iterator[LabelledImage]:
    return chain.from_iterable(part.read() for part in parts)


def _scores(config: PromptableJobConfig, method: PromptableSegmenter, parts: Sequence[LabelledPart]) -> Iterator[PromptableScores]:
    """Scores image by image, in order."""
    if config.pool.workers:
        return chain.from_iterable(over_items(config.pool, partial(_scorer, config), parts))
    return evaluate_promptable(method, _read(parts), config.promptable, config.pool.at_once)


def _scorer(config: PromptableJobConfig) -> Callable[[LabelledPart], list[PromptableScores]]:
    method = _load(config)
    return lambda part: list(evaluate_promptable(method, part.read(), config.promptable))


def _extremes(config: PromptableJobConfig, method: PromptableSegmenter, parts: Sequence[LabelledPart], rows: Sequence[dict[str, Any]]) -> Extremes:
    """The images of least and largest 1-point IoU, read again, with the masks that their boxes give."""
    places = [part.one(number) for part in parts for number in range(len(part))]
    order = sorted((row for row in range(len(rows)) if rows[row]["masks"]), key=lambda row: float(rows[row]["point_iou"]))
    extremes = Extremes(config.pictures)
    for row in sorted({*order[: config.pictures], *order[len(order) - config.pictures :]}) if config.pictures else ():
        (sample,) = places[row].read()
        extremes.add(masks_row(sample.key, rows[row]["point_iou"], sample.image, *masks_by_box(method, sample)))
    return extremes
