"""What mask classification at several sizes costs: all subsets of the sizes at once, against a run of each size alone (the paper's Table 4).

Every ensemble is a mean of per-size probabilities, so that all subsets take one pass through the CLIP a size, as the single runs do together. The small
trunk of the shapes world sees all images of coco128; the paper's trunk, at random weights and with random words, some of them, for the time only.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from uniovseg.config import Config
from uniovseg.data.benchmarks import LabelledSet, PanopticSample, open_panoptic
from uniovseg.data.vocabulary import load_vocabulary
from uniovseg.errors import DataError
from uniovseg.evaluation.mask_classification import MaskClassificationConfig, MaskClassificationScore, classify_image
from uniovseg.models.clip import Clip, ClipConfig, load_clip
from uniovseg.models.text_classifier import TextClassifier, build_text_classifier, template_set
from uniovseg.records import Vocabulary

VARIABLE = "UNIOVSEG_REAL_DATA"

TARGET = 1.15
"""All subsets may cost so much, as a multiple of the single runs together."""


class MaskClassificationBenchmarkConfig(Config):
    """What is measured, on the CPU."""

    output: str = Field("runs/benchmark_mask_classification", description="folder of report.json")
    root: str | None = Field(None, description=f"folder in which coco128/ lies; null: {VARIABLE}")
    masks: MaskClassificationConfig = Field(MaskClassificationConfig(), description="sizes and templates")
    small: ClipConfig = Field(ClipConfig(), description="the CLIP that sees all images")
    real: ClipConfig = Field(ClipConfig(name="convnext_large_d_320"), description="the CLIP whose time is measured")
    images: int | None = Field(None, ge=1, description="images of the small trunk; null: all")
    real_images: int = Field(4, ge=0, description="images of the real trunk")
    threads: int = Field(1, ge=1, description="CPU threads of torch")


def run(config: MaskClassificationBenchmarkConfig) -> dict[str, Any]:
    """Measure both trunks, print a table of each, and return them: accuracy and seconds an image of each subset, and the ratio of the costs."""
    torch.set_num_threads(config.threads)
    vocabulary = load_vocabulary("coco_panoptic")
    sets = coco128(config.root, vocabulary)
    small = load_clip(config.small)
    words = build_text_classifier(small, vocabulary, template_set(config.masks.templates))
    report = {"small": measure(small, words, _samples(sets, config.images), config.masks.sizes)}
    if config.real_images:
        real = load_clip(config.real)
        report["real"] = measure(real, random_words(vocabulary, real.embed_dim), _samples(sets, config.real_images), config.masks.sizes)
        for row in report["real"]["subsets"].values():
            del row["accuracy"], row["class_accuracy"]
    for name, trunk in report.items():
        _print(name, trunk)
    return {name: trunk | {"clip": getattr(config, name).name, "threads": config.threads} for name, trunk in report.items()}


def coco128(root: str | None, vocabulary: Vocabulary) -> list[LabelledSet]:
    """The two halves of coco128. Raises DataError when it is not there."""
    folder = root or os.environ.get(VARIABLE)
    place = Path(folder or "") / "coco128"
    notes = place / "panoptic_segmentation/annotations"
    if folder is None or not notes.is_dir():
        raise DataError("coco128 is not here", seen=place if folder else "no root", fix=f"give root=FOLDER, or set {VARIABLE}")
    return [
        open_panoptic(str(notes / f"panoptic_{half}2017.json"), str(place / f"images/{half}2017"), vocabulary=vocabulary) for half in ("train", "val")
    ]


def _samples(sets: Sequence[LabelledSet], count: int | None) -> list[PanopticSample]:
    items = [(found, item) for found in sets for item in found.items][:count]
    return [sample for found, item in items for sample in found.panoptic([item])]


def random_words(vocabulary: Vocabulary, dim: int) -> TextClassifier:
    """A classifier of the vocabulary's size whose words are random unit vectors."""
    class_of = [index for index, category in enumerate(vocabulary.categories) for _ in category.synonyms]
    embeddings = torch.randn(len(class_of), dim, generator=torch.Generator().manual_seed(0))
    return TextClassifier(F.normalize(embeddings, dim=-1), torch.tensor(class_of), 100.0)


def measure(clip: Clip, words: TextClassifier, samples: Sequence[PanopticSample], sizes: tuple[int, ...]) -> dict[str, Any]:
    """Score images once at all sizes together and once at each size alone, in turns.

    Returns:
        The summary of the score (`MaskClassificationScore.summary`), ``cpu_seconds`` an image of each run, from the image file to the counts, and
        ``ratio``: all subsets to the single runs together.
    """
    runs = [sizes, *((size,) for size in sizes)]
    cpu = [0.0] * len(runs)
    score = MaskClassificationScore.zero(sizes, len(words))
    for number, sample in enumerate(track(samples, f"{len(sizes)} sizes together and alone")):
        for place in range(len(runs)):
            index = (place + number) % len(runs)  # another run first each time
            since = time.process_time()
            found = classify_image(clip, words, sample, runs[index])
            cpu[index] += time.process_time() - since
            if index == 0:
                score += found
    together, *alone = (seconds / len(samples) for seconds in cpu)
    value = together / sum(alone)
    return score.summary() | {
        "cpu_seconds": {"all subsets": together, "alone": dict(zip(map(str, sizes), alone, strict=True))},
        "ratio": {"value": value, "target": f"at most {TARGET:g}", "met": value <= TARGET},
    }


def _print(name: str, trunk: dict[str, Any]) -> None:
    table = Table("sizes", "accuracy", "seconds an image", title=f"mask classification, {name} trunk, {trunk['images']} images")
    for sizes, row in trunk["subsets"].items():
        table.add_row(sizes, f"{row['accuracy']:.4f}" if "accuracy" in row else "-", f"{row['seconds']:.3f}")
    console = Console()
    console.print(table)
    seconds, ratio = trunk["cpu_seconds"], trunk["ratio"]
    alone = " + ".join(f"{value:.3f}" for value in seconds["alone"].values())
    met = "met" if ratio["met"] else "missed"
    console.print(f"all subsets {seconds['all subsets']:.3f} CPU-s an image, alone {alone}: {ratio['value']:.3f} (target: {ratio['target']}, {met})")
