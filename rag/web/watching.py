"""Who looks at an answer that is being written: a page that is closed, a page that is reloaded.

Knows Chainlit's sessions; does not know what an answer is made of. An answer that nobody looks at
any more is stopped after a grace time, which a reload or a short loss of the network fits into.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import chainlit as cl
from chainlit.chat_context import chat_contexts
from chainlit.session import WebsocketSession, ws_sessions_id
from chainlit.user_session import user_sessions

from rag.web.answer import Answer

_REFRESH_S = 0.5
_JUST_NOW_S = 5.0
"""A page that comes this long after the end may have read the conversation before it."""


@dataclass(eq=False)
class _Writing:
    answer: Answer
    task: asyncio.Task[None]
    ended_at: float | None = None


class Watch:
    """The answers being written, by thread.

    Args:
        grace_s: How long an answer goes on that nobody looks at.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._writing: dict[str, list[_Writing]] = {}
        """In each thread, in the order in which they were asked for: two tabs may ask in one."""
        self._last: WeakKeyDictionary[WebsocketSession, _Writing] = WeakKeyDictionary()
        """The last answer asked for in a session, also when it has ended."""
        self._left: WeakKeyDictionary[WebsocketSession, str] = WeakKeyDictionary()
        """The socket that a session lost last; it has another one when its page came back."""
        self._timers: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the loop alone would forget them

    @contextlib.contextmanager
    def writing(self, answer: Answer) -> Iterator[None]:
        """Say that the task at hand gets and writes an answer in the thread of its session."""
        session = cl.context.session
        thread_id, task = session.thread_id, asyncio.current_task()
        assert task is not None, "called in a coroutine"
        writing = self._last[session] = _Writing(answer, task)
        self._writing.setdefault(thread_id, []).append(writing)
        if not self._is_looked_at(thread_id):  # the page was quicker to go
            self._time(thread_id)
        try:
            yield
        finally:
            writing.ended_at = time.monotonic()
            self._writing[thread_id].remove(writing)
            if not self._writing[thread_id]:
                del self._writing[thread_id]

    def came(self) -> None:
        """Let the session at hand follow what is being written, and see what it may have missed.

        It follows when the task at hand, which shows the page what is kept, is done.
        """
        session = cl.context.session
        if found := self._worth_showing(session):
            self._begin(self._follow(session, found, asyncio.current_task()))

    def left(self) -> None:
        """Stop what the session at hand looked at, unless somebody looks again in time."""
        session = cl.context.session
        self._left[session] = session.socket_id
        if session.thread_id in self._writing:
            self._time(session.thread_id)
        _forget_ended()

    def _is_looked_at(self, thread_id: str) -> bool:
        return any(
            session.thread_id == thread_id and self._left.get(session) != session.socket_id
            for session in ws_sessions_id.values()
        )

    def _worth_showing(self, session: WebsocketSession) -> list[_Writing]:
        """Return what is being written in a session's thread, or was until just now."""
        since = time.monotonic() - _JUST_NOW_S
        ended = [
            last
            for other, last in self._last.items()
            if last.ended_at is not None
            and other.thread_id == session.thread_id
            and (other is session or last.ended_at > since)
        ]
        return [*ended, *self._writing.get(session.thread_id, ())]

    async def _follow(
        self, session: WebsocketSession, found: list[_Writing], arrival: asyncio.Task[None] | None
    ) -> None:
        if arrival is not None:
            await asyncio.wait({arrival})
        emitter = cl.context.emitter
        await emitter.task_start()
        while found:
            # seen before it is shown: what ends meanwhile is shown once more
            ended = {writing for writing in found if writing.task.done()}
            for writing in found:
                await writing.answer.show_again()
            found = [writing for writing in found if writing not in ended]
            found += [w for w in self._writing.get(session.thread_id, ()) if w not in found]
            if found:
                if session.current_task is None or session.current_task.done():
                    session.current_task = found[0].task  # what its Stop button stops
                waiting = {writing.task for writing in found}
                await asyncio.wait(waiting, timeout=_REFRESH_S, return_when=asyncio.FIRST_COMPLETED)
        await emitter.task_end()

    def _time(self, thread_id: str) -> None:
        """Begin the grace time of a thread, anew where it runs."""
        if (running := self._timers.pop(thread_id, None)) is not None:
            running.cancel()
        self._timers[thread_id] = self._begin(self._stop_unless_back(thread_id))

    async def _stop_unless_back(self, thread_id: str) -> None:
        try:
            tasks = {writing.task for writing in self._writing.get(thread_id, ())}
            if tasks:
                await asyncio.wait(tasks, timeout=self._grace_s)
            if not self._is_looked_at(thread_id):
                for writing in self._writing.get(thread_id, ()):
                    writing.task.cancel()
        finally:
            if self._timers.get(thread_id) is asyncio.current_task():
                del self._timers[thread_id]

    def _begin(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _forget_ended() -> None:
    """Forget what Chainlit holds of sessions that have ended.

    It never forgets their messages, and an answer that outlives its session brings values back.
    """
    for kept in (chat_contexts, user_sessions):
        for session_id in [i for i in kept if i not in ws_sessions_id]:
            del kept[session_id]
