"""From an image and its entities to pairs, with a frozen segmenter: proposals, regions, costs, matching (method: 3.3).

One path for both ways of stage 2: `uniovseg.runtime.match` writes what it gives to disk, and online training calls it in the loop.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from uniovseg.config import Config
from uniovseg.mask_text_matching import FloatArray, MaskTextMatchingConfig, cost_matrix, match_mask_text
from uniovseg.methods.promptable import EmbeddedImage, PromptableSegmenter
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.records import ImageEntities, ImagePairs


class PairingConfig(Config):
    """Proposals and matching of an image-text pair. Canvas sizes and templates are the segmenter's own ``regions``."""

    max_masks: int = Field(100, ge=1, description="proposals of an image that are matched, best predicted IoU first")
    points_per_side: int | None = Field(None, ge=1, description="grid of point prompts; null: the segmenter's own")
    matching: MaskTextMatchingConfig = Field(MaskTextMatchingConfig(), description="costs, assignment, confidence")


@torch.no_grad()
def pair_image(
    config: PairingConfig, method: PromptableSegmenter, phrases: PhraseEmbeddings, record: ImageEntities, image: NDArray[np.uint8]
) -> ImagePairs:
    """Match the entities of one image.

    Args:
        config: how many proposals, and how they are matched.
        method: the segmenter that proposes masks and embeds regions.
        phrases: text embeddings of entities, from the same CLIP.
        record: the image's entities, no two equal.
        image: [H, W, 3] uint8 RGB, the record's image decoded.
    """
    embedded = method.embed(image)
    proposals = method.propose(embedded, config.points_per_side)
    best = torch.arange(min(len(proposals.masks), config.max_masks))
    masks = proposals.masks.select(best)
    costs = region_costs(config.matching.cost, method, phrases, embedded, masks, record.entities)
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


def region_costs(
    kind: str, method: PromptableSegmenter, phrases: PhraseEmbeddings, embedded: EmbeddedImage, masks: RunLengthMasks, entities: tuple[str, ...]
) -> FloatArray:
    """The cost of each mask and entity at each of the segmenter's canvas sizes: [S, Q, T]."""
    texts = phrases(entities)
    scale = float(method.clip.logit_scale)
    cosines = [(regions @ texts.T).cpu().numpy() for regions in method.region_embeddings(embedded, masks)]
    return np.stack([cost_matrix(cosine, kind, scale) for cosine in cosines])
