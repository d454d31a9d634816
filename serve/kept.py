"""Things that are kept for a while: a bound on their bytes, the one used longest ago goes first, and each expires when it is not used."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """A bounded mapping, for any threads.

    Args:
        most_bytes: of all values together; a larger value is not kept at all.
        seconds: a value that was not used for this long is forgotten.
        clock: the time in seconds.
    """

    def __init__(self, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_bytes, self.seconds = most_bytes, seconds
        self.bytes = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._items: OrderedDict[str, tuple[T, int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> T | None:
        """The value, which counts as used now; None where there is none or it expired."""
        with self._lock:
            self._expire()
            item = self._items.get(key)
            if item is None:
                return None
            self._items[key] = (item[0], item[1], self._clock())
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: str, value: T, size: int) -> bool:
        """Keep a value of `size` bytes, in place of an older one; False where it is larger than all may be together."""
        with self._lock:
            self._expire()
            self._drop(key)
            if size > self.most_bytes:
                return False
            while self.bytes + size > self.most_bytes:
                self._drop(next(iter(self._items)))
            self._items[key] = (value, size, self._clock())
            self.bytes += size
            return True

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()
            self.bytes = 0

    def _expire(self) -> None:
        oldest = self._clock() - self.seconds
        while self._items and next(iter(self._items.values()))[2] < oldest:
            self._drop(next(iter(self._items)))

    def _drop(self, key: str) -> None:
        if key in self._items:
            self.bytes -= self._items.pop(key)[1]
