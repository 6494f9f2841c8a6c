"""Loading in the background while the chat already listens; knows neither Chainlit nor models.

A load that failed is tried again by the next question, so mending what was wrong (the table, a
file) and asking again needs no restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from rag.errors import RagError
from rag.progress import Progress

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Preparation(Generic[T]):
    """One blocking load, run in a thread, shared by everybody who waits for it."""

    def __init__(self, load: Callable[[Progress], T]) -> None:
        """Keep `load` for later; nothing starts before `begin`."""
        self._load = load
        self._task: asyncio.Task[T] | None = None
        self._at = "starting"

    def begin(self) -> asyncio.Task[T]:
        """Return the running or finished load; start it if there is none, or if it failed.

        Whoever waits for the task should shield it: cancelling it would stop it for all.
        """
        if self._task is None or _failure(self._task) is not None:
            self._at = "starting"
            self._task = asyncio.create_task(asyncio.to_thread(self._load, self._report))
            self._task.add_done_callback(_log_failure)
        return self._task

    def change(
        self, load: Callable[[Progress], T], *, after: Callable[[], Awaitable[None]]
    ) -> asyncio.Task[T]:
        """Make everybody wait for another load, begun when `after` is over; return it.

        Call it when the load before is done.
        """

        async def changed() -> T:
            await after()
            return await asyncio.to_thread(load, self._report)

        self._at = "waiting for the answers being written"
        self._task = asyncio.create_task(changed())
        self._task.add_done_callback(_log_failure)
        return self._task

    @property
    def is_ready(self) -> bool:
        """Whether the load has succeeded."""
        return self._task is not None and self._task.done() and _failure(self._task) is None

    @property
    def is_under_way(self) -> bool:
        """Whether the load is running."""
        return self._task is not None and not self._task.done()

    @property
    def state(self) -> str:
        """Where it is, in a few words: `ready`, a failure's sentence, or `embedding 120/165`."""
        if self.is_ready:
            return "ready"
        failure = None if self._task is None else _failure(self._task)
        if failure is None:
            return self._at
        return str(failure) if isinstance(failure, RagError) else "failed; see the log"

    def _report(self, what: str, n_done: int, n_total: int) -> None:
        self._at = f"{what} {n_done:,}/{n_total:,}" if n_total else what


def _failure(task: asyncio.Task[T]) -> BaseException | None:
    if not task.done():
        return None
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _log_failure(task: asyncio.Task[T]) -> None:
    failure = _failure(task)
    if failure is not None and not isinstance(failure, asyncio.CancelledError):
        _log.error("The preparation failed", exc_info=failure)
