"""What the service remembers between requests."""

import asyncio
from types import SimpleNamespace

import pytest

from serve.calls import Call, Description, Reply
from serve.problems import Refusal, ServiceError
from serve.service import DESCRIBED_SECONDS, Service
from tests.serve.conftest import LocalImages
from tests.serve.shapes_backend import MODEL
from uniovseg.api import Limits

BUSY = ServiceError("overloaded", "all replicas are busy")
LOST = ServiceError("not_ready", "no replica lives")


class Moody:
    """A backend that describes itself, refuses, fails, or (None) does not answer."""

    def __init__(self) -> None:
        self.mood: Description | Refusal | ServiceError | None = None

    async def call(self, call: Call) -> Reply:
        raise AssertionError

    async def describe(self) -> Description | Refusal:
        if self.mood is None:
            await asyncio.Event().wait()
        if isinstance(self.mood, ServiceError):
            raise self.mood
        assert self.mood is not None
        return self.mood


def test_busy_replicas_are_known_by_what_they_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("serve.service.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("serve.service.BUSY_SECONDS", 0.01)
    monkeypatch.setattr("serve.service.READY_SECONDS", 0.01)
    backend = Moody()
    service = Service(backend, LocalImages(), Limits(), 900.0)
    first, second = (Description(MODEL.model_copy(update={"version": version}), ()) for version in ("1", "2"))

    async def code() -> str:
        with pytest.raises(ServiceError) as raised:
            await service.description()
        return raised.value.refusal.code

    async def main() -> None:
        assert await code() == "not_ready"
        for described in (first, second):
            backend.mood = described
            assert await service.description() == described
        for busy in (BUSY, None):
            backend.mood = busy
            assert await service.description() == second
        for lost in (LOST, LOST.refusal):
            backend.mood = lost
            assert await code() == "not_ready", "this is no sign of life"
        clock.now += DESCRIBED_SECONDS
        backend.mood = BUSY
        assert await code() == "overloaded"

    asyncio.run(main())
