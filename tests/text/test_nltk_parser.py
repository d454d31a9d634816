"""The tagger's data is not part of the repository: NLTK_DATA names its folder."""

import importlib.util
import os

import pytest

from uniovseg.errors import ConfigError, DataError
from uniovseg.text import nltk_parser

needs_data = pytest.mark.skipif(
    importlib.util.find_spec("nltk") is None or "NLTK_DATA" not in os.environ, reason="NLTK is not installed, or NLTK_DATA is not set"
)


@pytest.fixture(autouse=True)
def fresh() -> None:
    nltk_parser._tools.cache_clear()


@needs_data
@pytest.mark.parametrize(
    ("caption", "entities"),
    [
        ("A small kitchen with yellow walls, a microwave and sink.", ("small kitchen", "yellow walls", "microwave", "sink")),
        ("Large passenger jets are parked next to each other. A man walks his dog.", ("large passenger jets", "man", "dog")),
        ("a photo of a red car on the wet street", ("red car", "wet street")),
        ("A large group of people", ("people",)),
        ("A small herd of cows", ("cows",)),
        ("A front view of a train", ("train",)),
        ("An aerial view of a city street", ("city street",)),
        ("A black and white photo of a man", ("man",)),
        ("", ()),
        ("...", ()),
    ],
)
def test_noun_phrases_with_their_adjectives(caption: str, entities: tuple[str, ...]) -> None:
    assert nltk_parser.parse_entities(caption) == entities


@pytest.mark.skipif(importlib.util.find_spec("nltk") is None, reason="NLTK is not installed")
def test_data_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", ["/nowhere"])
    with pytest.raises(DataError, match=r"tagger data is not there.*/nowhere.*NLTK_DATA"):
        nltk_parser.parse_entities("a dog")


def test_a_package_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nltk", None)
    with pytest.raises(ConfigError, match=r"not installed.*uniovseg\[text\]"):
        nltk_parser.parse_entities("a dog")
