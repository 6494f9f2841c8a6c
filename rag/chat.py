"""One turn of a conversation: rewrite → retrieve → decide → prompt → stream → cite.

Knows the retriever, the language model and the prompt; does not know settings, where models come
from or who shows the answer. A turn is a stream of events; the query engine and the chat engine
of LlamaIndex are two ways to read it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from llama_index.core.schema import QueryBundle

from rag.citation import Citation, find_support
from rag.prompt import COMPLETION_STOP, Prompt, build
from rag.question import checked, standalone
from rag.retrieval import Hit, TableRetriever
from rag.words import sentence_ends


@dataclass(frozen=True)
class Searched:
    """The library was searched."""

    query: str
    """What was searched for: the question, made self-contained."""
    hits: list[Hit]
    """Rows found, best first."""
    seconds: float


@dataclass(frozen=True)
class Answering:
    """It is decided what the answer stands on."""

    sources: list[Hit]
    """The passages given to the model, best first; empty when refused."""
    refused: bool


@dataclass(frozen=True)
class Token:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Cited:
    """The sentence just completed is supported by a source."""

    citation: Citation


@dataclass(frozen=True)
class Done:
    """The turn is over."""

    answer: str
    """The whole answer, without citation marks."""
    refused: bool
    sources: list[Hit]
    citations: list[Citation]
    table_version: int


Event = Searched | Answering | Token | Cited | Done


@dataclass(frozen=True)
class TurnOptions:
    """How a turn is done."""

    persona: str
    n_passages: int
    min_relevance: float
    max_question_chars: int
    max_tokens: int
    n_ctx: int
    """Context window of the model, in tokens."""


class Turns:
    """What answers a question: shared by the engines, holds no conversation.

    Args:
        retriever: Finds rows.
        llm: A LlamaIndex LLM that takes `stop` (a `threading.Event`), `stop_strings` and
            `max_tokens` when it streams.
        n_tokens: Counts tokens as the model does.
        table_version: Returns the mirrored Delta version.
        options: How a turn is done.
    """

    def __init__(
        self,
        retriever: TableRetriever,
        llm: LLM,
        *,
        n_tokens: Callable[[str], int],
        table_version: Callable[[], int],
        options: TurnOptions,
    ) -> None:
        self._retriever, self._llm = retriever, llm
        self._n_tokens, self._table_version, self._options = n_tokens, table_version, options

    def run(
        self, question: str, history: Sequence[ChatMessage], stop: threading.Event
    ) -> Generator[Event, None, None]:
        """Yield the events of one turn.

        Args:
            question: As typed.
            history: Earlier turns, oldest first.
            stop: Ends the turn within one token.

        Raises:
            QuestionError: the question is empty or too long.
            RagError: what the index and the model raise.
        """
        # 1. what is asked
        question = checked(question, max_chars=self._options.max_question_chars)
        query = standalone(question, _answered(history))
        # 2. what is there
        started = time.monotonic()
        hits = cast(list[Hit], self._retriever.retrieve(QueryBundle(query)))
        yield Searched(query, hits, time.monotonic() - started)
        # the hits say which version they are of: a sync may have moved the index since
        version = hits[0].node.metadata["table_version"] if hits else self._table_version()
        # 3. whether it is enough
        if not hits or hits[0].relevance < self._options.min_relevance:
            yield Answering([], refused=True)
            text = refusal(hits)
            yield Token(text)
            yield Done(text, True, [], [], version)
            return
        sources = hits[: self._options.n_passages]
        is_chat = self._llm.metadata.is_chat_model
        prompt = build(
            question if is_chat else query,
            [s.node.get_content() for s in sources],
            is_chat=is_chat,
            persona=self._options.persona,
            history=history,
            n_tokens=self._n_tokens,
            budget=self._options.n_ctx - self._options.max_tokens,
        )
        sources = sources[: prompt.n_passages]
        yield Answering(sources, refused=False)
        # 4. the answer, cited sentence by sentence
        citer = _Citer(sources)
        for delta in self._stream(prompt, stop):
            yield from citer.feed(delta)
        yield from citer.finish()
        if not citer.citations and not stop.is_set():
            yield from citer.quote()
        yield Done(citer.text, False, sources, citer.citations, version)

    def _stream(self, prompt: Prompt, stop: threading.Event) -> Iterator[str]:
        options: dict[str, Any] = {"stop": stop, "max_tokens": self._options.max_tokens}
        if prompt.messages:
            replies: Iterator[Any] = self._llm.stream_chat(prompt.messages, **options)
        else:
            replies = self._llm.stream_complete(
                prompt.text, formatted=True, stop_strings=COMPLETION_STOP, **options
            )
        started = False
        for reply in replies:
            delta = reply.delta or ""
            if not started:  # a completion starts with the blank after "Answer:"
                delta = delta.lstrip()
                started = bool(delta)
            if delta:
                yield delta


class _Citer:
    """Follows the answer as it grows and cites each sentence when it is complete."""

    def __init__(self, sources: Sequence[Hit]) -> None:
        self._sources = sources
        self._passages = [s.node.get_content() for s in sources]
        self._cited_to = 0
        self.text = ""
        self.citations: list[Citation] = []

    def feed(self, delta: str) -> Iterator[Event]:
        """Yield the piece, with the citations of the sentences that it completes in between."""
        shown = len(self.text)
        self.text += delta
        pending = self.text[self._cited_to :]
        base = self._cited_to
        for end, following in sentence_ends(pending):
            # the mark belongs right behind the sentence, before the blank
            at = max(base + end, shown)
            if at > shown:
                yield Token(self.text[shown:at])
                shown = at
            yield from self._cite(self.text[self._cited_to : base + end])
            self._cited_to = base + following
        if shown < len(self.text):
            yield Token(self.text[shown:])

    def finish(self) -> Iterator[Event]:
        """Yield the citation of the last sentence."""
        yield from self._cite(self.text[self._cited_to :])
        self._cited_to = len(self.text)

    def quote(self) -> Iterator[Event]:
        """Say that nothing of the answer stands in a source, and quote the best one instead."""
        start = len(self.text)
        passage = self._passages[0]
        self.text += f"{UNSUPPORTED if self.text.strip() else QUOTED} “{passage}”"
        yield Token(self.text[start:])
        row_key = self._sources[0].node.metadata["row_key"]
        self.citations.append(Citation(1, row_key, 0, len(passage)))
        yield Cited(self.citations[-1])

    def _cite(self, sentence: str) -> Iterator[Event]:
        support = find_support(sentence, self._passages)
        if support is None:
            return
        row_key = self._sources[support.index].node.metadata["row_key"]
        citation = Citation(support.index + 1, row_key, support.start, support.end)
        self.citations.append(citation)
        yield Cited(citation)


QUOTED = "The nearest row says:"
"""Put before a quotation when the model said nothing."""
UNSUPPORTED = "\n\nThe table does not support this. What the nearest row says:"
"""Put before a quotation when no sentence of an answer is supported."""


def _answered(history: Sequence[ChatMessage]) -> list[str]:
    """Return the earlier questions that were answered, oldest first: a refusal leads nowhere."""
    refused = {i - 1 for i, m in enumerate(history) if m.additional_kwargs.get(REFUSED)}
    return [
        str(m.content)
        for i, m in enumerate(history)
        if m.role == MessageRole.USER and i not in refused
    ]


REFUSED = "refused"
"""Marks a message of the history as a refusal."""


def refusal(hits: Sequence[Hit]) -> str:
    """Return what is said when nothing in the table fits."""
    nearest = " and ".join(f"“{h.title}”" for h in hits[:2])
    text = "The table holds nothing on this."
    return f"{text} The nearest rows are {nearest}." if nearest else text


def plain(event: Event) -> str:
    """Return what an event adds to the answer as plain text: its pieces and marks like ` [1]`."""
    if isinstance(event, Token):
        return event.text
    return f" [{event.citation.n}]" if isinstance(event, Cited) else ""


def metadata(done: Done) -> dict[str, Any]:
    """Return the response metadata of a finished turn."""
    return {
        "refused": done.refused,
        "table_version": done.table_version,
        "citations": [
            {"n": c.n, "row_key": c.row_key, "start": c.start, "end": c.end} for c in done.citations
        ],
    }
