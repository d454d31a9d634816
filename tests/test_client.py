"""The client against scripted services: the same calls through both forms, patience by a clock of the test's own."""

import asyncio
import base64
import copy
import io
import json
import time
from collections.abc import Callable
from email.parser import BytesParser
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from uniovseg.api import (
    CocoRle,
    EverythingRequest,
    IdMap,
    ImageCreated,
    ImageRef,
    MasksResponse,
    ModelRef,
    Problem,
    PromptRequest,
    Segment,
    SegmentationResponse,
    SegmentRequest,
    Timings,
)
from uniovseg.client import (
    AsyncClient,
    Client,
    ClientConfig,
    ServiceProblemError,
    ServiceUnreachableError,
    UnknownAnswerError,
    UploadedImage,
    _Conversation,
    _Pause,
    _Send,
    decode_id_map,
    decode_mask,
)
from uniovseg.errors import ConfigError, DataError, UniOVSegError

MODEL = ModelRef(name="m", version="1", checkpoint="c")
MASKS = MasksResponse(model=MODEL, image=ImageRef(width=4, height=3), segments=(), timing_ms=Timings(), request_id="r")
SEGMENTATION = SegmentationResponse(
    task="panoptic", **{name: getattr(MASKS, name) for name in ("model", "image", "segments", "timing_ms", "request_id")}
)
WORDS = SegmentRequest(vocabulary=("cat", "Gänse"))
POINT = PromptRequest(points=((1.0, 2.0),))
AT_ONCE = ClientConfig(first_pause_s=0, longest_pause_s=0)

Handler = Callable[[httpx2.Request], httpx2.Response]


def sync_call(handler: Handler, method: str, *arguments: Any, config: ClientConfig = AT_ONCE, key: str | None = None) -> Any:
    with Client("http://service/", key=key, config=config, transport=httpx2.MockTransport(handler)) as client:
        return getattr(client, method)(*arguments)


def async_call(handler: Handler, method: str, *arguments: Any, config: ClientConfig = AT_ONCE, key: str | None = None) -> Any:
    async def call() -> Any:
        async with AsyncClient("http://service/", key=key, config=config, transport=httpx2.MockTransport(handler)) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(call())


both = pytest.mark.parametrize("call", [sync_call, async_call])


def created(image_id: str) -> httpx2.Response:
    answer = ImageCreated(image_id=image_id, width=4, height=3, expires_in_s=9, model=MODEL, timing_ms=Timings(), request_id="r")
    return httpx2.Response(201, content=answer.model_dump_json())


def problem(status: int, code: Any, **headers: str) -> httpx2.Response:
    body = Problem(type=f"urn:uniovseg:problem:{code}", title="t", status=status, code=code, detail="why", seen=3, allowed=[1, 2], request_id="r")
    return httpx2.Response(status, content=body.model_dump_json(), headers={"Content-Type": "application/problem+json", **headers})


def parts(request: httpx2.Request) -> dict[str, bytes]:
    """The parts of a multipart body, read by the standard library's parser of mail."""
    message = BytesParser().parsebytes(b"Content-Type: " + request.headers["Content-Type"].encode() + b"\r\n\r\n" + request.content)
    found: dict[str, bytes] = {}
    for part in message.get_payload():
        assert not isinstance(part, str)
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        found[str(part.get_param("name", header="content-disposition"))] = payload
    return found


@both
def test_an_image_travels_as_a_part_beside_its_request(call: Any, tmp_path: Path) -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, content=SEGMENTATION.model_dump_json())

    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8 file\r\n--x")
    for image in (b"\xff\xd8 file\r\n--x", tmp_path / "photo.jpg", str(tmp_path / "photo.jpg")):
        assert call(handler, "segment", image, WORDS, key="geheim-à") == SEGMENTATION
    for request in seen:
        assert (request.method, str(request.url)) == ("POST", "http://service/v1/segment")
        assert dict(request.headers.raw)[b"Authorization"] == "Bearer geheim-à".encode()
        assert len(request.headers["X-Request-ID"]) == 32
        sent = parts(request)
        assert sent["image"] == b"\xff\xd8 file\r\n--x"
        told = SegmentRequest.model_validate_json(sent["request"])
        assert told.model_copy(update={"timeout_s": None}) == WORDS
        assert told.timeout_s is not None and 55 < told.timeout_s <= 60
    assert len({request.headers["X-Request-ID"] for request in seen}) == 3


