"""ServerLLM: LlamaIndex's OpenAILike, made safe to stop, to share and to fail.

What OpenAILike lacks and this adds: an order to stop that ends the wait and closes the server's
stream, a fair queue, async methods that are never held up, what a call cost, control tokens that
content cannot forge, errors of ours. Knows neither llama.cpp nor PyTorch: nothing of the model is
in this process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponseGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.llms.openai.utils import to_openai_message_dicts
from llama_index.llms.openai_like import OpenAILike
from openai import AsyncOpenAI

from rag.catalogue import PromptFormat
from rag.errors import ModelError
from rag.llm.call import Caller, Stop
from rag.llm.queue import FairQueue
from rag.llm.remote.connection import Connection, Open
from rag.llm.remote.content import defused, estimated_tokens
from rag.llm.remote.events import Reading
from rag.llm.remote.facts import ServerFacts, count, look
from rag.llm.replies import TURN_MARKERS, FromStreams, Options, Step, Steps, as_chat, as_completion

_LOCAL_N_CTX = 4096
_N_COUNTED = 4096
"""Texts whose number of tokens is remembered: the turns of some hundred conversations."""
_ESTIMATE_S = 60.0
"""How long a server that failed to count is not asked again."""
_MOST_STOP_STRINGS = 4
"""OpenAI's own limit; the others end the answer here."""


