from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster
from processes import run_alone

from rag.streaming import in_thread, run_ahead


class Numbers:
    """Counts up until told to stop, and says when it has ended."""

    def __init__(self, n: int | None = None) -> None:
        self.n, self.ended = n, threading.Event()

    def __call__(self, stop: threading.Event) -> Iterator[int]:
        try:
            i = 0
            while i != self.n and not stop.is_set():
                yield i
                i += 1
                stop.wait(0.001)
        finally:
            self.ended.set()


def failing(stop: threading.Event) -> Iterator[int]:
    yield 1
    raise LookupError("inside")


async def test_items_come_in_order(blockbuster: BlockBuster) -> None:
    assert [x async for x in in_thread(Numbers(100))] == list(range(100))
    assert list(run_ahead(Numbers(3))) == [0, 1, 2]


async def test_leaving_early_ends_the_thread(blockbuster: BlockBuster) -> None:
    numbers = Numbers()
    async with contextlib.aclosing(in_thread(numbers)) as items:
        async for item in items:
            if item == 5:
                break
    assert await asyncio.to_thread(numbers.ended.wait, 5)


async def test_cancelling_the_reader_ends_the_thread() -> None:
    numbers = Numbers()

    async def read() -> None:
        async with contextlib.aclosing(in_thread(numbers)) as items:
            async for _ in items:
                pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(numbers.ended.wait, 5)


def test_closing_a_blocking_reader_ends_the_thread() -> None:
    numbers = Numbers()
    items = run_ahead(numbers)
    next(items)
    items.close()
    assert numbers.ended.wait(5)


def test_a_reader_that_never_comes_back_holds_nothing_up() -> None:
    numbers = Numbers(500)
    items = run_ahead(numbers)
    next(items)
    assert numbers.ended.wait(10)


async def test_a_failure_is_raised_in_the_reader() -> None:
    with pytest.raises(LookupError, match="inside"):
        async for _ in in_thread(failing):
            pass
    with pytest.raises(LookupError, match="inside"):
        list(run_ahead(failing))


def test_the_end_of_the_interpreter_waits_for_what_runs() -> None:
    """A thread that was ended inside pydantic's Rust would abort the process."""
    ended = run_alone(
        """
        import time
        from rag.streaming import run_ahead

        def numbers(stop):
            try:
                while not stop.is_set():
                    yield 1
                    time.sleep(0.001)
            finally:
                time.sleep(0.3)
                print("ended", flush=True)

        items = run_ahead(numbers)
        next(items)
        """
    )
    assert (ended.stdout, ended.returncode) == ("ended\n", 0), ended.stderr[-500:]
