"""The thread that owns a llama.cpp context and works on one answer after the other.

It runs an answer to its end or until it is cancelled, however slowly its reader reads: an answer
is a few hundred steps, which wait in memory. Knows tokens and text; whose turn it is, it is told.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakSet

from llama_cpp import Llama

from rag.errors import ModelError
from rag.llm.answer import AnswerText
from rag.llm.call import Caller, Timings
from rag.llm.local.abort import AbortFlag
from rag.llm.local.context import Aborted, Context, Sampler
from rag.llm.local.conversations import Conversations
from rag.llm.local.lookup import N_DRAFT, Lookup
from rag.llm.local.tokens import Tokens
from rag.llm.replies import FinishReason, Options, Step
from rag.streaming import wait_for

PromptLookup = Literal["auto", "on", "off"]

_CLOSE_S = 1.0
"""A cancelled answer ends within one token, far sooner."""
_WORTH_KEEPING = 8
"""Tokens that are worth the 6 ms of putting a conversation aside and taking it up again; reading
them takes 20 ms on 2 cores."""
_N_MEASURED = 5


@dataclass(frozen=True)
class Request:
    """What is asked of a model."""

    prompt: Sequence[int]
    """Token ids."""
    options: Options
    caller: Caller = field(default_factory=Caller)
    n_stable: int = 0
    """Tokens of the prompt that the conversation's next one begins with; 0 if there is none."""


@dataclass(eq=False)
class Job:
    """A request whose turn has come."""

    request: Request
    queue_s: float
    """How long it has waited."""
    ended: Callable[[], None]
    """Told when the context is free again."""
    steps: queue.SimpleQueue[Step | BaseException] = field(default_factory=queue.SimpleQueue)
    """What has been said, or why no more is."""
    is_cancelled: bool = False


@dataclass
class _Account:
    """What is known of a running answer."""

    n_reused: int = 0
    n_evaluated: int = 0
    n_tokens: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float = 0.0
    """When the first token was there; 0 before."""

    def timings(self, queue_s: float) -> Timings:
        now = time.monotonic()
        return Timings(
            queue_s=queue_s,
            n_evaluated=self.n_evaluated,
            n_reused=self.n_reused,
            prompt_s=(self.first or now) - self.began,
            n_tokens=self.n_tokens,
            decode_s=now - self.first if self.first else 0.0,
            n_drafted=self.n_drafted,
            n_accepted=self.n_accepted,
        )


