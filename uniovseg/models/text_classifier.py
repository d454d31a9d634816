"""Words as a classifier of regions: every synonym of every class becomes a unit vector of the CLIP's joint space (method: section 4.1).

A phrase is put into each template, the sentences are encoded and normalised, and their mean is normalised again. A region's score for a class is that
of its best synonym.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from uniovseg.deadline import in_time
from uniovseg.models.clip import Clip
from uniovseg.records import Vocabulary

TEXTS_AT_ONCE = 128
"""Sentences that the text tower encodes in one call."""

SIMPLE = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
)
SIZED = ("a photo of a {size} {{}}.", "This is a photo of a {size} {{}}.", "There is a {size} {{}} in the scene.")

TEMPLATE_SETS = ("vild14", "imagenet80", "simple")
"""ViLD's 14 templates, CLIP's 80 for ImageNet, and the 5 of ViLD's that name no size."""


@functools.cache
def template_set(name: str) -> tuple[str, ...]:
    """The sentences of one of `TEMPLATE_SETS`, each with a place ``{}`` for the phrase."""
    if name == "imagenet80":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES  # takes seconds, as `uniovseg.models.clip` says

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    sized = tuple(sentence.format(size=size) for size in ("small", "medium", "large") for sentence in SIZED)
    return {"vild14": SIMPLE + sized, "simple": SIMPLE}[name]


@dataclass(frozen=True, slots=True, eq=False)
class TextClassifier:
    """A vocabulary in the joint space.

    Attributes:
        embeddings: [S, D] float32 unit vectors, one a synonym.
        class_of: [S] int64, the class index of each; every class from 0 to the largest has at least one.
        logit_scale: the CLIP's inverse temperature.
    """

    embeddings: Tensor
    class_of: Tensor
    logit_scale: float

    def __len__(self) -> int:
        return int(self.class_of.max()) + 1

    def logits(self, regions: Tensor) -> Tensor:
        """Logits [n, C] of region embeddings [n, D] (of any length above 0): the scaled cosine with the class's best synonym."""
        cosines = F.normalize(regions.float(), dim=-1) @ self.embeddings.T
        best = cosines.new_full((len(cosines), len(self)), -torch.inf)
        return self.logit_scale * best.scatter_reduce(1, self.class_of.expand_as(cosines), cosines, "amax")

    def scores(self, regions: Tensor) -> Tensor:
        """Probabilities [n, C] over the classes: the softmax of `logits`."""
        return self.logits(regions).softmax(-1)


@torch.no_grad()
def embed_phrases(clip: Clip, phrases: Sequence[str], templates: Sequence[str], chunk: int = TEXTS_AT_ONCE) -> Tensor:
    """Embed phrases by the mean over templates.

    Args:
        clip: the CLIP whose text tower is used.
        phrases: n of them, at least one.
        templates: sentences with a place ``{}`` for the phrase.
        chunk: sentences encoded at once; it bounds memory and changes nothing else.

    Returns:
        [n, D] float32 unit vectors on the CLIP's device.
    """
    sentences = [template.format(phrase) for phrase in phrases for template in templates]
    total = clip.mean.new_zeros(len(phrases), clip.embed_dim)
    owners = torch.arange(len(sentences), device=total.device) // len(templates)
    for start in in_time(range(0, len(sentences), chunk)):
        encoded = clip.encode_text(sentences[start : start + chunk]).float()
        total.index_add_(0, owners[start : start + chunk], F.normalize(encoded, dim=-1))
    return F.normalize(total, dim=-1)


def build_text_classifier(clip: Clip, vocabulary: Vocabulary, templates: Sequence[str]) -> TextClassifier:
    """The classifier of a vocabulary's synonyms, on the CLIP's device; `templates` are those of classes without their own."""
    phrases = [synonym for category in vocabulary.categories for synonym in category.synonyms]
    class_of = [index for index, category in enumerate(vocabulary.categories) for _ in category.synonyms]
    places: dict[tuple[str, ...], list[int]] = {}
    for place, index in enumerate(class_of):
        places.setdefault(vocabulary.categories[index].templates or tuple(templates), []).append(place)
    embeddings = clip.mean.new_zeros(len(phrases), clip.embed_dim)
    for own, chosen in places.items():
        embeddings[chosen] = embed_phrases(clip, [phrases[place] for place in chosen], own)
    return TextClassifier(embeddings, torch.tensor(class_of, device=embeddings.device), float(clip.logit_scale))
