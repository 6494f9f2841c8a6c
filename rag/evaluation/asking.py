"""Each question is asked: of the search in every mode, and of the chat.

Knows retrievers, and the events of a turn; does not know what a figure is, settings or files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.schema import QueryBundle

from rag.chat import looked
from rag.errors import QuestionError
from rag.evaluation.questions import Question
from rag.events import Cited, Done, Event, Searched, Token
from rag.question import Found as Looked
from rag.question import standalone
from rag.retrieval import Hit

DEPTH = 10
"""Rows looked at in each mode: as many as the longest cut-off."""


@dataclass(frozen=True)
class Found:
    """A hit, without its node."""

    row_key: str
    keys: tuple[str, ...]
    """The row keys it stands for: its own, and those of rows with the same passage."""
    title: str
    text: str
    score: float
    cosine: float
    bm25: float | None
    relevance: float


@dataclass(frozen=True)
class Cite:
    """A citation, with what it points at."""

    n: int
    row_key: str
    is_expected: bool
    text: str
    """The passage."""
    start: int
    end: int


@dataclass(frozen=True)
class Reply:
    """What the chat said, and how fast."""

    answer: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    """The answer in pieces, each with the numbers of the citations right behind it."""
    refused: bool
    is_supported: bool
    n_claims: int
    n_supported: int
    citations: tuple[Cite, ...]
    first_token_s: float
    """From the question to the first piece of the answer."""
    n_decoded: int
    """Tokens written after the first one; 0 where the answer was not written by the model alone."""
    decoding_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of a question."""

    question: Question
    query: str
    """What was searched for: the question, made self-contained."""
    found: Mapping[str, tuple[Found, ...]]
    """By mode, best first; nothing in any mode where the question could not be searched for."""
    relevance: float
    """Of the best hit in the mode of the settings; 0 where there is none."""
    reply: Reply | None = None
    """None where the chat was not asked."""
    problem: str = ""
    """Why the question could not be asked: too long for the model."""


@dataclass(frozen=True)
class Chat:
    """The chat, as far as it is asked here."""

    ask: Callable[[str, list[ChatMessage]], Generator[Event, None, None]]
    """Takes a question and the earlier messages; yields the events of the turn."""
    n_tokens: Callable[[str], int]
    """Counts tokens as the model does."""


@dataclass(frozen=True)
class Search:
    """The search, in every mode."""

    retrievers: Mapping[str, BaseRetriever]
    """By mode; each returns `DEPTH` rows."""
    embed: Callable[[str], list[float]]
    """Embeds a query, once for all modes."""
    mode: str
    """The mode of the settings, or the first one asked."""
    min_relevance: float
    """Below it the best row counts as no answer."""


def ask_each(
    questions: Sequence[Question], search: Search, chat: Chat | None = None
) -> Iterator[Outcome]:
    """Yield what becomes of each question, in order.

    Args:
        questions: What to ask.
        search: Asked in every mode, for the query that the chat searched for.
        chat: None asks the search only.
    """
    for question in questions:
        reply, query, relevance, problem = None, "", 0.0, ""
        if chat is not None:
            try:
                reply, query, relevance = _reply(question, chat)
            except QuestionError as e:
                problem = str(e)
        found: dict[str, tuple[Found, ...]] = dict.fromkeys(search.retrievers, ())
        try:
            query = query or rewritten(question, search)
            found = _searched(query, search)
        except QuestionError as e:
            problem = problem or str(e)
        if reply is None:
            relevance = next((f.relevance for f in found[search.mode]), 0.0)
        yield Outcome(question, query or question.question, found, relevance, reply, problem)


def rewritten(question: Question, search: Search) -> str:
    """Return what is searched for where no chat is asked: the question, made self-contained.

    By rule: a chat whose model writes follow-ups anew may search for something else.
    """

    def look(wording: str) -> Looked | None:
        hits = search.retrievers[search.mode].retrieve(QueryBundle(wording))
        return looked(cast(list[Hit], hits), least=search.min_relevance)

    return standalone(question.question, question.previous, look)


