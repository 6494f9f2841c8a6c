"""A loaded model and the queue of those who ask it: prompts in, answers out.

Knows tokens in and text out; knows neither LlamaIndex nor chat.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace

from llama_cpp import Llama

from rag.errors import ModelError
from rag.llm.call import Stop, Timings
from rag.llm.local.conversations import Conversations
from rag.llm.local.runner import Job, PromptLookup, Request, Runner
from rag.llm.local.tokens import Tokens
from rag.llm.queue import FairQueue
from rag.llm.replies import Step, Steps

_POLL_S = 0.02
"""How often a reader looks whether it should stop."""


class Engine:
    """A model that many ask and that answers one at a time, each user in turn.

    Args:
        llama: The model; it is freed when nobody uses the engine any more.
        n_ctx: Context window in tokens.
        cache_bytes: Memory for what the model has read of other conversations.
        prompt_lookup: Whether to guess tokens from the prompt; `auto` measures whether it pays.
    """

    def __init__(
        self,
        llama: Llama,
        *,
        n_ctx: int,
        cache_bytes: int = 0,
        prompt_lookup: PromptLookup = "off",
    ) -> None:
        self.tokens = Tokens(llama)
        self.n_ctx = n_ctx
        self._queue = FairQueue()
        self._runner = Runner(
            llama,
            self.tokens,
            n_ctx=n_ctx,
            conversations=Conversations(cache_bytes),
            prompt_lookup=prompt_lookup,
        )
        # an answer that is being read keeps the engine; the thread of the runner does not
        weakref.finalize(self, self._runner.close).atexit = False  # `runner` sees to that

    @property
    def n_known(self) -> int:
        """Tokens that the context holds right now."""
        return self._runner.n_known

    def answer(self, request: Request, stop: Stop | None = None) -> Steps:
        """Yield the answer in steps that each add text, then a last one that says why it ended.

        While others come first, yields how many. Closing the generator ends the answer at once.

        Args:
            request: The prompt and who asks.
            stop: Ends the answer within one token, the reading of the prompt and the wait.

        Raises:
            ModelError: llama.cpp failed; or, when called, the prompt leaves no room for an answer.
        """
        if len(request.prompt) >= self.n_ctx:
            raise ModelError(
                f"The prompt has {len(request.prompt):,} tokens, but the model's context window "
                f"holds {self.n_ctx:,} and the answer needs some of them. Ask more briefly, "
                "or set RAG_LLM__N_CTX to more."
            )
        return self._queued(request, stop)

    def _queued(self, request: Request, stop: Stop | None) -> Steps:
        ticket = self._queue.join(request.caller.user)
        job: Job | None = None
        reader = threading.current_thread()
        self._runner.readers.append(reader)
        try:
            yield from ticket.waits(stop)
            if stop is not None and stop.is_set():
                timings = Timings(queue_s=ticket.queue_s)
                yield Step("", "", "cancelled", len(request.prompt), 0, timings)
                return
            given = Job(request, ticket.queue_s, ended=ticket.leave)
            self._runner.put(given)
            job = given
            yield from self._read(job, stop)
        finally:
            if job is None:
                ticket.leave()
            else:
                self._runner.cancel(job)  # one that has ended stays as it is
            self._runner.readers.remove(reader)

    def _read(self, job: Job, stop: Stop | None) -> Iterator[Step]:
        last = Step("", "", None, len(job.request.prompt), 0)
        while last.finish_reason is None:
            if stop is not None and stop.is_set() and not job.is_cancelled:
                self._runner.cancel(job)
            try:
                step = job.steps.get(timeout=_POLL_S)
            except queue.Empty:
                if not self._runner.is_alive and job.steps.empty():
                    raise ModelError(
                        "The model is not loaded in this process, which was forked from another. "
                        "Load it after the fork."
                    ) from None
                continue
            if isinstance(step, BaseException):
                raise step
            if not job.is_cancelled:
                last = step
                yield step
            elif step.finish_reason is not None:
                # the runner may have been ahead of the reader: this one ends where it was read to
                last = replace(last, delta="", finish_reason="cancelled", timings=step.timings)
                yield last
