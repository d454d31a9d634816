"""Which mask does an entity of the caption name? One-to-one matching of an image's masks and entities (method: 3.1 to 3.3).

A cost matrix is made at every scale of a set, averaged (Eq. 7), and solved by the Hungarian algorithm, so every entity gets one mask and no mask two
entities; a confidence filter then keeps the pairs worth learning from. The cases that the sources leave open are decided here:

- an image with a single entity has no other text to be compared with, so its cost is the raw cosine's, whatever cost is chosen. Its softmax would be 1,
  so that ``threshold`` keeps its pair, as the other filters do; only under ``raw`` costs is it compared with ``max_cost``;
- no mask or no entity gives no pair; with fewer masks than entities some entities stay without;
- the number of pairs is min(masks, entities): an entity that is not in the image is forced on some mask, and only a filter can take it out;
- entities are taken to differ: jobs/refine.py removes duplicates. Equal ones would share a softmax between them, and get a mask each.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from uniovseg.config import Config

FloatArray = NDArray[np.float32]


class MaskTextMatchingConfig(Config):
    """Cost of a (mask, entity) pair, and which pairs are trusted."""

    cost: Literal["clip_softmax", "eq6_literal", "raw"] = Field(
        "clip_softmax",
        description="clip_softmax: 1 - softmax over the entities of CLIP's scaled cosine (author); eq6_literal: softmax over the entities of 1 - cosine "
        "(paper); raw: 1 - cosine",
    )
    confidence: Literal["all", "top_fraction", "threshold", "mutual_best"] = Field(
        "all",
        description="pairs kept: all; the top_fraction of least cost, at least one; those of cost at most max_cost; "
        "those that are each other's least cost",
    )
    top_fraction: float = Field(0.5, gt=0, le=1, description="share of an image's pairs that `top_fraction` keeps")
    max_cost: float = Field(
        0.5, ge=0, description="largest cost that `threshold` keeps; a single entity's pair is compared with it only under raw costs"
    )


@dataclass(frozen=True, slots=True)
class TextMatches:
    """Matched pairs of an image, least cost first.

    Attributes:
        masks, entities: [K] int64 indices into the image's masks and entities.
        costs: [K] float32, averaged over scales.
    """

    masks: NDArray[np.int64]
    entities: NDArray[np.int64]
    costs: FloatArray

    def __len__(self) -> int:
        return len(self.masks)


def cost_matrix(cosines: FloatArray, kind: str, logit_scale: float) -> FloatArray:
    """Costs [Q, T] at one scale from the cosines [Q, T] of region and entity embeddings; low means alike.

    Args:
        cosines: in [-1, 1].
        kind: as `MaskTextMatchingConfig.cost`. With a single entity every kind is ``raw``, since a softmax over one is 1 for every mask.
        logit_scale: CLIP's inverse temperature, for ``clip_softmax``.
    """
    if kind == "raw" or cosines.shape[1] < 2:
        return 1 - cosines
    if kind == "eq6_literal":
        return _softmax(1 - cosines)
    return 1 - _softmax(logit_scale * cosines)


def _softmax(values: FloatArray) -> FloatArray:
    shifted = np.exp(values - values.max(axis=1, keepdims=True, initial=-np.inf))
    probs: FloatArray = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return probs


def match_mask_text(config: MaskTextMatchingConfig, costs: FloatArray) -> TextMatches:
    """Match and filter.

    Args:
        config: the confidence filter.
        costs: [S, Q, T] a cost matrix for each scale, S at least 1.
    """
    cost = costs.mean(axis=0)
    masks, entities = linear_sum_assignment(cost)
    order = np.argsort(cost[masks, entities], kind="stable")
    masks, entities = masks[order], entities[order]
    kept = _confident(config, cost, masks, entities)
    masks, entities = masks[kept].astype(np.int64), entities[kept].astype(np.int64)
    return TextMatches(masks, entities, cost[masks, entities].astype(np.float32))


def _confident(config: MaskTextMatchingConfig, cost: FloatArray, masks: NDArray[np.int64], entities: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[K] bool: which pairs, given least cost first, are kept."""
    kept = np.ones(len(masks), bool)
    match config.confidence:
        case "top_fraction":
            kept[max(int(config.top_fraction * len(kept)), 1) :] = False
        case "threshold":
            if cost.shape[1] > 1 or config.cost == "raw":
                kept = cost[masks, entities] <= config.max_cost
        case "mutual_best":
            if len(masks):
                kept = (cost[masks].argmin(axis=1) == entities) & (cost[:, entities].argmin(axis=0) == masks)
    return kept
