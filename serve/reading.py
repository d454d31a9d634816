"""HTTP bodies to requests of the contract: how much is read and for how long is bounded before anything is parsed."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from serve.images import MEDIA_TYPES, base64_length
from serve.problems import ServiceError
from uniovseg.api import REQUEST_HEADER, ImageRequest, Limits

RequestT = TypeVar("RequestT", bound=ImageRequest)

RAW = (*MEDIA_TYPES, "application/octet-stream")
ACCEPTED = ("multipart/form-data", "application/json", *RAW)

LISTS = ("vocabulary", "templates", "scales", "points", "labels", "boxes")
"""Fields that a query parameter gives as JSON, or words parted by commas."""

PARTS = ("image", "request")

FRAME_BYTES = 16 * 1024
"""What multipart adds to its parts, at most."""

FILES = re.compile(rb'"(?:data:image\\?/[a-z+.-]{1,20};base64,)?[A-Za-z0-9+/=\\]{1000,}+"')
"""Files in base64 between two quotes, of which JSON may write a slash as ``\\/``. Nothing that could be a second JSON value fits between such quotes."""


async def read_request(http: Request, kind: type[RequestT], limits: Limits) -> tuple[RequestT, bytes | None]:
    """The request of a POST and the image file that came with it, if one did.

    Raises:
        ServiceError: the body is of an unknown type, too large, too slow or broken, or holds no such request.
    """
    media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if http.headers.get("content-encoding", "identity") != "identity":
        raise ServiceError("unsupported_media_type", "the body is encoded", seen=http.headers["content-encoding"], allowed="identity")
    if media == "multipart/form-data":
        async with arriving(limits):
            return await _multipart(http, kind, limits)
    if media == "application/json":
        body = await read_body(http, limits, json_bytes(limits))
        check_json(body, limits)
        return parse(kind, body), None
    if media in RAW or not media:
        image = await read_body(http, limits, limits.bytes)
        if image and not media:
            raise ServiceError("unsupported_media_type", "the body's type is not named", allowed=list(ACCEPTED))
        return _of_address(http, kind), image or None
    raise ServiceError("unsupported_media_type", "the body is of an unknown type", seen=media, allowed=list(ACCEPTED))


def check_json(body: bytes, limits: Limits) -> None:
    """Refuse JSON that holds more than a request beside its images, before it is parsed: millions of values would hold up everybody. Raises ServiceError."""
    rest = len(FILES.sub(b'""', body)) if len(body) > limits.request_bytes else 0
    if rest > limits.request_bytes:
        raise ServiceError("too_large", "the request beside its image is too large, in bytes", seen=rest, allowed=limits.request_bytes)


def parse(kind: type[RequestT], text: bytes | str) -> RequestT:
    """A request from its JSON. Raises ServiceError."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise refused(error, kind) from None


def refused(error: ValidationError, kind: type[ImageRequest] | None = None) -> ServiceError:
    """The first problem of a request that does not fit the contract."""
    item = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in item["loc"])
    what = item["msg"].removeprefix("Value error, ")
    if item["type"] == "json_invalid":
        return ServiceError("invalid_json", what)
    code = "invalid_vocabulary" if where.startswith(("vocabulary", "templates")) else "invalid_request"
    context = item.get("ctx", {})
    allowed = context.get("expected")
    if item["type"] == "extra_forbidden" and kind is not None and len(item["loc"]) == 1:
        allowed = sorted(kind.model_fields)
    seen = None if item["type"] == "missing" or not where else item["input"]
    return ServiceError(code, f"{where}: {what}" if where else what, seen=seen, allowed=allowed)  # type: ignore[arg-type]


async def _bounded(http: Request, most: int) -> AsyncIterator[bytes]:
    """The body in pieces. Raises ServiceError as soon as it is known to be larger than `most` bytes."""
    named = http.headers.get("content-length", "0")
    if named.isascii() and named.isdecimal() and len(named) < 20 and int(named) > most:
        raise ServiceError("too_large", "the request is too large, in bytes", seen=int(named), allowed=most)
    count = 0
    async for piece in http.stream():
        count += len(piece)
        if count > most:
            raise ServiceError("too_large", "the request is too large, in bytes", seen=f"more than {most}", allowed=most)
        yield piece