def _searched(query: str, search: Search) -> dict[str, tuple[Found, ...]]:
    bundle = QueryBundle(query, embedding=search.embed(query))
    return {
        mode: tuple(_found(h) for h in cast(list[Hit], retriever.retrieve(bundle)))
        for mode, retriever in search.retrievers.items()
    }


def _found(hit: Hit) -> Found:
    return Found(
        row_key=hit.node.metadata["row_key"],
        keys=_keys(hit),
        title=hit.title,
        text=hit.node.get_content(),
        score=float(hit.score or 0.0),
        cosine=hit.cosine,
        bm25=hit.bm25,
        relevance=hit.relevance,
    )


def _keys(hit: Hit) -> tuple[str, ...]:
    return (hit.node.metadata["row_key"], *hit.also)


def _reply(question: Question, chat: Chat) -> tuple[Reply, str, float]:
    history = [ChatMessage(role=MessageRole.USER, content=q) for q in question.previous]
    heard = _Heard()
    started = time.perf_counter()
    with contextlib.closing(chat.ask(question.question, history)) as events:
        for event in events:
            heard.hear(event, time.perf_counter() - started)
    assert heard.done is not None
    assert heard.searched is not None
    relevance = next((h.relevance for h in heard.searched.hits), 0.0)
    return heard.reply(question, chat.n_tokens), heard.searched.query, relevance


class _Heard:
    """Follows the events of one turn."""

    def __init__(self) -> None:
        self.searched: Searched | None = None
        self.done: Done | None = None
        self._parts: list[tuple[str, tuple[int, ...]]] = []
        self._tokens: list[tuple[str, float]] = []

    def hear(self, event: Event, at_s: float) -> None:
        """Take an event."""
        if isinstance(event, Searched):
            self.searched = event
        elif isinstance(event, Done):
            self.done = event
        elif isinstance(event, Token):
            self._tokens.append((event.text, at_s))
            if self._parts and not self._parts[-1][1]:
                self._parts[-1] = (self._parts[-1][0] + event.text, ())
            else:
                self._parts.append((event.text, ()))
        elif isinstance(event, Cited):
            text, cited = self._parts[-1] if self._parts else ("", ())
            self._parts[-1:] = [(text, (*cited, event.citation.n))]

    def reply(self, question: Question, n_tokens: Callable[[str], int]) -> Reply:
        """Return what was said."""
        done = self.done
        assert done is not None
        reply = Reply(
            answer=done.answer,
            parts=tuple(self._parts),
            refused=done.refused,
            is_supported=done.is_supported,
            n_claims=done.n_claims,
            n_supported=done.n_supported,
            citations=tuple(_cite(c, done, question) for c in done.citations),
            first_token_s=self._tokens[0][1] if self._tokens else 0.0,
            n_decoded=0,
            decoding_s=0.0,
        )
        # what the chat itself says (a refusal, a quotation) is not decoded
        is_models_own = done.is_supported and done.n_claims > 0 and not done.refused
        if not is_models_own or len(self._tokens) < _MIN_PIECES:
            return reply
        (_, first_s), *rest = self._tokens
        return replace(
            reply,
            n_decoded=n_tokens("".join(text for text, _ in rest)),
            decoding_s=rest[-1][1] - first_s,
        )


_MIN_PIECES = 5
"""An answer of fewer pieces is over too soon to be timed."""


def _cite(citation: Any, done: Done, question: Question) -> Cite:
    source = done.sources[citation.n - 1]
    return Cite(
        n=citation.n,
        row_key=citation.row_key,
        is_expected=not set(question.expected).isdisjoint(_keys(source)),
        text=source.node.get_content(),
        start=citation.start,
        end=citation.end,
    )
