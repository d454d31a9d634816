"""Noun phrases by NLTK's tagger: the paper's baseline parser. NLTK is the optional extra ``text``; its tagger's data is found through NLTK_DATA."""

import functools
import re
from collections.abc import Callable
from typing import Any

from uniovseg.errors import ConfigError, DataError
from uniovseg.text.cleaning import clean_entities, normalise

GRAMMAR = "NP: {<JJ.*|VBN>*<NN.*>+}"
"""A noun phrase: adjectives and participles (``parked cars``), then nouns."""


@functools.cache
def _tools() -> tuple[Callable[[list[str]], list[tuple[str, str]]], Callable[[list[tuple[str, str]]], Any]]:
    """Tagger and chunker."""
    try:
        import nltk
    except ImportError as error:
        raise ConfigError("NLTK is not installed", fix="pip install 'uniovseg[text]', or use another parser: rules, llm") from error
    try:
        tagger = nltk.tag.PerceptronTagger()
    except LookupError as error:
        raise DataError(
            "NLTK's tagger data is not there", seen=nltk.data.path, allowed="a folder with taggers/averaged_perceptron_tagger_eng",
            fix="set NLTK_DATA to the folder that holds it, or run python -m nltk.downloader averaged_perceptron_tagger_eng",
        ) from error  # fmt: skip
    return tagger.tag, nltk.RegexpParser(GRAMMAR).parse


def parse_entities(caption: str) -> tuple[str, ...]:
    """The noun phrases of a caption with their adjectives, cleaned, in its order.

    Raises:
        ConfigError: NLTK is not installed.
        DataError: its data is not found.
    """
    tag, chunk = _tools()
    tokens = tag(re.findall(r"\w[\w'/-]*|[^\w\s]", normalise(caption)))
    phrases = chunk(tokens).subtrees(lambda node: node.label() == "NP") if tokens else ()
    return clean_entities(" ".join(word for word, _ in phrase.leaves()) for phrase in phrases)
