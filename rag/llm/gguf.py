"""GgufLLM: LlamaIndex's LlamaCPP, made safe to share, to stream and to stop.

What LlamaCPP lacks and this adds: one answer at a time (two at once abort the process), async
methods that leave the event loop alone, an order to stop, arguments per call, control tokens that
content cannot forge, sampling that a seed repeats, errors of ours.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import llama_cpp
from jinja2 import TemplateError
from llama_cpp import Llama
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import PrivateAttr, ValidationError
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.llms.llama_cpp import LlamaCPP

from rag.catalogue import PromptFormat
from rag.errors import ModelError
from rag.llm.call import AnyStop, Stop
from rag.llm.engine import Engine, Options, Step
from rag.llm.loading import cannot_load, check_file, check_generates, loading
from rag.llm.runtime import n_physical_cores
from rag.llm.template import ChatTemplate
from rag.streaming import in_thread

R = TypeVar("R")

_N_BATCH = 256
"""Prompt tokens evaluated at once. llama-cpp-python reserves n_batch rows of the vocabulary (268 MB
for Gemma's 262,144 tokens, untouched); 256 read a prompt of 700 tokens as fast as 512 did.
Source: measured 2026-11-22, Gemma 3 270M Q4_K_M, 2 cores: 1.1 s; 64 took 1.2 s."""

_TURN_MARKERS = ("\nuser:", "\nassistant:", "\nsystem:")
"""Where a base model that was given a conversation as text begins to write the next turn."""


class GgufLLM(LlamaCPP):
    """A GGUF model in this process, as a LlamaIndex LLM.

    Every generating method takes, besides LlamaIndex's arguments:
        stop: ends the answer within one token once it is set, also while the prompt is being read
            or another answer is being waited for.
        max_tokens, temperature, seed: in place of the constructor's, for this call.
        stop_strings: texts that end the answer and are not part of it.

    Closing a stream stops it too. The last response of a stream has the whole text, an empty or
    last `delta`, and `raw`: `finish_reason` (`stop`, `length` or `cancelled`), `n_prompt_tokens`
    and `n_tokens`. Leading and trailing whitespace is dropped.

    Answers queue: a stream that one thread holds open and unread makes all others wait.
    """

    _name: str = PrivateAttr()
    _prompt_format: PromptFormat = PrivateAttr()
    _options: Options = PrivateAttr()
    _engine: Engine = PrivateAttr()
    _template: ChatTemplate | None = PrivateAttr()

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        n_ctx: int,
        prompt_format: PromptFormat | None = None,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        max_tokens: int = 160,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Load the model.

        Args:
            path: The GGUF file.
            name: What to call the model.
            n_ctx: Context window in tokens; the model's own is used where that is smaller.
            prompt_format: None takes `chat` where the GGUF has a chat template.
            n_gpu_layers: Layers on the GPU, -1 for all; a CPU build ignores it.
            n_threads: CPU threads; None takes one for each physical core.
            max_tokens: Longest answer.
            temperature: 0 always takes the likeliest token.
            seed: Repeats the sampling when the temperature is above 0.

        Raises:
            ModelError: no GGUF file of a text-generating model, or no memory for it.
        """
        check_file(path)
        n_threads = n_threads or n_physical_cores()
        with loading() as errors:
            try:
                super().__init__(
                    model_path=str(path),
                    context_window=n_ctx,
                    max_new_tokens=max_tokens,
                    temperature=temperature,
                    verbose=False,
                    model_kwargs={
                        "n_gpu_layers": n_gpu_layers,
                        "n_threads": n_threads,
                        "n_threads_batch": n_threads,
                        "n_batch": _N_BATCH,
                        "n_ubatch": _N_BATCH,
                    },
                )
            except ValidationError:  # an argument of ours, not the file
                raise
            except (ValueError, AssertionError, TemplateError, OSError) as e:
                raise cannot_load(path, errors, n_ctx=n_ctx, cause=e) from e
        llama: Llama = self._model
        check_generates(llama, path)
        # llama.cpp rounds n_ctx up, llama-cpp-python's own arrays do not
        self.context_window = min(
            n_ctx, llama.n_ctx(), llama_cpp.llama_model_n_ctx_train(llama.model)
        )
        self._name = name
        self._options = Options(max_tokens, temperature, seed)
        self._engine = Engine(llama, n_ctx=self.context_window)
        # at the interpreter's own end llama-cpp-python's destructor stumbles over freed modules
        weakref.finalize(self, self._engine.close)
        source = llama.metadata.get("tokenizer.chat_template")
        self._prompt_format = prompt_format or ("chat" if source else "completion")
        self._template = None
        if self._prompt_format == "chat":
            if not source:
                raise ModelError(
                    f"Model file {str(path)!r} has no chat template, so it cannot be used with "
                    "the prompt format 'chat'; use 'completion'."
                )
            self._template = ChatTemplate(source, self._engine.tokens)

    @classmethod
    def class_name(cls) -> str:
        """Return LlamaIndex's name of the class."""
        return "GgufLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self._options.max_tokens,
            is_chat_model=self._prompt_format == "chat",
            model_name=self._name,
        )

    @property
    def prompt_format(self) -> PromptFormat:
        """How the model is prompted."""
        return self._prompt_format

    def n_tokens(self, text: str) -> int:
        """Count the tokens of a text, without a beginning-of-sequence token; from any thread."""
        return len(self._engine.tokens.encode(text))

    def n_message_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Count the tokens of the prompt that `chat` makes of the messages; from any thread."""
        return len(self._message_tokens(messages))

    def stream_complete(
        self, prompt: str, formatted: bool = False, *, stop: Stop | None = None, **kwargs: Any
    ) -> CompletionResponseGen:
        """Yield the continuation of a prompt as it grows.

        Args:
            prompt: Plain text. A chat model is asked it as a user's message.
            formatted: Give a chat model the text as it stands.
            stop: Ends the answer within one token once it is set.
            **kwargs: See the class.

        Raises:
            ModelError: the prompt is empty or longer than the context window.
        """
        if self._template is None or formatted:
            if not prompt.strip():
                raise ModelError("There is nothing to answer: the prompt is empty.")
            tokens = self._engine.tokens.prompt(prompt)
        else:
            tokens = self._template.encode([ChatMessage(role=MessageRole.USER, content=prompt)])
        source = _as_completion(self._engine.answer(tokens, self._merge(kwargs), stop))
        observed = llm_completion_callback()(lambda _self, _prompt: source)(self, prompt)
        return _closing_both(observed, source)

    def stream_chat(
        self, messages: Sequence[ChatMessage], *, stop: Stop | None = None, **kwargs: Any
    ) -> ChatResponseGen:
        """Yield the answer to a conversation as it grows.

        A model without a chat template is given the conversation as text.

        Args:
            messages: The conversation; see `template.as_turns` for what becomes of it.
            stop: Ends the answer within one token once it is set.
            **kwargs: See the class.

        Raises:
            ModelError: there is no message, or they are longer than the context window.
        """
        if self._template is None:
            kwargs["stop_strings"] = (*kwargs.get("stop_strings", ()), *_TURN_MARKERS)
        tokens = self._message_tokens(messages)
        source = _as_chat(self._engine.answer(tokens, self._merge(kwargs), stop))
        observed = llm_chat_callback()(lambda _self, _messages: source)(self, messages)
        return _closing_both(observed, source)

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
        """Return as `complete` does; cancelling the task stops the model."""
        stream = await self.astream_complete(prompt, formatted, stop=stop, **kwargs)
        return [response async for response in stream][-1]

    async def achat(
        self, messages: Sequence[ChatMessage], *, stop: Stop | None = None, **kwargs: Any
    ) -> ChatResponse:
        """Return as `chat` does; cancelling the task stops the model."""
        stream = await self.astream_chat(messages, stop=stop, **kwargs)
        return [response async for response in stream][-1]

    def _merge(self, kwargs: dict[str, Any]) -> Options:
        try:
            return replace(self._options, **kwargs)
        except TypeError as e:
            known = ", ".join(field.name for field in fields(Options))
            raise TypeError(f"GgufLLM takes {known} and stop, not {sorted(kwargs)}") from e

    def _message_tokens(self, messages: Sequence[ChatMessage]) -> list[int]:
        if self._template is not None:
            return self._template.encode(messages)
        if not any((message.content or "").strip() for message in messages):
            raise ModelError("There is nothing to answer: every message is empty.")
        assert self.messages_to_prompt is not None  # LlamaIndex fills it in
        return self._engine.tokens.prompt(self.messages_to_prompt(messages))


def _raw(step: Step) -> dict[str, Any] | None:
    if step.finish_reason is None:
        return None
    return {
        "finish_reason": step.finish_reason,
        "n_prompt_tokens": step.n_prompt_tokens,
        "n_tokens": step.n_tokens,
    }


def _as_completion(
    steps: Generator[Step, None, None],
) -> Generator[CompletionResponse, None, None]:
    with contextlib.closing(steps):
        for step in steps:
            yield CompletionResponse(delta=step.delta, text=step.text, raw=_raw(step))


def _as_chat(steps: Generator[Step, None, None]) -> Generator[ChatResponse, None, None]:
    with contextlib.closing(steps):
        for step in steps:
            message = ChatMessage(role=MessageRole.ASSISTANT, content=step.text)
            yield ChatResponse(message=message, delta=step.delta, raw=_raw(step))


def _closing_both(
    observed: Generator[R, None, None], source: Generator[R, None, None]
) -> Generator[R, None, None]:
    """Yield from `observed`, LlamaIndex's wrapper of `source`, and close both.

    The wrapper leaves closing to the garbage collector: an event handler that keeps its exception
    event would keep the model locked.
    """
    with contextlib.closing(source), contextlib.closing(observed):
        yield from observed


def _last(responses: Iterable[R]) -> R:
    return deque(responses, maxlen=1)[0]
