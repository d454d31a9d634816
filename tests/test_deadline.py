"""Loops end at the deadline of the thread that runs them."""

import threading
import time

import pytest

from uniovseg.deadline import deadline, in_time


def test_without_a_deadline_all_items_come() -> None:
    assert list(in_time(range(3))) == [0, 1, 2]


def test_no_item_comes_late() -> None:
    taken = []
    with deadline(time.monotonic() + 0.05), pytest.raises(TimeoutError):
        for item in in_time(range(1000)):
            taken.append(item)
            time.sleep(0.02)
    assert taken == list(range(len(taken))) and 1 <= len(taken) < 100


def test_the_deadline_before_holds_again_after_the_block() -> None:
    now = time.monotonic()
    with deadline(now + 100):
        with deadline(now - 1), pytest.raises(TimeoutError):
            next(in_time("a"))
        assert next(in_time("a")) == "a"
    with pytest.raises(ZeroDivisionError), deadline(now - 1):
        1 / 0  # noqa: B018
    assert next(in_time("a")) == "a"


def test_a_deadline_is_one_threads_own() -> None:
    came = list[int]()
    with deadline(time.monotonic() - 1):
        thread = threading.Thread(target=lambda: came.extend(in_time(range(3))))
        thread.start()
        thread.join()
    assert came == [0, 1, 2]
