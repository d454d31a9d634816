"""The patience of an endpoint's client, against a server whose every answer the test writes."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.runtime.http_server import serving
from uniovseg.config import validate
from uniovseg.errors import ConfigError, EndpointError
from uniovseg.runtime.endpoint import Answer, ChatRequest, Endpoint, EndpointConfig, Refusal
from uniovseg.storage import Location

Reply = web.StreamResponse | Callable[[web.Request], Awaitable[web.StreamResponse]]


def completion(text: str = "hello") -> web.Response:
    return web.json_response({"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


ANSWER = Answer("hello", 7, 3)


def request(text: str = "hi", prompt_hash: str = "p") -> ChatRequest:
    return ChatRequest(prompt_hash, [{"role": "user", "content": text}], {"type": "object"})


@pytest.mark.parametrize("url", ["https://me:hunter2@models.example/v1", "https://models.example/v1?api_key=hunter2"])
def test_a_url_with_secrets_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="an endpoint's url holds credentials or a query; .*key_variable") as caught:
        validate(EndpointConfig, {"url": url})
    assert "hunter2" not in str(caught.value)


class Scripted:
    """Gives its replies in turn, then `completion()` for ever; keeps what it was sent."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, asked: web.Request) -> web.StreamResponse:
        self.bodies.append(await asked.json())
        self.headers.append(dict(asked.headers))
        reply = self.replies.pop(0) if self.replies else completion()
        return reply if isinstance(reply, web.StreamResponse) else await reply(asked)


def ask(url: str, cache: Path, *requests: ChatRequest, **settings: Any) -> list[Answer | Refusal | BaseException]:
    """What a new client gets for requests that are made at the same time."""

    async def run() -> list[Answer | Refusal | BaseException]:
        config = EndpointConfig.model_validate({"url": url, "model": "m", "pause": 0.001, "attempts": 4} | settings)
        client = Endpoint(config, Location.of(cache))
        try:
            return await asyncio.gather(*(client.ask(item) for item in requests), return_exceptions=True)
        finally:
            await client.close()

    return asyncio.run(run())


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def cut_body(asked: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(asked)
    await response.write(b'{"choices": [')
    assert asked.transport is not None
    asked.transport.close()
    return response


def cut_json() -> web.Response:
    return web.Response(text='{"choices": [{"message": {"content": "hel', content_type="application/json")


@pytest.mark.parametrize("fault", [429, 500, 501, 503, 521, hang, cut_body, cut_json])
def test_a_fault_that_passes_is_not_seen(fault: Any, tmp_path: Path) -> None:
    faults = [web.Response(status=fault) if isinstance(fault, int) else (fault if fault is not cut_json else cut_json()) for _ in range(3)]
    server = Scripted(*faults)
    with serving(server) as url:
        assert ask(url, tmp_path, request(), timeout=0.2 if fault is hang else 30) == [ANSWER]
    assert len(server.bodies) == 4 and all(body == server.bodies[0] for body in server.bodies)


def test_what_is_sent(tmp_path: Path) -> None:
    server = Scripted()
    with serving(server) as url:
        ask(url + "/", tmp_path, request(), parameters={"max_completion_tokens": 9})
    (body,) = server.bodies
    schema = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": {"type": "object"}}}
    assert body == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "response_format": schema, "max_completion_tokens": 9}


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    server = Scripted()
    with serving(server) as url:
        assert ask(url, tmp_path, request(), request(), request("ho"), request("ho", "other prompt")) == [ANSWER] * 4
        assert len(server.bodies) == 3  # equal questions at the same time are one
        assert ask(url, tmp_path, request(), request("ho")) == [ANSWER] * 2
        assert len(server.bodies) == 3  # a new client finds the answers
        ask(url, tmp_path, request(), model="another")
        ask(url, tmp_path, request(), parameters={"temperature": 1})
        assert len(server.bodies) == 5


