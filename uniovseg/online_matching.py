"""Online matching: entities to pairs inside the training loop of stage 2, a step before the method (method: 3.1 and 3.3).

The segmenter that proposes and embeds is the method itself, whose CLIP and mask generator are stage 1's and frozen. The stored image is matched, not
the view, by the function that `uniovseg.runtime.match` calls: without blending an image's pairs are those that the job would store. With blending they
move with the adapter: regions are embedded between the frozen and the adapted CLIP, and the adapter's share grows over the run.
"""

import torch
from pydantic import Field

from uniovseg.config import Config
from uniovseg.data.images import decode_image
from uniovseg.data.pairs import visible_pairs
from uniovseg.methods.promptable import PromptableSegmenter, RegionConfig
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.models.text_classifier import template_set
from uniovseg.pairing import PairingConfig, pair_image
from uniovseg.records import EntityBatch, PairBatch

LARGEST_SHARE = 0.5
"""The adapter's share in the matching embeddings at the end of a blended run."""


class OnlineMatchingConfig(Config):
    """How a run matches for itself. `regions` and `pairing` are those of jobs/match.py."""

    regions: RegionConfig = Field(RegionConfig(sizes=(896, 1024)), description="the scale set and the templates")
    pairing: PairingConfig = Field(PairingConfig(), description="proposals and matching")
    blend: bool = Field(
        False,
        description=f"match by embeddings that move from the frozen to the adapted CLIP, its share rising from 0 to {LARGEST_SHARE} over the run",
    )


def adapted_share(step: int, steps: int) -> float:
    """The adapter's share s in a blended run of `steps` steps, before optimizer step `step`: linear, 0 at the start."""
    return LARGEST_SHARE * step / steps


class OnlineMatcher:
    """Turns batches of entities into batches of pairs, step by step of a run.

    Args:
        config: scales, proposals, matching, blending.
        method: the method in training; its modules are shared, so that a blended match sees its adapter as it is.
        steps: optimizer steps of the run.
    """

    def __init__(self, config: OnlineMatchingConfig, method: PromptableSegmenter, steps: int) -> None:
        self.config, self.steps = config, steps
        settings = method.config.model_copy(update={"regions": config.regions})
        self._segmenter = PromptableSegmenter(settings, method.clip, method.generator, method.adapter)
        self._phrases = PhraseEmbeddings(method.clip, template_set(config.regions.templates))

    @torch.no_grad()
    def __call__(self, batch: EntityBatch, step: int) -> PairBatch:
        """The batch's pairs that can be seen in its views; no gradient flows through the matching. It lies on the batch's device, as the method must."""
        share = adapted_share(step, self.steps) if self.config.blend else 0.0
        paired = [
            pair_image(self.config.pairing, self._segmenter, self._phrases, record, decode_image(record.image), share) for record in batch.records
        ]
        seen = [visible_pairs(record, view) for record, view in zip(paired, batch.views, strict=True)]
        return PairBatch(
            keys=batch.keys,
            images=batch.images,
            regions=tuple(regions.to(batch.images.device) for regions, _ in seen),
            entities=tuple(entities for _, entities in seen),
        )
