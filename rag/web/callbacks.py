"""Chainlit's callbacks: each only translates what the browser did into a call.

Knows Chainlit's sessions; every failure of the room ends here, as one sentence for the reader and
a traceback for the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import chainlit as cl
from chainlit.config import config

from rag.errors import RagError
from rag.progress import Progress
from rag.settings import Settings
from rag.web.answer import Answer
from rag.web.guard import plain
from rag.web.preparation import Preparation

if TYPE_CHECKING:  # loads LlamaIndex, which takes seconds; the port opens before that
    from llama_index.core.base.llms.types import ChatMessage

    from rag.engines import TableChatEngine

NEUTRAL = "Something went wrong on our side; the log of the server says what. Please ask again."
GONE = "That message is no longer part of this chat; please ask it again."

_PATIENCE_S = 0.2
"""A load that ends within this time is not announced."""
_REFRESH_S = 0.5
_ENGINE = "engine"
_BEFORE = "before"

_log = logging.getLogger(__name__)

MakeEngine = Callable[[], "TableChatEngine"]
Ask = Callable[[cl.Message], Awaitable[None]]


def load(settings: Settings, progress: Progress) -> MakeEngine:
    """Prepare everything and return what makes the engine of a session; blocks for seconds.

    Raises:
        RagError: the table, the index or a model cannot be used.
    """
    # imported here because torch, LanceDB and LlamaIndex take 10 s, and the port opens before
    from rag import wiring
    from rag.web import turn  # noqa: F401 – loaded now, so that the first question is not late

    wiring.prepare(settings, progress)
    return partial(wiring.chat_engine, settings)


class Callbacks:
    """What happens when the server starts, a person asks, edits or presses Stop."""

    def __init__(
        self, preparation: Preparation[MakeEngine], starters: Callable[[], tuple[str, ...]]
    ) -> None:
        """Keep what the callbacks need; `register` makes them Chainlit's."""
        self._preparation = preparation
        self._starters = starters

    def register(self) -> None:
        """Make these Chainlit's callbacks."""
        cl.on_app_startup(self.on_startup)
        cl.on_message(self.on_message)
        config.code.on_message = _unless_gone(config.code.on_message)
        cl.on_stop(self.on_stop)
        cl.set_starters(self.starters)

    async def on_startup(self) -> None:
        """Begin to load and return at once: the port opens only after this."""
        self._preparation.begin()

    async def starters(self) -> list[cl.Starter]:
        """Return the questions offered on the welcome page."""
        texts = await asyncio.to_thread(self._starters)  # the demo's room imports polars
        return [cl.Starter(label=text, message=text) for text in texts]

    async def on_message(self, message: cl.Message) -> None:
        """Answer a question, new or edited; Chainlit shows nothing of what is raised here."""
        # Stop cancels this task; Chainlit sets it for a new message, but not for an edited one
        cl.context.session.current_task = asyncio.current_task()
        answer = Answer()
        try:
            await self._answer(message, answer)
        except asyncio.CancelledError:
            await answer.stopped()
            raise
        except RagError as e:
            _log.info("Told the reader: %s", e, exc_info=e)
            await answer.failed(str(e))
        except Exception:  # noqa: BLE001 – the room's outermost handler
            _log.exception("A question could not be answered")
            await answer.failed(NEUTRAL)

    async def on_stop(self) -> None:
        """Take back Chainlit's own note; the answer says by itself that it was stopped."""
        for message in cl.chat_context.get()[-2:]:
            if message.content == "Task manually stopped.":
                await message.remove()

    async def _answer(self, message: cl.Message, answer: Answer) -> None:
        make = await self._loaded()
        from rag.web.turn import show  # loaded by now; see `load`

        engine = await _engine(make, message.id)
        await show(engine.aevents(message.content), answer)

    async def _loaded(self) -> MakeEngine:
        """Return what the preparation made, telling the reader how far it is."""
        task = self._preparation.begin()
        await asyncio.wait({task}, timeout=_PATIENCE_S)
        if not task.done():
            await self._say_warming_up(task)
        return await asyncio.shield(task)

    async def _say_warming_up(self, task: asyncio.Task[MakeEngine]) -> None:
        note = await cl.Message(content=self._progress()).send()
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REFRESH_S)
                if note.content != (content := self._progress()):
                    note.content = content
                    await note.update()
        finally:
            await note.remove()

    def _progress(self) -> str:
        return f"Warming up: {plain(self._preparation.state)}"


def _unless_gone(on_message: Ask) -> Ask:
    """Answer an edited message that the server has forgotten; Chainlit stumbles over it."""

    async def checked(message: cl.Message | None) -> None:
        if message is None:
            await Answer().failed(GONE)
        else:
            await on_message(message)

    return checked


async def _engine(make: MakeEngine, message_id: str) -> TableChatEngine:
    """Return the engine of this session: it holds the conversation as it was before the question.

    Editing a question takes the conversation back to where it was first asked.
    """
    engine: TableChatEngine | None = cl.user_session.get(_ENGINE)
    if engine is None:
        engine = await asyncio.to_thread(make)  # opens the index
        cl.user_session.set(_ENGINE, engine)
        cl.user_session.set(_BEFORE, {})
    before: dict[str, list[ChatMessage]] = cl.user_session.get(_BEFORE)
    if message_id in before:
        engine.recall(before[message_id])
    before[message_id] = engine.chat_history
    return engine
