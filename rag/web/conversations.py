"""The conversations of this server: an engine for each, which a change of the model takes away.

Knows engines and their history; knows neither Chainlit nor models.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:  # loads LlamaIndex, which takes seconds; the port opens before that
    from llama_index.core.base.llms.types import ChatMessage

    from rag.engines import TableChatEngine

MakeEngine = Callable[[], "TableChatEngine"]


class Conversation:
    """What was said in one session."""

    def __init__(self) -> None:
        self._engine: TableChatEngine | None = None
        self._history: list[ChatMessage] = []
        """What was said, while there is no engine."""
        self._before: dict[str, list[ChatMessage]] = {}
        """The history before each question, by the id of its message."""

    async def engine(self, make: MakeEngine, message_id: str) -> TableChatEngine:
        """Return the engine that holds the conversation as it was before a question.

        Editing a question takes the conversation back to where it was first asked.
        """
        if self._engine is None:
            made = await asyncio.to_thread(make)  # opens the index
            made.recall(self._history)
            self._engine = made
        if message_id in self._before:
            self._engine.recall(self._before[message_id])
        self._before[message_id] = self._engine.chat_history
        return self._engine

    def let_go(self) -> None:
        """Keep what was said and forget the engine, which holds the model."""
        if self._engine is not None:
            self._history, self._engine = self._engine.chat_history, None


class Conversations:
    """All conversations of this server, and how many questions are being answered."""

    def __init__(self) -> None:
        self._all: WeakSet[Conversation] = WeakSet()  # Chainlit forgets sessions
        self._n_answering = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> Conversation:
        """Return a conversation in which nothing was said."""
        conversation = Conversation()
        self._all.add(conversation)
        return conversation

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Keep the engines meanwhile; nothing is awaited before that holds."""
        self._n_answering += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._n_answering -= 1
            if not self._n_answering:
                self._idle.set()

    async def let_go(self) -> None:
        """Wait until no question is being answered, and forget all engines."""
        await self._idle.wait()
        for conversation in list(self._all):
            conversation.let_go()