class ServerLLM(FromStreams, OpenAILike):
    """A model behind an OpenAI-compatible server, as a LlamaIndex LLM.

    Every generating method takes, besides LlamaIndex's arguments, what those of `GgufLLM` take:
        stop: ends the answer once it is set, also while it waits or the server is silent.
        caller: whose turn it is in the queue (`rag.llm.call.Caller`).
        max_tokens, temperature, seed: in place of the constructor's, for this call.
        stop_strings: texts that end the answer and are not part of it.

    Closing a stream stops it too. What a stream yields besides text: see `rag.llm.call`.
    """

    _named: str = PrivateAttr()
    _options: Options = PrivateAttr()
    _connection: Connection = PrivateAttr()
    _facts: ServerFacts = PrivateAttr()
    _queue: FairQueue = PrivateAttr()
    _count: Callable[[str], int] = PrivateAttr()
    _tells_usage: bool = PrivateAttr(default=True)

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        api_key: str | None = None,
        prompt_format: PromptFormat | None = None,
        n_ctx: int | None = None,
        max_concurrent: int = 8,
        timeout_s: float = 120.0,
        max_tokens: int = 160,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Connect to the server and ask what it has.

        Args:
            base_url: Where its OpenAI endpoints are, usually ending in `/v1`.
            model: The name it knows the model by; a server with a single model gives that one.
            api_key: Its key; None where it needs none.
            prompt_format: How the model of that name is prompted; None is `chat`. Any other model
                that the server gives is prompted as a chat.
            n_ctx: Most tokens of a prompt and its answer; None takes what the server says.
            max_concurrent: Calls to the server at once; others queue here.
            timeout_s: Seconds of silence after which a call fails.
            max_tokens: Longest answer.
            temperature: 0 always takes the likeliest token.
            seed: Repeats the sampling when the temperature is above 0.

        Raises:
            ModelError: the server cannot be reached, or has no such model.
        """
        connection = Connection(base_url, api_key=api_key, timeout_s=timeout_s)
        try:
            facts = look(connection, model)
        except ModelError:
            connection.close()
            raise
        told = facts.n_ctx or n_ctx or _LOCAL_N_CTX
        super().__init__(
            model=facts.model,
            api_base=connection.url,
            api_key="",  # LlamaIndex would show it, and take one of another server's if it is None
            context_window=min(told, n_ctx or told),
            is_chat_model=not (prompt_format == "completion" and facts.is_as_named),
            max_retries=0,
            temperature=temperature,
        )
        self._named = model if facts.is_as_named else facts.model
        self._options = Options(max_tokens, temperature, seed)
        self._connection, self._facts = connection, facts
        self._queue = FairQueue(max_concurrent)
        self._count = _counting(connection, facts)

    @classmethod
    def class_name(cls) -> str:
        """Return LlamaIndex's name of the class."""
        return "ServerLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self._options.max_tokens,
            is_chat_model=self.is_chat_model,
            model_name=self._named,
        )

    @property
    def prompt_format(self) -> PromptFormat:
        """How the model is prompted."""
        return "chat" if self.is_chat_model else "completion"

    @property
    def facts(self) -> ServerFacts:
        """What the server said about itself."""
        return self._facts

    def n_tokens(self, text: str) -> int:
        """Count the tokens of a text, as the server does where it can; from any thread."""
        return self._count(defused(text))

    def close(self) -> None:
        """End every call, and the connection."""
        self._connection.close()

    def stream_complete(
        self,
        prompt: str,
        formatted: bool = False,  # noqa: ARG002 – LlamaIndex's signature
        *,
        stop: Stop | None = None,
        caller: Caller | None = None,
        **kwargs: Any,
    ) -> CompletionResponseGen:
        """Yield the continuation of a prompt as it grows.

        Args:
            prompt: Plain text. A chat model is asked it as a user's message.
            formatted: No difference: a chat model's server puts every text into its template.
            stop: Ends the answer once it is set.
            caller: Whose turn it is.
            **kwargs: See the class.

        Raises:
            ModelError: the prompt is empty; when read, whatever the server does wrong.
        """
        if not prompt.strip():
            raise ModelError("There is nothing to answer: the prompt is empty.")
        options = self._merge(kwargs)
        if self.is_chat_model:
            begin = self._chat_call([ChatMessage(role=MessageRole.USER, content=prompt)], options)
        else:
            begin = self._completion_call(prompt, options)
        return as_completion(self._steps(begin, options, stop, caller), self, prompt)

    def stream_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        stop: Stop | None = None,
        caller: Caller | None = None,
        **kwargs: Any,
    ) -> ChatResponseGen:
        """Yield the answer to a conversation as it grows.

        A base model is given the conversation as text.

        Args:
            messages: The conversation.
            stop: Ends the answer once it is set.
            caller: Whose turn it is.
            **kwargs: See the class.

        Raises:
            ModelError: every message is empty; when read, whatever the server does wrong.
        """
        if not any((message.content or "").strip() for message in messages):
            raise ModelError("There is nothing to answer: every message is empty.")
        if self.is_chat_model:
            options = self._merge(kwargs)
            begin = self._chat_call(messages, options)
        else:
            kwargs["stop_strings"] = (*kwargs.get("stop_strings", ()), *TURN_MARKERS)
            options = self._merge(kwargs)
            assert self.messages_to_prompt is not None  # LlamaIndex fills it in
            begin = self._completion_call(self.messages_to_prompt(messages), options)
        return as_chat(self._steps(begin, options, stop, caller), self, messages)

    def _merge(self, kwargs: dict[str, Any]) -> Options:
        try:
            return replace(self._options, **kwargs)
        except TypeError as e:
            known = ", ".join(field.name for field in fields(Options))
            raise TypeError(
                f"ServerLLM takes {known}, stop and caller, not {sorted(kwargs)}"
            ) from e

    def _get_aclient(self) -> AsyncOpenAI:
        return self._connection.client

    def _chat_call(self, messages: Sequence[ChatMessage], options: Options) -> Callable[[], Open]:
        shown = [ChatMessage(role=m.role, content=defused(str(m.content or ""))) for m in messages]
        asked: Any = to_openai_message_dicts(shown, model=self.model)

        def call() -> Open:
            given = self._asked(options)
            return lambda c: c.chat.completions.with_streaming_response.create(
                messages=asked, **given
            )

        return call

    def _completion_call(self, prompt: str, options: Options) -> Callable[[], Open]:
        asked = defused(prompt)

        def call() -> Open:
            given = self._asked(options)
            return lambda c: c.completions.with_streaming_response.create(prompt=asked, **given)

        return call

    def _asked(self, options: Options) -> dict[str, Any]:
        given: dict[str, Any] = {"max_tokens": options.max_tokens, "seed": options.seed}
        if options.stop_strings:
            given["stop"] = list(options.stop_strings[:_MOST_STOP_STRINGS])
        if self._tells_usage:
            given["stream_options"] = {"include_usage": True}
        if self._facts.is_llama:
            given["extra_body"] = {"cache_prompt": True}
        asked: dict[str, Any] = self._get_model_kwargs(stream=True, **given)
        return asked | {"temperature": options.temperature}

    def _steps(
        self,
        call: Callable[[], Open],
        options: Options,
        stop: Stop | None,
        caller: Caller | None,
    ) -> Steps:
        """Yield places in the queue, then the answer, then why it ended."""
        ticket = self._queue.join(caller.user if caller else "")
        try:
            yield from ticket.waits(stop)
            reading = Reading(options, queue_s=ticket.queue_s, url=self._connection.url)
            if ticket.began is None:
                yield reading.end("cancelled")
            else:
                yield from self._read(call, reading, stop)
        finally:
            ticket.leave()

    def _read(
        self, call: Callable[[], Open], reading: Reading, stop: Stop | None
    ) -> Generator[Step, None, None]:
        tells_usage = self._tells_usage
        try:
            with contextlib.closing(
                self._connection.events(call(), reading.until_over(stop))
            ) as events:
                for event in events:
                    if (step := reading.take(event)) is not None:
                        yield step
            yield reading.over(is_stopped=stop is not None and stop.is_set())
        except ModelError as e:
            if tells_usage and "stream_options" in str(e) and not reading.has_begun:
                self._tells_usage = False  # an older server; what a call cost is not known then
                yield from self._read(call, reading, stop)
                return
            if reading.is_finished:  # it only failed to say what the answer had cost
                yield reading.over(is_stopped=False)
                return
            if (step := reading.rest()) is not None:
                yield step
            raise


def _counting(connection: Connection, facts: ServerFacts) -> Callable[[str], int]:
    if not facts.counts_tokens:
        return estimated_tokens
    estimate_until = 0.0

    @lru_cache(maxsize=_N_COUNTED)
    def counted(text: str) -> int:
        nonlocal estimate_until
        n_tokens = None
        if time.monotonic() >= estimate_until:
            n_tokens = count(connection, text, facts.model)
            if n_tokens is None:  # a turn counts many texts, and nobody can stop it meanwhile
                estimate_until = time.monotonic() + _ESTIMATE_S
        return estimated_tokens(text) if n_tokens is None else n_tokens

    return counted