class Runner:
    """A context and its thread.

    Args:
        llama: The model; the runner frees it.
        tokens: Its vocabulary.
        n_ctx: Context window in tokens.
        conversations: Where what was read of other conversations is kept.
        prompt_lookup: Whether to guess tokens from the prompt; `auto` measures whether it pays.
    """

    def __init__(
        self,
        llama: Llama,
        tokens: Tokens,
        *,
        n_ctx: int,
        conversations: Conversations,
        prompt_lookup: PromptLookup,
    ) -> None:
        self._context = Context(llama)
        self._tokens, self._n_ctx, self._conversations = tokens, n_ctx, conversations
        self._abort = AbortFlag(llama.ctx)
        self._last: Request | None = None
        self._cost = {"auto": None, "on": 1.0, "off": float("inf")}[prompt_lookup]
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._current: Job | None = None
        self._is_closed = self._is_leaving = False
        # reentrant: a garbage collection inside may close an abandoned stream, which comes here
        self._lock = threading.RLock()
        self.readers: list[threading.Thread] = []
        """The threads that are reading answers, or waiting for their turn."""
        self._thread = threading.Thread(target=self._work, name="rag-llm", daemon=True)
        _running.add(self)
        self._thread.start()

    @property
    def n_known(self) -> int:
        """Tokens that the context holds right now."""
        return len(self._context.tokens)

    def put(self, job: Job) -> None:
        """Begin a job as soon as the ones before it are over.

        Raises:
            ModelError: the model has been unloaded.
        """
        with self._lock:
            if self._is_closed:
                raise _unloaded()
            self._jobs.put(job)

    def cancel(self, job: Job) -> None:
        """End a job within one token, also while its prompt is being read."""
        with self._lock:
            job.is_cancelled = True
            if self._current is job:
                self._abort.set()

    def close(self) -> None:
        """End what is running; the thread then frees the model. Does not wait for that."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._current is not None:
                self._current.is_cancelled = True
            self._abort.set()
            self._jobs.put(None)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are worked on; not in a process that was forked from the model's own."""
        return self._thread.is_alive()

    def leave(self) -> None:
        """End what is running; wait, a second at most, for that and for whoever reads it.

        Nothing is freed: at the interpreter's end other threads may still be counting tokens, and
        the system takes the memory back anyway. Why readers are waited for: see `rag.streaming`.
        """
        self._is_leaving = True
        # whoever dropped the last reference would free it after all, and llama.cpp then logs
        # through a Python function that may be gone: a crash
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))
        readers = [reader for reader in self.readers if reader.daemon]  # the others have ended
        self.close()
        wait_for([self._thread, *readers], _CLOSE_S)

    def _work(self) -> None:
        try:
            if self._cost is None:
                self._cost = self._measured()
            if not self._context.can_go_back:
                self._cost = float("inf")  # a wrong guess could not be taken back
            while (job := self._jobs.get()) is not None:
                self._work_on(job)
        finally:
            # closed by the thread that uses it: nobody else knows when the last call has returned
            if not self._is_leaving:
                self._context.close()

    def _work_on(self, job: Job) -> None:
        with self._lock:
            self._current = job
            if not self._is_closed:
                self._abort.clear()
        try:
            self._run(job)
        except BaseException as e:  # noqa: BLE001 – raised again in the reader
            job.steps.put(e)
        finally:
            with self._lock:
                self._current = None
            job.ended()

    def _run(self, job: Job) -> None:
        if self._is_closed:
            raise _unloaded()
        request, account = job.request, _Account()
        options, answer = request.options, AnswerText(request.options.stop_strings)
        sampler = Sampler(temperature=options.temperature, seed=options.seed)
        reason: FinishReason = "cancelled"
        with contextlib.closing(sampler), contextlib.suppress(Aborted):
            reason = self._say(job, self._sampled(job, sampler, account), answer, account)
        delta = "" if reason == "cancelled" else answer.end()
        n_prompt, timings = len(request.prompt), account.timings(job.queue_s)
        job.steps.put(Step(delta, answer.text, reason, n_prompt, account.n_tokens, timings))

    def _say(
        self, job: Job, sampled: Iterator[int], answer: AnswerText, account: _Account
    ) -> FinishReason:
        """Put what the tokens say into the job's steps, and return why there are no more."""
        n_prompt = len(job.request.prompt)
        n_most = min(job.request.options.max_tokens, self._n_ctx - n_prompt)
        for token in sampled:
            if job.is_cancelled:
                break
            account.n_tokens += 1
            if self._tokens.is_end(token):
                return "stop"
            delta = answer.add(self._tokens.bytes(token))
            if delta:
                job.steps.put(Step(delta, answer.text, None, n_prompt, account.n_tokens))
            if answer.is_stopped:
                return "stop"
            if account.n_tokens == n_most:
                return "length"
        return "cancelled"

    def _sampled(self, job: Job, sampler: Sampler, account: _Account) -> Iterator[int]:
        """Yield token after token; the last one yielded has not been read by the model."""
        self._read_prompt(job, account)
        if job.is_cancelled:
            return
        assert self._cost is not None
        context, n_most = self._context, job.request.options.max_tokens
        lookup = Lookup(job.request.prompt, cost=self._cost)
        token = context.sample(sampler, -1)
        account.first = time.monotonic()
        while True:
            yield token
            lookup.said(token)
            n_left = min(n_most - account.n_tokens, self._n_ctx - len(context.tokens))
            draft = lookup.draft(n_most=n_left - 1)
            n_read = len(context.tokens) + 1
            context.read([token, *draft], n_logits=1 + len(draft))
            token = context.sample(sampler, 0)
            n_right = 0
            while n_right < len(draft) and token == draft[n_right]:
                n_right += 1
                account.n_accepted += 1
                yield token
                lookup.said(token)
                token = context.sample(sampler, n_right)
            if draft:
                lookup.judge(len(draft), n_right)
                account.n_drafted += len(draft)
                context.keep(n_read + n_right)

    def _read_prompt(self, job: Job, account: _Account) -> None:
        """Read what is not known of a prompt, so that its last token can be gone on from."""
        prompt = job.request.prompt
        self._recall(job.request)
        # the last token is read in any case: what comes after it is not part of a state
        at = account.n_reused = self._context.keep(
            min(self._context.common(prompt), len(prompt) - 1)
        )
        while at < len(prompt) and not job.is_cancelled:
            part = prompt[at : at + self._context.n_batch]
            self._context.read(part)
            at += len(part)
            account.n_evaluated += len(part)

    def _recall(self, request: Request) -> None:
        """Put the last conversation aside and take up the one that knows most of the prompt."""
        context, last, self._last = self._context, self._last, request
        n_live = context.common(request.prompt)
        found = self._conversations.best(request.prompt, at_least=n_live + _WORTH_KEEPING)
        if last is not None and last.caller.conversation != request.caller.conversation:
            n_lost = min(last.n_stable, len(context.tokens)) - n_live
            # what comes after the stable part is not gone on from
            if n_lost >= _WORTH_KEEPING and context.keep(last.n_stable):
                self._conversations.put(last.caller.conversation, context.save())
        if found is not None:
            context.restore(found)

    def _measured(self) -> float:
        """Return what a call with `N_DRAFT` guessed tokens costs, in calls with none."""
        costs: list[float] = []
        if self._context.n_batch < 1 + N_DRAFT:
            return float("inf")
        with contextlib.suppress(Aborted, ModelError):
            for n in (1, 1 + N_DRAFT):
                self._context.read([0] * n, n_logits=n)  # the first one of a shape sets it up
                took = []
                for _ in range(_N_MEASURED):
                    began = time.perf_counter()
                    self._context.read([0] * n, n_logits=n)
                    took.append(time.perf_counter() - began)
                costs.append(min(took))
        self._context.keep(0)
        return costs[1] / costs[0] if len(costs) == 2 else float("inf")


_running: WeakSet[Runner] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave no thread inside llama.cpp while the interpreter takes itself apart."""
    for runner in list(_running):
        runner.leave()


def _unloaded() -> ModelError:
    return ModelError("The model was unloaded while the question waited. Ask again.")
