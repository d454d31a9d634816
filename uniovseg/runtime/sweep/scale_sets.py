"""The score of a set of canvas sizes, from what matching at each size gave: cosines of masks and words, computed once for all sizes.

The sizes of a set are averaged as matching averages them (Eq. 7). This file and what it imports stay free of torch, so that the workers which try
hundreds of sets start in a moment and need little memory.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.mask_text_matching import FloatArray, MaskTextMatchingConfig, cost_matrix, match_mask_text
from uniovseg.storage import Location


class ScaleSet(Config):
    """What is scored."""

    sizes: tuple[int, ...] = Field(..., min_length=1, description="canvas sides whose cost matrices are averaged")
    matching: MaskTextMatchingConfig = Field(MaskTextMatchingConfig(), description="cost and confidence")


@dataclass(frozen=True, slots=True)
class Matrices:
    """Cosines of the masks and the words of N images, and which answers are right.

    Attributes:
        kind: ``pairs``: proposals and the entities of a caption; ``classes``: ground-truth masks and the classes of a vocabulary.
        sizes: S canvas sides.
        logit_scale: the CLIP's inverse temperature.
        cosines: of each image [S, Q, T] float32. (A number that is the same for all words of a mask at a size may be added.)
        right: of each image [Q, T] bool: mask q shows what word t names.
        wanted: [N] int64: answers that a perfect result would have.
    """

    kind: Literal["pairs", "classes"]
    sizes: tuple[int, ...]
    logit_scale: float
    cosines: Sequence[FloatArray]
    right: Sequence[NDArray[np.bool_]]
    wanted: NDArray[np.int64]
    _costs: dict[str, list[FloatArray]] = field(default_factory=dict)

    def costs(self, kind: str) -> list[FloatArray]:
        """Of each image the cost matrices [S, Q, T] of one kind of cost; kept, as many sets ask for them."""
        if kind not in self._costs:
            self._costs[kind] = [np.stack([cost_matrix(each, kind, self.logit_scale) for each in cosines]) for cosines in self.cosines]
        return self._costs[kind]

    def save(self, location: Location) -> None:
        """Write the matrices as one file."""
        shapes = np.array([right.shape for right in self.right], np.int64).reshape(-1, 2)
        buffer = io.BytesIO()
        np.savez(
            buffer, kind=self.kind, sizes=np.array(self.sizes), logit_scale=self.logit_scale, shapes=shapes, wanted=self.wanted,
            cosines=_joined(self.cosines, np.float32), right=_joined(self.right, np.bool_),
        )  # fmt: skip
        storage.write_bytes(location, buffer.getvalue())

    @classmethod
    def load(cls, location: Location) -> "Matrices":
        """Read what `save` wrote."""
        with np.load(io.BytesIO(storage.read_bytes(location)), allow_pickle=False) as file:
            stored = dict(file)
        sizes, shapes = tuple(stored["sizes"].tolist()), stored["shapes"]
        ends = np.cumsum(shapes.prod(axis=1))[:-1]
        return cls(
            kind="pairs" if str(stored["kind"]) == "pairs" else "classes",
            sizes=sizes,
            logit_scale=float(stored["logit_scale"]),
            cosines=[part.reshape(len(sizes), *shape) for part, shape in zip(np.split(stored["cosines"], ends * len(sizes)), shapes, strict=False)],
            right=[part.reshape(shape) for part, shape in zip(np.split(stored["right"], ends), shapes, strict=False)],
            wanted=stored["wanted"],
        )


def _joined(parts: Sequence[NDArray[np.generic]], dtype: type[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([np.zeros(0, dtype), *(part.reshape(-1) for part in parts)])


def score(matrices: Matrices, chosen: ScaleSet) -> dict[str, float]:
    """The figures of one scale set over all images, fractions; see `score_pairs` and `score_classes`."""
    index = [matrices.sizes.index(size) for size in chosen.sizes]
    costs = [cost[index] for cost in matrices.costs(chosen.matching.cost)]
    return score_pairs(matrices, costs, chosen.matching) if matrices.kind == "pairs" else score_classes(matrices, costs)


def score_pairs(matrices: Matrices, costs: Sequence[FloatArray], matching: MaskTextMatchingConfig) -> dict[str, float]:
    """``precision``: the share of the pairs that are right; ``recall``: right pairs over entities that name something in their image; and their ``f1``."""
    found = correct = 0
    for cost, right in zip(costs, matrices.right, strict=True):
        pairs = match_mask_text(matching, cost)
        found += len(pairs)
        correct += int(right[pairs.masks, pairs.entities].sum())
    wanted = int(matrices.wanted.sum())
    return {
        "precision": correct / max(1, found),
        "recall": correct / max(1, wanted),
        "f1": 2 * correct / max(1, found + wanted),
        "pairs": float(found),
    }


def score_classes(matrices: Matrices, costs: Sequence[FloatArray]) -> dict[str, float]:
    """``accuracy``: the share of the masks whose class has the least cost (Top-1); ``class_accuracy``: its mean over the classes that occur."""
    truth = np.concatenate([right.argmax(axis=1) for right in matrices.right])
    hits = np.concatenate([cost.mean(axis=0).argmin(axis=1) for cost in costs]) == truth
    by_class = np.bincount(truth, weights=hits)
    masks = np.bincount(truth)
    return {"accuracy": float(hits.mean()), "class_accuracy": float((by_class[masks > 0] / masks[masks > 0]).mean()), "masks": float(len(truth))}
