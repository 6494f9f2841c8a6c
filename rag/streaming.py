"""A blocking generator in a thread of its own, read from another thread or an event loop.

Knows threads and asyncio; does not know what is generated. `stop` is the generator's order to
end: it is set when the reader closes the stream, is cancelled or has read everything, so nothing
goes on working for nobody. A reader that never comes back holds nothing up: the generator
runs on to its end.

At the interpreter's end the threads are stopped and waited for. Until Python 3.14 a daemon thread
that comes back to Python then is ended wherever it is, and inside a library in Rust (pydantic's)
that aborts the process: "FATAL: exception not rethrown". Source: a core dump, CPython 3.11.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
Make = Callable[[threading.Event], Iterator[T]]
"""Builds the blocking iterator; it should end soon after its event is set."""

_JOIN_S = 5.0
"""A stopped answer ends within one token; this is for one that does not."""
_EXIT_S = 1.0
_POLL_S = 0.002


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


def run_ahead(make: Make[T], stop: threading.Event | None = None) -> Generator[T, None, None]:
    """Yield what `make(stop)` yields, running it ahead in a thread.

    Its exception is raised here. Close the generator to stop the thread at its next item; set
    `stop` to do so while another thread is reading, where a generator cannot be closed.
    """
    items: queue.SimpleQueue[_Item[T] | _End] = queue.SimpleQueue()
    stop, thread = _start(make, items.put, stop or threading.Event())
    try:
        while True:
            item = items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item.value
    finally:
        stop.set()
        # what the generator does at its end (a chat remembers) is done when `close` returns
        thread.join(_JOIN_S)


async def in_thread(make: Make[T], stop: threading.Event | None = None) -> AsyncGenerator[T, None]:
    """Do as `run_ahead` for an event loop, without ever holding it.

    Use `contextlib.aclosing`, so that a reader who leaves early stops the thread at once.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[_Item[T] | _End] = asyncio.Queue()

    def put(item: _Item[T] | _End) -> None:
        # the loop may be gone when the process shuts down in mid-answer
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(items.put_nowait, item)

    stop, thread = _start(make, put, stop or threading.Event())
    try:
        while True:
            item = await items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item.value
    finally:
        stop.set()
        await asyncio.shield(asyncio.to_thread(thread.join, _JOIN_S))


def wait_for(threads: Iterable[threading.Thread], seconds: float) -> None:
    """Wait until the threads have ended, or for so long."""
    waited, until = list(threads), time.monotonic() + seconds
    # not `join`, which refuses a thread that Python did not start
    while any(thread.is_alive() for thread in waited) and time.monotonic() < until:
        time.sleep(_POLL_S)


_running: WeakKeyDictionary[threading.Thread, threading.Event] = WeakKeyDictionary()


@atexit.register
def _stop_all() -> None:
    running = dict(_running)
    for stop in running.values():
        stop.set()
    wait_for(running, _EXIT_S)


def _start(
    make: Make[T], put: Callable[[_Item[T] | _End], None], stop: threading.Event
) -> tuple[threading.Event, threading.Thread]:
    def work() -> None:
        error: BaseException | None = None
        try:
            # closing matters: the generator's own `finally` must run in this thread
            with contextlib.closing(_generator(make(stop))) as values:
                for value in values:
                    if stop.is_set():
                        break
                    put(_Item(value))
        except BaseException as e:  # noqa: BLE001 – raised again in the reader, whatever it is
            error = e
        put(_End(error))

    thread = threading.Thread(target=work, name="rag-stream", daemon=True)
    _running[thread] = stop
    thread.start()
    return stop, thread


def _generator(values: Iterator[T]) -> Generator[T, None, None]:
    # any iterator gets a `close`; a generator is closed through `yield from`
    yield from values
