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

OPENINGS = re.compile(r"\b(?:black[- ]and[- ]white )?(?:image|picture|photo|photograph|snapshot|shot|view|scene|background|close[- ]?up)s? of\b")
"""How captions begin before they name a thing. What stands before says how the picture was taken: ``an aerial view of``."""

QUANTITIES = re.compile(
    r"(?:\b(?:large|small|big|huge|great|tiny|little|long|short|tall|high|wide|good|whole|vast|massive)\s+)*"
    r"\b(?:group|couple|pair|bunch|lot|number|row|set|stack|pile|variety|collection|series|kind|type|piece|part|fleet|herd|flock)s? of\b"
)
"""How captions count things that they name next; the size is the group's, not the things'."""

MAX_WORDS = 8
"""Longer phrases are sentences, not names."""


def _fold(text: str) -> str:
    """Lower case and plain apostrophes."""
    return unicodedata.normalize("NFKC", text).casefold().replace("’", "'")


def normalise(caption: str) -> str:
    """What parsers begin with: lower case, plain apostrophes, no quantities (``a group of``), and openings (``photo of``) parted from what they name.

    An opening becomes ``view;``, which with its adjectives is a phrase that `clean_phrase` drops.
    """
    return QUANTITIES.sub(" ", OPENINGS.sub("view;", _fold(caption)))


def clean_phrase(text: str) -> str:
    """One phrase in lower case with single spaces, without articles, counts, quotes and outer punctuation; empty when it names nothing.

    Of a phrase with an opening (``front view of a train``) what comes after it stays. Plurals stay, and so do descriptive words:
    ``"The two  old Wooden chairs."`` becomes ``"old wooden chairs"``.
    """
    text = re.sub(r"[^\w\s'&/.-]|_", " ", QUANTITIES.sub(" ", OPENINGS.split(_fold(text))[-1]))
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
