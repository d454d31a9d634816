import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniovseg.text.cleaning import clean_entities, clean_phrase


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("A Dog", "dog"),
        ("the two  old Wooden\tchairs.", "old wooden chairs"),
        ("12 dogs", "dogs"),
        ("some of the people", "people"),
        ("a group of people", "people"),
        ("a photo of a red car", "red car"),
        ("Close-up of a cat", "cat"),
        ("front view of a train", "train"),
        ("A black and white photo of a man", "man"),
        ("background of trees", "trees"),
        ("a large group of people", "people"),
        ("a small herd of brown cows", "brown cows"),
        ("large brown cows", "large brown cows"),
        ('"stop sign"', "stop sign"),
        ("t-shirt", "t-shirt"),
        ("a woman’s hat", "woman's hat"),
        ("photo album", "photo album"),
        ("view of the sea", "sea"),
        ("ﬁre hydrant", "fire hydrant"),
        ("the middle", ""),
        ("blurry background", ""),
        ("This image", ""),
        ("the left side", ""),
        ("a", ""),
        ("42", ""),
        ("...", ""),
        ("", ""),
        ("a man who is walking his dog along the long beach", ""),
    ],
)
def test_a_phrase_is_a_name_or_nothing(raw: str, cleaned: str) -> None:
    assert clean_phrase(raw) == cleaned


def test_duplicates_go_plurals_stay_and_the_order_is_that_of_first_mention() -> None:
    assert clean_entities(["Dogs", "a dog", "the DOG", "cat", "Dogs."]) == ("dogs", "dog", "cat")


def test_of_phrases_that_end_alike_the_longest_stays() -> None:
    assert clean_entities(["star", "red star", "a striped red star", "blue star", "starfish", "star fruit"]) == (
        "striped red star",
        "blue star",
        "starfish",
        "star fruit",
    )


@given(st.lists(st.text(max_size=30), max_size=6))
def test_cleaning_twice_changes_nothing_and_no_two_are_equal(phrases: list[str]) -> None:
    once = clean_entities(phrases)
    assert clean_entities(once) == once
    assert len(set(once)) == len(once)
    assert all(phrase == phrase.strip() and phrase == phrase.casefold() for phrase in once)
