"""One turn of a conversation: rewrite → retrieve → decide → prompt → stream → cite.

Knows the retriever, the language model and the prompt; does not know settings, where models come
from or who shows the answer. A turn is a stream of events; the query engine and the chat engine
of LlamaIndex are two ways to read it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from llama_index.core.schema import QueryBundle

from rag.citation import Embed
from rag.citing import Citer, Token, missing_codes
from rag.events import Answering, Done, Event, Searched, TurnTimings, Waiting
from rag.llm.call import Caller, Timings
from rag.prompt import COMPLETION_STOP, Prompt, build
from rag.question import (
    REWRITTEN_TOKENS,
    Found,
    checked,
    is_followup,
    rewriting,
    rewritten,
    standalone,
)
from rag.retrieval import Hit, TableRetriever


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
    min_support: float = 0.5
    """Share of an answer's claims that a source must support, 0 to 1."""
    embed: Embed | None = None
    """Embeds texts as passages, to cite across languages; None cites by words alone."""
    rewrites: bool = False
    """Whether the model makes follow-up questions self-contained; else a rule does."""


class _Search:
    """The searches of one turn: no wording is embedded twice."""

    def __init__(self, retriever: TableRetriever, min_relevance: float) -> None:
        self._retriever, self._min_relevance = retriever, min_relevance
        self._found: dict[str, list[Hit]] = {}
        self.seconds = 0.0

    def hits(self, query: str) -> list[Hit]:
        """Return the rows for a wording, best first."""
        if query not in self._found:
            started = time.monotonic()
            self._found[query] = cast(list[Hit], self._retriever.retrieve(QueryBundle(query)))
            self.seconds += time.monotonic() - started
        return self._found[query]

    def look(self, query: str) -> Found | None:
        """Return the best row for a wording."""
        return looked(self.hits(query), least=self._min_relevance)


class _Clock:
    """What a turn takes, as it goes on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None
        self._queue_s = self.rewrite_s = 0.0
        self._calls: list[Timings] = []

    @property
    def now(self) -> float:
        """Seconds since the question."""
        return time.monotonic() - self._began

    def said(self) -> None:
        """Take note that the model speaks."""
        self._first = self._first or self.now

    def called(self, timings: Timings) -> None:
        """Add a call of the model."""
        self._queue_s += timings.queue_s
        self._calls.append(timings)

    def read(self, *, retrieval_s: float, is_answered: bool = True) -> TurnTimings:
        """Return what the turn has taken; the last call of the model is the answer's."""
        answer = self._calls[-1] if self._calls and is_answered else Timings()
        rate = None
        if answer.n_tokens and answer.decode_s:
            rate = (answer.n_tokens - 1) / answer.decode_s
        return TurnTimings(
            queue_s=self._queue_s,
            rewrite_s=self.rewrite_s,
            retrieval_s=retrieval_s,
            first_token_s=self._first,
            n_evaluated=answer.n_evaluated,
            n_reused=answer.n_reused,
            prompt_s=answer.prompt_s,
            n_tokens=answer.n_tokens,
            tokens_per_s=rate,
            total_s=self.now,
        )


def looked(hits: Sequence[Hit], *, least: float) -> Found | None:
    """Return the best hit as what a follow-up is judged by.

    Args:
        hits: Best first.
        least: Relevance from which a row is answered from.
    """
    if not hits:
        return None
    return Found.of(hits[0].node.get_content(), hits[0].relevance, least=least)


