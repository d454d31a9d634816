"""How much the adapter brings, as a table: the best naming by the frozen CLIP against the adapted one, with the same masks."""

from collections.abc import Collection
from itertools import product
from typing import Any

from pydantic import Field
from rich.progress import track

from uniovseg.config import Config
from uniovseg.data.benchmarks import open_panoptic
from uniovseg.evaluation.naming import NamingScore, evaluate_namings
from uniovseg.metrics import figure
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location


class AlignmentConfig(Config):
    """Frozen against adapted naming on a labelled set."""

    baseline: str = Field(..., description="checkpoint without an adapter; it proposes the masks of both")
    aligned: str = Field(..., description="checkpoint with an adapter over the same CLIP")
    annotations: str = Field(..., description="COCO panoptic JSON, with images/ beside it")
    sizes: tuple[tuple[int, ...], ...] = Field(((256,), (384,), (256, 384)), description="scale sets of the frozen CLIP that are tried")
    templates: tuple[str, ...] = Field(("simple", "vild14"), description="template sets of the frozen CLIP that are tried")
    points_per_side: int = Field(12, ge=1, description="grid of point prompts, points a side")
    limit: int | None = Field(None, ge=1, description="images taken from the start; null: all")
    segmentation: SegmentationConfig = Field(SegmentationConfig(), description="from masks to maps")


def compare_alignment(config: AlignmentConfig, unseen: Collection[str]) -> dict[str, Any]:
    """Evaluate; `unseen` are the names of the classes that no caption of stage 2 names. Every figure is a fraction.

    ``oracle_mask_miou`` is the aligned naming's mIoU when the masks are the ground truth's.
    """
    changes = {"test_points_per_side": config.points_per_side}
    namings = {
        f"{'+'.join(map(str, sizes))} px, {templates}": Segmenter.load(
            config.baseline, changes=changes | {"regions": {"sizes": sizes, "templates": templates}}
        ).method
        for sizes, templates in product(config.sizes, config.templates)
    }
    frozen = list(namings)
    namings["aligned"] = Segmenter.load(config.aligned, changes=changes).method
    folder = Location.of(config.annotations).uri.rpartition("/")[0]
    dataset = open_panoptic(config.annotations, f"{folder}/images")
    items = dataset.items[: config.limit]
    samples = zip(dataset.panoptic(items), dataset.semantic(items), strict=True)
    totals = dict.fromkeys(namings, NamingScore.zero(len(dataset.vocabulary)))
    for scores in track(evaluate_namings(namings, samples, dataset.vocabulary, config.segmentation), "naming masks", total=len(items)):
        totals = {name: totals[name] + score for name, score in scores.items()}
    best = max(frozen, key=lambda name: totals[name].semantic.miou())
    held_out = [index for index, item in enumerate(dataset.vocabulary.categories) if item.name in unseen]
    report: dict[str, Any] = {}
    for label, name in (("baseline", best), ("aligned", "aligned")):
        semantic = totals[name].semantic
        report[f"{label}_miou"] = figure(semantic.miou())
        report[f"{label}_unseen_miou"] = figure(semantic.miou(held_out))
        report[f"{label}_pq"] = totals[name].panoptic.summary(dataset.vocabulary)["All"]["pq"]
    report["oracle_mask_miou"] = figure(totals["aligned"].oracle.miou())
    report["baseline_oracle_mask_miou"] = figure(totals[best].oracle.miou())
    report["baseline_setting"] = best
    return report
