"""GgufLLM: LlamaIndex's LlamaCPP, made safe to share, to stream and to stop.

What LlamaCPP lacks and this adds: one answer at a time (two at once abort the process), async
methods that leave the event loop alone, an order to stop, arguments per call, control tokens that
content cannot forge, sampling that a seed repeats, errors of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import Llama
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponseGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import PrivateAttr, ValidationError
from llama_index.llms.llama_cpp import LlamaCPP

from rag.catalogue import ChatFamily, PromptFormat
from rag.errors import ModelError
from rag.llm.call import Caller, Stop
from rag.llm.local.context import n_common
from rag.llm.local.engine import Engine
from rag.llm.local.loading import cannot_load, check_file, check_generates, loading
from rag.llm.local.runner import PromptLookup, Request
from rag.llm.local.sizing import Gpu, Size, sized
from rag.llm.local.template import ChatTemplate, template_source
from rag.llm.replies import TURN_MARKERS, FromStreams, Options, as_chat, as_completion
from rag.machine import n_physical_cores


class GgufLLM(FromStreams, LlamaCPP):
    """A GGUF model in this process, as a LlamaIndex LLM.

    Every generating method takes, besides LlamaIndex's arguments:
        stop: ends the answer within one token once it is set, also while the prompt is being read
            or another answer is being waited for.
        caller: who asks; see `Caller`.
        max_tokens, temperature, seed: in place of the constructor's, for this call.
        stop_strings: texts that end the answer and are not part of it.

    Closing a stream stops it too. The last response of a stream has the whole text, an empty or
    last `delta`, and `raw`; see `call` for that and for the responses of a call that waits.
    Leading and trailing whitespace is dropped.
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
        n_ctx: int | None = None,
        usual_n_ctx: int = 8192,
        prompt_format: PromptFormat | None = None,
        chat_family: ChatFamily | None = None,
        n_threads: int | None = None,
        gpu: Gpu | None = None,
        cache_mb: int = 512,
        prompt_lookup: PromptLookup = "auto",
        max_tokens: int = 160,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Load the model.

        Args:
            path: The GGUF file.
            name: What to call the model.
            n_ctx: Context window in tokens, the model's own where that is smaller; None is the
                usual one, or what the memory allows.
            usual_n_ctx: Context window of such a model where memory is no matter.
            prompt_format: None takes `chat` where there is a chat template.
            chat_family: Whose chat template to use where the GGUF has none.
            n_threads: CPU threads; None takes one for each physical core.
            gpu: What may be used of the GPUs; a CPU build ignores it.
            cache_mb: Memory for what the model has read of conversations.
            prompt_lookup: Whether to guess tokens from the prompt; `auto` measures whether it pays.
            max_tokens: Longest answer.
            temperature: 0 always takes the likeliest token.
            seed: Repeats the sampling when the temperature is above 0.

        Raises:
            ModelError: no GGUF file of a text-generating model, or no memory for it.
        """
        check_file(path)
        can_offload = llama_cpp.llama_supports_gpu_offload()
        gpu = gpu or Gpu()
        size = sized(path, n_ctx=n_ctx, usual_n_ctx=usual_n_ctx, gpu=gpu, can_offload=can_offload)
        with loading() as errors:
            try:
                super().__init__(
                    model_path=str(path),
                    context_window=size.n_ctx,
                    max_new_tokens=max_tokens,
                    temperature=temperature,
                    verbose=False,
                    model_kwargs=_model_kwargs(
                        size, n_threads or n_physical_cores(), gpu, can_offload=can_offload
                    ),
                )
            except ValidationError:  # an argument of ours, not the file
                raise
            except (ValueError, AssertionError, OSError) as e:
                raise cannot_load(path, errors, n_ctx=size.n_ctx, cause=e) from e
        llama: Llama = self._model
        check_generates(llama, path)
        # llama.cpp rounds n_ctx up, and what it was not trained for it cannot read
        self.context_window = min(
            size.n_ctx, llama.n_ctx(), llama_cpp.llama_model_n_ctx_train(llama.model)
        )
        self._name = name
        self._options = Options(max_tokens, temperature, seed)
        self._engine = Engine(
            llama,
            n_ctx=self.context_window,
            cache_bytes=cache_mb * 1_000_000,
            prompt_lookup=prompt_lookup,
        )
        source = template_source(llama.metadata, chat_family)
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
        self,
        prompt: str,
        formatted: bool = False,
        *,
        stop: Stop | None = None,
        caller: Caller | None = None,
        **kwargs: Any,
    ) -> CompletionResponseGen:
        """Yield the continuation of a prompt as it grows.

        Args:
            prompt: Plain text. A chat model is asked it as a user's message.
            formatted: Give a chat model the text as it stands.
            stop: Ends the answer within one token once it is set.
            caller: Who asks.
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
        request = Request(tokens, self._merge(kwargs), caller or Caller())
        return as_completion(self._engine.answer(request, stop), self, prompt)

    def stream_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        stop: Stop | None = None,
        caller: Caller | None = None,
        **kwargs: Any,
    ) -> ChatResponseGen:
        """Yield the answer to a conversation as it grows.

        A model without a chat template is given the conversation as text.

        Args:
            messages: The conversation; see `template.as_turns` for what becomes of it.
            stop: Ends the answer within one token once it is set.
            caller: Who asks.
            **kwargs: See the class.

        Raises:
            ModelError: there is no message, or they are longer than the context window.
        """
        if self._template is None:
            kwargs["stop_strings"] = (*kwargs.get("stop_strings", ()), *TURN_MARKERS)
        request = Request(
            self._message_tokens(messages),
            self._merge(kwargs),
            caller or Caller(),
            n_stable=self._n_stable(messages) if caller and caller.conversation else 0,
        )
        return as_chat(self._engine.answer(request, stop), self, messages)

    def _merge(self, kwargs: dict[str, Any]) -> Options:
        try:
            return replace(self._options, **kwargs)
        except TypeError as e:
            known = ", ".join(field.name for field in fields(Options))
            raise TypeError(f"GgufLLM takes {known}, stop and caller, not {sorted(kwargs)}") from e

    def _n_stable(self, messages: Sequence[ChatMessage]) -> int:
        """Count the tokens before the last message's text: the next turn begins with them."""
        if self._template is None:
            return 0
        other = ChatMessage(role=messages[-1].role, content="\u2026")
        return n_common(
            self._message_tokens(messages), self._message_tokens([*messages[:-1], other])
        )

    def _message_tokens(self, messages: Sequence[ChatMessage]) -> list[int]:
        if self._template is not None:
            return self._template.encode(messages)
        if not any((message.content or "").strip() for message in messages):
            raise ModelError("There is nothing to answer: every message is empty.")
        assert self.messages_to_prompt is not None  # LlamaIndex fills it in
        return self._engine.tokens.prompt(self.messages_to_prompt(messages))


def _model_kwargs(size: Size, n_threads: int, gpu: Gpu, *, can_offload: bool) -> dict[str, Any]:
    """Return llama-cpp-python's arguments."""
    cache = llama_cpp.GGML_TYPE_Q8_0 if size.has_8bit_cache else llama_cpp.GGML_TYPE_F16
    return {
        "n_threads": n_threads,
        "n_threads_batch": n_threads,
        # llama-cpp-python reserves n_batch rows of the vocabulary, which nothing ever touches
        "n_batch": size.n_batch,
        "n_ubatch": size.n_batch,
        "n_gpu_layers": size.n_gpu_layers,
        "main_gpu": gpu.main,
        # without a GPU llama.cpp would refuse a share for a second one
        "tensor_split": list(gpu.tensor_split) if gpu.tensor_split and can_offload else None,
        "flash_attn": size.flash_attn,
        "type_k": cache,
        "type_v": cache,
    }
