"""One llama.cpp context that answers one prompt after the other.

Knows tokens in and text out; knows neither LlamaIndex nor chat.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from llama_cpp import Llama

from rag.errors import ModelError
from rag.llm.answer import AnswerText
from rag.llm.call import Stop
from rag.llm.runtime import AbortFlag
from rag.llm.tokens import Tokens

FinishReason = Literal["stop", "length", "cancelled"]


_CLOSE_S = 1.0
"""A stopped answer ends within one token, far sooner."""


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
    finish_reason: FinishReason | None
    """None until the last step."""
    n_prompt_tokens: int
    n_tokens: int
    """Tokens generated so far."""


class Engine:
    """A loaded model with its context, and whose turn it is to use it."""

    def __init__(self, llama: Llama, *, n_ctx: int) -> None:
        self._llama = llama
        self.tokens = Tokens(llama)
        self.n_ctx = n_ctx
        self._abort = AbortFlag(llama.ctx)
        # two calls into one context abort the process; a Lock, because a stream may be closed
        # (or collected) by another thread than the one that began it
        self._turn = threading.Lock()

    def answer(
        self, prompt: Sequence[int], options: Options, stop: Stop | None
    ) -> Generator[Step, None, None]:
        """Yield the answer in steps that each add text, then a last one that says why it ended.

        Waits while another answer is being generated. Closing the generator ends it at once.

        Args:
            prompt: Token ids.
            options: How to generate.
            stop: Ends the answer within one token, the reading of the prompt and the wait.

        Raises:
            ModelError: llama.cpp failed; or, when called, the prompt leaves no room for an answer.
        """
        if len(prompt) >= self.n_ctx:
            raise ModelError(
                f"The prompt has {len(prompt):,} tokens, but the model's context window holds "
                f"{self.n_ctx:,} and the answer needs some of them. Ask more briefly, "
                "or set RAG_LLM__N_CTX to more."
            )
        return self._when_free(prompt, options, stop)

    def close(self) -> None:
        """Free the model, unless an answer is still being generated: it must outlive that."""
        if self._turn.acquire(timeout=_CLOSE_S):
            self._llama.close()

    def _when_free(
        self, prompt: Sequence[int], options: Options, stop: Stop | None
    ) -> Generator[Step, None, None]:
        while not self._turn.acquire(timeout=0.02):
            if stop is not None and stop.is_set():
                yield Step("", "", "cancelled", len(prompt), 0)
                return
        try:
            yield from self._generate(prompt, options, stop)
        finally:
            self._turn.release()

    def _generate(
        self, prompt: Sequence[int], options: Options, stop: Stop | None
    ) -> Generator[Step, None, None]:
        answer = AnswerText(options.stop_strings)
        n_tokens = 0
        reason: FinishReason = "length"
        n_most = min(options.max_tokens, self.n_ctx - len(prompt))
        with contextlib.closing(self._sampled(prompt, options, stop)) as sampled:
            for token in sampled:
                if token is None or (stop is not None and stop.is_set()):
                    yield Step("", answer.text, "cancelled", len(prompt), n_tokens)
                    return
                n_tokens += 1
                if self.tokens.is_end(token):
                    reason = "stop"
                    break
                delta = answer.add(self.tokens.bytes(token))
                if answer.is_stopped:
                    yield Step(delta, answer.text, "stop", len(prompt), n_tokens)
                    return
                if delta:
                    yield Step(delta, answer.text, None, len(prompt), n_tokens)
                if n_tokens == n_most:
                    break
        yield Step(answer.end(), answer.text, reason, len(prompt), n_tokens)

    def _sampled(
        self, prompt: Sequence[int], options: Options, stop: Stop | None
    ) -> Generator[int | None, None, None]:
        """Yield token ids; None means that the reading of the prompt was aborted."""
        # not through Llama's constructor: it takes seed 0 for "a random one"
        self._llama.set_seed(options.seed)
        generated = self._llama.generate(prompt, temp=options.temperature)
        try:
            with contextlib.closing(generated):
                with self._abort.raised_by(stop):
                    first = next(generated)
                yield first
                yield from generated
        except RuntimeError as e:  # llama_decode returned something else than 0
            # what the context holds is unknown now; the next prompt is read from its beginning
            self._llama.reset()
            if stop is None or not stop.is_set():
                raise ModelError(f"The model failed while answering: {e}.") from e
            yield None
