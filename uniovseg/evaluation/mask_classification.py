"""Mask classification (method: section 6, the paper's Table 4): how well the frozen CLIP names ground-truth masks, by input size.

At each size of a set an image goes through the CLIP once; the last feature map is pooled under every ground-truth segment, compared with the words
of the vocabulary, and turned into probabilities over the classes. The score of several sizes is the mean of their probability matrices, so all subsets
of a set of sizes come from one pass at each.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from uniovseg.config import Config
from uniovseg.data.benchmarks import PanopticSample, read_image
from uniovseg.data.regions import cell_coverage, covered_cells, vanishes
from uniovseg.data.views import CanvasSide, fit_view, render
from uniovseg.evaluation.true_masks import truth_masks
from uniovseg.metrics import figure, mean_present
from uniovseg.models.clip import Clip
from uniovseg.models.text_classifier import TEMPLATE_SETS, TextClassifier, build_text_classifier, template_set
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import Vocabulary

Counts = NDArray[np.int64]


class MaskClassificationConfig(Config):
    """Sizes and words of mask classification."""

    sizes: tuple[CanvasSide, ...] = Field((768, 896, 1024), min_length=1, max_length=6, description="canvas sides in pixels; all subsets are scored")
    templates: str = Field("vild14", pattern=f"^({'|'.join(TEMPLATE_SETS)})$", description=f"prompt templates: {', '.join(TEMPLATE_SETS)}")


def subsets(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets of at least one size, small subsets first, each in the order of `sizes`."""
    return [chosen for count in range(1, len(sizes) + 1) for chosen in combinations(sizes, count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskClassificationScore:
    """Counts over ground-truth masks; added over images by `+`.

    Attributes:
        sizes: S canvas sides.
        correct: [2^S - 1, C] masks of each class that are named right, for each of `subsets`.
        total: [C] masks of each class.
        vanished: [S] masks that cover no cell of the feature grid by half.
        seconds: [S] time from decoded image to probabilities at each size.
        images: number of images.
    """

    sizes: tuple[int, ...]
    correct: Counts
    total: Counts
    vanished: Counts
    seconds: NDArray[np.float64]
    images: int = 1

    @classmethod
    def zero(cls, sizes: tuple[int, ...], num_classes: int) -> "MaskClassificationScore":
        """The score of no image: what sums start from."""
        each = np.zeros(len(sizes), np.int64)
        correct = np.zeros((len(subsets(sizes)), num_classes), np.int64)
        return cls(sizes=sizes, correct=correct, total=correct[0], vanished=each, seconds=np.zeros(len(sizes)), images=0)

    def __add__(self, other: "MaskClassificationScore") -> "MaskClassificationScore":
        assert self.sizes == other.sizes
        return MaskClassificationScore(
            sizes=self.sizes,
            correct=self.correct + other.correct,
            total=self.total + other.total,
            vanished=self.vanished + other.vanished,
            seconds=self.seconds + other.seconds,
            images=self.images + other.images,
        )

    def summary(self) -> dict[str, Any]:
        """For each subset (``"768+1024"``): top-1 ``accuracy`` over masks, ``class_accuracy`` (mean over the classes that occur) and ``seconds`` per image;
        for each size the share of masks that vanish; and the counts."""
        masks = int(self.total.sum())
        rows = {}
        for chosen, correct in zip(subsets(self.sizes), self.correct, strict=True):
            seconds = sum(float(self.seconds[self.sizes.index(size)]) for size in chosen)
            by_class = np.where(self.total > 0, correct / np.maximum(self.total, 1), np.nan)
            rows["+".join(map(str, chosen))] = {
                "accuracy": figure(int(correct.sum()) / masks if masks else float("nan")),
                "class_accuracy": figure(mean_present(by_class)),
                "seconds": seconds / max(1, self.images),
            }
        vanished = {str(size): int(count) / max(1, masks) for size, count in zip(self.sizes, self.vanished, strict=True)}
        return {"subsets": rows, "vanished": vanished, "masks": masks, "images": self.images}


@torch.no_grad()
def region_embeddings(clip: Clip, image: NDArray[np.uint8], masks: RunLengthMasks, size: int) -> tuple[Tensor, int]:
    """Embeddings [n, D] of masks of an RGB image seen at one canvas size, and how many masks vanish on its feature grid."""
    view = fit_view(size, image.shape[0], image.shape[1])
    device = clip.mean.device
    dense = clip.features(torch.from_numpy(render(image, view)).to(device)[None]).res5[0]
    coverage = cell_coverage(masks, view, (dense.shape[1], dense.shape[2]))
    return clip.embed_regions(dense, covered_cells(coverage, masks, view).to(device)), int(vanishes(coverage).sum())


@torch.no_grad()
def mask_probs(clip: Clip, classifier: TextClassifier, image: NDArray[np.uint8], masks: RunLengthMasks, size: int) -> tuple[Tensor, int]:
    """Class probabilities [n, C] of masks of an RGB image seen at one canvas size, and how many masks vanish on its feature grid."""
    regions, vanished = region_embeddings(clip, image, masks, size)
    return classifier.scores(regions).cpu(), vanished


def classify_image(clip: Clip, classifier: TextClassifier, sample: PanopticSample, sizes: tuple[int, ...]) -> MaskClassificationScore:
    """The score of one image. Raises DataError when image and ground truth differ in size, or the image cannot be read."""
    zero = MaskClassificationScore.zero(sizes, len(classifier))
    image = read_image(sample)
    masks, classes = truth_masks(sample.truth)
    if len(masks) == 0:
        return replace(zero, images=1)
    probs, vanished, seconds = {}, [], []
    for size in sizes:
        started = time.perf_counter()
        probs[size], lost = mask_probs(clip, classifier, image, masks, size)
        seconds.append(time.perf_counter() - started)
        vanished.append(lost)
    correct = [_hits(torch.stack([probs[size] for size in chosen]).mean(0), classes, len(classifier)) for chosen in subsets(sizes)]
    return MaskClassificationScore(
        sizes=sizes,
        correct=np.stack(correct),
        total=np.bincount(classes, minlength=len(classifier)).astype(np.int64),
        vanished=np.array(vanished, np.int64),
        seconds=np.array(seconds),
    )


def _hits(probs: Tensor, classes: Counts, num_classes: int) -> Counts:
    """[C] how many of the masks of each class have it as their most probable."""
    right = probs.argmax(1).numpy() == classes
    return np.bincount(classes[right], minlength=num_classes).astype(np.int64)


def classify_masks(
    clip: Clip, samples: Iterable[PanopticSample], vocabulary: Vocabulary, config: MaskClassificationConfig
) -> Iterator[MaskClassificationScore]:
    """Scores image by image; start the sum from `MaskClassificationScore.zero`."""
    classifier = build_text_classifier(clip, vocabulary, template_set(config.templates))
    for sample in samples:
        yield classify_image(clip, classifier, sample, config.sizes)
