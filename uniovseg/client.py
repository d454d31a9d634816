"""A typed client of the HTTP service, in two forms that behave alike: `Client` and `AsyncClient`.

>>> with Client("http://127.0.0.1:8000") as client:
...     answer = client.segment("photo.jpg", SegmentRequest(vocabulary=("cat", "grass")))
...     mask = decode_mask(answer.segments[0])
...     photo = client.upload("photo.jpg")  # its features are kept
...     client.prompt(photo, PromptRequest(points=((40, 60),)))

Requests and answers are the models of `uniovseg.api`. Every request of the service may be repeated, so a call that could not be answered now (a connection
that breaks, 408, 502, 503, 504, a 404 or 500 that the service did not write itself) is sent again after a growing, random pause, or the one that
Retry-After asks for, until the call's deadline. An uploaded image that the service has forgotten is uploaded again.

What is sent and when is decided in one place, `_Conversation`, which does no I/O; the two clients only carry it out.
"""

import asyncio
import base64
import io
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import httpx2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from uniovseg.api import (
    REQUEST_ID_HEADER,
    Answer,
    CocoRle,
    EverythingRequest,
    Health,
    ImageCreated,
    ImageRequest,
    MasksResponse,
    ModelsResponse,
    Problem,
    PromptRequest,
    Segment,
    SegmentationResponse,
    SegmentRequest,
    VocabulariesResponse,
)
from uniovseg.config import Config
from uniovseg.errors import ConfigError, DataError, UniOVSegError

AGAIN = frozenset({408, 502, 503, 504})
"""HTTP statuses that may pass."""

FOREIGN_AGAIN = frozenset({404, 500})
"""Those that may pass where the answer is not the service's own: Ray Serve knows no address before an application is there and once it drains."""

PROBLEM = "application/problem+json"


class ClientConfig(Config):
    """How patient a client is."""

    deadline_s: float = Field(60.0, gt=0, description="seconds for a call with all its tries; the service is told what is left of it")
    connect_s: float = Field(5.0, gt=0, description="seconds for a connection, of one try")
    first_pause_s: float = Field(0.2, ge=0, description="seconds; the pause before try n + 1 is random, up to this times 2^n")
    longest_pause_s: float = Field(5.0, ge=0, description="seconds; bound of such a pause, not of one that the service asks for")


class ServiceProblemError(UniOVSegError):
    """The service refused a request, or could not answer it before the deadline.

    Attributes:
        problem: what it said; of an answer that is not the service's own, made from its status.
    """

    def __init__(self, problem: Problem) -> None:
        what = f"the service answered {problem.status} {problem.code}: {problem.detail} (request {problem.request_id})"
        super().__init__(what, seen=problem.seen, allowed=problem.allowed)
        self.problem = problem

    def __reduce__(self) -> tuple[type["ServiceProblemError"], tuple[Problem]]:
        """What it takes to rebuild the error in another process."""
        return type(self), (self.problem,)


class ServiceUnreachableError(UniOVSegError):
    """No answer came before the deadline."""


class UnknownAnswerError(UniOVSegError):
    """An answer that this client cannot read: of another service, or of a version that it does not know."""


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """An image whose features the service keeps, and its file, to send it again if they are lost."""

    created: ImageCreated
    file: bytes


ImageLike: TypeAlias = str | Path | bytes | UploadedImage
"""A file's path, its bytes (JPEG, PNG, WebP), or what `upload` gave."""

DEFAULTS = ClientConfig()

CONNECTIONS = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
"""As many as there are calls at a time: a wait for a connection would count against the deadline."""

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class _Send:
    """A request to send now, and the seconds that it may take."""

    method: str
    path: str
    seconds: float
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Pause:
    """Seconds to wait."""

    seconds: float


_Reply: TypeAlias = httpx2.Response | httpx2.TransportError | httpx2.DecodingError | None
_Steps: TypeAlias = Generator[_Send | _Pause, _Reply, T]


