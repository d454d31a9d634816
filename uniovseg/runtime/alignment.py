"""How much the adapter brings, as a table: the best naming by the frozen CLIP against the adapted one, with the same masks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import Field
from rich.progress import track

from uniovseg.config import Config
from uniovseg.data.views import CanvasSide
from uniovseg.evaluation.naming import NamingScore, evaluate_namings
from uniovseg.evaluation.source import SourceConfig, open_source
from uniovseg.metrics import figure
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.records import Vocabulary
from uniovseg.segmenter import Segmenter


class NamingsConfig(Config):
    """Frozen against adapted naming on a labelled set; the adapters are named apart."""

    baseline: str = Field(..., description="checkpoint without an adapter; it proposes the masks that all name")
    masks_of: tuple[str, ...] = Field((), description="further checkpoints, whose masks are named and scored too, apart")
    annotations: str = Field(..., description="COCO panoptic JSON, with images/ beside it")
    vocabulary: str | None = Field(
        None, description="words of the set's categories, a packaged vocabulary or a file with the same ids; null: their names"
    )
    sizes: tuple[tuple[CanvasSide, ...], ...] = Field(
        ((256,), (320,), (384,), (256, 384), (320, 384), (256, 320, 384)), description="scale sets of the frozen CLIP that are tried"
    )
    templates: tuple[str, ...] = Field(("simple", "vild14"), description="template sets of the frozen CLIP that are tried")
    points_per_side: int = Field(12, ge=1, description="grid of point prompts, points a side")
    limit: int | None = Field(None, ge=1, description="images taken from the start; null: all")
    images_at_once: int = Field(1, ge=1, description="images evaluated at a time, a thread each")
    segmentation: SegmentationConfig = Field(SegmentationConfig(), description="from masks to maps")


class AlignmentConfig(NamingsConfig):
    """Frozen against adapted naming on a labelled set."""

    aligned: str = Field(..., description="checkpoint with an adapter over the same CLIP")


@dataclass(frozen=True, slots=True)
class NamingFigures:
    """How well one naming does; fractions, None where there is none.

    Attributes:
        miou, unseen_miou: over all classes and over the unseen ones.
        pq: over all classes.
        oracle_mask_miou: the mIoU when the masks are the ground truth's.
    """

    miou: float | None
    unseen_miou: float | None
    pq: float | None
    oracle_mask_miou: float | None


@dataclass(frozen=True, slots=True)
class Namings:
    """The best frozen naming by mIoU, its setting in words, and each adapter's."""

    baseline: NamingFigures
    baseline_setting: str
    aligned: Mapping[str, NamingFigures]


def compare_namings(config: NamingsConfig, aligned: Mapping[str, str], unseen: Collection[str]) -> dict[str, Namings]:
    """Evaluate several adapters and the frozen settings on the same masks, in one pass over the images.

    Args:
        config: the set and the frozen settings.
        aligned: checkpoints with an adapter over the same CLIP, by any name; each names masks at its own sizes.
        unseen: the names of the classes that no caption of stage 2 names.

    Returns:
        By the checkpoint that proposed the masks, ``config.baseline`` first.
    """
    changes = {"test_points_per_side": config.points_per_side}
    proposers = {uri: Segmenter.load(uri, changes=changes).method for uri in (config.baseline, *config.masks_of)}
    frozen = {
        f"{'+'.join(map(str, sizes))} px, {templates}": proposers[config.baseline].with_settings(
            {"regions": {"sizes": sizes, "templates": templates}}
        )
        for sizes, templates in product(config.sizes, config.templates)
    }
    namings = frozen | {f"aligned: {name}": Segmenter.load(uri).method for name, uri in aligned.items()}
    dataset = open_source(SourceConfig(annotations=config.annotations, vocabulary=config.vocabulary, limit=config.limit))
    samples = zip(dataset.panoptic(), dataset.semantic(), strict=True)
    zero = NamingScore.zero(len(dataset.vocabulary))
    totals = {uri: dict.fromkeys(namings, zero) for uri in proposers}
    scored = evaluate_namings(namings, proposers, samples, dataset.vocabulary, config.segmentation, config.images_at_once)
    for scores in track(scored, "naming masks", total=len(dataset.items)):
        totals = {uri: {name: total + scores[uri][name] for name, total in each.items()} for uri, each in totals.items()}

    def best(totals: Mapping[str, NamingScore]) -> Namings:
        setting = max(frozen, key=lambda name: totals[name].semantic.miou())
        return Namings(
            baseline=_figures(totals[setting], dataset.vocabulary, unseen),
            baseline_setting=setting,
            aligned={name: _figures(totals[f"aligned: {name}"], dataset.vocabulary, unseen) for name in aligned},
        )

    return {uri: best(each) for uri, each in totals.items()}


def _figures(score: NamingScore, vocabulary: Vocabulary, unseen: Collection[str]) -> NamingFigures:
    held_out = [index for index, item in enumerate(vocabulary.categories) if item.name in unseen]
    return NamingFigures(
        miou=figure(score.semantic.miou()),
        unseen_miou=figure(score.semantic.miou(held_out)),
        pq=score.panoptic.summary(vocabulary)["All"]["pq"],
        oracle_mask_miou=figure(score.oracle.miou()),
    )


def compare_alignment(config: AlignmentConfig, unseen: Collection[str]) -> dict[str, Any]:
    """Evaluate; `unseen` are the names of the classes that no caption of stage 2 names. Every figure is a fraction.

    ``oracle_mask_miou`` is the aligned naming's mIoU when the masks are the ground truth's. ``masks_of`` holds the same for the masks of each further
    checkpoint, by its URI.
    """
    found = {uri: _report(namings) for uri, namings in compare_namings(config, {"aligned": config.aligned}, unseen).items()}
    return {**found[config.baseline], "masks_of": {uri: found[uri] for uri in config.masks_of}}


def _report(found: Namings) -> dict[str, Any]:
    baseline, aligned = found.baseline, found.aligned["aligned"]
    return {
        "baseline_miou": baseline.miou, "baseline_unseen_miou": baseline.unseen_miou, "baseline_pq": baseline.pq,
        "aligned_miou": aligned.miou, "aligned_unseen_miou": aligned.unseen_miou, "aligned_pq": aligned.pq,
        "oracle_mask_miou": aligned.oracle_mask_miou, "baseline_oracle_mask_miou": baseline.oracle_mask_miou,
        "baseline_setting": found.baseline_setting,
    }  # fmt: skip
