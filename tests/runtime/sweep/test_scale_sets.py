"""Scores of scale sets against a slow recomputation, matrices on disk, and what a trial's worker imports."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from uniovseg.mask_text_matching import MaskTextMatchingConfig
from uniovseg.runtime.sweep.scale_sets import Matrices, ScaleSet, score
from uniovseg.storage import Location

SIZES = (64, 96, 128)


def drawn(kind: str, seed: int = 0) -> Matrices:
    """Matrices of four images; the third has no mask."""
    rng = np.random.default_rng(seed)
    shapes = [(4, 3), (2, 3), (0, 3), (3, 3)]
    cosines = [rng.uniform(0.1, 0.3, (3, *shape)).astype(np.float32) for shape in shapes]
    if kind == "pairs":
        right = [rng.random(shape) < 0.5 for shape in shapes]
        wanted = [3, 2, 1, 3]
    else:
        right = [np.eye(3, dtype=bool)[rng.integers(3, size=shape[0])] for shape in shapes]
        wanted = [shape[0] for shape in shapes]
    return Matrices("pairs" if kind == "pairs" else "classes", SIZES, 50.0, cosines, right, np.array(wanted))


def slow_cost(cosines: np.ndarray, kind: str, logit_scale: float) -> np.ndarray:
    """[Q, T] by loops, in double precision."""
    cost = np.empty(cosines.shape)
    for q, row in enumerate(cosines.astype(float)):
        for t, cosine in enumerate(row):
            if kind == "raw":
                cost[q, t] = 1 - cosine
            elif kind == "eq6_literal":
                cost[q, t] = np.exp(1 - cosine) / sum(np.exp(1 - other) for other in row)
            else:
                cost[q, t] = 1 - 1 / sum(np.exp(logit_scale * (other - cosine)) for other in row)
    return cost


def slow_pairs(cost: np.ndarray) -> list[tuple[int, int]]:
    """The assignment of least total cost, by trying all, in the order of cost."""
    masks, words = cost.shape
    count = min(masks, words)
    ways = (
        list(zip(chosen, order, strict=True))
        for chosen in itertools.combinations(range(masks), count)
        for order in itertools.permutations(range(words), count)
    )
    best = min(ways, key=lambda pairs: sum(cost[pair] for pair in pairs))
    return sorted(best, key=lambda pair: cost[pair])


@pytest.mark.parametrize("kind", ["clip_softmax", "eq6_literal", "raw"])
@pytest.mark.parametrize("confidence", ["all", "top_fraction", "mutual_best"])
@pytest.mark.parametrize("sizes", [(64,), (128, 64), SIZES])
def test_precision_and_recall_are_those_of_a_slow_recomputation(kind: str, confidence: str, sizes: tuple[int, ...]) -> None:
    matrices = drawn("pairs")
    found = correct = 0
    for cosines, right in zip(matrices.cosines, matrices.right, strict=True):
        cost = np.mean([slow_cost(cosines[SIZES.index(size)], kind, 50.0) for size in sizes], axis=0)
        pairs = slow_pairs(cost)
        if confidence == "top_fraction":
            pairs = pairs[: max(1, int(len(pairs) * 0.5))]
        if confidence == "mutual_best":
            pairs = [(q, t) for q, t in pairs if cost[q, t] == cost[q].min() == cost[:, t].min()]
        found += len(pairs)
        correct += sum(right[pair] for pair in pairs)
    rules = MaskTextMatchingConfig.model_validate({"cost": kind, "confidence": confidence})
    figures = score(matrices, ScaleSet(sizes=sizes, matching=rules))
    assert figures["pairs"] == found
    assert figures["precision"] == pytest.approx(correct / found)
    assert figures["recall"] == pytest.approx(correct / 9)
    assert figures["f1"] == pytest.approx(2 * correct / (found + 9))


def test_accuracy_is_the_share_of_masks_whose_class_is_the_most_probable() -> None:
    matrices = drawn("classes")
    hits: list[tuple[int, bool]] = []
    for cosines, right in zip(matrices.cosines, matrices.right, strict=True):
        for q in range(cosines.shape[1]):
            probs = np.mean([np.exp(50 * cosines[s, q]) / np.exp(50 * cosines[s, q]).sum() for s in (0, 2)], axis=0)
            hits.append((int(right[q].argmax()), bool(right[q, probs.argmax()])))
    figures = score(matrices, ScaleSet(sizes=(64, 128)))
    classes = {index for index, _ in hits}
    assert 0 < sum(hit for _, hit in hits) < 9
    assert figures["accuracy"] == pytest.approx(sum(hit for _, hit in hits) / 9)
    by_class = [np.mean([hit for index, hit in hits if index == wanted]) for wanted in classes]
    assert figures["class_accuracy"] == pytest.approx(np.mean(by_class))


@pytest.mark.parametrize("kind", ["pairs", "classes"])
def test_matrices_come_back_as_they_were_saved(kind: str, tmp_path: Path) -> None:
    matrices, file = drawn(kind), Location.of(tmp_path / "m.npz")
    matrices.save(file)
    again = Matrices.load(file)
    assert (again.kind, again.sizes, again.logit_scale) == (kind, SIZES, 50.0)
    assert again.wanted.tolist() == matrices.wanted.tolist()
    for name in ("cosines", "right"):
        for one, other in zip(getattr(matrices, name), getattr(again, name), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape and (one == other).all()


def test_a_trial_of_a_scale_sweep_imports_no_torch() -> None:
    code = "import sys, uniovseg.runtime.sweep.scale_trial; print(sorted(name for name in ('torch', 'mlflow', 'torchvision') if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
