"""A time by which work has to end: its caller sets it, and the loops of work that may take long look at it before each piece."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_UNTIL: ContextVar[float] = ContextVar("_UNTIL", default=math.inf)


@contextmanager
def deadline(until: float) -> Iterator[None]:
    """Within the block, in this thread, `in_time` gives items until a time, `time.monotonic` in seconds; elsewhere it always does."""
    before = _UNTIL.set(until)
    try:
        yield
    finally:
        _UNTIL.reset(before)


def in_time(items: Iterable[T]) -> Iterator[T]:
    """The items, one at a time. Raises TimeoutError instead of the next one where the time is over."""
    for item in items:
        if time.monotonic() >= _UNTIL.get():
            raise TimeoutError
        yield item
