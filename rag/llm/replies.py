"""One answer as steps, and the steps as what LlamaIndex's callers read.

The same for a model in this process and one behind a server; knows neither.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from rag.llm.call import AnyStop, Stop, Timings, Waiting
from rag.streaming import in_thread

FinishReason = Literal["stop", "length", "cancelled"]

R = TypeVar("R", ChatResponse, CompletionResponse)

TURN_MARKERS = ("\nuser:", "\nassistant:", "\nsystem:")
"""Where a base model that was given a conversation as text begins to write the next turn."""


@dataclass(frozen=True)
class Options:
    """How one answer is generated."""

    max_tokens: int
    temperature: float
    """0 always takes the likeliest token."""
    seed: int
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; an answer has at least 1 token.")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it is at least 0.")


@dataclass(frozen=True)
class Step:
    """What one or more tokens added to the answer."""

    delta: str
    text: str
    """The answer so far."""
    finish_reason: FinishReason | None = None
    """None until the last step."""
    n_prompt_tokens: int | None = None
    """With the last step; None where a server does not tell."""
    n_tokens: int | None = None
    """Tokens generated; as `n_prompt_tokens`."""
    timings: Timings | None = None
    """With the last step."""


Steps = Generator[Step | Waiting, None, None]


class FromStreams:
    """The other generating methods of a LlamaIndex LLM, out of its two streams.

    Cancelling an async method, or closing its stream, stops the model.
    """

    if TYPE_CHECKING:  # an annotation alone would be a field of the model to pydantic

        def stream_complete(
            self, prompt: str, formatted: bool = False, **kwargs: Any
        ) -> CompletionResponseGen:
            """Yield the continuation of a prompt."""
            ...

        def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
            """Yield the answer to a conversation."""
            ...

    def complete(
        self, prompt: str, formatted: bool = False, *, stop: Stop | None = None, **kwargs: Any
    ) -> CompletionResponse:
        """Return the continuation of a prompt; see `stream_complete`."""
        return _last(self.stream_complete(prompt, formatted, stop=stop, **kwargs))

    def chat(
        self, messages: Sequence[ChatMessage], *, stop: Stop | None = None, **kwargs: Any
    ) -> ChatResponse:
        """Return the answer to a conversation; see `stream_chat`."""
        return _last(self.stream_chat(messages, stop=stop, **kwargs))

    async def astream_complete(
        self, prompt: str, formatted: bool = False, *, stop: Stop | None = None, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield as `stream_complete` does, from a thread; errors are raised by the first item."""
        return in_thread(
            lambda closed: self.stream_complete(
                prompt, formatted, stop=AnyStop(stop, closed), **kwargs
            )
        )

    async def astream_chat(
        self, messages: Sequence[ChatMessage], *, stop: Stop | None = None, **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Yield as `stream_chat` does, from a thread; errors are raised by the first item."""
        return in_thread(
            lambda closed: self.stream_chat(messages, stop=AnyStop(stop, closed), **kwargs)
        )

    async def acomplete(
        self, prompt: str, formatted: bool = False, *, stop: Stop | None = None, **kwargs: Any
    ) -> CompletionResponse:
        """Return as `complete` does."""
        stream = await self.astream_complete(prompt, formatted, stop=stop, **kwargs)
        async with contextlib.aclosing(stream):
            return [response async for response in stream][-1]

    async def achat(
        self, messages: Sequence[ChatMessage], *, stop: Stop | None = None, **kwargs: Any
    ) -> ChatResponse:
        """Return as `chat` does."""
        stream = await self.astream_chat(messages, stop=stop, **kwargs)
        async with contextlib.aclosing(stream):
            return [response async for response in stream][-1]


def as_completion(steps: Steps, llm: Any, prompt: str) -> Iterator[CompletionResponse]:
    """Return steps as LlamaIndex's stream of a completion, its callbacks told."""

    def source() -> Generator[CompletionResponse, None, None]:
        with contextlib.closing(steps):
            for step in steps:
                delta, text = _said(step)
                yield CompletionResponse(delta=delta, text=text, raw=_raw(step))

    made = source()
    observed = llm_completion_callback()(lambda _llm, _prompt: made)(llm, prompt)
    return _closing_both(observed, made)


def as_chat(steps: Steps, llm: Any, messages: Sequence[ChatMessage]) -> Iterator[ChatResponse]:
    """Return steps as LlamaIndex's stream of a chat answer, its callbacks told."""

    def source() -> Generator[ChatResponse, None, None]:
        with contextlib.closing(steps):
            for step in steps:
                delta, text = _said(step)
                message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
                yield ChatResponse(message=message, delta=delta, raw=_raw(step))

    made = source()
    observed = llm_chat_callback()(lambda _llm, _messages: made)(llm, messages)
    return _closing_both(observed, made)


def _said(step: Step | Waiting) -> tuple[str | None, str]:
    return (None, "") if isinstance(step, Waiting) else (step.delta, step.text)


def _raw(step: Step | Waiting) -> dict[str, Any] | None:
    if isinstance(step, Waiting):
        return {"waiting": step}
    if step.finish_reason is None:
        return None
    return {
        "finish_reason": step.finish_reason,
        "n_prompt_tokens": step.n_prompt_tokens,
        "n_tokens": step.n_tokens,
        "timings": step.timings,
    }


def _closing_both(
    observed: Generator[R, None, None], source: Generator[R, None, None]
) -> Generator[R, None, None]:
    """Yield from `observed`, LlamaIndex's wrapper of `source`, and close both.

    The wrapper leaves closing to the garbage collector: an event handler that keeps its exception
    event would keep the model busy.
    """
    with contextlib.closing(source), contextlib.closing(observed):
        yield from observed


def _last(responses: Iterable[R]) -> R:
    return deque(responses, maxlen=1)[0]
