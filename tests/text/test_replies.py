import json

import jsonschema
import pytest

from uniovseg.errors import DataError
from uniovseg.text.replies import ReplyLimits, caption_schema, entities_schema, parse_caption, parse_entities

LIMITS = ReplyLimits(caption_characters=40, entities=3, entity_characters=10)

NOT_THE_OBJECT = [
    "",
    "a dog",
    '```json\n{"entities": [], "caption": "a"}\n```',
    '{"entities": ["a"',
    '{"caption": "a do',
    '{"entities": [], "caption": "a", "more": 1}',
    "[]",
    "null",
    '{"Entities": []}',
    '{"entities": ["a"]} and so on',
    '{"caption": "a\x01b"}',
    "[" * 100_000,
]


@pytest.mark.parametrize("reply", NOT_THE_OBJECT)
def test_anything_else_is_refused(reply: str) -> None:
    with pytest.raises(DataError, match="the reply is not"):
        parse_entities(reply, LIMITS)
    with pytest.raises(DataError, match="the reply is not"):
        parse_caption(reply, LIMITS)


def test_a_caption_is_taken_with_single_spaces() -> None:
    assert parse_caption('{"caption": " a  dog\\non grass "}', LIMITS) == "a dog on grass"


@pytest.mark.parametrize(
    ("value", "reason"), [(3, "not a text"), (None, "not a text"), (" .. ", "no words"), ("1 2", "no words"), ("a " * 21, "too long")]
)
def test_a_caption_that_is_none_is_refused(value: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_caption(json.dumps({"caption": value}), LIMITS)


def test_entities_are_taken_as_they_came_and_none_is_a_reply() -> None:
    assert parse_entities('{"entities": ["A dog", "A dog"]}', LIMITS) == ["A dog", "A dog"]
    assert parse_entities(' {"entities": []}\n', LIMITS) == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [("a dog", "not a list"), ([["a"]], "not a list"), (["a", 1], "not a list"), (["a"] * 4, "too many"), (["a" * 11], "too long")],
)
def test_entities_that_are_none_are_refused(value: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_entities(json.dumps({"entities": value}), LIMITS)


def test_what_the_schemas_allow_is_what_parses() -> None:
    for value in ({"caption": "a dog, on grass."}, {"caption": "a" * 40}):
        jsonschema.validate(value, caption_schema(LIMITS))
        parse_caption(json.dumps(value), LIMITS)
    for wrong in ({"caption": "a" * 41}, {"caption": ""}, {}, {"caption": "a", "b": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, caption_schema(LIMITS))
    for phrases in ([], ["a dog"] * 3, ["a" * 10]):
        jsonschema.validate({"entities": phrases}, entities_schema(LIMITS))
        parse_entities(json.dumps({"entities": phrases}), LIMITS)
    for refused in (["a"] * 4, ["a" * 11], [1], ["."]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"entities": refused}, entities_schema(LIMITS))
