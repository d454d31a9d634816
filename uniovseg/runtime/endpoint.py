"""Asking a language model through any endpoint that speaks the OpenAI chat API: bounded, patient, and never the same thing twice.

A request that the endpoint could not answer now (429, 5xx, a time-out, a broken connection, a body that is cut) is tried again after a growing, random
pause, or the one that the endpoint asks for. An answer is kept in the cache, under the hash of model, prompt and input, before anybody sees it; equal
requests at the same time are one request. What an endpoint will not answer (a 4xx, or a 500 that stays) is a `Refusal` of that input; it is an
`EndpointError`, which ends the job, when the endpoint cannot be reached at all, when the key or the model is wrong, or when it refuses everything.
"""

import asyncio
import hashlib
import json
import os
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
from pydantic import Field, JsonValue, field_validator

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.errors import ConfigError, EndpointError, MissingFileError
from uniovseg.runtime.delivery import has_secrets
from uniovseg.storage import Location
from uniovseg.text.prompts import Message
from uniovseg.text.replies import Schema

LONGEST_PAUSE = 60.0
"""Seconds, whatever the endpoint asks for."""

REFUSALS_IN_A_ROW = 16
"""After so many refusals and no answer between, the endpoint is taken to be wrong, not the inputs."""

AGAIN = frozenset({408, 409, 425, 429})
"""HTTP statuses that may pass, beside all from 500."""


class EndpointConfig(Config):
    """A language model behind an OpenAI chat API: vLLM, Ray Serve LLM, OpenAI, ..."""

    url: str = Field("http://127.0.0.1:8000/v1", pattern="^https?://", description="base URL, with /v1")
    model: str = Field("", description="model, as the endpoint knows it; needed where it is asked")
    parameters: dict[str, JsonValue] = Field({"temperature": 0, "max_tokens": 512}, description="further fields of each request")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the API key, where one is needed; read in the cluster")
    concurrency: int = Field(16, ge=1, description="most requests at a time")
    timeout: float = Field(120.0, gt=0, description="seconds for one request")
    attempts: int = Field(8, ge=1, description="how often a request is sent until it is answered")
    pause: float = Field(1.0, ge=0, description="seconds; the pause before try n + 1 is random, up to this times 2^n, at most 60")
    prompt_price: float = Field(0.0, ge=0, description="US dollars a million prompt tokens, for the cost in the manifest")
    completion_price: float = Field(0.0, ge=0, description="US dollars a million completion tokens")

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, url: str) -> str:
        """The URL, which is shown in logs, manifests and MLflow. Raises ConfigError, which unlike pydantic's does not show it."""
        if has_secrets(url):
            raise ConfigError("an endpoint's url holds credentials or a query", fix="give the key in the variable that key_variable names")
        return url


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What to ask: the hash of the prompt that the messages come from, the messages, and the JSON schema of the answer."""

    prompt_hash: str
    messages: list[Message] = field(repr=False)
    schema: Schema = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and the tokens that this took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the endpoint said instead of an answer, on one line."""

    detail: str


class _TryAgainError(Exception):
    """This try failed; ``wait`` is the pause the endpoint asks for, in seconds. ``lasting``: the endpoint is there, and failed on this request."""

    def __init__(self, detail: str, *, wait: float | None = None, lasting: bool = False) -> None:
        super().__init__(detail)
        self.wait, self.lasting = wait, lasting


