"""Evaluate a checkpoint on a labelled set (`python jobs/evaluate.py TASK`)."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from uniovseg.runtime.evaluate import PromptableJobConfig, evaluate_promptable_job
from uniovseg.runtime.evaluate_words import (
    MaskClassificationJobConfig,
    WordsJobConfig,
    evaluate_panoptic_job,
    evaluate_semantic_job,
    mask_classification_job,
)


def promptable(config: PromptableJobConfig) -> dict[str, object]:
    """1-point and 1-box IoU of a checkpoint on a labelled set."""
    report = evaluate_promptable_job(config)
    _show(f"promptable: {config.checkpoint} on {config.benchmark or config.annotations}", report["promptable"])
    return report


def semantic(config: WordsJobConfig) -> dict[str, object]:
    """Mean IoU of a checkpoint on a labelled set, over the classes that its ground truth has."""
    report = evaluate_semantic_job(config)
    _show(f"semantic: {config.checkpoint}", {"mIoU": report["semantic"]["miou"]})
    return report


def panoptic(config: WordsJobConfig) -> dict[str, object]:
    """Panoptic quality of a checkpoint on a panoptic set."""
    report = evaluate_panoptic_job(config)
    rows = report["panoptic"]
    _show(
        f"panoptic: {config.checkpoint}",
        {f"{group} {key.upper()}": rows[group][key] for group in ("All", "Things", "Stuff") for key in ("pq", "sq", "rq")},
    )
    return report


def mask_classification(config: MaskClassificationJobConfig) -> dict[str, object]:
    """Top-1 accuracy of a frozen CLIP on ground-truth masks, by input size and by every subset of the sizes."""
    report = mask_classification_job(config)
    table = Table("sizes", "accuracy", "class accuracy", "seconds an image", title=f"mask classification: {config.clip.name}")
    for name, row in report["mask_classification"]["subsets"].items():
        table.add_row(name, _figure(row["accuracy"]), _figure(row["class_accuracy"]), f"{row['seconds']:.3f}")
    Console().print(table)
    return report


def _show(title: str, figures: dict[str, float | None]) -> None:
    table = Table(title=title)
    for name, value in figures.items():
        table.add_row(name, _figure(value))
    Console().print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


TASKS: dict[str, tuple[type[Any], Callable[[Any], dict[str, object]]]] = {
    "promptable": (PromptableJobConfig, promptable),
    "semantic": (WordsJobConfig, semantic),
    "panoptic": (WordsJobConfig, panoptic),
    "mask_classification": (MaskClassificationJobConfig, mask_classification),
}
