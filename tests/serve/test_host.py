"""A replica without Ray: what it keeps, and what it does not."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.calls import Call, NeedsImage, Outcome, Reply
from serve.engine import Engine
from serve.host import Host
from serve.masks import Found, write_segments
from serve.problems import Refusal, ServiceError
from serve.settings import ModelSource
from tests.serve.conftest import LIMITS, REPLICA
from uniovseg.api import EverythingRequest, MaskFormat, Segment
from uniovseg.methods.promptable import EmbeddedImage


def call_of(image: bytes, image_id: str | None = None) -> Call:
    return Call(request=None, image=image, image_id=image_id, seconds=60.0)


def test_an_image_that_cannot_be_decoded_is_not_kept(host: Host, png: bytes) -> None:
    """Neither is its failure, whose traceback would lead to the file."""

    async def main() -> None:
        for image_id in (None, "cut"):
            reply = await host.call(call_of(png[: len(png) // 2], image_id))
            assert isinstance(reply, Refusal) and reply.code == "invalid_image"
        assert not host._pending

    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)  # rings, which nothing else frees, go to gc.garbage
    try:
        asyncio.run(main())
        gc.collect()
        assert not [item for item in gc.garbage if isinstance(item, ServiceError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_shared_work_ends_with_the_last_who_waits(host: Host, png: bytes) -> None:
    async def main() -> None:
        let_go = threading.Event()
        busy = asyncio.create_task(host._thread.call(let_go.wait, time.monotonic() + 60))

        def ask(image_id: str, seconds: float) -> asyncio.Task[Reply]:
            return asyncio.create_task(host.call(replace(call_of(png, image_id), seconds=seconds)))

        try:
            impatient = [ask("wanted", 0.3), ask("left", 0.3), ask("left", 0.4)]
            patient = ask("wanted", 60)
            for call in impatient:
                reply = await call
                assert isinstance(reply, Refusal) and reply.code == "timeout"
            assert [image_id for _, image_id in host._pending] == ["wanted"]
            async with asyncio.timeout(10):
                while len(host._thread._grouped) > 1:
                    await asyncio.sleep(0)
        finally:
            let_go.set()
        assert isinstance(await patient, Outcome)
        await busy

    asyncio.run(main())
    kept = host._loaded().kept
    assert kept.get("wanted") is not None and kept.get("left") is None
    kept.clear()


def test_features_that_came_too_late_are_there_the_next_time(host: Host, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody whose patience is shorter than a step would ever see them."""
    embed, begun, let_go = Engine.embed, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        let_go.wait(60)
        return embed(*arguments)

    async def main() -> None:
        call = asyncio.create_task(host.call(replace(call_of(png, "late"), seconds=1.0)))
        await asyncio.to_thread(begun.wait, 60)
        reply = await call
        assert isinstance(reply, Refusal) and reply.code == "timeout" and not host._pending
        let_go.set()
        asking = Call(request=EverythingRequest(), image=None, image_id="late", seconds=60.0)
        while isinstance(reply := await host.call(asking), NeedsImage):
            await asyncio.sleep(0.01)  # a call that finds nothing gives the loop no turn, and the time limit none
        assert isinstance(reply, Outcome)

    monkeypatch.setattr(Engine, "embed", slow)
    try:
        asyncio.run(asyncio.wait_for(main(), 60))
    finally:
        let_go.set()
    host._loaded().kept.clear()


def test_features_that_grew_in_vain_are_counted(host: Host, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = host._loaded().kept

    async def main() -> None:
        await host.call(call_of(png, "grows"))
        before = kept.bytes
        monkeypatch.setattr(Engine, "answer", late)
        reply = await host.call(replace(call_of(png, "grows"), request=EverythingRequest()))
        assert isinstance(reply, Refusal) and reply.code == "timeout"
        assert kept.bytes == before + 40

    def late(engine: Engine, embedded: EmbeddedImage, *_: object) -> None:
        embedded.dense[32, False] = torch.zeros(10), embedded.view
        raise TimeoutError

    asyncio.run(main())
    kept.clear()


def test_writing_masks_ends_with_the_call(host: Host, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(found: Sequence[Found], form: MaskFormat) -> tuple[Segment, ...]:
        monkeypatch.setattr("uniovseg.deadline.time", SimpleNamespace(monotonic=lambda: 1e18))
        return write_segments(found, form)

    monkeypatch.setattr("serve.host.write_segments", late)
    reply = asyncio.run(host.call(replace(call_of(png), request=EverythingRequest(mask_format="png_idmap"))))
    assert isinstance(reply, Refusal) and reply.code == "timeout"


def test_the_model_before_is_forgotten(source: ModelSource, png: bytes) -> None:
    host = Host(REPLICA, LIMITS, 900.0)

    async def main() -> None:
        await host.load(source)
        assert isinstance(await host.call(call_of(png, "kept")), Outcome)
        before = weakref.ref(host._loaded().engine)
        await host.load(source)
        assert before() is None
        assert isinstance(await host.call(call_of(png, "kept")), Outcome)

    try:
        asyncio.run(main())
    finally:
        host.close()