class _Conversation:
    """The steps of one call: what to send, how long to wait, when to give up.

    Args:
        config: patience.
        clock: seconds.
        jitter: a number in [0, 1) for each pause.
    """

    def __init__(self, config: ClientConfig, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self._config, self._clock, self._jitter = config, clock, jitter
        self._until = clock() + config.deadline_s
        self.request_id = uuid.uuid4().hex

    def get(self, path: str, kind: type[ModelT]) -> _Steps[ModelT]:
        """A GET request and its answer."""
        reply = yield from self._patiently("GET", path, lambda _: {})
        return self._read(reply, kind)

    def upload(self, file: bytes) -> _Steps[UploadedImage]:
        """An image and its id."""
        reply = yield from self._patiently("POST", "/v1/images", lambda seconds: _body(file, ImageRequest(), seconds))
        return UploadedImage(self._read(reply, ImageCreated), file)

    def ask(self, path: str, image: bytes | UploadedImage, request: ImageRequest, kind: type[ModelT]) -> _Steps[ModelT]:
        """A request about an image and its answer."""
        try:
            reply = yield from self._patiently("POST", path, lambda seconds: _body(image, request, seconds), request.timeout_s)
        except ServiceProblemError as error:
            if error.problem.code != "image_not_found" or not isinstance(image, UploadedImage):
                raise
            again = yield from self.upload(image.file)
            reply = yield from self._patiently("POST", path, lambda seconds: _body(again, request, seconds), request.timeout_s)
        return self._read(reply, kind)

    def _patiently(
        self, method: str, path: str, content: Callable[[float], dict[str, Any]], own_timeout: float | None = None
    ) -> _Steps[httpx2.Response]:
        """The first answer that is not one of those that may pass. Raises ServiceProblemError, ServiceUnreachableError.

        Where the request says itself how long it may take, a time that was over is what was asked for, and over the next time too.
        """
        pause = self._config.first_pause_s
        while True:
            left = max(0.001, self._until - self._clock())  # a pause may end late, and the service takes no time of 0
            reply = yield _Send(method, path, left, content(left))
            if isinstance(reply, httpx2.Response):
                if reply.is_success:
                    return reply
                asked_for = reply.status_code == 408 and own_timeout is not None and own_timeout <= left
                if asked_for or not _may_pass(reply):
                    raise ServiceProblemError(self._problem(reply))
            if isinstance(reply, httpx2.UnsupportedProtocol):
                raise ServiceUnreachableError("the service's address cannot be used", seen=reply, allowed="http:// or https://")
            wait = max(_asked_pause(reply), self._jitter() * pause)
            if self._clock() + wait >= self._until:
                raise self._given_up(reply)
            yield _Pause(wait)
            pause = min(2 * pause, self._config.longest_pause_s)

    def _given_up(self, reply: _Reply) -> UniOVSegError:
        if isinstance(reply, httpx2.Response):
            return ServiceProblemError(self._problem(reply))
        return ServiceUnreachableError(
            f"the service gave no answer within {self._config.deadline_s:g} s", seen=f"{type(reply).__name__} {reply}".strip(),
            fix="see that it runs at this address, or allow a longer deadline_s",
        )  # fmt: skip

    def _problem(self, reply: httpx2.Response) -> Problem:
        try:
            return Problem.model_validate_json(reply.content, extra="ignore")
        except ValidationError:
            return Problem(
                type="about:blank", title=reply.reason_phrase, status=reply.status_code, code="internal",
                detail="no answer of the service's own; something before it answered", seen=reply.text[:200], request_id=self.request_id,
            )  # fmt: skip

    def _read(self, reply: httpx2.Response, kind: type[ModelT]) -> ModelT:
        """The answer; fields that a newer service adds are ignored."""
        try:
            return kind.model_validate_json(reply.content, extra="ignore")
        except ValidationError as error:
            first = error.errors()[0]
            raise UnknownAnswerError(
                f"the answer is not of the form that this client knows (request {self.request_id})",
                seen=f"{'.'.join(map(str, first['loc']))}: {first['msg']}", fix="see that the address is the service's, and that versions fit",
            ) from None  # fmt: skip


def _body(image: bytes | UploadedImage, request: ImageRequest, seconds: float) -> dict[str, Any]:
    """What httpx sends: JSON with the image's id, or multipart with the file, piece by piece; the service gives up when nobody waits any more."""
    told = request.model_copy(update={"timeout_s": min(request.timeout_s or seconds, seconds)})
    if isinstance(image, UploadedImage):
        return {"json": told.model_copy(update={"image_id": image.created.image_id}).model_dump(mode="json", exclude_none=True)}
    return {"files": {"image": ("image", io.BytesIO(image)), "request": (None, told.model_dump_json(exclude_none=True), "application/json")}}


def _may_pass(reply: httpx2.Response) -> bool:
    own = reply.headers.get("Content-Type", "").startswith(PROBLEM)
    return reply.status_code in AGAIN or (reply.status_code in FOREIGN_AGAIN and not own)


def _asked_pause(reply: _Reply) -> float:
    """Seconds that the answer asks to wait, 0 where it does not."""
    asked = reply.headers.get("Retry-After", "") if isinstance(reply, httpx2.Response) else ""
    try:
        return max(0.0, float(asked)) if asked.isdigit() else max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0


def _file(image: ImageLike) -> bytes | UploadedImage:
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise DataError("the image cannot be read", seen=image, fix=str(error.strerror)) from error
    return image


def _bytes(image: str | Path | bytes) -> bytes:
    file = _file(image)
    assert isinstance(file, bytes)
    return file


class _Service:
    """What both clients know of the service."""

    def __init__(self, url: str, key: str | None, config: ClientConfig) -> None:
        if key is not None and (not key.isprintable() or key != key.strip()):  # it could not be sent, and what is raised then shows it
            raise ConfigError("the API key has characters that cannot be sent", allowed="one line, without its end and spaces around")
        self._config = config
        self._base_url = url.rstrip("/")
        self._headers = {b"Authorization": f"Bearer {key}".encode()} if key else {}

    def _timeout(self, step: _Send) -> httpx2.Timeout:
        return httpx2.Timeout(step.seconds, connect=min(self._config.connect_s, step.seconds))


class _Until(httpx2.SyncByteStream):
    """The bytes of an answer as long as they come before `until` (`time.monotonic`): httpx bounds each read, not all of them."""

    def __init__(self, stream: httpx2.SyncByteStream, until: float) -> None:
        self._stream, self._until = stream, until

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() >= self._until:
                raise httpx2.TimeoutException("the deadline is over")
            yield piece

    def close(self) -> None:
        self._stream.close()


class _Sending(_Until):
    """The bytes of a request, as `_Until`; the answer then has to begin within what is left."""

    def __init__(self, request: httpx2.Request, until: float) -> None:
        assert isinstance(request.stream, httpx2.SyncByteStream)
        super().__init__(request.stream, until)
        self._timeout: dict[str, float] = request.extensions["timeout"]

    def __iter__(self) -> Iterator[bytes]:
        yield from super().__iter__()
        self._timeout["read"] = max(0.001, self._until - time.monotonic())


class Client(_Service):
    """A client for threads; one may be shared by several. Close it, or use it in a ``with`` block.

    Args:
        url: where the service is, such as ``http://127.0.0.1:8000``.
        key: API key, where the service asks for one.
        config: patience.
        transport: what carries requests; None: a pool of connections.

    Raises:
        ConfigError: the key cannot be sent.

    Its methods raise:
        ServiceProblemError: the service refused the request, or was not able to answer before the deadline.
        ServiceUnreachableError: no answer came before the deadline.
        UnknownAnswerError: the answer is not one that this client knows.
        DataError: the image's file cannot be read.
    """

    def __init__(self, url: str, *, key: str | None = None, config: ClientConfig = DEFAULTS, transport: httpx2.BaseTransport | None = None) -> None:
        super().__init__(url, key, config)
        self._http = httpx2.Client(base_url=self._base_url, headers=self._headers, transport=transport, limits=CONNECTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def segment(self, image: ImageLike, request: SegmentRequest) -> SegmentationResponse:
        """Segment an image into the classes of a vocabulary."""
        return self._call(lambda talk: talk.ask("/v1/segment", _file(image), request, SegmentationResponse))

    def prompt(self, image: ImageLike, request: PromptRequest) -> MasksResponse:
        """The masks of points and boxes."""
        return self._call(lambda talk: talk.ask("/v1/prompt", _file(image), request, MasksResponse))

    def everything(self, image: ImageLike, request: EverythingRequest | None = None) -> MasksResponse:
        """Every mask that a grid of points finds."""
        return self._call(lambda talk: talk.ask("/v1/everything", _file(image), request or EverythingRequest(), MasksResponse))

    def upload(self, image: str | Path | bytes) -> UploadedImage:
        """Send an image once, to ask about it many times."""
        return self._call(lambda talk: talk.upload(_bytes(image)))

    def models(self) -> ModelsResponse:
        """What is served, and what requests may ask for."""
        return self._call(lambda talk: talk.get("/v1/models", ModelsResponse))

    def vocabularies(self) -> VocabulariesResponse:
        """The vocabularies that have an id."""
        return self._call(lambda talk: talk.get("/v1/vocabularies", VocabulariesResponse))

    def health(self) -> Health:
        """The service answers."""
        return self._call(lambda talk: talk.get("/healthz", Health))

    def ready(self) -> Health:
        """Wait until a model is loaded."""
        return self._call(lambda talk: talk.get("/readyz", Health))

    def _call(self, begin: Callable[[_Conversation], _Steps[T]]) -> T:
        talk = _Conversation(self._config)
        steps, reply = begin(talk), None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = self._do(step, talk)

    def _do(self, step: _Send | _Pause, talk: _Conversation) -> _Reply:
        if isinstance(step, _Pause):
            time.sleep(step.seconds)
            return None
        headers, until = {REQUEST_ID_HEADER: talk.request_id}, time.monotonic() + step.seconds
        try:
            request = self._http.build_request(step.method, step.path, headers=headers, timeout=self._timeout(step), **step.content)
            request.stream = _Sending(request, until)
            with closing(self._http.send(request, stream=True)) as reply:
                assert isinstance(reply.stream, httpx2.SyncByteStream)
                reply.stream = _Until(reply.stream, until)
                reply.read()
                return reply
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return error


class AsyncClient(_Service):
    """`Client` for one event loop: the same arguments, methods and errors. Close it, or use it in an ``async with`` block."""

    def __init__(
        self, url: str, *, key: str | None = None, config: ClientConfig = DEFAULTS, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        super().__init__(url, key, config)
        self._http = httpx2.AsyncClient(base_url=self._base_url, headers=self._headers, transport=transport, limits=CONNECTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def segment(self, image: ImageLike, request: SegmentRequest) -> SegmentationResponse:
        """Segment an image into the classes of a vocabulary."""
        file = await asyncio.to_thread(_file, image)
        return await self._call(lambda talk: talk.ask("/v1/segment", file, request, SegmentationResponse))

    async def prompt(self, image: ImageLike, request: PromptRequest) -> MasksResponse:
        """The masks of points and boxes."""
        file = await asyncio.to_thread(_file, image)
        return await self._call(lambda talk: talk.ask("/v1/prompt", file, request, MasksResponse))

    async def everything(self, image: ImageLike, request: EverythingRequest | None = None) -> MasksResponse:
        """Every mask that a grid of points finds."""
        file = await asyncio.to_thread(_file, image)
        return await self._call(lambda talk: talk.ask("/v1/everything", file, request or EverythingRequest(), MasksResponse))

    async def upload(self, image: str | Path | bytes) -> UploadedImage:
        """Send an image once, to ask about it many times."""
        file = await asyncio.to_thread(_bytes, image)
        return await self._call(lambda talk: talk.upload(file))

    async def models(self) -> ModelsResponse:
        """What is served, and what requests may ask for."""
        return await self._call(lambda talk: talk.get("/v1/models", ModelsResponse))

    async def vocabularies(self) -> VocabulariesResponse:
        """The vocabularies that have an id."""
        return await self._call(lambda talk: talk.get("/v1/vocabularies", VocabulariesResponse))

    async def health(self) -> Health:
        """The service answers."""
        return await self._call(lambda talk: talk.get("/healthz", Health))

    async def ready(self) -> Health:
        """Wait until a model is loaded."""
        return await self._call(lambda talk: talk.get("/readyz", Health))

    async def _call(self, begin: Callable[[_Conversation], _Steps[T]]) -> T:
        talk = _Conversation(self._config)
        steps, reply = begin(talk), None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = await self._do(step, talk)

    async def _do(self, step: _Send | _Pause, talk: _Conversation) -> _Reply:
        if isinstance(step, _Pause):
            await asyncio.sleep(step.seconds)
            return None
        headers = {REQUEST_ID_HEADER: talk.request_id}
        try:
            async with asyncio.timeout(step.seconds):
                return await self._http.request(step.method, step.path, headers=headers, timeout=self._timeout(step), **step.content)
        except TimeoutError:
            return httpx2.TimeoutException("the deadline is over")
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return error


def decode_mask(segment: Segment) -> NDArray[np.bool_]:
    """The mask of a segment, [h, w]. Raises DataError where it did not come as COCO RLE."""
    if not isinstance(segment.mask, CocoRle):
        raise DataError("the segment's mask is not run lengths", seen=segment.mask and segment.mask.type, allowed="mask_format coco_rle")
    from pycocotools import mask as coco_mask  # only here: a client that decodes nothing does without

    height, width = segment.mask.size
    dense: NDArray[np.bool_] = coco_mask.decode({"size": [height, width], "counts": segment.mask.counts.encode()}).astype(bool)
    return dense


def decode_id_map(answer: Answer) -> NDArray[np.uint16]:
    """The id map of an answer, [h, w]: 0 or `Segment.id`. Raises DataError where there is none."""
    if answer.id_map is None:
        raise DataError("the answer has no id map", allowed="mask_format png_idmap")
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(answer.id_map.data))) as image:
        return np.asarray(image).astype(np.uint16)
