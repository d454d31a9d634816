"""Stand-ins for the two language models, for experiments on the shapes world: a captioner and parsers that err as often as they are told to.

A small server on this machine speaks the OpenAI chat API, so that whatever asks it is the code that asks real models. A model's name says what it does
and its *noise share*, the share of its answers with one thing wrong or left out: ``captioner@0.1``, ``llm@0.05``, ``nltk@0.3``, ``rules@0``. So answers
of different shares never meet in a cache. The captioner knows the names of what an image shows, and nothing else of it: no mask, no place, no count.
``nltk`` and ``rules`` are those parsers, which make their own mistakes too; ``llm`` reads a caption without any. Equal requests get equal answers.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from aiohttp import web

from uniovseg.data.shapes import (
    CLASS_NAMES,
    GROUNDS,
    HELD_OUT,
    TEXT_STREAM,
    THING_CLASSES,
    SceneConfig,
    draw_scene,
    encode_image,
    entities,
    scene_rng,
)
from uniovseg.data.shapes import write_caption as write_shapes_caption
from uniovseg.text import nltk_parser, rules

PARSERS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "llm": rules.parse_entities,  # exact on the captions of the shapes world
    "nltk": nltk_parser.parse_entities,
    "rules": rules.parse_entities,
}

MODELS = ("captioner", *PARSERS)

TrueNames = Mapping[str, tuple[str, ...]]
"""What an image shows, by `image_key` of its encoded file."""


class _BadRequestError(Exception):
    """The request cannot be answered; ``status`` is HTTP's."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = status


def image_key(image: bytes) -> str:
    """The name that the captioner knows an encoded image by: a hash of its bytes."""
    return hashlib.sha256(image).hexdigest()


def true_names(scene: SceneConfig, seed: int, count: int) -> dict[str, tuple[str, ...]]:
    """What the first `count` images of the image-text set of a seed show (`uniovseg.data.shapes.image_text`)."""
    drawn = (draw_scene(scene, scene_rng(seed, TEXT_STREAM, index), held_out=False) for index in range(count))
    return {image_key(encode_image(one.image, scene.jpeg_quality)): tuple(entities(one)) for one in drawn}


def model_name(kind: str, noise_share: float) -> str:
    """The name of the model of a kind (`MODELS`) that errs at a share in [0, 1]."""
    return f"{kind}@{noise_share:g}"


@contextmanager
def scripted_models(known: TrueNames) -> Iterator[str]:
    """Serve the models in a thread of this process while the block runs; gives the base URL, with /v1. Only this machine reaches it.

    Args:
        known: what each image shows; the captioner refuses others.
    """
    loop = asyncio.new_event_loop()

    async def answer(request: web.Request) -> web.Response:
        try:
            return web.json_response(_completion(await request.json(), known))
        except _BadRequestError as error:
            return web.json_response({"error": {"message": str(error)}}, status=error.status)

    async def start() -> tuple[web.AppRunner, int]:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, int(runner.addresses[0][1])

    runner, port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _completion(body: dict[str, Any], known: TrueNames) -> dict[str, Any]:
    """A chat completion. Raises _BadRequestError."""
    model = str(body.get("model"))
    kind, _, share = model.partition("@")
    try:
        noise_share = float(share)
    except ValueError:
        noise_share = -1.0
    if kind not in MODELS or not 0 <= noise_share <= 1:
        raise _BadRequestError(f"no model {model}; there are {', '.join(MODELS)}, each with @ and a noise share from 0 to 1", 404)
    image, text = _question(body)
    reply: dict[str, Any]
    if kind == "captioner":
        reply = {"caption": write_caption(image, known, noise_share)}
    else:
        reply = {"entities": parse_caption(_caption_in(text), kind, noise_share)}
    content = json.dumps(reply)
    tokens = {"prompt_tokens": len(text.split()), "completion_tokens": len(content.split())}
    message = {"role": "assistant", "content": content}
    return {"object": "chat.completion", "model": model, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": tokens}


def _question(body: dict[str, Any]) -> tuple[bytes | None, str]:
    """The encoded image, where there is one, and the text of the user's first message."""
    content = next((message.get("content") for message in body.get("messages", []) if message.get("role") == "user"), "")
    if isinstance(content, str):
        return None, content
    image: bytes | None = None
    texts = []
    for part in content:
        if part.get("type") == "image_url":
            try:
                image = base64.b64decode(part["image_url"]["url"].partition("base64,")[2], validate=True)
            except (KeyError, TypeError, binascii.Error):
                raise _BadRequestError("the image is not a data URL in base64") from None
        else:
            texts.append(str(part.get("text", "")))
    return image, "\n".join(texts)


def _caption_in(text: str) -> str:
    found = re.search(r"^Caption: (.*)$", text, re.MULTILINE)
    if found is None:
        raise _BadRequestError("the prompt has no line that begins with 'Caption: '")
    return found[1]


def write_caption(image: bytes | None, known: TrueNames, noise_share: float) -> str:
    """The captioner's answer. Raises _BadRequestError for an image that it does not know."""
    key = image_key(image or b"")
    if key not in known:
        raise _BadRequestError("the captioner does not know this image")
    return write_shapes_caption(list(known[key]), _rng("caption", key), noise_share)


def parse_caption(caption: str, parser: str, noise_share: float) -> list[str]:
    """A parser's answer: the entities that it finds, with one of them wrong or left out at the share."""
    return _spoil(PARSERS[parser](caption), _rng(parser, caption), noise_share)


def _rng(what: str, key: str) -> np.random.Generator:
    """The random stream of one answer: the same for every noise share, so that a larger share errs where a smaller one does, and elsewhere."""
    return np.random.default_rng(list(hashlib.sha256(f"{what}\n{key}".encode()).digest()))


def _spoil(names: Sequence[str], rng: np.random.Generator, noise_share: float) -> list[str]:
    """As `uniovseg.data.shapes.write_caption` errs: of the things named, one is left out or gets the name of another."""
    things = [place for place, name in enumerate(names) if name not in GROUNDS]
    spoiled = list(names)
    if not things or rng.random() >= noise_share:
        return spoiled
    place = things[int(rng.integers(len(things)))]
    if len(things) > 1 and rng.random() < 0.5:
        del spoiled[place]
    else:
        others = [index for index in range(len(THING_CLASSES)) if index not in HELD_OUT and CLASS_NAMES[index] != spoiled[place]]
        spoiled[place] = CLASS_NAMES[int(rng.choice(others))]
    return spoiled
