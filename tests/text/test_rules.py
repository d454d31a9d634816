import numpy as np
import pytest

from uniovseg.data.shapes import CLASS_NAMES, GROUNDS, OPENINGS, THING_CLASSES, write_caption
from uniovseg.text.rules import parse_entities


def test_every_entity_of_every_clean_shapes_caption_and_no_other() -> None:
    rng = np.random.default_rng(0)
    seen_openings: set[str] = set()
    named: set[str] = set()
    things = rng.permutation(np.array(CLASS_NAMES[: len(THING_CLASSES)] * 6))
    start = 0
    while start < len(things):
        stop = start + int(rng.integers(0, 9))
        grounds = [str(name) for name in rng.permutation(list(GROUNDS))[: rng.integers(1, 3)]]
        names = [*dict.fromkeys(str(name) for name in things[start:stop]), *grounds]
        caption = write_caption(names, rng, 0.0)
        seen_openings |= {opening for opening in OPENINGS if opening and caption.startswith(opening)}
        found = parse_entities(caption)
        assert sorted(found) == sorted(names), caption
        assert list(found) == sorted(found, key=lambda name: f" {caption} ".find(f" {name}")), caption  # in the caption's order
        named |= set(names)
        start = stop
    assert named == set(CLASS_NAMES) and seen_openings == {opening for opening in OPENINGS if opening}


@pytest.mark.parametrize(
    ("caption", "entities"),
    [
        ("A woman wearing black leather sits on her motorcycle.", ("woman", "black leather", "motorcycle")),
        ("There are two large brown dogs, a frisbee and some trees in the background", ("large brown dogs", "frisbee", "trees")),
        ("The image shows a group of people. They hold umbrellas.", ("people", "umbrellas")),
        ("a building under construction with a painting", ("building", "construction", "painting")),
        ("a photo of a fire hydrant", ("fire hydrant",)),
        ("A large group of people", ("people",)),
        ("A small herd of cows near a very long row of trees", ("cows", "trees")),
        ("A front view of a train", ("train",)),
        ("An aerial view of a city street", ("city street",)),
        ("A black and white photo of a man", ("man",)),
        ("A close up of a cat. A dog with a view of the sea", ("cat", "dog", "sea")),
        ("Sheep before a background of trees", ("sheep", "trees")),
        ("", ()),
        ("the and of in", ()),
    ],
)
def test_everyday_captions(caption: str, entities: tuple[str, ...]) -> None:
    assert parse_entities(caption) == entities
