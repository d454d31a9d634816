"""Work on several items at once by threads: torch, OpenCV and the stores let go of the interpreter while they work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_threads(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """``map(work, items)`` by that many threads: results in the items' order, no more than `threads` + 1 items held at a time."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[R]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
