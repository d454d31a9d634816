"""Around a handle of Ray Serve: calls are sent again when their replica died, and for no other reason."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from serve.calls import Call, Description, NeedsImage
from serve.deployments import RESEND_PAUSE_S, RESENDS, Ingress, RemoteImages, Replicas, Segmenter, api_keys
from serve.measures import Measures
from serve.problems import ServiceError
from serve.settings import ModelSource, ServiceConfig
from tests.serve.shapes_backend import MODEL
from uniovseg.errors import ConfigError


class Response:
    """What a handle gives back at once."""

    def __init__(self, outcome: Any) -> None:
        self.outcome, self.cancelled = outcome, False

    def __await__(self) -> Any:
        return self._result().__await__()

    async def _result(self) -> Any:
        if self.outcome is None:
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Stands in for a deployment's handle: its methods answer with the outcomes in order."""

    def __init__(self, *outcomes: Any) -> None:
        self.responses = [Response(outcome) for outcome in outcomes]
        self.sent: list[Any] = []
        self.sessions: list[str] = []

    def options(self, session_id: str) -> "Handle":
        self.sessions.append(session_id)
        return self

    def __getattr__(self, name: str) -> "Handle":
        return self

    def remote(self, *arguments: Any) -> Response:
        self.sent.append(arguments)
        return self.responses[len(self.sent) - 1]


CALL = Call(request=None, image=b"x", image_id=None, seconds=60.0)
DEAD = ActorDiedError()
AWAY = ActorUnavailableError("away", b"0" * 16)


def asked(handle: Handle, call: Call = CALL) -> Any:
    return asyncio.run(Replicas(handle, Measures("test")).call(call))


def test_a_dead_replica_is_not_the_callers_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("serve.deployments.asyncio.sleep", sleep)
    handle = Handle(DEAD, AWAY, NeedsImage())
    measures = Measures("test")
    assert asyncio.run(Replicas(handle, measures).call(CALL)) == NeedsImage()
    assert len(handle.sent) == 3
    assert len(pauses) == 2 and all(0 < pause <= RESEND_PAUSE_S * sent for sent, pause in enumerate(pauses, 1))
    assert b'uniovseg_resent_total{process="test"} 2.0' in measures.text()
    seconds = [sent[0].seconds for sent in handle.sent]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] <= 60


def test_it_is_after_the_last_time() -> None:
    with pytest.raises(ServiceError) as raised:
        asked(Handle(*[DEAD] * (RESENDS + 1), NeedsImage()))
    assert raised.value.refusal.code == "replica_lost"


@pytest.mark.parametrize(
    ("error", "expected"), [(BackPressureError(num_queued_requests=3, max_queued_requests=3), ServiceError), (ZeroDivisionError(), ZeroDivisionError)]
)
def test_other_failures_are_not_tried_again(error: Exception, expected: type[Exception]) -> None:
    handle = Handle(error, NeedsImage())
    with pytest.raises(expected) as raised:
        asked(handle)
    assert len(handle.sent) == 1
    if isinstance(raised.value, ServiceError):
        assert raised.value.refusal.code == "overloaded"


def test_an_image_id_is_the_session() -> None:
    handle = Handle(NeedsImage())
    asked(handle, Call(request=None, image=None, image_id="abc", seconds=1.0))
    assert handle.sessions == ["abc"]


def test_a_caller_that_gives_up_tells_the_replica() -> None:
    handle = Handle(None)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Replicas(handle, Measures("test")).call(CALL)

    asyncio.run(main())
    assert handle.responses[0].cancelled


def test_the_store_of_images() -> None:
    assert asyncio.run(RemoteImages(Handle(DEAD, b"file")).get("abc")) == b"file"
    with pytest.raises(ServiceError):
        asyncio.run(RemoteImages(Handle(DEAD, DEAD, DEAD)).put("abc", b"file"))
    asyncio.run(RemoteImages(Handle(None)).touch("abc"))
    asyncio.run(RemoteImages(Handle()).touch("abc"))  # whose call fails at once: the request is answered already


def test_a_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Segmenter(ServiceConfig())
    loaded: list[str] = []

    async def load(source: ModelSource) -> None:
        loaded.append(source.name)
        if source.name == "missing":
            raise ConfigError("there is none")

    async def describe() -> Description:
        return Description(MODEL.model_copy(update={"name": loaded[-1]}), ())

    async def outdated() -> bool:
        found = await replica.describe()
        assert isinstance(found, Description)
        return found.model.outdated

    async def main() -> None:
        with pytest.raises(ConfigError):  # there is none before
            await replica.reconfigure({"name": "missing"})
        for name in ("first", "first", "second", "first"):
            await replica.reconfigure({"name": name})
            assert not await outdated()
        for _ in range(2):
            await replica.reconfigure({"name": "missing"})
            assert await outdated()
        await replica.reconfigure({"name": "first"})  # which is there still
        assert not await outdated()

    monkeypatch.setattr(replica.host, "load", load)
    monkeypatch.setattr(replica.host, "describe", describe)
    asyncio.run(main())
    assert loaded == ["missing", "first", "second", "first", "missing", "missing"]


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Callable[[str | None], tuple[str, ...]] = api_keys
    monkeypatch.delenv("UNIOVSEG_API_KEYS", raising=False)
    assert read(None) == ()
    with pytest.raises(ConfigError, match="no API keys"):
        Ingress(Handle(), Handle(), ServiceConfig(keys_required=True))
    file = tmp_path / "keys"
    with pytest.raises(ConfigError, match="cannot be read"):
        read(str(file))
    file.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read(str(file))
    file.write_text("one\ntwö\n", "utf-8")
    monkeypatch.setenv("UNIOVSEG_API_KEYS", "twö, three,")
    assert read(str(file)) == ("twö", "three", "one")
