"""Writes in the order in which they were made, kept while the database cannot be used.

Knows that a write may fail; does not know what is written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rag.accounts.failures import AccountsUnavailable

T = TypeVar("T")
Write = Callable[[], Awaitable[object]]

_RETRY_S = 2.0
_MOST = 5_000
"""Writes kept; of more of them the oldest is given up, and logged."""
_log = logging.getLogger(__name__)


class Outbox:
    """One write after the other.

    Args:
        retry_s: Seconds between two tries of what could not be written.
    """

    def __init__(self, *, retry_s: float = _RETRY_S) -> None:
        self._retry_s = retry_s
        self._lock = asyncio.Lock()  # first come, first served
        self._waiting: deque[Write] = deque()
        self._retry: asyncio.Task[None] | None = None
        self.problem: str | None = None
        """Why writes wait, in one sentence; None when none does."""

    async def add(self, write: Write) -> None:
        """Apply a write after all before it: now, or, where the database cannot be used, later."""
        self._waiting.append(write)
        if len(self._waiting) > _MOST:
            self._waiting.popleft()
            _log.error("A write to the database of chats is given up: too many wait")
        if self._is_retrying:  # it would wait for the same lock, and keep all behind it waiting
            return
        async with self._lock:
            if self._is_retrying:  # since this waited for its turn
                return
            await self._drain()
        if self._waiting and not self._is_retrying:
            self._retry = asyncio.create_task(self._try_again())

    async def now(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what comes of a write, for a caller who waits to hear how it went."""
        async with self._lock:
            return await work()

    async def settled(self) -> None:
        """Wait until what was added so far is written, or known not to be."""
        async with self._lock:
            pass

    async def close(self) -> None:
        """Try once more to write what waits."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.wait({self._retry})
        async with self._lock:
            await self._drain()
        if self._waiting:
            _log.error("%d writes to the database of chats are lost", len(self._waiting))

    @property
    def _is_retrying(self) -> bool:
        return self._retry is not None and not self._retry.done()

    async def _try_again(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._retry_s)
            async with self._lock:
                await self._drain()

    async def _drain(self) -> None:
        while self._waiting:
            try:
                await self._waiting[0]()
            except AccountsUnavailable as e:
                if self.problem is None:
                    _log.warning("Chats cannot be kept for now: %s", e, exc_info=e)
                self.problem = str(e)
                return
            except Exception:  # noqa: BLE001 – one write must not keep all others from being tried
                _log.exception("A write to the database of chats failed and is given up")
                self.problem = "A part of this chat could not be kept; the log says why."
            else:
                if len(self._waiting) == 1:
                    self.problem = None
            self._waiting.popleft()