class Turns:
    """What answers a question: shared by the engines, holds no conversation.

    Args:
        retriever: Finds rows.
        llm: A LlamaIndex LLM that takes `stop` (a `threading.Event`), `stop_strings`,
            `max_tokens` and `caller` when it streams; see `rag.llm.call` for what it tells.
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
        self,
        question: str,
        history: Sequence[ChatMessage],
        stop: threading.Event,
        caller: Caller | None = None,
    ) -> Generator[Event, None, None]:
        """Yield the events of one turn.

        Args:
            question: As typed.
            history: Earlier turns, oldest first.
            stop: Ends the turn within one token.
            caller: Who asks, and in which conversation.

        Raises:
            QuestionError: the question is empty or too long.
            RagError: what the index and the model raise.
        """
        # 1. what is asked
        question = checked(question, max_chars=self._options.max_question_chars)
        search, clock = _Search(self._retriever, self._options.min_relevance), _Clock()
        call = _Call(stop, caller or Caller(), clock)
        query = yield from self._standalone(question, history, call, search)
        clock.rewrite_s = clock.now
        # 2. what is there
        hits = search.hits(query)
        yield Searched(query, hits, search.seconds)
        # the hits say which version they are of: a sync may have moved the index since
        version = hits[0].node.metadata["table_version"] if hits else self._table_version()
        # 3. whether it is enough
        if not hits or hits[0].relevance < self._options.min_relevance:
            yield Answering([], refused=True)
            text = refusal(hits)
            yield Token(text)
            timings = clock.read(retrieval_s=search.seconds, is_answered=False)
            yield Done(text, True, [], [], version, timings=timings)
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
        asked = f"{question}\n{query}"
        citer = Citer(sources, question=asked, embed=self._options.embed)
        for said in self._stream(prompt, call):
            yield from [said] if isinstance(said, Waiting) else citer.feed(said)
        yield from citer.finish()
        is_short = citer.falls_short(self._options.min_support) and not stop.is_set()
        if is_short:
            yield from citer.quote()
        yield Done(
            citer.text,
            False,
            sources,
            citer.citations,
            version,
            flags=citer.flags,
            n_claims=citer.n_claims,
            n_supported=citer.n_supported,
            n_withheld=citer.n_withheld,
            is_supported=not (is_short and citer.n_claims),
            missing=missing_codes(asked, hits),
            timings=clock.read(retrieval_s=search.seconds),
        )

    def warm_up(self) -> None:
        """Let the model read what every prompt begins with; the first question finds it read."""
        is_chat = self._llm.metadata.is_chat_model
        prompt = build(
            "Hello",
            [],
            is_chat=is_chat,
            persona=self._options.persona,
            history=[],
            n_tokens=self._n_tokens,
            budget=self._options.n_ctx - self._options.max_tokens,
        )
        if is_chat:
            replies: Iterator[Any] = self._llm.stream_chat(prompt.messages, max_tokens=1)
        else:
            replies = self._llm.stream_complete(prompt.text, formatted=True, max_tokens=1)
        for _ in replies:
            pass

    def _standalone(
        self, question: str, history: Sequence[ChatMessage], call: _Call, search: _Search
    ) -> Generator[Waiting, None, str]:
        earlier = [str(m.content) for m in history if m.role == MessageRole.USER]
        if self._options.rewrites and earlier and is_followup(question):
            said = [str(m.content) for m in history]
            reply = yield from self._rewriting(question, history, call)
            query = rewritten(reply, question, said)
            if query is not None and not call.stop.is_set():
                return query
        return standalone(question, earlier, search.look)

    def _rewriting(
        self, question: str, history: Sequence[ChatMessage], call: _Call
    ) -> Generator[Waiting, None, str]:
        messages = rewriting(question, history)
        n_tokens = sum(self._n_tokens(str(m.content)) for m in messages)
        # half the window leaves room for what the template adds; the rule needs no window at all
        if n_tokens > self._options.n_ctx // 2 - REWRITTEN_TOKENS:
            return ""
        # another prompt than the conversation's: it must not take the place of what is kept of it
        caller = replace(call.caller, conversation="")
        options = {"stop": call.stop, "caller": caller, "max_tokens": REWRITTEN_TOKENS}
        text = ""
        for said in call.heard(self._llm.stream_chat(messages, **options)):
            if isinstance(said, Waiting):
                yield said
            else:
                text += said
        return text

    def _stream(self, prompt: Prompt, call: _Call) -> Iterator[str | Waiting]:
        options: dict[str, Any] = {
            "stop": call.stop,
            "caller": call.caller,
            "max_tokens": self._options.max_tokens,
        }
        if prompt.messages:
            replies: Iterator[Any] = self._llm.stream_chat(prompt.messages, **options)
        else:
            replies = self._llm.stream_complete(
                prompt.text, formatted=True, stop_strings=COMPLETION_STOP, **options
            )
        started = False
        for said in call.heard(replies):
            if isinstance(said, str):
                call.clock.said()
                if not started:  # a completion starts with the blank after "Answer:"
                    said = said.lstrip()  # noqa: PLW2901
                    started = bool(said)
            if said:
                yield said


@dataclass(frozen=True)
class _Call:
    """What a turn tells the model, and what it learns of the time that takes."""

    stop: threading.Event
    caller: Caller
    clock: _Clock

    def heard(self, replies: Iterator[Any]) -> Iterator[str | Waiting]:
        """Yield what the model says, and where the call stands while it waits."""
        for reply in replies:
            told = reply.raw if isinstance(reply.raw, dict) else {}
            if isinstance(waiting := told.get("waiting"), Waiting):
                yield waiting
            if isinstance(timings := told.get("timings"), Timings):
                self.clock.called(timings)
            if reply.delta:
                yield reply.delta


def refusal(hits: Sequence[Hit]) -> str:
    """Return what is said when nothing in the table fits."""
    nearest = " and ".join(f"“{h.title}”" for h in hits[:2])
    text = "The table holds nothing on this."
    return f"{text} The nearest rows are {nearest}." if nearest else text