@both
def test_each_method_asks_its_route(call: Any) -> None:
    seen: list[str] = []
    answers = {
        "/v1/prompt": MASKS.model_dump_json(), "/v1/everything": MASKS.model_dump_json(),
        "/v1/models": '{"models": [], "limits": {}}', "/v1/vocabularies": '{"vocabularies": []}',
        "/healthz": '{"status": "ok"}', "/readyz": '{"status": "ready"}',
    }  # fmt: skip

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(f"{request.method} {request.url.path}")
        return created("i") if request.url.path == "/v1/images" else httpx2.Response(200, content=answers[request.url.path])

    assert call(handler, "prompt", b"file", POINT) == MASKS
    assert call(handler, "everything", b"file") == MASKS
    assert call(handler, "everything", b"file", EverythingRequest(points_per_side=3)) == MASKS
    assert call(handler, "upload", b"file").created.image_id == "i"
    assert call(handler, "models").limits.points == 1000
    assert call(handler, "vocabularies").vocabularies == ()
    assert call(handler, "health").status == "ok"
    assert call(handler, "ready").status == "ready"
    assert seen == [
        "POST /v1/prompt", "POST /v1/everything", "POST /v1/everything", "POST /v1/images",
        "GET /v1/models", "GET /v1/vocabularies", "GET /healthz", "GET /readyz",
    ]  # fmt: skip


@both
def test_a_forgotten_image_is_uploaded_again_once(call: Any) -> None:
    known: set[str] = set()
    seen: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.path)
        if request.url.path == "/v1/images":
            sent = parts(request)
            assert sent["image"] == b"file" and 55 < json.loads(sent["request"])["timeout_s"] <= 60
            known.add("new")
            return created("new")
        body = json.loads(request.content)
        assert body["points"] == [[1.0, 2.0]] and "image" not in body
        return httpx2.Response(200, content=MASKS.model_dump_json()) if body["image_id"] in known else problem(404, "image_not_found")

    photo = UploadedImage(ImageCreated.model_validate_json(created("old").content), b"file")
    assert call(handler, "prompt", photo, POINT) == MASKS
    assert seen == ["/v1/prompt", "/v1/images", "/v1/prompt"]

    def forgets(request: httpx2.Request) -> httpx2.Response:
        return created("new") if request.url.path == "/v1/images" else problem(404, "image_not_found")

    with pytest.raises(ServiceProblemError, match="404 image_not_found"):
        call(forgets, "prompt", photo, POINT)


@both
@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ConnectError("refused"), httpx2.ReadError("reset"), httpx2.RemoteProtocolError("cut"), httpx2.ReadTimeout("slow"),
        problem(503, "overloaded"), problem(408, "timeout"), httpx2.Response(504), httpx2.Response(502), httpx2.Response(500, text="Internal Server Error"),
        httpx2.Response(404, text="Path '/v1/prompt' not found."),
    ],
    ids=str,
)  # fmt: skip
def test_what_may_pass_is_tried_again(call: Any, failure: httpx2.Response | httpx2.TransportError) -> None:
    ids: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        ids.append(request.headers["X-Request-ID"])
        if len(ids) > 3:
            return httpx2.Response(200, content=MASKS.model_dump_json())
        if isinstance(failure, httpx2.TransportError):
            raise failure
        return httpx2.Response(failure.status_code, headers=failure.headers, content=failure.content)

    assert call(handler, "prompt", b"file", POINT) == MASKS
    assert len(ids) == 4 and len(set(ids)) == 1, "one call is one id in the service's log"


@both
@pytest.mark.parametrize("failure", [(400, "invalid_image"), (401, "unauthorized"), (413, "too_large"), (422, "limit_exceeded"), (500, "internal")])
def test_what_will_not_pass_is_an_error_with_the_problem(call: Any, failure: tuple[int, str]) -> None:
    tries = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        tries.append(request)
        return problem(*failure)

    with pytest.raises(ServiceProblemError) as caught:
        call(handler, "prompt", b"file", POINT)
    assert len(tries) == 1
    assert (caught.value.problem.status, caught.value.problem.code) == failure
    assert str(caught.value) == f"the service answered {failure[0]} {failure[1]}: why (request r); seen: 3; allowed: [1, 2]"
    copied = copy.copy(caught.value)  # as pickle rebuilds it
    assert (copied.problem, str(copied)) == (caught.value.problem, str(caught.value))