def test_no_more_requests_at_a_time_than_allowed(tmp_path: Path) -> None:
    running, most = 0, 0

    async def slow(_: web.Request) -> web.StreamResponse:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        for _turn in range(20):
            await asyncio.sleep(0)
        running -= 1
        return completion()

    with serving(slow) as url:
        answers = ask(url, tmp_path, *(request(str(number)) for number in range(30)), concurrency=3)
    assert answers == [ANSWER] * 30 and most == 3


def test_the_pause_is_the_servers_or_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("uniovseg.runtime.endpoint.asyncio.sleep", note)
    monkeypatch.setattr("uniovseg.runtime.endpoint.random.random", lambda: 1.0)
    server = Scripted(*(web.Response(status=429, headers=headers) for headers in ({"Retry-After": "7"}, {}, {"Retry-After": "9999"}, {}, {})))
    with serving(server) as url:
        assert ask(url, tmp_path, request(), pause=2.5, attempts=6) == [ANSWER]
    assert [pause for pause in pauses if pause] == [7.0, 10.0, 60.0, 40.0, 60.0]


def test_what_stays_refused_is_a_refusal_of_that_input(tmp_path: Path) -> None:
    server = Scripted(web.Response(status=400, text="bad\n image"), *(web.Response(status=500, text="boom") for _ in range(4)))
    with serving(server) as url:
        assert ask(url, tmp_path, request("a"), concurrency=1) == [Refusal("HTTP 400: bad image")]
        assert ask(url, tmp_path, request("b"), concurrency=1) == [Refusal("HTTP 500: boom")]
        assert ask(url, tmp_path, request("a"), request("b"), concurrency=1) == [ANSWER, ANSWER]  # refusals are not kept


def test_an_endpoint_that_cannot_be_used_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    with serving(Scripted(web.Response(status=401, text="who are you"))) as url:
        (error,) = ask(url, tmp_path, request(), key_variable="TEST_KEY")
    assert isinstance(error, EndpointError) and "TEST_KEY: the API key in it was refused" in str(error)
    with serving(Scripted(web.Response(status=404, text="no such model"))) as url:
        (error,) = ask(url, tmp_path, request())
    assert isinstance(error, EndpointError) and "no such model" in str(error)
    with serving(Scripted(*(web.Response(status=503) for _ in range(4)))) as url:
        (error,) = ask(url, tmp_path, request())
    assert isinstance(error, EndpointError) and "no answer in 4 tries" in str(error)
    (error,) = ask(url, tmp_path, request())  # nobody listens there any more
    assert isinstance(error, EndpointError) and "no answer in 4 tries" in str(error)
    with serving(Scripted(*(web.Response(status=400) for _ in range(16)))) as url:
        outcomes = ask(url, tmp_path, *(request(str(number)) for number in range(16)), concurrency=1)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["EndpointError"] + ["Refusal"] * 15


def test_a_key_from_a_file_with_a_new_line_is_sent_and_one_of_two_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted(web.Response(status=400))
    with serving(server) as url:
        monkeypatch.setenv("TEST_KEY", "sk-secret\n")
        ask(url, tmp_path, request(), key_variable="TEST_KEY")
        monkeypatch.setenv("TEST_KEY", "sk-\nsecret")
        (error,) = ask(url, tmp_path, request("ho"), key_variable="TEST_KEY")
    assert [headers.get("Authorization") for headers in server.headers] == ["Bearer sk-secret"]
    assert isinstance(error, EndpointError) and "TEST_KEY" in str(error) and "secret" not in str(error)


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    server = Scripted(web.Response(status=400))
    with serving(server) as url:
        outcomes = ask(url, tmp_path, request(), request("ho"), key_variable="TEST_KEY")
        monkeypatch.delenv("TEST_KEY")
        ask(url, tmp_path, request("hum"), key_variable="TEST_KEY")
    assert [headers.get("Authorization") for headers in server.headers] == ["Bearer sk-secret", "Bearer sk-secret", None]
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert written and "sk-secret" not in written + caplog.text + str(outcomes)
    assert {json.loads(path.read_text())["model"] for path in tmp_path.rglob("*.json")} == {"m"}
