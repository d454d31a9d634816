"""Vocabularies: packaged ones by name, files in our form or in that of the OpenSeg label files, and plain lists of words."""

import json
from collections import Counter
from collections.abc import Sequence
from importlib import resources

from uniovseg import storage
from uniovseg.config import nearest
from uniovseg.data import shapes
from uniovseg.errors import DataError
from uniovseg.records import Category, Vocabulary
from uniovseg.storage import Location

FILES = ("ade20k_150", "ade20k_847", "cityscapes", "coco_panoptic", "coco_stuff", "pc_459", "pc_59", "voc_20", "voc_21")
PACKAGED = (*FILES, "shapes")
"""Names of the vocabularies that come with the package; ``shapes`` is that of the shapes world."""

MAX_CLASSES = 65_535
"""Classes of a vocabulary: a label map has at most 16 bits, and one value is for what has no class."""

NO_CLASS = "invalid_class_id"
"""Name of the rows of an OpenSeg label file that are no class."""

FORM = '{"name": .., "categories": [{"id": 0, "name": "cat", "synonyms": ["kitty"], "thing": true}, ..]}'


def load_vocabulary(source: str | Sequence[str]) -> Vocabulary:
    """A vocabulary from whatever names one.

    Args:
        source: a name of `PACKAGED`; the path or URI of a file, in our form (``.json``, see `FORM`; ``synonyms`` are further words, ``thing`` is true where it
            is left out) or that of the OpenSeg label files (``.txt``, lines ``id:name,synonym,..``, all of them things); words parted by commas; or a
            list of words. Words are things, with ids from 0.

    Raises:
        DataError: no vocabulary of this name; a file of another form; an empty or repeated word of a list; an empty name, a repeated id; no class at
            all, or more than `MAX_CLASSES`.
        StorageError: the file cannot be read.
    """
    if not isinstance(source, str):
        return _of_words(source)
    if source == "shapes":
        return Vocabulary("shapes", shapes.CATEGORIES)
    if source in FILES:
        return _parse_json(source, (resources.files("uniovseg") / f"data/vocabularies/{source}.json").read_text("utf-8"))
    if source.endswith((".json", ".txt")):
        location = Location.of(source)
        text = _decoded(location)
        return _parse_json(source, text) if source.endswith(".json") else _parse_openseg(source, text)
    if "," in source:
        return _of_words(source.rstrip().removesuffix(",").split(","))
    raise DataError(
        f"no vocabulary of this name{nearest(source, PACKAGED)}",
        seen=repr(source),
        allowed=f"{', '.join(PACKAGED)}, a .json or .txt file, words parted by commas",
        fix="a single word needs a comma after it",
    )


def _of_words(words: Sequence[str]) -> Vocabulary:
    names = [" ".join(word.split()) for word in words]
    repeated = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if "" in names:
        raise DataError("a word of the vocabulary is empty", seen=f"number {names.index('') + 1} of {len(names)}")
    if repeated:
        raise DataError("words of the vocabulary are repeated", seen=", ".join(repeated[:5]))
    return _checked("words", [Category(index, name, (name,)) for index, name in enumerate(names)])


def _decoded(location: Location) -> str:
    try:
        return storage.read_bytes(location).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the vocabulary is not UTF-8 text", seen=f"{location.uri}: {error.reason} at byte {error.start}") from error


def _parse_json(source: str, text: str) -> Vocabulary:
    try:
        parsed = json.loads(text)
        categories = [
            _category(source, int(item["id"]), [item["name"], *_list(item.get("synonyms", []))], bool(item.get("thing", True)))
            for item in parsed["categories"]
        ]
        name = str(parsed["name"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("not a vocabulary file", seen=f"{source}: {type(error).__name__} {error}", allowed=FORM) from error
    return _checked(name, categories)


def _list(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"synonyms are no list: {value!r}")
    return value


def _parse_openseg(source: str, text: str) -> Vocabulary:
    categories = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.rpartition(":")[2].strip() == NO_CLASS:
            continue
        identity, separator, words = line.partition(":")
        if not separator or not identity.strip().isdecimal():
            raise DataError("not a line of a label file", seen=f"{source}, line {number}: {line[:60]!r}", allowed="id:name,synonym,..")
        categories.append(_category(source, int(identity), words.split(","), True))
    return _checked(Location.of(source).name.removesuffix(".txt"), categories)


def _category(source: str, identity: int, words: Sequence[str], thing: bool) -> Category:
    """A class whose repeated synonyms are left out."""
    synonyms = tuple(dict.fromkeys(" ".join(word.split()) for word in words))
    if "" in synonyms:
        raise DataError("a class of the vocabulary has an empty word", seen=f"{source}, id {identity}: {', '.join(words)!r}")
    return Category(identity, synonyms[0], synonyms, thing)


def _checked(name: str, categories: Sequence[Category]) -> Vocabulary:
    repeated = [str(identity) for identity, count in Counter(category.id for category in categories).items() if count > 1]
    if repeated:
        raise DataError("ids of the vocabulary are repeated", seen=f"{name}: {', '.join(repeated[:5])}")
    if not 1 <= len(categories) <= MAX_CLASSES:
        raise DataError("the vocabulary has too few or too many classes", seen=f"{name}: {len(categories)}", allowed=f"1 to {MAX_CLASSES:,}")
    return Vocabulary(name, tuple(categories))
