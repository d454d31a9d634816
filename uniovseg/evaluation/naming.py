"""Several ways of naming the same masks, compared: an adapter against the frozen CLIP, one scale set against another.

Proposals are made once an image and proposer, so that every difference between the scores of one proposer is one of names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from uniovseg.data.benchmarks import PanopticSample, SemanticSample, read_image
from uniovseg.evaluation.true_masks import truth_masks
from uniovseg.evaluation.words import panoptic_result, semantic_result
from uniovseg.methods.promptable import PromptableSegmenter
from uniovseg.metrics import PanopticScore, SemanticScore
from uniovseg.open_vocabulary import SegmentationConfig
from uniovseg.records import Prediction, Vocabulary
from uniovseg.threads import map_threads


@dataclass(frozen=True, slots=True)
class NamingScore:
    """How well masks are named, added over images.

    Attributes:
        semantic, panoptic: of the proposals.
        oracle: semantic, of the ground truth's own masks: what is left when masks are perfect.
    """

    semantic: SemanticScore
    panoptic: PanopticScore
    oracle: SemanticScore

    @classmethod
    def zero(cls, num_classes: int) -> "NamingScore":
        """The score of no image: what sums start from."""
        return cls(SemanticScore.zero(num_classes), PanopticScore.zero(num_classes), SemanticScore.zero(num_classes))

    def __add__(self, other: "NamingScore") -> "NamingScore":
        return NamingScore(self.semantic + other.semantic, self.panoptic + other.panoptic, self.oracle + other.oracle)


Scores = dict[str, dict[str, NamingScore]]
"""By proposer, then by naming."""


def evaluate_namings(
    namings: Mapping[str, PromptableSegmenter],
    proposers: Mapping[str, PromptableSegmenter],
    samples: Iterable[tuple[PanopticSample, SemanticSample]],
    vocabulary: Vocabulary,
    config: SegmentationConfig,
    threads: int = 1,
) -> Iterator[Scores]:
    """Score each image's masks by each proposer under each naming.

    Args:
        namings: methods by name.
        proposers: methods that propose masks, by name. The first one's maps serve all namings without an adapter, so these have the same CLIP.
        samples: each image's ground truth in both forms.
        vocabulary: the classes.
        config: from masks to maps.
        threads: images at a time.
    """
    for method in namings.values():
        method.classifier(vocabulary)  # once, before the threads would each do it
    return map_threads(lambda sample: score_namings(namings, proposers, *sample, vocabulary, config), samples, threads)


@torch.no_grad()
def score_namings(
    namings: Mapping[str, PromptableSegmenter],
    proposers: Mapping[str, PromptableSegmenter],
    panoptic: PanopticSample,
    semantic: SemanticSample,
    vocabulary: Vocabulary,
    config: SegmentationConfig,
) -> Scores:
    """One image's scores; the arguments are those of `evaluate_namings`."""
    image = read_image(panoptic)
    embedded = {name: proposer.embed(image) for name, proposer in proposers.items()}
    proposed = {name: proposer.propose(embedded[name]) for name, proposer in proposers.items()}
    masks, _ = truth_masks(panoptic.truth)
    perfect = Prediction(masks=masks, quality=torch.ones(len(masks)), class_scores=torch.zeros(len(masks), 0))
    frozen = next(iter(embedded.values()))
    scores: Scores = {name: {} for name in proposers}
    for name, method in namings.items():
        seen = frozen if method.adapter is None else replace(frozen, dense={})
        oracle, *found = (
            replace(prediction, class_scores=method.classify(seen, prediction.masks, vocabulary)) for prediction in (perfect, *proposed.values())
        )
        oracle_score = semantic_result(oracle, semantic, image, vocabulary, config).score
        for proposer, prediction in zip(proposed, found, strict=True):
            scores[proposer][name] = NamingScore(
                semantic=semantic_result(prediction, semantic, image, vocabulary, config).score,
                panoptic=panoptic_result(prediction, panoptic, image, vocabulary, config).score,
                oracle=oracle_score,
            )
    return scores
