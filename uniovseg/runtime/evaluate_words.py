"""Evaluation jobs with words: semantic, panoptic and mask classification on a benchmark, with a report, a CSV of the classes, and an HTML page."""

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator
from rich.progress import track

from uniovseg import storage
from uniovseg.config import merge
from uniovseg.data.benchmarks import BENCHMARKS, Item, LabelledSet
from uniovseg.evaluation.mask_classification import MaskClassificationConfig, MaskClassificationScore, classify_image, subsets
from uniovseg.evaluation.report import Extremes, ImageRow, panoptic_row, render_html, semantic_row
from uniovseg.evaluation.source import SourceConfig, benchmark_settings, open_source
from uniovseg.evaluation.words import evaluate_panoptic, evaluate_semantic
from uniovseg.metrics import PanopticScore, SemanticScore, figure
from uniovseg.models.clip import ClipConfig, load_clip
from uniovseg.models.text_classifier import build_text_classifier, template_set
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.records import Vocabulary
from uniovseg.runtime.pool import THREADS, PoolConfig, over_items, use_threads
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig, open_run
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location
from uniovseg.training import pick_device


class EvaluationConfig(SourceConfig):
    """What the evaluation jobs with words share."""

    output: str = Field(..., description="folder of report.json, classes.csv and report.html")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(0, ge=0, description=THREADS)
    pool: PoolConfig = Field(PoolConfig(), description="actors")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


class WordsJobConfig(EvaluationConfig):
    """Semantic or panoptic evaluation of a checkpoint. A benchmark brings its own settings (`benchmark_settings`); whatever is given wins over them."""

    checkpoint: str = Field("shapes", description="checkpoint folder or URI; 'shapes': the packaged model of the shapes world")
    method: dict[str, Any] = Field({}, description="settings of the method that differ from the checkpoint's, as method.size=896")
    segmentation: SegmentationConfig = Field(SegmentationConfig(), description="from masks to maps")
    pictures: int = Field(8, ge=0, description="worst and best images each that report.html shows")

    @model_validator(mode="before")
    @classmethod
    def _apply_benchmark(cls, values: Any) -> Any:
        return merge(benchmark_settings(values.get("benchmark")), values) if isinstance(values, dict) else values


class MaskClassificationJobConfig(EvaluationConfig):
    """Mask classification by a frozen CLIP (Table 4)."""

    clip: ClipConfig = Field(ClipConfig(), description="the CLIP")
    masks: MaskClassificationConfig = Field(MaskClassificationConfig(), description="sizes and templates")


class Score(Protocol):
    """What a job adds up."""

    def __add__(self, other: Self) -> Self:
        """The score of both."""


ScoreT = TypeVar("ScoreT", bound=Score)


@dataclass(frozen=True, slots=True)
class Scored(Generic[ScoreT]):
    """One image's score, and its row of pictures where there is one."""

    score: ScoreT
    row: ImageRow | None = None


def _load(config: WordsJobConfig) -> Segmenter:
    use_threads(config.threads, config.pool)
    return Segmenter.load(config.checkpoint, str(pick_device(config.device)), config.method)


def _semantic(config: WordsJobConfig, dataset: LabelledSet) -> Callable[[Item], Scored[SemanticScore]]:
    method = _load(config).method

    def score(item: Item) -> Scored[SemanticScore]:
        (result,) = evaluate_semantic(method, dataset.semantic([item]), dataset.vocabulary, config.segmentation)
        return Scored(result.score, semantic_row(result, dataset.vocabulary) if config.pictures else None)

    return score


def _panoptic(config: WordsJobConfig, dataset: LabelledSet) -> Callable[[Item], Scored[PanopticScore]]:
    method = _load(config).method

    def score(item: Item) -> Scored[PanopticScore]:
        (result,) = evaluate_panoptic(method, dataset.panoptic([item]), dataset.vocabulary, config.segmentation)
        return Scored(result.score, panoptic_row(result, dataset.vocabulary) if config.pictures else None)

    return score


def _masks(config: MaskClassificationJobConfig, dataset: LabelledSet) -> Callable[[Item], Scored[MaskClassificationScore]]:
    use_threads(config.threads, config.pool)
    clip = load_clip(config.clip).to(pick_device(config.device))
    classifier = build_text_classifier(clip, dataset.vocabulary, template_set(config.masks.templates))

    def score(item: Item) -> Scored[MaskClassificationScore]:
        (sample,) = dataset.panoptic([item])
        return Scored(classify_image(clip, classifier, sample, config.masks.sizes))

    return score


def _add_up(
    config: EvaluationConfig,
    dataset: LabelledSet,
    build: Callable[[LabelledSet], Callable[[Item], Scored[ScoreT]]],
    zero: ScoreT,
    extremes: Extremes,
) -> ScoreT:
    results: Iterator[Scored[ScoreT]] = over_items(config.pool, partial(build, replace(dataset, items=())), dataset.items)
    for scored in track(results, f"evaluating on {dataset.name}", total=len(dataset.items)):
        zero = zero + scored.score
        if scored.row is not None:
            extremes.add(scored.row)
    return zero


