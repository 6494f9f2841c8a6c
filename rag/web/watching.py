"""Who looks at an answer that is being written: a page that is closed, a page that is reloaded.

Knows Chainlit's sessions; does not know what an answer is made of. An answer that nobody looks at
any more is stopped after a grace time, which a reload or a short loss of the network fits into.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass

import chainlit as cl
from chainlit.session import WebsocketSession

from rag.web.answer import Answer

_REFRESH_S = 0.5


@dataclass(frozen=True)
class _Writing:
    answer: Answer
    task: asyncio.Task[None]


class Watch:
    """The answers being written, by thread.

    Args:
        grace_s: How long an answer goes on that nobody looks at.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._writing: dict[str, _Writing] = {}
        self._looking: dict[str, set[str]] = {}  # thread → sessions
        self._tasks: set[asyncio.Task[None]] = set()  # the loop alone would forget them

    @contextlib.contextmanager
    def writing(self, answer: Answer) -> Iterator[None]:
        """Say that the task at hand writes an answer in the thread of the session at hand."""
        session = cl.context.session
        task = asyncio.current_task()
        assert task is not None, "called in a coroutine"
        writing = _Writing(answer, task)
        self._writing[session.thread_id] = writing
        self._looking.setdefault(session.thread_id, set()).add(session.id)
        try:
            yield
        finally:
            if self._writing.get(session.thread_id) is writing:
                del self._writing[session.thread_id]

    def is_writing(self, thread_id: str) -> bool:
        """Return whether an answer is being written in a thread."""
        return thread_id in self._writing

    def came(self) -> None:
        """Let the session at hand, another page of a thread, follow what is being written."""
        session = cl.context.session
        self._looking.setdefault(session.thread_id, set()).add(session.id)
        if writing := self._writing.get(session.thread_id):
            session.current_task = writing.task  # what its Stop button stops
            self._begin(self._follow(session.thread_id, writing))

    def left(self) -> None:
        """Stop what the session at hand looked at, unless somebody looks again in time."""
        session = cl.context.session
        looking = self._looking.get(session.thread_id, set())
        looking.discard(session.id)
        if not looking:
            self._looking.pop(session.thread_id, None)
        if session.thread_id in self._writing:
            self._begin(self._stop_unless_back(session, session.socket_id))

    async def _follow(self, thread_id: str, writing: _Writing) -> None:
        emitter = cl.context.emitter
        await emitter.task_start()
        while self._writing.get(thread_id) is writing:
            await writing.answer.show_again()
            await asyncio.wait({writing.task}, timeout=_REFRESH_S)
        await writing.answer.show_again()
        await emitter.task_end()

    async def _stop_unless_back(self, session: WebsocketSession, socket_id: str) -> None:
        writing = self._writing[session.thread_id]
        await asyncio.wait({writing.task}, timeout=self._grace_s)
        is_back = session.socket_id != socket_id
        if not is_back and not self._looking.get(session.thread_id):
            writing.task.cancel()

    def _begin(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
