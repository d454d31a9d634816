"""What goes wrong with a request: a `Refusal`, which can cross processes, the exception that carries it, and the ``application/problem+json`` of both."""

from dataclasses import dataclass
from typing import Any

from uniovseg.api import Problem, ProblemCode

KINDS: dict[ProblemCode, tuple[int, str]] = {
    "invalid_json": (400, "The request is not JSON"),
    "invalid_image": (400, "The image cannot be read"),
    "image_missing": (400, "The request has no image"),
    "image_twice": (400, "The request has more than one image"),
    "invalid_body": (400, "The body cannot be read"),
    "unauthorized": (401, "A valid key is needed"),
    "not_found": (404, "There is nothing at this address"),
    "image_not_found": (404, "There is no such image, or not any more"),
    "method_not_allowed": (405, "The address does not take this method"),
    "not_acceptable": (406, "The answer does not come in this form"),
    "timeout": (408, "The time is over"),
    "too_large": (413, "The request is too large"),
    "unsupported_media_type": (415, "The body is of an unknown type"),
    "invalid_request": (422, "The request cannot be used"),
    "invalid_vocabulary": (422, "The vocabulary cannot be used"),
    "limit_exceeded": (422, "The request asks for too much"),
    "overloaded": (503, "The service is busy"),
    "not_ready": (503, "The service has no model yet"),
    "replica_lost": (503, "The service lost the request"),
    "internal": (500, "The service failed"),
}
"""Status and title of each code."""

RETRY_AFTER_S = 1
"""What an answer 503 says in Retry-After, seconds."""

SEEN_LENGTH = 120
"""Characters of a seen value that an answer repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request has no answer: see `Problem`."""

    code: ProblemCode
    detail: str
    seen: Any = None
    allowed: Any = None


class ServiceError(Exception):
    """A request that is refused."""

    def __init__(self, code: ProblemCode, detail: str, *, seen: Any = None, allowed: Any = None) -> None:
        super().__init__(detail)
        self.refusal = Refusal(code=code, detail=detail, seen=seen, allowed=allowed)

    @classmethod
    def of(cls, refusal: Refusal) -> "ServiceError":
        """The exception of a refusal that came from another process."""
        return cls(refusal.code, refusal.detail, seen=refusal.seen, allowed=refusal.allowed)


def problem_of(refusal: Refusal, request_id: str) -> Problem:
    """The body of the answer."""
    status, title = KINDS[refusal.code]
    return Problem(
        type=f"urn:uniovseg:problem:{refusal.code}",
        title=title,
        status=status,
        code=refusal.code,
        detail=refusal.detail,
        seen=shown(refusal.seen),
        allowed=refusal.allowed,
        request_id=request_id,
    )


def headers_of(problem: Problem) -> dict[str, str]:
    """The headers that go with the answer: when to come back, or which key is asked for."""
    if problem.status == 503:
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}


def shown(value: Any) -> Any:
    """A value as an answer may repeat it: numbers as they are, all else as short text that any encoding can carry."""
    if value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 2**53):
        return value
    if isinstance(value, int | float):
        text = "a huge number" if isinstance(value, int) else repr(value)
    else:
        text = value if isinstance(value, str) else repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SEEN_LENGTH else f"{text[:SEEN_LENGTH]}…"
