"""Work waits for nothing but the thread: lone work and all that is alike take turns; what nobody waits for is never begun."""

import asyncio
import functools
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

import pytest

from serve.model_thread import Group, ModelThread

LATER = time.monotonic() + 10_000


@pytest.fixture
def thread() -> Iterator[ModelThread]:
    made = ModelThread()
    yield made
    made.close()


class Gate:
    """Holds the thread until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(60)


async def held(thread: ModelThread) -> tuple[Gate, "asyncio.Future[None]"]:
    gate = Gate()
    busy = asyncio.ensure_future(thread.call(gate, LATER))
    await asyncio.to_thread(gate.entered.wait, 60)
    return gate, busy


def test_what_waits_is_done_together_in_turn_with_lone_work(thread: ModelThread) -> None:
    batches: list[list[int]] = []

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return [2 * item for item in items]

    async def main() -> None:
        group, other = Group(double, 3), Group(double, 3)
        gate, busy = await held(thread)
        calls = [thread.grouped(other if item == 2 else group, item, LATER) for item in range(6)]
        waiting = asyncio.gather(*calls, *(thread.call(functools.partial(batches.append, [-number]), LATER) for number in (1, 2)))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await waiting == [0, 2, 4, 6, 8, 10, None, None]
        await busy

    asyncio.run(main())
    assert batches == [[0, 1, 3], [-1], [2], [-2], [4, 5]]  # what held the thread was lone work


def test_a_bad_item_fails_alone(thread: ModelThread) -> None:
    def invert(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    async def main() -> list[object]:
        group = Group(invert, 8)
        gate, busy = await held(thread)
        waiting = asyncio.gather(*(thread.grouped(group, item, LATER) for item in (1, 0, 2)), return_exceptions=True)
        await asyncio.sleep(0)
        gate.opened.set()
        await busy
        return list(await waiting)

    first, second, third = asyncio.run(main())
    assert (first, third) == (1.0, 0.5)
    assert isinstance(second, ZeroDivisionError)


def test_late_and_cancelled_work_is_never_begun(thread: ModelThread) -> None:
    done: list[str] = []

    async def main() -> None:
        gate, busy = await held(thread)
        late = asyncio.ensure_future(thread.call(lambda: done.append("late"), 0.0))
        cancelled = asyncio.ensure_future(thread.call(lambda: done.append("cancelled"), LATER))
        last = asyncio.ensure_future(thread.call(lambda: done.append("last"), LATER))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        with pytest.raises(TimeoutError):
            await late
        await last
        await busy

    asyncio.run(main())
    assert done == ["last"]


def test_a_failure_belongs_to_its_caller(thread: ModelThread) -> None:
    async def main() -> int:
        with pytest.raises(SystemExit):
            await thread.call(lambda: exit(1), LATER)
        return await thread.call(lambda: 7, LATER)

    assert asyncio.run(main()) == 7
    assert thread.alive


def test_closing_cancels_what_waits() -> None:
    thread = ModelThread()

    async def main() -> None:
        gate, busy = await held(thread)
        waiting = asyncio.ensure_future(thread.call(lambda: 1, LATER))
        await asyncio.sleep(0)
        thread.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.opened.set()
        await busy

    asyncio.run(main())


def test_a_failure_keeps_nothing_alive(thread: ModelThread) -> None:
    class Kept:
        def fail(self) -> None:
            raise ValueError

    def refuse(items: Sequence[Kept]) -> list[None]:
        raise ValueError(len(items))

    async def main() -> list[weakref.ref[Kept]]:
        group, items = Group(refuse, 8), [Kept(), Kept(), Kept()]
        gate, busy = await held(thread)
        waiting = asyncio.gather(
            *(thread.grouped(group, item, LATER) for item in items[:2]), thread.call(items[2].fail, LATER), return_exceptions=True
        )
        await asyncio.sleep(0)
        gate.opened.set()
        await busy
        assert [type(found) for found in await waiting] == [ValueError] * 3
        return [weakref.ref(item) for item in items]

    gc.disable()
    try:
        found = asyncio.run(main())
        assert [item() for item in found] == [None] * 3
    finally:
        gc.enable()


def test_what_nobody_waits_for_leaves_the_queue_at_once(thread: ModelThread) -> None:
    done: list[int] = []

    def take(items: Sequence[int]) -> Sequence[int]:
        done.extend(items)
        return items

    async def main() -> None:
        group = Group(take, 3)
        gate, busy = await held(thread)
        grouped = [asyncio.ensure_future(thread.grouped(group, number, LATER)) for number in range(50)]
        alone = [asyncio.ensure_future(thread.call(functools.partial(take, [-1]), LATER)) for _ in range(50)]
        given_up = [*grouped, *alone]
        wanted = asyncio.ensure_future(thread.grouped(group, 99, LATER))
        await asyncio.sleep(0)
        for call in given_up:
            call.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        assert (len(thread._alone), len(thread._grouped)) == (0, 1)
        gate.opened.set()
        assert await wanted == 99
        await busy

    asyncio.run(main())
    assert done == [99]
