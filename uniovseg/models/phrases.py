"""Text embeddings of phrases, remembered: captions of a data set name the same things again and again."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from uniovseg.models.clip import Clip
from uniovseg.models.text_classifier import embed_phrases

PHRASES_KEPT = 100_000
"""Phrases remembered; the ones asked longest ago go first (at width 768, 300 MB)."""


class PhraseEmbeddings:
    """Unit embeddings of phrases, averaged over templates.

    Args:
        clip: whose text tower is asked.
        templates: prompts with ``{}`` where the phrase goes.
    """

    def __init__(self, clip: Clip, templates: Sequence[str]) -> None:
        self.clip, self.templates = clip, templates
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """[n, D] float32 on the CLIP's device, one row a phrase."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._known]
        if new:
            embedded_new = embed_phrases(self.clip, new, self.templates)
            self._known.update((phrase, row.clone()) for phrase, row in zip(new, embedded_new, strict=True))  # a view would keep all of them
        for phrase in phrases:
            self._known.move_to_end(phrase)
        embedded = torch.stack([self._known[phrase] for phrase in phrases]) if phrases else self.clip.logit_scale.new_zeros(0, self.clip.embed_dim)
        while len(self._known) > PHRASES_KEPT:
            self._known.popitem(last=False)
        return embedded