@tracked("semantic")
def evaluate_semantic_job(config: WordsJobConfig) -> dict[str, Any]:
    """Mean IoU of a checkpoint on a labelled set; writes classes.csv and report.html beside the report."""
    started = time.perf_counter()
    dataset = open_source(config)
    extremes = Extremes(config.pictures)
    score = _add_up(config, dataset, partial(_semantic, config), SemanticScore.zero(len(dataset.vocabulary)), extremes)
    iou = score.iou()
    columns = {
        "iou": [figure(value) for value in iou.tolist()],
        "pixels": score.truth.tolist(),
        "predicted": score.predicted.tolist(),
    }
    summary = score.summary([category.id for category in dataset.vocabulary.categories])
    return _finish(config, "semantic", dataset, {"miou": summary["miou"]}, summary, columns, extremes, started)


@tracked("panoptic")
def evaluate_panoptic_job(config: WordsJobConfig) -> dict[str, Any]:
    """Panoptic quality of a checkpoint on a panoptic set; writes classes.csv and report.html beside the report."""
    started = time.perf_counter()
    dataset = open_source(config)
    extremes = Extremes(config.pictures)
    score = _add_up(config, dataset, partial(_panoptic, config), PanopticScore.zero(len(dataset.vocabulary)), extremes)
    occurs, rows = score.occurs(), score.per_class()
    columns = {
        name: [float(row[place]) if seen else None for row, seen in zip(rows, occurs, strict=True)] for place, name in enumerate(("pq", "sq", "rq"))
    }
    columns |= {"found": score.found.tolist(), "wrong": score.wrong.tolist(), "missed": score.missed.tolist()}
    summary = score.summary(dataset.vocabulary)
    figures = {f"{group} {name}": summary[group][name] for group in ("All", "Things", "Stuff") for name in ("pq", "sq", "rq")}
    return _finish(config, "panoptic", dataset, figures, summary, columns, extremes, started)


@tracked("mask_classification")
def mask_classification_job(config: MaskClassificationJobConfig) -> dict[str, Any]:
    """Top-1 accuracy of a frozen CLIP on ground-truth masks, for every subset of the sizes; writes classes.csv and report.html beside the report."""
    started = time.perf_counter()
    dataset = open_source(config)
    sizes = config.masks.sizes
    zero = MaskClassificationScore.zero(sizes, len(dataset.vocabulary))
    score = _add_up(config, dataset, partial(_masks, config), zero, Extremes(0))
    summary = score.summary()
    columns: dict[str, list[Any]] = {"masks": score.total.tolist()}
    for chosen, correct in zip(subsets(sizes), score.correct, strict=True):
        pairs = zip(correct.tolist(), score.total.tolist(), strict=True)
        columns["+".join(map(str, chosen))] = [right / total if total else None for right, total in pairs]
    figures = {f"{name} {key}": value for name, row in summary["subsets"].items() for key, value in row.items()}
    figures |= {f"{size} vanished": share for size, share in summary["vanished"].items()}
    return _finish(config, "mask_classification", dataset, figures, summary, columns, Extremes(0), started)


def _finish(
    config: EvaluationConfig,
    task: str,
    dataset: LabelledSet,
    figures: dict[str, float | None],
    summary: dict[str, Any],
    columns: dict[str, list[Any]],
    extremes: Extremes,
    started: float,
) -> dict[str, Any]:
    """Write the CSV and the page, log to MLflow, and make the report."""
    seconds = time.perf_counter() - started
    images = len(dataset.items)
    classes = class_rows(dataset.vocabulary, columns)
    page = render_html(f"{task}: {dataset.name}", figures | {"images": images, "seconds": round(seconds, 1)}, classes, extremes)
    for name, text in {"classes.csv": to_csv(classes), "report.html": page}.items():
        storage.write_bytes(Location.of(config.output) / name, text.encode())
        open_run().log_bytes(name, text.encode())
    benchmark = BENCHMARKS.get(config.benchmark or "")
    expected = {"images_expected": benchmark.images} if benchmark and config.limit is None else {}
    return {
        task: summary,
        "images": images,
        **expected,
        "classes": f"{config.output}/classes.csv",
        "page": f"{config.output}/report.html",
        "seconds": round(seconds, 1),
    }


def class_rows(vocabulary: Vocabulary, columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """One row a class: id, name, thing, and the columns."""
    return [
        {"id": category.id, "name": category.name, "thing": int(category.is_thing)} | {name: values[index] for name, values in columns.items()}
        for index, category in enumerate(vocabulary.categories)
    ]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal keys as CSV; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