@asynccontextmanager
async def arriving(limits: Limits) -> AsyncIterator[None]:
    """A body on its way. Raises ServiceError where it comes too slowly or ends too early."""
    try:
        async with asyncio.timeout(limits.upload_seconds):
            yield
    except TimeoutError:
        raise ServiceError("timeout", "the request came too slowly", allowed=f"{limits.upload_seconds:g} s") from None
    except ClientDisconnect:
        raise ServiceError("invalid_body", "the request ended too early") from None


async def read_body(http: Request, limits: Limits, most: int) -> bytes:
    """The body. Raises ServiceError where it has more than `most` bytes, comes too slowly, or ends too early."""
    async with arriving(limits):
        return b"".join([piece async for piece in _bounded(http, most)])


def json_bytes(limits: Limits, images: int = 1) -> int:
    """Most bytes of a body with so many images in base64."""
    return limits.request_bytes + images * base64_length(limits)


class _Parser(MultiPartParser):
    """Keeps parts in memory: the body is bounded already."""

    spool_max_size = 2**40


async def _multipart(http: Request, kind: type[RequestT], limits: Limits) -> tuple[RequestT, bytes | None]:
    stream = _bounded(http, limits.bytes + limits.request_bytes + FRAME_BYTES)
    parser = _Parser(http.headers, stream, max_files=len(PARTS), max_fields=len(PARTS), max_part_size=limits.request_bytes)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError, ValueError) as error:
        detail = error.message if isinstance(error, MultiPartException) else "the parts cannot be told apart"
        raise ServiceError("invalid_body", detail, allowed="multipart/form-data with the parts image and request") from None
    parts: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if name not in PARTS or name in parts:
            raise ServiceError("invalid_body", "the body has a part that is unknown or there twice", seen=name, allowed=list(PARTS))
        parts[name] = await value.read() if isinstance(value, UploadFile) else value.encode("utf-8", "surrogatepass")
    await form.close()
    if http.query_params or REQUEST_HEADER in http.headers:
        raise ServiceError("invalid_request", "fields stand in the address or a header", allowed="in the part request")
    return parse(kind, parts.get("request", b"{}")), parts.get("image")


def _of_address(http: Request, kind: type[RequestT]) -> RequestT:
    """The request that stands in the header or in the query parameters."""
    header = http.headers.get(REQUEST_HEADER)
    if header is not None:
        if http.query_params:
            raise ServiceError("invalid_request", f"query parameters beside {REQUEST_HEADER}", allowed="one of them")
        return parse(kind, header.encode("latin-1"))
    names = [name for name, _ in http.query_params.multi_items()]
    repeated = next((name for name in names if names.count(name) > 1), None) if len(names) <= len(kind.model_fields) else names[-1]
    if repeated is not None:
        raise ServiceError("invalid_request", "a query parameter is there twice", seen=repeated)
    try:
        return kind.model_validate(_values(http.query_params))
    except ValidationError as error:
        raise refused(error, kind) from None


def _values(query: Mapping[str, str]) -> dict[str, Any]:
    return {name: _list(name, text) if name in LISTS else text for name, text in query.items()}


def words_of(text: str) -> list[str]:
    """The words of a query parameter, parted by commas."""
    return text.rstrip().removesuffix(",").split(",")


def _list(name: str, text: str) -> Any:
    """The value of a list field: JSON where it begins so; else words parted by commas, or for `templates` a set's name."""
    if text.lstrip().startswith("["):
        try:
            return from_json(text)
        except ValueError as error:
            raise ServiceError("invalid_json", f"{name}: {error}") from None
    if name == "vocabulary":
        return words_of(text)
    return text
