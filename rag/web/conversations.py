"""The conversations of this server: one for each thread, whoever's tabs show it.

Knows engines and their history; knows neither Chainlit nor models. A change of the model takes
the engines away, and of the version or the filters asked the engine alone; what was said stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

if TYPE_CHECKING:  # loads LlamaIndex, which takes seconds; the port opens before that
    from llama_index.core.base.llms.types import ChatMessage

    from rag.engines import TableChatEngine
    from rag.web.asking import Asking


class MakeEngine(Protocol):
    """Makes the engine of a conversation; blocks."""

    def __call__(self, asking: Asking, *, user: str, conversation: str) -> TableChatEngine:
        """Return an engine that asks as wanted, for a user's conversation."""


@dataclass(frozen=True)
class Turn:
    """A question that was answered."""

    message_id: str
    question: str
    answer: str


class Conversation:
    """What was said in one thread.

    Args:
        thread_id: Of which thread.
        user: Whose it is.
    """

    def __init__(self, thread_id: str, *, user: str) -> None:
        self._thread_id, self._user = thread_id, user
        self._engine: TableChatEngine | None = None
        self._asking: Asking | None = None
        """What the engine asks."""
        self._history: list[ChatMessage] = []
        """What was said, while there is no engine."""
        self._before: dict[str, list[ChatMessage]] = {}
        """The history before each question, by the id of its message."""
        self.turn = asyncio.Lock()
        """Held while a question is answered: two tabs may ask in one thread."""

    async def engine(self, make: MakeEngine, asking: Asking, message_id: str) -> TableChatEngine:
        """Return the engine that holds the conversation as it was before a question.

        Editing a question takes the conversation back to where it was first asked.
        """
        if self._engine is None or self._asking != asking:
            self.let_go()
            made = await asyncio.to_thread(  # opens the index
                make, asking, user=self._user, conversation=self._thread_id
            )
            made.recall(self._history)
            self._engine, self._asking = made, asking
        if message_id in self._before:
            self._engine.recall(self._before[message_id])
        self._before[message_id] = self._engine.chat_history
        return self._engine

    async def recall(self, turns: Sequence[Turn]) -> None:
        """Remember what was said before a restart of the server; nothing where more is known."""
        if self._before or not turns:
            return
        # the first import of LlamaIndex takes seconds
        messages = await asyncio.to_thread(_messages, turns)
        for n, turn in enumerate(turns):
            self._before[turn.message_id] = messages[: 2 * n]
        self._history = messages

    def let_go(self) -> None:
        """Keep what was said and forget the engine, which holds the model."""
        if self._engine is not None:
            self._history, self._engine = self._engine.chat_history, None


class Conversations:
    """All conversations of this server, and how many questions are being answered."""

    def __init__(self) -> None:
        # the sessions hold them, and Chainlit forgets sessions
        self._all: WeakValueDictionary[tuple[str, str], Conversation] = WeakValueDictionary()
        self._n_answering = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def of(self, thread_id: str, *, user: str) -> Conversation:
        """Return the conversation of a thread; hold on to it."""
        # a thread's id comes from the browser: by itself it opens nobody else's conversation
        found = self._all.get((user, thread_id))
        if found is None:
            found = self._all[user, thread_id] = Conversation(thread_id, user=user)
        return found

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
        for conversation in list(self._all.values()):
            conversation.let_go()


def turns_of(steps: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """Return the questions of a kept thread that were answered, in order.

    Args:
        steps: Chainlit's steps, oldest first; see `answer` for the metadata of a message.
    """
    found: list[Turn] = []
    asked: Mapping[str, Any] | None = None
    for step in steps:
        if step["type"] == "user_message":
            asked = step
        text = (step.get("metadata") or {}).get("text")
        if step["type"] == "assistant_message" and asked is not None and text is not None:
            found.append(Turn(str(asked["id"]), str(asked["output"]), str(text)))
            asked = None
    return found


def _messages(turns: Sequence[Turn]) -> list[ChatMessage]:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole

    return [
        ChatMessage(role=role, content=text)
        for turn in turns
        for role, text in (
            (MessageRole.USER, turn.question),
            (MessageRole.ASSISTANT, turn.answer),
        )
    ]
