"""Stage 2 of Uni-OVSeg: the feature adapter learns to give a mask's region the embedding of the entity that names it.

Everything but the adapter is frozen. The regions of a batch are pooled from the adapted CLIP map, projected by the CLIP's own projector and pulled
towards their entities' text embeddings by the cosine loss (method: Eq. 8). Where the pairs come from is the data's business, not the method's.
"""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from uniovseg.methods.base import TrainableMethod, mean_over_ranks
from uniovseg.methods.promptable import PromptableConfig, PromptableSegmenter
from uniovseg.models.clip import Clip, load_clip
from uniovseg.models.feature_adapter import AdapterConfig, FeatureAdapter
from uniovseg.models.feature_memory import FeatureMemory
from uniovseg.models.mask_generator import MaskGenerator, build_mask_generator
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.models.text_classifier import template_set
from uniovseg.parallel import Parallel
from uniovseg.records import PairBatch, StepOutput


class MaskTextAlignmentConfig(PromptableConfig):
    """Stage 2 and its parts."""

    parallels: ClassVar[tuple[Parallel, ...]] = ("ddp",)  # a worker asks the text tower for what is new to it, and the trunk for what it has not kept

    name: Literal["mask_text_alignment"] = Field("mask_text_alignment", description="the method's name")
    adapter: AdapterConfig = Field(AdapterConfig(), description="the feature adapter")
    feature_memory_mib: int = Field(
        0, ge=0, description="MiB of the frozen CLIP's maps that training keeps, a worker: for views that come again, without flip, crop or jitter"
    )

    @model_validator(mode="after")
    def _maps_that_stay(self) -> Self:
        if self.feature_memory_mib and self.adapter.placement == "inline":
            raise ValueError("feature_memory_mib must be 0 for adapter.placement=inline, which changes the CLIP's maps on their way")
        return self


class MaskTextAlignment(PromptableSegmenter, TrainableMethod[PairBatch]):
    """Stage 2: trains the feature adapter of the promptable segmenter.

    Args:
        config: sizes of the parts.
        clip: the frozen CLIP.
        generator: the mask generator, trained by stage 1; frozen here, and kept in checkpoints so that each is whole.
        adapter: the feature adapter.
    """

    batch_type = PairBatch
    starts_fresh = ("adapter",)
    config: MaskTextAlignmentConfig

    def __init__(self, config: MaskTextAlignmentConfig, clip: Clip, generator: MaskGenerator, adapter: FeatureAdapter) -> None:
        super().__init__(config, clip, generator, adapter)
        self._phrases = PhraseEmbeddings(clip, template_set(config.regions.templates))
        self._memory = FeatureMemory(clip, config.feature_memory_mib * 1024**2) if config.feature_memory_mib else None

    def training_step(self, batch: PairBatch) -> StepOutput:
        """The mean of 1 - cosine over all pairs of the batch. Metrics: ``cosine``, its mean, and ``pairs``, the pairs an image."""
        cosines = self.pair_cosines(batch)
        normaliser = mean_over_ranks(len(cosines), cosines.device)
        pairs = torch.tensor(len(cosines) / len(batch.keys))
        return StepOutput(loss=(1 - cosines).sum() / normaliser, metrics={"cosine": cosines.detach().sum() / normaliser, "pairs": pairs})

    def pair_cosines(self, batch: PairBatch) -> Tensor:
        """Cosine [K] of each pair's region and entity, over the whole batch; without pairs it is empty and still connected to the adapter."""
        assert self.adapter is not None
        dense: Tensor = self.adapter(self.clip, batch.images, self.generator.pixel_decoder, self._memory)
        phrases = [phrase for each in batch.entities for phrase in each]
        if not phrases:
            return dense.flatten()[:0].float()
        regions = [self.clip.embed_regions(features, cells) for features, cells in zip(dense, batch.regions, strict=True)]
        return (torch.cat(regions) * self._phrases(phrases)).sum(1)


def build_mask_text_alignment(config: MaskTextAlignmentConfig, seed: int) -> MaskTextAlignment:
    """Stage 2 with a loaded CLIP, a mask generator with random weights (a checkpoint of stage 1 replaces them), and an adapter that changes nothing yet."""
    clip = load_clip(config.clip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = build_mask_generator(config.generator, clip.feature_channels).requires_grad_(False)
        adapter = FeatureAdapter(config.adapter, clip.feature_channels, config.generator.dim)
    return MaskTextAlignment(config, clip, generator, adapter)
