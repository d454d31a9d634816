"""Work by threads: the order of the results, how far ahead it goes, and what an error does."""

import threading
from collections.abc import Iterator

import pytest

from uniovseg.threads import map_threads


def test_results_come_in_order_though_later_work_ends_first() -> None:
    later = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert later.wait(10)  # only another thread can set it
        later.set()
        return item * item

    assert list(map_threads(work, range(6), threads=2)) == [0, 1, 4, 9, 16, 25]


def test_no_more_items_are_drawn_than_it_says() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            drawn.append(item)
            yield item

    assert next(map_threads(lambda item: item, items(), threads=3)) == 0
    assert drawn == [0, 1, 2, 3]


def test_an_error_comes_out_in_its_place() -> None:
    found = map_threads(lambda item: 6 // item, [3, 2, 0, 1], threads=2)
    assert [next(found), next(found)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(found)
