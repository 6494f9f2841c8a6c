"""Whose turn it is: calls of one user behind each other, users in rotation.

Knows threads and time; does not know what the calls do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from rag.llm.call import Stop, Waiting

_POLL_S = 0.02
"""How often a waiting call looks whether it should give up."""
_TELL_S = 0.5
"""How often a waiting call is told its place, where that has not changed."""
_NEWEST = 0.3
"""Weight of the newest call in the mean of what a call takes."""


class Ticket:
    """One call's place in a queue; leave it exactly when the call is over or given up."""

    def __init__(self, queue: FairQueue, user: str) -> None:
        self.user = user
        self.joined = time.monotonic()
        self.began: float | None = None
        """When its turn came."""
        self._queue = queue

    @property
    def queue_s(self) -> float:
        """How long it has waited, or did."""
        return (time.monotonic() if self.began is None else self.began) - self.joined

    def waits(self, stop: Stop | None = None) -> Iterator[Waiting]:
        """Yield its place, at once and as it changes, until its turn has come or `stop` is set."""
        told: Waiting | None = None
        told_at = 0.0
        while not self._queue.is_turn(self, _POLL_S if told else 0.0):
            if stop is not None and stop.is_set():
                return
            now = self._queue.waiting(self)
            if now is None:
                continue
            is_due = time.monotonic() - told_at >= _TELL_S
            if told is None or now.place != told.place or is_due:
                told, told_at = now, time.monotonic()
                yield now

    def leave(self) -> None:
        """Let the next one in; safe to call twice, and while waiting."""
        self._queue.leave(self)


class FairQueue:
    """Lets a number of calls run at once, and each user's turn come round.

    Args:
        n_slots: Calls that may run at once.
    """

    def __init__(self, n_slots: int = 1) -> None:
        self._n_slots = n_slots
        self._running: set[Ticket] = set()
        self._waiting: dict[str, deque[Ticket]] = {}  # users in the order of their next turn
        self._mean_s = 0.0
        self._changed = threading.Condition()

    def join(self, user: str) -> Ticket:
        """Queue behind the user's other calls."""
        ticket = Ticket(self, user)
        with self._changed:
            self._waiting.setdefault(user, deque()).append(ticket)
            self._admit()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """See `Ticket.leave`."""
        with self._changed:
            if ticket in self._running:
                assert ticket.began is not None
                took = time.monotonic() - ticket.began
                share = _NEWEST if self._mean_s else 1.0
                self._mean_s += share * (took - self._mean_s)
                self._running.discard(ticket)
            elif ticket in (queued := self._waiting.get(ticket.user, deque())):
                queued.remove(ticket)
                if not queued:
                    del self._waiting[ticket.user]
            self._admit()

    def is_turn(self, ticket: Ticket, timeout_s: float) -> bool:
        """Wait for a ticket's turn, and say whether it has come."""
        with self._changed:
            return self._changed.wait_for(lambda: ticket in self._running, timeout_s)

    def waiting(self, ticket: Ticket) -> Waiting | None:
        """Return where a ticket stands; None when it does not wait."""
        with self._changed:
            if ticket.began is not None or ticket.user not in self._waiting:
                return None
            n_before = self._n_before(ticket)
            now = time.monotonic()
            left = sum(max(0.0, self._mean_s - (now - (t.began or now))) for t in self._running)
            wait_s = (left + n_before * self._mean_s) / self._n_slots
            return Waiting(n_before + len(self._running), wait_s)

    def _n_before(self, ticket: Ticket) -> int:
        """Count the waiting tickets whose turn comes earlier."""
        round_ = self._waiting[ticket.user].index(ticket)
        n_before, is_earlier = round_, True
        for user, queued in self._waiting.items():
            if user == ticket.user:
                is_earlier = False
            else:
                n_before += min(len(queued), round_ + is_earlier)
        return n_before

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._n_slots:
            user, queued = next(iter(self._waiting.items()))
            ticket = queued.popleft()
            del self._waiting[user]
            if queued:
                self._waiting[user] = queued  # behind everyone else
            ticket.began = time.monotonic()
            self._running.add(ticket)
        self._changed.notify_all()
