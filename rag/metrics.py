"""How questions end and what they take, counted for operators, in Prometheus's text form.

Counts a turn once, wherever its events are read; keeps no question and no name. Knows the events
of a turn, but loads what makes them only when the first one is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

if TYPE_CHECKING:  # loads LlamaIndex, which takes seconds; `/metrics` answers before that
    from rag.events import Done, Event, TurnTimings

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
Outcome = Literal["answered", "refused", "stopped", "failed"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""From a search to the longest wait in a queue."""


class Metrics:
    """The counts of one server, in a registry of its own: nothing of the machine is in it."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._ended = Counter(
            "rag_questions", "Questions by how they ended", ["outcome"], registry=registry
        )
        for outcome in get_args(Outcome):
            self._ended.labels(outcome)  # 0 is told too
        self._waiting = Gauge(
            "rag_questions_waiting", "Questions that wait for others'", registry=registry
        )
        self._running = Gauge(
            "rag_questions_running", "Questions that are worked on", registry=registry
        )
        self._version = Gauge(
            "rag_table_version", "Delta version last answered from", registry=registry
        )
        self._version.set(float("nan"))  # until there is one; 0 would be a version
        self._lag = Gauge(
            "rag_sync_lag_versions", "Delta versions the index is behind", registry=registry
        )
        self._lag.set(float("nan"))
        self._seconds = {
            name: Histogram(f"rag_{name}_seconds", told, registry=registry, buckets=_SECONDS)
            for name, told in (
                ("queue", "Wait for others' questions"),
                ("retrieval", "Searches of a question"),
                ("first_token", "From a question to the first word of the model"),
                ("turn", "Whole turn"),
            )
        }
        self._tokens = {
            name: Counter(f"rag_{name}", told, registry=registry)
            for name, told in (
                ("prompt_tokens_evaluated", "Prompt tokens that had to be read"),
                ("prompt_tokens_reused", "Prompt tokens known from an earlier turn"),
                ("tokens_generated", "Tokens of answers"),
            )
        }

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[Event], None]]:
        """Count a turn; yields what each of its events is to be shown to.

        A turn without a last event has failed with what is raised here, or was stopped.
        """
        turn = _Turn(self._waiting, self._running)
        outcome: Outcome = "stopped"
        try:
            yield turn.see
        except (GeneratorExit, KeyboardInterrupt, asyncio.CancelledError):
            raise
        except BaseException:  # only counted; it goes on to whoever answers for it
            outcome = "failed"
            raise
        finally:
            turn.end()
            if turn.done is not None:
                outcome = "refused" if turn.done.refused else "answered"
                self._observe(turn.done)
            self._ended.labels(outcome).inc()

    def stands(self, *, mirrored: int | None, latest: int | None) -> None:
        """Take note of the version that the index mirrors and of the table's; None is unknown."""
        is_unknown = mirrored is None or latest is None
        self._lag.set(float("nan") if is_unknown else (latest or 0) - (mirrored or 0))

    def text(self) -> bytes:
        """Return all counts as Prometheus reads them; its type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _observe(self, done: Done) -> None:
        timings: TurnTimings = done.timings
        self._version.set(done.table_version)
        for name, seconds in (
            ("queue", timings.queue_s),
            ("retrieval", timings.retrieval_s),
            ("first_token", timings.first_token_s),
            ("turn", timings.total_s),
        ):
            if seconds is not None:
                self._seconds[name].observe(seconds)
        for name, n in (
            ("prompt_tokens_evaluated", timings.n_evaluated),
            ("prompt_tokens_reused", timings.n_reused),
            ("tokens_generated", timings.n_tokens),
        ):
            self._tokens[name].inc(n or 0)


class _Turn:
    """A turn that goes on: it waits, or it is worked on."""

    def __init__(self, waiting: Gauge, running: Gauge) -> None:
        self.done: Done | None = None
        self._gauges = {True: waiting, False: running}
        self._is_waiting = False
        running.inc()

    def see(self, event: Event) -> None:
        from rag.events import Done, Waiting  # loaded by now: it made the event

        self._move(is_waiting=isinstance(event, Waiting))
        if isinstance(event, Done):
            self.done = event

    def end(self) -> None:
        self._gauges[self._is_waiting].dec()

    def _move(self, *, is_waiting: bool) -> None:
        if is_waiting != self._is_waiting:
            self._gauges[self._is_waiting].dec()
            self._gauges[is_waiting].inc()
            self._is_waiting = is_waiting