@both
def test_answers_of_something_else(call: Any) -> None:
    with pytest.raises(UnknownAnswerError, match="image: Field required"):
        call(lambda _: httpx2.Response(200, content=b'{"model": {"name": "m", "version": "1", "checkpoint": "c"}}'), "prompt", b"file", POINT)
    with pytest.raises(UnknownAnswerError, match="Invalid JSON"):
        call(lambda _: httpx2.Response(200, content=b"<html>"), "models")
    with pytest.raises(ServiceProblemError, match=r"404 internal: no answer of the service's own.*seen: nothing here"):
        call(lambda _: httpx2.Response(404, text="nothing here"), "models", config=ClientConfig(deadline_s=0.05))
    newer = json.loads(MASKS.model_dump_json()) | {"colour": "blue"}
    newer["model"]["licence"] = "?"
    assert call(lambda _: httpx2.Response(200, json=newer), "prompt", b"file", POINT) == MASKS


@both
def test_a_file_that_is_not_there(call: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        call(lambda _: httpx2.Response(200), "segment", tmp_path / "none.jpg", WORDS)


class Clock:
    """Time that passes only when a conversation pauses."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def talk_to(
    replies: list[Any], config: ClientConfig, jitter: float = 1.0, taking: float = 0.0, request: PromptRequest = POINT
) -> tuple[list[float], list[float], UniOVSegError | None]:
    """The pauses of a conversation that gets these replies, each after `taking` seconds, the seconds each try may take, and the error at its end."""
    clock = Clock()
    talk = _Conversation(config, clock, lambda: jitter)
    steps = talk.ask("/v1/prompt", b"file", request, MasksResponse)
    pauses, allowed, waiting = [], [], iter(replies)
    step = next(steps)
    try:
        while True:
            if isinstance(step, _Pause):
                pauses.append(step.seconds)
                clock.now += step.seconds
                step = steps.send(None)
            else:
                assert isinstance(step, _Send)
                allowed.append(step.seconds)
                clock.now += taking
                step = steps.send(next(waiting))
    except StopIteration:
        return pauses, allowed, None
    except UniOVSegError as error:
        return pauses, allowed, error


BUSY = problem(503, "overloaded")
DONE = httpx2.Response(200, content=MASKS.model_dump_json())


def test_pauses_grow_to_a_bound_and_are_random() -> None:
    config = ClientConfig(deadline_s=100, first_pause_s=1, longest_pause_s=5)
    assert talk_to([BUSY] * 5 + [DONE], config) == ([1, 2, 4, 5, 5], [100, 99, 97, 93, 88, 83], None)
    assert talk_to([BUSY] * 5 + [DONE], config, jitter=0.25)[0] == [0.25, 0.5, 1, 1.25, 1.25]


def test_retry_after_is_honoured_in_seconds_and_as_a_date() -> None:
    config = ClientConfig(deadline_s=100, first_pause_s=1)
    asked = problem(503, "overloaded", **{"Retry-After": "7"})
    assert talk_to([asked, DONE], config) == ([7], [100, 93], None)
    assert talk_to([problem(503, "overloaded", **{"Retry-After": "0"}), DONE], config)[0] == [1]
    assert talk_to([problem(503, "overloaded", **{"Retry-After": "soon"}), DONE], config)[0] == [1]
    (pause,) = talk_to([problem(503, "overloaded", **{"Retry-After": formatdate(time.time() + 50, usegmt=True)}), DONE], config)[0]
    assert 40 < pause <= 50


def test_a_call_ends_by_its_deadline() -> None:
    config = ClientConfig(deadline_s=10, first_pause_s=4, longest_pause_s=4)
    pauses, allowed, error = talk_to([BUSY, BUSY, BUSY], config, taking=1)
    assert (pauses, allowed) == ([4], [10, 5]), "a second pause would end at the deadline"
    assert isinstance(error, ServiceProblemError) and error.problem.code == "overloaded"
    pauses, _, error = talk_to([httpx2.ConnectError("refused")] * 9, config, jitter=0.99, taking=1)
    assert isinstance(error, ServiceUnreachableError)
    assert "no answer within 10 s; seen: ConnectError refused" in str(error)
    _, _, error = talk_to([problem(503, "overloaded", **{"Retry-After": "11"})], config)
    assert isinstance(error, ServiceProblemError), "waiting would be in vain"


def test_a_time_that_the_request_set_is_not_tried_again() -> None:
    config = ClientConfig(deadline_s=100, first_pause_s=0)
    pauses, _, error = talk_to([problem(408, "timeout")], config, request=POINT.model_copy(update={"timeout_s": 2.0}))
    assert pauses == [] and isinstance(error, ServiceProblemError) and error.problem.code == "timeout"
    assert talk_to([problem(408, "timeout"), DONE], config, request=POINT.model_copy(update={"timeout_s": 200.0}))[2] is None


@both
def test_an_address_that_cannot_be_used(call: Any) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.UnsupportedProtocol("the URL is missing a protocol")

    with pytest.raises(ServiceUnreachableError, match=r"cannot be used; seen: the URL.*allowed: http://"):
        call(handler, "models")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["secret\n", "secret ", "sec\rret"])
def test_a_key_that_cannot_be_sent_is_told_and_not_shown(kind: type[Client | AsyncClient], key: str) -> None:
    with pytest.raises(ConfigError, match="the API key has characters that cannot be sent; allowed: one line") as caught:
        kind("http://127.0.0.1:9", key=key)
    assert "sec" not in str(caught.value)


def test_a_try_after_a_pause_that_ended_late_has_some_time() -> None:
    clock = Clock()
    steps = _Conversation(ClientConfig(deadline_s=9), clock).ask("/v1/prompt", b"file", POINT, MasksResponse)
    next(steps)
    assert isinstance(steps.send(BUSY), _Pause)
    clock.now += 10
    late = steps.send(None)
    assert isinstance(late, _Send) and 0 < late.seconds < 0.01


def test_the_service_is_told_what_is_left() -> None:
    talk = _Conversation(ClientConfig(deadline_s=9), Clock())
    step = next(talk.ask("/v1/prompt", b"file", POINT, MasksResponse))
    assert isinstance(step, _Send) and json.loads(step.content["files"]["request"][1])["timeout_s"] == 9
    own = POINT.model_copy(update={"timeout_s": 2.0})
    step = next(talk.ask("/v1/prompt", b"file", own, MasksResponse))
    assert isinstance(step, _Send) and json.loads(step.content["files"]["request"][1])["timeout_s"] == 2


@both
def test_a_call_is_ended_although_bytes_keep_coming(call: Any) -> None:
    class Dripping(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __iter__(self) -> Any:
            while True:
                yield b" "

        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0)

    with pytest.raises(ServiceUnreachableError, match="TimeoutException the deadline is over"):
        call(lambda _: httpx2.Response(200, stream=Dripping()), "models", config=ClientConfig(deadline_s=0.05))


def test_a_call_is_ended_although_its_request_is_still_sent() -> None:
    sent, left = 0, 0.0

    class Slow(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            nonlocal sent, left
            assert isinstance(request.stream, httpx2.SyncByteStream)
            for piece in request.stream:
                assert len(piece) <= 2**16
                sent += len(piece)
                time.sleep(0.02 if len(piece) == 2**16 else 0)
            left = request.extensions["timeout"]["read"]
            return DONE

    with Client("http://service", config=ClientConfig(deadline_s=0.3), transport=Slow()) as client:
        with pytest.raises(ServiceUnreachableError, match="TimeoutException the deadline is over"):
            client.prompt(bytes(10**7), POINT)
        assert 0 < sent < 10**7
        client.prompt(bytes(2**16 * 5), POINT)
        assert 0 < left < 0.25, "the answer has what sending has left"


def test_masks_are_decoded() -> None:
    mask = np.zeros((3, 5), bool)
    mask[1:, 2:4] = True
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    segment = Segment(id=1, bbox=(2, 1, 2, 2), area=4, mask=CocoRle(size=(3, 5), counts=counts))
    np.testing.assert_array_equal(decode_mask(segment), mask)
    with pytest.raises(DataError, match="allowed: mask_format coco_rle"):
        decode_mask(segment.model_copy(update={"mask": None}))


@pytest.mark.parametrize(("kind", "dtype", "top"), [("png8", np.uint8, 255), ("png16", np.uint16, 60_000)])
def test_id_maps_are_decoded(kind: Any, dtype: Any, top: int) -> None:
    ids = np.array([[0, 1], [2, top]], dtype)
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    answer = MASKS.model_copy(update={"id_map": IdMap(type=kind, data=base64.b64encode(buffer.getvalue()).decode())})
    np.testing.assert_array_equal(decode_id_map(answer), ids)
    with pytest.raises(DataError, match="allowed: mask_format png_idmap"):
        decode_id_map(MASKS)
