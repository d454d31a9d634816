"""What a model must reply, as a JSON schema, and the strict reading of what it did reply.

The schema goes with the request; an endpoint that honours it cannot reply otherwise, but for a reply that is cut. Many ignore it, so nothing is taken
on trust: a reply is exactly the JSON object asked for, or it is refused with the reason. Strings are bounded and of a plain alphabet: without bounds a
weak model fills its whole budget, and with any character some servers let raw control characters through, which no JSON reader takes.
"""

import json
import re
from typing import Any

from pydantic import Field

from uniovseg.config import Config
from uniovseg.errors import DataError

Schema = dict[str, Any]

TEXT = r"[A-Za-z0-9 ,.;:'()&/%-]"
"""Characters of a caption in a reply, after a first letter; an entity has no sentence marks."""
PHRASE = r"[A-Za-z0-9 '&/-]"


class ReplyLimits(Config):
    """How long replies may be."""

    caption_characters: int = Field(600, ge=8, description="longest caption")
    entities: int = Field(40, ge=1, description="most entities of a caption")
    entity_characters: int = Field(60, ge=3, description="longest entity")


def caption_schema(limits: ReplyLimits) -> Schema:
    """The JSON schema of a reply with a caption."""
    return _object("caption", {"type": "string", "pattern": f"^[A-Za-z]{TEXT}{{0,{limits.caption_characters - 1}}}$"})


def entities_schema(limits: ReplyLimits) -> Schema:
    """The JSON schema of a reply with entities."""
    phrase = {"type": "string", "pattern": f"^[A-Za-z0-9]{PHRASE}{{0,{limits.entity_characters - 1}}}$"}
    return _object("entities", {"type": "array", "items": phrase, "maxItems": limits.entities})


def parse_caption(reply: str, limits: ReplyLimits) -> str:
    """The caption of a reply, with single spaces.

    Raises:
        DataError: the reply is anything but ``{"caption": "..."}``, or the caption is empty or too long.
    """
    caption = _only_value(reply, "caption")
    if not isinstance(caption, str):
        raise DataError("the caption is not a text", seen=type(caption).__name__)
    caption = " ".join(caption.split())
    if not re.search(r"[^\W\d_]", caption):
        raise DataError("the caption has no words", seen=repr(caption[:80]))
    if len(caption) > limits.caption_characters:
        raise DataError("the caption is too long", seen=f"{len(caption)} characters", allowed=limits.caption_characters)
    return caption


def parse_entities(reply: str, limits: ReplyLimits) -> list[str]:
    """The phrases of a reply, as they came; none is a valid reply.

    Raises:
        DataError: the reply is anything but ``{"entities": ["...", ...]}``, or has too many or too long phrases.
    """
    phrases = _only_value(reply, "entities")
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise DataError("the entities are not a list of texts", seen=json.dumps(phrases)[:80])
    if len(phrases) > limits.entities:
        raise DataError("too many entities", seen=len(phrases), allowed=limits.entities)
    for phrase in phrases:
        if len(phrase) > limits.entity_characters:
            raise DataError("an entity is too long", seen=f"{len(phrase)} characters", allowed=limits.entity_characters)
    return phrases


def _object(key: str, value: Schema) -> Schema:
    return {"type": "object", "properties": {key: value}, "required": [key], "additionalProperties": False}


def _only_value(reply: str, key: str) -> Any:
    """The value of a JSON object that has this key and no other."""
    try:
        parsed = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise DataError("the reply is not JSON", seen=error) from error
    if not isinstance(parsed, dict) or set(parsed) != {key}:
        found = sorted(parsed) if isinstance(parsed, dict) else type(parsed).__name__
        raise DataError("the reply is not the object asked for", seen=found, allowed=f"an object with {key!r} alone")
    return parsed[key]