class Endpoint:
    """One endpoint, asked from one event loop.

    Args:
        config: where it is and how to ask.
        cache: folder of the answers.
    """

    def __init__(self, config: EndpointConfig, cache: Location) -> None:
        self.config, self.cache = config, cache
        self.sent = 0
        self._slots = asyncio.Semaphore(config.concurrency)
        self._running: dict[str, asyncio.Task[Answer | Refusal]] = {}
        self._session: aiohttp.ClientSession | None = None
        self._refused = 0

    async def ask(self, request: ChatRequest) -> Answer | Refusal:
        """The answer, from the cache or from the endpoint.

        Raises:
            EndpointError: nothing can be asked of this endpoint now.
            StorageError: the cache cannot be read or written.
        """
        body = self._body(request)
        key = self.key(request.prompt_hash, body)
        if key not in self._running:
            task = asyncio.create_task(self._answer(key, request.prompt_hash, body))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(self._running[key])

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def key(self, prompt_hash: str, body: dict[str, Any]) -> str:
        """The cache's name for a request: a hash of model, prompt hash, and the hash of the whole input."""
        inputs = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        return hashlib.sha256(f"{self.config.model}\n{prompt_hash}\n{inputs}".encode()).hexdigest()

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        reply = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": request.schema}}
        return {"model": self.config.model, "messages": request.messages, "response_format": reply} | self.config.parameters

    async def _answer(self, key: str, prompt_hash: str, body: dict[str, Any]) -> Answer | Refusal:
        location = self.cache / f"{key[:2]}/{key}.json"
        try:
            cached = json.loads(await asyncio.to_thread(storage.read_bytes, location))
            return Answer(**cached["answer"])
        except MissingFileError:
            pass
        async with self._slots:
            outcome = await self._patiently(body)
        if isinstance(outcome, Refusal):
            self._refused += 1
            if self._refused >= REFUSALS_IN_A_ROW:
                raise EndpointError(
                    f"the endpoint refused {self._refused} requests in a row", seen=outcome.detail, fix=f"look at {self.config.url} and its log"
                )
            return outcome
        self._refused = 0
        entry = {"model": self.config.model, "prompt": prompt_hash, "answer": asdict(outcome)}
        await asyncio.to_thread(storage.write_bytes, location, json.dumps(entry, ensure_ascii=False).encode())
        return outcome

    async def _patiently(self, body: dict[str, Any]) -> Answer | Refusal:
        for attempt in range(1, self.config.attempts + 1):
            try:
                return await self._send(body)
            except _TryAgainError as failure:
                if attempt == self.config.attempts:
                    if failure.lasting:
                        return Refusal(str(failure))
                    raise EndpointError(
                        f"the endpoint gave no answer in {attempt} tries", seen=failure,
                        fix=f"see that {self.config.url} is up and not overloaded, then run the same command again: what it answered is kept",
                    ) from None  # fmt: skip
                pause = random.random() * self.config.pause * 2**attempt if failure.wait is None else failure.wait
                await asyncio.sleep(min(pause, LONGEST_PAUSE))
        raise AssertionError

    async def _send(self, body: dict[str, Any]) -> Answer | Refusal:
        """One try. Raises _TryAgainError, or EndpointError where no other try or input can help."""
        if self._session is None:
            connections = aiohttp.TCPConnector(limit=0)  # the slots bound them; a wait for a connection would count as time for the answer
            self._session = aiohttp.ClientSession(connector=connections, timeout=aiohttp.ClientTimeout(total=self.config.timeout))
        secret = os.environ.get(self.config.key_variable, "").strip()  # files of secrets end with a new line
        if not secret.isprintable():
            raise EndpointError("the API key has characters that cannot be sent", seen=f"in {self.config.key_variable}", allowed="one line")
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.sent += 1
        try:
            async with self._session.post(f"{self.config.url.rstrip('/')}/chat/completions", json=body, headers=headers) as response:
                status, wait, text = response.status, response.headers.get("Retry-After", ""), await response.text(errors="replace")
        except TimeoutError:
            raise _TryAgainError(f"no answer within {self.config.timeout:g} s", lasting=True) from None
        except aiohttp.ClientPayloadError as error:
            raise _TryAgainError(f"the answer was cut: {error}", lasting=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from None
        if status == 200:
            return _read_answer(text)
        said = f"HTTP {status}: {' '.join(text.split())[:500]}"
        if status in AGAIN or status >= 500:
            raise _TryAgainError(said, wait=float(wait) if wait.isdigit() else None, lasting=status == 500)
        if status in (401, 403):
            fix = "the API key in it was refused" if secret else "it is not set"
            raise EndpointError("the endpoint wants another API key", seen=said, fix=f"{self.config.key_variable}: {fix}")
        if status == 404:
            raise EndpointError("the endpoint does not know the address or the model", seen=said, allowed=f"see {self.config.url}/models")
        return Refusal(said)


def _read_answer(text: str) -> Answer:
    """The first choice of a chat completion. Raises _TryAgainError when the body is cut or is something else."""
    try:
        parsed = json.loads(text)
        content = parsed["choices"][0]["message"]["content"]
        usage = parsed.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise _TryAgainError(f"the answer is not a chat completion ({type(error).__name__} {error}): {text[:200]}", lasting=True) from None
    return Answer(content if isinstance(content, str) else "", *tokens)
