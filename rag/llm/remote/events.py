"""The events of a streamed answer, as steps; knows OpenAI's shapes and llama.cpp's additions."""

from __future__ import annotations

import time
from typing import Any

from rag.errors import ModelError
from rag.llm.answer import AnswerText
from rag.llm.call import Stop, Timings
from rag.llm.remote.content import as_written
from rag.llm.replies import FinishReason, Options, Step

_CHARS_PER_TOKEN = 64
"""No vocabulary puts more characters into a token on average: more is no answer to this call."""
_USAGE_S = 2.0
"""How long a finished answer waits for what it has cost."""


class Reading:
    """One answer while it is read.

    Args:
        options: What was asked for.
        queue_s: How long the call has waited here.
        url: The server's, for errors.
    """

    def __init__(self, options: Options, *, queue_s: float, url: str) -> None:
        self._options, self._queue_s, self._url = options, queue_s, url
        self._answer = AnswerText(options.stop_strings)
        self._reason: FinishReason | None = None
        self._finished_at = 0.0
        self._n_chars = self._n_thought = 0
        self._began = time.monotonic()
        self._first = self._last = 0.0
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}
        self.has_begun = False
        """Whether anything has come."""

    @property
    def is_finished(self) -> bool:
        """Whether it is known why the answer ended."""
        return self._reason is not None

    def take(self, event: dict[str, Any]) -> Step | None:
        """Take an event and return what it adds to the answer, if anything.

        Raises:
            ModelError: the event is none of a streamed answer.
        """
        self.has_begun = True
        self._usage = _dict(event.get("usage")) or self._usage
        self._timings = _dict(event.get("timings")) or self._timings
        choices = event.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise self._strange("an event without choices")
        if not choices or self.is_finished:
            return None
        choice = choices[0]
        # a stream has deltas, an answer in one piece a message; a completion has text
        said = _dict(choice.get("delta") or choice.get("message"))
        text = choice.get("text") if "text" in choice else said.get("content")
        if text is not None and not isinstance(text, str):
            raise self._strange("an answer that is no text")
        self._n_thought += len(str(said.get("reasoning_content") or said.get("reasoning") or ""))
        step = self._add(text) if text else None
        if choice.get("finish_reason"):
            self._finish("length" if choice["finish_reason"] == "length" else "stop")
        return step

    def over(self, *, is_stopped: bool) -> Step:
        """Return the last step, after the server's last event.

        Raises:
            ModelError: the answer broke off, or the model only thought.
        """
        if self._reason is None and is_stopped:
            return self.end("cancelled")
        if self._reason is None:
            raise ModelError(
                f"The model server at {self._url} broke off in the middle of the answer. "
                "Ask again, and look at the server's own log if it stays so."
            )
        step = self.end(self._reason)
        if not step.text and self._n_thought and self._reason == "length":
            raise ModelError(
                f"The model used all {self._options.max_tokens} tokens for thinking and answered "
                "nothing. Set RAG_LLM__MAX_TOKENS to more, or take a model that does not think."
            )
        return step

    def rest(self) -> Step | None:
        """Return what was held back, when nothing more will come."""
        delta = self._answer.end()
        return Step(delta, self._answer.text) if delta else None

    def end(self, reason: FinishReason) -> Step:
        """Return the last step."""
        delta = "" if reason == "cancelled" else self._answer.end()
        return Step(
            delta,
            self._answer.text,
            reason,
            _whole(self._usage.get("prompt_tokens")),
            _whole(self._usage.get("completion_tokens")),
            self._cost(),
        )

    def until_over(self, stop: Stop | None) -> Stop:
        """Return an order to stop reading: the caller's, or that all is said and time is up."""
        return _UntilOver(self, stop)

    def has_waited(self) -> bool:
        """Return whether the answer is finished, and its cost not told in time."""
        return self.is_finished and time.monotonic() - self._finished_at > _USAGE_S

    def _add(self, text: str) -> Step | None:
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._n_chars += len(text)
        delta = self._answer.add(as_written(text).encode("utf-8", errors="ignore"))
        if self._answer.is_stopped:
            self._finish("stop")
            self._finished_at = 0.0  # a server that goes on has to be left
        elif self._n_chars > self._options.max_tokens * _CHARS_PER_TOKEN:
            self._finish("length")
            self._finished_at = 0.0
        return Step(delta, self._answer.text) if delta else None

    def _finish(self, reason: FinishReason) -> None:
        if self._reason is None:
            self._reason, self._finished_at = reason, time.monotonic()

    def _cost(self) -> Timings:
        cached = _dict(self._usage.get("prompt_tokens_details")).get("cached_tokens")
        n_prompt, n_reused = _whole(self._usage.get("prompt_tokens")), _whole(cached)
        n_evaluated = _whole(self._timings.get("prompt_n"))
        if n_evaluated is None and n_prompt is not None and n_reused is not None:
            n_evaluated = n_prompt - n_reused
        # seen from here, the reading of the prompt holds the server's own queue too
        read_s = self._first - self._began if self._first else None
        decode_s = self._last - self._first if self._first else None
        return Timings(
            queue_s=self._queue_s,
            n_evaluated=n_evaluated,
            n_reused=_whole(self._timings.get("cache_n"), n_reused),
            prompt_s=_seconds(self._timings.get("prompt_ms"), read_s),
            n_tokens=_whole(self._usage.get("completion_tokens")),
            decode_s=_seconds(self._timings.get("predicted_ms"), decode_s),
            n_drafted=_whole(self._timings.get("draft_n")) or 0,
            n_accepted=_whole(self._timings.get("draft_n_accepted")) or 0,
        )

    def _strange(self, what: str) -> ModelError:
        return ModelError(
            f"The model server at {self._url} sent {what}. "
            "Set RAG_LLM__BASE_URL to an OpenAI-compatible server."
        )


class _UntilOver:
    def __init__(self, reading: Reading, stop: Stop | None) -> None:
        self._reading, self._stop = reading, stop

    def is_set(self) -> bool:
        """Return whether to stop reading."""
        return self._reading.has_waited() or (self._stop is not None and self._stop.is_set())


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any, default: int | None = None) -> int | None:
    return value if isinstance(value, int) and value >= 0 else default


def _seconds(milliseconds: Any, default: float | None) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else default
