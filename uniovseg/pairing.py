"""From an image and its entities to pairs, with a frozen segmenter: proposals, regions, costs, matching (method: 3.3).

One path for both ways of stage 2: `uniovseg.runtime.match` writes what it gives to disk, and online training calls it in the loop.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from uniovseg.config import Config
from uniovseg.mask_text_matching import FloatArray, MaskTextMatchingConfig, cost_matrix, match_mask_text
from uniovseg.methods.promptable import PromptableSegmenter
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.postprocess import ProposalConfig
from uniovseg.records import ImageEntities, ImagePairs


class PairingConfig(Config):
    """Proposals and matching of an image-text pair. Canvas sizes and templates are the segmenter's own ``regions``."""

    max_masks: int = Field(100, ge=1, description="proposals of an image that are matched, best predicted IoU first")
    points_per_side: int | None = Field(None, ge=1, description="grid of point prompts; null: the segmenter's own")
    proposals: ProposalConfig | None = Field(None, description="which masks of the grid are matched; null: the segmenter's own proposals")
    matching: MaskTextMatchingConfig = Field(MaskTextMatchingConfig(), description="costs, assignment, confidence")


@torch.no_grad()
def pair_image(
    config: PairingConfig,
    method: PromptableSegmenter,
    phrases: PhraseEmbeddings,
    record: ImageEntities,
    image: NDArray[np.uint8],
    adapted: float = 0.0,
) -> ImagePairs:
    """Match the entities of one image.

    Args:
        config: how many proposals, and how they are matched.
        method: the segmenter that proposes masks and embeds regions.
        phrases: text embeddings of entities, from the same CLIP.
        record: the image's entities, no two equal.
        image: [H, W, 3] uint8 RGB, the record's image decoded.
        adapted: the adapter's share in the region embeddings, in [0, 1]; 0: the frozen CLIP's.
    """
    embedded = method.embed(image)
    proposals = method.propose(embedded, config.points_per_side, config.proposals)
    best = torch.arange(min(len(proposals.masks), config.max_masks))
    masks = proposals.masks.select(best)
    regions = method.region_embeddings(embedded, masks, adapted)
    costs = region_costs(config.matching.cost, float(method.clip.logit_scale), regions, phrases(record.entities))
    found = match_mask_text(config.matching, costs)
    return ImagePairs(
        key=record.key,
        image=record.image,
        height=image.shape[0],
        width=image.shape[1],
        counts=tuple(masks.to_counts()),
        quality=proposals.quality[best].numpy(),
        entities=record.entities,
        sizes=method.config.regions.sizes,
        costs=costs,
        pairs=np.stack([found.masks, found.entities], axis=1),
        pair_costs=found.costs,
    )


def region_costs(kind: str, logit_scale: float, regions: Sequence[Tensor], texts: Tensor) -> FloatArray:
    """The cost of each mask and entity at each canvas size, [S, Q, T], from S sets of region embeddings [Q, D] and text embeddings [T, D]."""
    return np.stack([cost_matrix((region @ texts.T).cpu().numpy(), kind, logit_scale) for region in regions])
