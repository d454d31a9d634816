"""From raw phrases to entities: the same rules whoever found the phrases, a language model or a parser."""

import re
import unicodedata
from collections.abc import Iterable


def word_set(text: str) -> frozenset[str]:
    """A set of words written as one text."""
    return frozenset(text.split())


LEADING_WORDS = word_set(
    "a an the this that these those some any each every either both all another other its his her their our your my several many few various numerous "
    "multiple one two three four five six seven eight nine ten dozens of"
)
"""Words that say which or how many, not what: dropped from the front of a phrase."""

STOP_PHRASES = word_set(
    "front rear top bottom left right side sides middle center centre corner edge end distance area part parts piece close-up closeup anything nothing "
    "something everything thing things stuff it they them he she him her we us you i ones others who which what that there here kind type variety color "
    "colour day time way"
) | {"left side", "right side", "other side", "black and white", "close up"}
"""Phrases that name nothing with a region of its own."""

STOP_HEADS = word_set("image images picture pictures photo photos photograph photographs snapshot shot view scene background backgrounds foreground")
"""Last words of phrases about the picture as such, whatever stands before: ``blurry background``."""

OPENINGS = re.compile(r"\b(?:image|picture|photo|photograph|snapshot|shot|view|scene|close[- ]?up)s? of\b")
"""How captions begin before they name a thing."""

QUANTITIES = re.compile(
    r"\b(?:group|couple|pair|bunch|lot|number|row|set|stack|pile|variety|collection|series|kind|type|piece|part|fleet|herd|flock)s? of\b"
)
"""How captions count things that they name next."""

MAX_WORDS = 8
"""Longer phrases are sentences, not names."""


def normalise(text: str) -> str:
    """Lower case, plain apostrophes, and no openings (``photo of``) nor quantities (``a group of``): what parsers and `clean_phrase` begin with."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return QUANTITIES.sub(" ", OPENINGS.sub(" ", text))


def clean_phrase(text: str) -> str:
    """One phrase in lower case with single spaces, without articles, counts, quotes and outer punctuation; empty when it names nothing.

    Plurals stay, and so do descriptive words: ``"The two  old Wooden chairs."`` becomes ``"old wooden chairs"``.
    """
    text = re.sub(r"[^\w\s'&/.-]|_", " ", normalise(text))
    words = [word for word in (part.strip("'&/.-") for part in text.split()) if word]
    while words and (words[0] in LEADING_WORDS or words[0].isdigit()):
        words.pop(0)
    phrase = " ".join(words)
    if not words or len(words) > MAX_WORDS or phrase in STOP_PHRASES or words[-1] in STOP_HEADS:
        return ""
    return phrase if re.search(r"[^\W\d]", phrase) else ""


def clean_entities(phrases: Iterable[str]) -> tuple[str, ...]:
    """Phrases as entities: cleaned, no two equal, in the order of first mention.

    A phrase that is the tail of a longer one (``star`` beside ``striped red star``) says less of the same thing, and goes: the longest descriptive phrase
    is kept. Words count in the form they have, so ``dog`` and ``dogs`` are two entities.
    """
    cleaned = [phrase for phrase in dict.fromkeys(map(clean_phrase, phrases)) if phrase]
    return tuple(phrase for phrase in cleaned if not any(longer.endswith(f" {phrase}") for longer in cleaned))
