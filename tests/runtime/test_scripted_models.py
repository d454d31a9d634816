"""The scripted captioner and parsers, asked as real models are: by the endpoint code, with the packaged prompts, over HTTP."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uniovseg.data.shapes import CLASS_NAMES, SceneConfig, image_text
from uniovseg.errors import EndpointError
from uniovseg.records import ImageText
from uniovseg.runtime.endpoint import Answer, ChatRequest, Endpoint, EndpointConfig, Refusal
from uniovseg.runtime.scripted_models import image_key, model_name, scripted_models, true_names
from uniovseg.storage import Location
from uniovseg.text import rules
from uniovseg.text.prompts import load_prompt
from uniovseg.text.replies import ReplyLimits, Schema, caption_schema, entities_schema, parse_caption, parse_entities

SCENE = SceneConfig(size=64)
COUNT = 150
LIMITS = ReplyLimits()

Known = dict[str, tuple[str, ...]]


@pytest.fixture(scope="module")
def pairs() -> list[ImageText]:
    return [image_text(SCENE, 4, index, 0.0) for index in range(COUNT)]


@pytest.fixture(scope="module")
def known() -> Known:
    return true_names(SCENE, 4, COUNT)


@pytest.fixture(scope="module")
def url(known: Known) -> Iterator[str]:
    with scripted_models(known) as base:
        yield base


def ask(url: str, model: str, cache: Path, prompt: str, inputs: list[tuple[str, bytes | None]], schema: Schema) -> list[Answer | Refusal]:
    question = load_prompt(prompt)

    async def every() -> list[Answer | Refusal]:
        endpoint = Endpoint(EndpointConfig(url=url, model=model, attempts=1), Location.of(cache))
        try:
            return await asyncio.gather(*(endpoint.ask(ChatRequest(question.hash, question.messages(text, image), schema)) for text, image in inputs))
        finally:
            await endpoint.close()

    return asyncio.run(every())


def replies(answers: list[Answer | Refusal], parse: Callable[[str], object]) -> list[object]:
    found = []
    for answer in answers:
        assert isinstance(answer, Answer) and answer.prompt_tokens > 0 and answer.completion_tokens > 0
        found.append(parse(answer.text))
    return found


def captions(url: str, share: float, cache: Path, pairs: list[ImageText]) -> list[str]:
    said = ask(
        url, model_name("captioner", share), cache, "caption", [("a misleading caption", pair.image) for pair in pairs], caption_schema(LIMITS)
    )
    return [str(reply) for reply in replies(said, lambda text: parse_caption(text, LIMITS))]


def test_the_images_are_known_by_what_their_scenes_show(pairs: list[ImageText], known: Known) -> None:
    assert len(known) == COUNT
    for pair in pairs:
        assert sorted(rules.parse_entities(pair.caption)) == sorted(known[image_key(pair.image)])


def test_the_captioner_names_what_the_image_shows(url: str, pairs: list[ImageText], known: Known, tmp_path: Path) -> None:
    for pair, caption in zip(pairs, captions(url, 0.0, tmp_path, pairs), strict=True):
        assert sorted(rules.parse_entities(caption)) == sorted(known[image_key(pair.image)])


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_as_many_captions_are_wrong_as_the_model_is_told(url: str, share: float, pairs: list[ImageText], known: Known, tmp_path: Path) -> None:
    wrong = 0
    for pair, caption in zip(pairs, captions(url, share, tmp_path, pairs), strict=True):
        named, shown = set(rules.parse_entities(caption)), set(known[image_key(pair.image)])
        wrong += named != shown
        assert len(named - shown) <= 1 and len(shown - named) <= 1
    spread = (share * (1 - share) / COUNT) ** 0.5
    assert abs(wrong / COUNT - share) < 3.5 * spread


@pytest.mark.parametrize(("share", "parser"), [(0.0, "llm"), (0.4, "llm"), (0.4, "rules")])
def test_as_many_lists_of_entities_are_wrong_as_the_parser_is_told(
    url: str, share: float, parser: str, pairs: list[ImageText], tmp_path: Path
) -> None:
    said = ask(url, model_name(parser, share), tmp_path, "entities", [(pair.caption, None) for pair in pairs], entities_schema(LIMITS))
    wrong = 0
    for pair, found in zip(pairs, replies(said, lambda text: parse_entities(text, LIMITS)), strict=True):
        assert isinstance(found, list) and set(found) <= set(CLASS_NAMES)
        right = rules.parse_entities(pair.caption)
        wrong += tuple(found) != right
        assert len(right) - 1 <= len(found) <= len(right)
    assert abs(wrong / COUNT - share) < 3.5 * (share * (1 - share) / COUNT) ** 0.5 + 1e-9


def test_equal_requests_get_equal_answers_and_more_noise_errs_on_more_images(url: str, pairs: list[ImageText], tmp_path: Path) -> None:
    some, exact = pairs[:60], captions(url, 0.0, tmp_path / "0", pairs[:60])
    first, second = (captions(url, 0.3, tmp_path / name, some) for name in ("a", "b"))
    assert first == second
    more = captions(url, 0.7, tmp_path / "c", some)
    wrong, wrong_more = ({place for place, text in enumerate(texts) if text != exact[place]} for texts in (first, more))
    assert wrong < wrong_more


def test_what_cannot_be_answered(url: str, tmp_path: Path) -> None:
    schema = caption_schema(LIMITS)
    (unknown,) = ask(url, "captioner@0", tmp_path, "caption", [("a dog", b"another image")], schema)
    assert isinstance(unknown, Refusal) and "does not know this image" in unknown.detail
    for model in ("painter@0", "captioner", "captioner@2", "llm@nan"):
        with pytest.raises(EndpointError, match="does not know the address or the model"):
            ask(url, model, tmp_path, "caption", [("a dog", b"x")], schema)
