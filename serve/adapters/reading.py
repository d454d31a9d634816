"""What all adapters do: a bounded body to a typed one, what it asks for to a request of the contract, and an answer to JSON."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.api import request_id_of
from serve.problems import ServiceError, headers_of, problem_of
from serve.reading import check_json, json_bytes, read_body, refused
from uniovseg.api import ImageRequest, Limits
from uniovseg.deadline import deadline

SEGMENTS = 100
"""Segments of an answer, at most: these clients draw or edit each."""

INSTANCE_SCORE = 0.3
"""Least score of an instance where a client names none. Every mask is an instance of every word, most of them of hardly any score."""

RequestT = TypeVar("RequestT", bound=ImageRequest)
ForeignT = TypeVar("ForeignT", bound="Foreign")


class Foreign(BaseModel):
    """Base of the bodies of other services' clients: fields that we do not know are theirs, and ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


async def read_json(http: Request, kind: type[ForeignT], limits: Limits, images: int = 1) -> ForeignT:
    """The body, which holds as many images in base64, as `kind`. Raises ServiceError."""
    return parse_json(await read_body(http, limits, json_bytes(limits, images)), kind, limits)


def parse_json(body: bytes, kind: type[ForeignT], limits: Limits) -> ForeignT:
    """JSON as `kind`, if there is not too much of it beside images. Raises ServiceError."""
    check_json(body, limits)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refused(error) from None


def make_request(kind: type[RequestT], **values: Any) -> RequestT:
    """A request of the contract; values of None are left out. Raises ServiceError."""
    try:
        return kind.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise refused(error, kind) from None


def time_is_over(limits: Limits) -> float:
    """When a request whose last byte has just come has to be answered, its masks written too: `time.monotonic`."""
    return time.monotonic() + limits.seconds


async def written(write: Callable[[], str], until: float) -> Response:
    """The JSON text that `write` gives. It is made in a thread: masks may be large, and the event loop is everybody's.

    Raises:
        ServiceError: the time is over before one of the items that `write` takes `in_time`.
    """

    def work() -> str:
        with deadline(until):
            return write()

    try:
        return Response(await asyncio.to_thread(work), media_type="application/json")
    except TimeoutError:
        raise ServiceError("timeout", "the masks were not written in time") from None


class ErrorRoute(APIRoute):
    """A route whose clients look for the key ``error`` in answers that are not 200; the rest of the problem stands beside it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with our errors caught."""
        handle = super().get_route_handler()

        async def handler(http: Request) -> Response:
            try:
                return await handle(http)
            except ServiceError as error:
                problem = problem_of(error.refusal, request_id_of(http))
                return JSONResponse(problem.model_dump(mode="json") | {"error": problem.detail}, problem.status, headers_of(problem))

        return handler
