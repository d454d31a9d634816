"""Several ways of naming the same masks, compared: an adapter against the frozen CLIP, one scale set against another.

Proposals are made once an image, by the first method, so that every difference in the scores is one of names.
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


def evaluate_namings(
    namings: Mapping[str, PromptableSegmenter],
    samples: Iterable[tuple[PanopticSample, SemanticSample]],
    vocabulary: Vocabulary,
    config: SegmentationConfig,
    threads: int = 1,
) -> Iterator[dict[str, NamingScore]]:
    """Score each image under each naming.

    Args:
        namings: methods by name; the first one proposes the masks of all. Those without an adapter share their maps, so they have the same CLIP.
        samples: each image's ground truth in both forms.
        vocabulary: the classes.
        config: from masks to maps.
        threads: images at a time.
    """
    return map_threads(lambda sample: score_namings(namings, *sample, vocabulary, config), samples, threads)


@torch.no_grad()
def score_namings(
    namings: Mapping[str, PromptableSegmenter],
    panoptic: PanopticSample,
    semantic: SemanticSample,
    vocabulary: Vocabulary,
    config: SegmentationConfig,
) -> dict[str, NamingScore]:
    """One image's score under each naming; the arguments are those of `evaluate_namings`."""
    first = next(iter(namings.values()))
    image = read_image(panoptic)
    embedded = first.embed(image)
    proposals = first.propose(embedded)
    masks, _ = truth_masks(panoptic.truth)
    perfect = Prediction(masks=masks, quality=torch.ones(len(masks)), class_scores=proposals.class_scores)
    scores = {}
    for name, method in namings.items():
        seen = embedded if method.adapter is None else replace(embedded, dense={})
        named, oracle = (replace(prediction, class_scores=method.classify(seen, prediction.masks, vocabulary)) for prediction in (proposals, perfect))
        scores[name] = NamingScore(
            semantic=semantic_result(named, semantic, image, vocabulary, config).score,
            panoptic=panoptic_result(named, panoptic, image, vocabulary, config).score,
            oracle=semantic_result(oracle, semantic, image, vocabulary, config).score,
        )
    return scores
