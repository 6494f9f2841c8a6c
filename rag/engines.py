"""LlamaIndex's query engine and chat engine, on the turns of `rag.chat`.

Knows LlamaIndex's response classes and the event stream; decides nothing about an answer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.chat_engine.types import (
    AgentChatResponse,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.schema import NodeWithScore, QueryBundle

from rag.chat import Turns
from rag.events import Answering, Done, Event, Token, metadata, plain
from rag.llm.call import Caller
from rag.streaming import in_thread, run_ahead


class TableQueryEngine(BaseQueryEngine):
    """Answers single questions about the table; remembers nothing.

    Args:
        turns: What answers.
        streaming: Whether `query` returns a response that streams.
        user: Whose questions these are, for the queue; None is somebody of its own.
    """

    def __init__(self, turns: Turns, *, streaming: bool = False, user: str | None = None) -> None:
        super().__init__(callback_manager=None)
        self._turns, self._streaming = turns, streaming
        self._caller = Caller(uuid4().hex if user is None else user)

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {}

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        events = run_ahead(lambda stop: self._run(query_bundle.query_str, stop))
        sources = _until_answering(events)
        facts: dict[str, Any] = {}
        texts = _texts(events, facts)
        if self._streaming:
            return StreamingResponse(texts, list(sources), facts)
        return Response("".join(texts), list(sources), facts)

    def _run(self, question: str, stop: threading.Event) -> Generator[Event, None, None]:
        return self._turns.run(question, [], stop, self._caller)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        events = in_thread(lambda stop: self._run(query_bundle.query_str, stop))
        sources = await _auntil_answering(events)
        facts: dict[str, Any] = {}
        texts = _atexts(events, facts)
        if self._streaming:
            return AsyncStreamingResponse(texts, list(sources), facts)
        return Response("".join([t async for t in texts]), list(sources), facts)


@dataclass
class TableChatStream(StreamingAgentChatResponse):
    """An answer that is still being written; `metadata` is complete when it has ended."""

    metadata: dict[str, Any] = field(default_factory=dict)
    texts: Generator[str, None, None] | None = None
    atexts: AsyncGenerator[str, None] | None = None
    events: Generator[Event, None, None] | None = None
    aevents: AsyncGenerator[Event, None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """Stop the model, also when nothing was read yet, or while another thread is reading."""
        self.stop.set()
        if self.events is not None:
            with contextlib.suppress(ValueError):  # it is being read, and ends by `stop`
                self.events.close()

    async def aclose(self) -> None:
        """Stop the model, also when nothing was read yet, or while another task is reading."""
        self.stop.set()
        if self.aevents is not None:
            with contextlib.suppress(RuntimeError):  # it is being read, and ends by `stop`
                await self.aevents.aclose()

    @property
    def response_gen(self) -> Generator[str, None, None]:
        """Yield the answer as it comes; closing it stops the model."""
        assert self.texts is not None, "an async stream: use async_response_gen()"
        with contextlib.closing(self.texts):
            for text in self.texts:
                self._add(text)
                yield text
        self.is_done = True

    async def async_response_gen(self) -> AsyncGenerator[str, None]:
        """Yield the answer as it comes; closing it stops the model."""
        assert self.atexts is not None, "a sync stream: use response_gen"
        async with contextlib.aclosing(self.atexts):
            async for text in self.atexts:
                self._add(text)
                yield text
        self.is_done = True

    def __str__(self) -> str:
        """Return the whole answer; a sync stream is read to its end first."""
        if self.texts is not None and not self.is_done:
            for _ in self.response_gen:
                pass
        return str(self.response)

    def _add(self, text: str) -> None:
        self.unformatted_response += text
        self.response = self.unformatted_response.strip()


class TableChatEngine(BaseChatEngine):
    """A conversation about the table, with memory.

    One for each conversation; they are cheap and share the models. One turn at a time.

    Args:
        turns: What answers.
        history_turns: Earlier turns that are remembered. Of one more the older half is forgotten,
            not one each time: a prompt that begins as the last one did is not read again.
        caller: Whose questions these are, for the queue, and of which conversation; None is
            somebody and something of its own.
    """

    def __init__(self, turns: Turns, *, history_turns: int, caller: Caller | None = None) -> None:
        self._turns, self._history_turns = turns, history_turns
        alone = uuid4().hex
        self._caller = caller or Caller(alone, alone)
        self._history: list[ChatMessage] = []
        self._generation = 0
        self._lock = threading.Lock()

    @property
    def chat_history(self) -> list[ChatMessage]:
        """The conversation so far, without passages or citation marks."""
        return list(self._history)

    def reset(self) -> None:
        """Forget the conversation; a turn still running is forgotten with it."""
        self.recall([])

    def recall(self, chat_history: Sequence[ChatMessage]) -> None:
        """Remember this conversation instead; a turn still running is forgotten."""
        with self._lock:
            self._history = self._recent(list(chat_history))
            self._generation += 1

    def events(
        self, question: str, stop: threading.Event | None = None
    ) -> Generator[Event, None, None]:
        """Yield the events of a turn as they happen; closing it, or `stop`, stops the model."""
        generation = self._generation
        return run_ahead(lambda stop: self._run(question, generation, stop), stop)

    def aevents(
        self, question: str, stop: threading.Event | None = None
    ) -> AsyncGenerator[Event, None]:
        """Do as `events`, for an event loop."""
        generation = self._generation
        return in_thread(lambda stop: self._run(question, generation, stop), stop)

    def chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> AgentChatResponse:
        """Answer; `chat_history` replaces what is remembered."""
        stream = self.stream_chat(message, chat_history)
        return AgentChatResponse(
            response=str(stream), source_nodes=stream.source_nodes, metadata=stream.metadata
        )

    def stream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> TableChatStream:
        """Answer as a stream; `chat_history` replaces what is remembered."""
        if chat_history is not None:
            self.recall(chat_history)
        stop = threading.Event()
        events = self.events(message, stop)
        sources = _until_answering(events)
        facts: dict[str, Any] = {}
        return TableChatStream(
            source_nodes=list(sources),
            metadata=facts,
            texts=_texts(events, facts),
            events=events,
            stop=stop,
        )

    async def achat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> AgentChatResponse:
        """Do as `chat`, without holding the event loop."""
        stream = await self.astream_chat(message, chat_history)
        async for _ in stream.async_response_gen():
            pass
        return AgentChatResponse(
            response=str(stream), source_nodes=stream.source_nodes, metadata=stream.metadata
        )

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> TableChatStream:
        """Do as `stream_chat`, without holding the event loop."""
        if chat_history is not None:
            self.recall(chat_history)
        stop = threading.Event()
        events = self.aevents(message, stop)
        sources = await _auntil_answering(events)
        facts: dict[str, Any] = {}
        return TableChatStream(
            source_nodes=list(sources),
            metadata=facts,
            atexts=_atexts(events, facts),
            aevents=events,
            stop=stop,
        )

    def _run(
        self, question: str, generation: int, stop: threading.Event
    ) -> Generator[Event, None, None]:
        answer = ""
        is_answering = False
        try:
            with contextlib.closing(
                self._turns.run(question, self.chat_history, stop, self._caller)
            ) as turn:
                for event in turn:
                    is_answering = is_answering or isinstance(event, Answering)
                    answer += event.text if isinstance(event, Token) else ""
                    yield event
        finally:
            # a stopped answer is remembered as far as it got; a failed search is not
            if is_answering:
                self._remember(question, answer, generation)

    def _remember(self, question: str, answer: str, generation: int) -> None:
        turn = [
            ChatMessage(role=MessageRole.USER, content=question),
            ChatMessage(role=MessageRole.ASSISTANT, content=answer.strip()),
        ]
        with self._lock:
            if generation == self._generation:
                self._history = self._recent([*self._history, *turn])

    def _recent(self, history: list[ChatMessage]) -> list[ChatMessage]:
        n_most = self._history_turns
        if len(history) <= 2 * n_most:
            return history
        n_kept = min(n_most, n_most - n_most // 2 + 1)
        return history[-2 * n_kept :] if n_kept else []


def _until_answering(events: Generator[Event, None, None]) -> Sequence[NodeWithScore]:
    for event in events:
        if isinstance(event, Answering):
            return event.sources
    return []


async def _auntil_answering(events: AsyncGenerator[Event, None]) -> Sequence[NodeWithScore]:
    async for event in events:
        if isinstance(event, Answering):
            return event.sources
    return []


def _texts(
    events: Generator[Event, None, None], facts: dict[str, Any]
) -> Generator[str, None, None]:
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Done):
                facts.update(metadata(event))
            if text := plain(event):
                yield text


async def _atexts(
    events: AsyncGenerator[Event, None], facts: dict[str, Any]
) -> AsyncGenerator[str, None]:
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                facts.update(metadata(event))
            if text := plain(event):
                yield text
