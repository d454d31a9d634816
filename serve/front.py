"""What surrounds every HTTP request: its id, its line in the log, its figures, a bound on how many there are, and the answer to a fault of ours."""

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.measures import Measures
from serve.problems import ServiceError, headers_of, problem_of
from uniovseg.api import REQUEST_ID_HEADER

LOG = logging.getLogger("uniovseg.serve")

CLIENT_GONE = 499
"""Status in log and figures of a request whose client went away; nobody sees it."""

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

OPEN_PATHS = ("/healthz", "/readyz", "/metrics")
"""Answered however busy the service is."""


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; a record's ``fields`` are laid over it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {"time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"), "level": record.levelname}
        line |= {"message": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def log_to_stderr() -> None:
    """Write the service's log to standard error, once."""
    if not LOG.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False


class Front:
    """ASGI middleware around the whole application.

    Args:
        app: what answers.
        measures: figures of this process.
        most: requests under way, at most; more are answered 503 before their body is read.
        most_bytes: of the bodies of requests under way, together; a request that brings more is answered 503.
        echo: name the request's id in the answer's head; Ray Serve's proxy does so by itself.
    """

    def __init__(self, app: ASGIApp, measures: Measures, most: int, most_bytes: int, echo: bool) -> None:
        self.app, self.measures, self.most, self.most_bytes, self.echo = app, measures, most, most_bytes, echo
        self.count = self.bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = scope["request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = CLIENT_GONE
        size = taken = 0

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            piece = len(message.get("body", b""))
            taken += piece
            self.bytes += piece
            if piece and self.bytes > self.most_bytes:
                raise ServiceError("overloaded", "the bodies of requests under way are too large together, in bytes", allowed=self.most_bytes)
            return message

        async def sending(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if self.echo:
                    headers[REQUEST_ID_HEADER] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            size += len(message.get("body", b""))
            await send(message)

        self.count += 1
        self.measures.under_way(self.count)
        try:
            if self.count > self.most and scope["path"] not in OPEN_PATHS:
                await _refuse(ServiceError("overloaded", "too many requests are under way", allowed=self.most), scope, receive, sending)
            else:
                await self.app(scope, receiving, sending)
        except Exception:
            LOG.exception("a request failed", extra={"fields": {"request_id": request_id, "path": _short(scope["path"])}})
            if status == CLIENT_GONE:
                await _refuse(ServiceError("internal", "the service failed; the request's id leads to what happened"), scope, receive, sending)
        finally:
            self.count -= 1
            self.bytes -= taken
            self.measures.under_way(self.count)
            self._note(scope, request_id, status, size, time.perf_counter() - begin)

    def _note(self, scope: Scope, request_id: str, status: int, size: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.measures.request(route, status, seconds)
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "path": _short(scope["path"]),
            "status": status,
            "ms": round(seconds * 1000, 1),
            "bytes_in": Headers(scope=scope).get("content-length"),
            "bytes_out": size,
            "client": (scope.get("client") or [None])[0],
        }
        LOG.info("request", extra={"fields": fields})


def _short(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:200]}…"


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    problem = problem_of(error.refusal, scope["request_id"])
    await Response(problem.model_dump_json(), problem.status, headers_of(problem), "application/problem+json")(scope, receive, send)
