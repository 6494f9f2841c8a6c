"""How often and how much one person may ask, and how often a password may be guessed.

Knows names, addresses and a clock; knows no Chainlit and no HTTP. Everything is in memory and of a
bounded size: a restart forgets it, and a flood of names cannot fill it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from rag.errors import QuestionError

Clock = Callable[[], float]
"""Seconds on a clock that only goes forward."""

_N_KEYS = 10_000
"""Names and addresses that are remembered at most; the one least used is forgotten first."""
_N_FREE = 5
"""Wrong passwords for a name or from an address before the delays begin."""
_N_KEPT = 20
"""Wrong passwords that are remembered of one; the delay is the longest before."""
_MEMORY_S = 900.0
"""After this long without a wrong password the delays begin anew."""
_LONGEST_S = {"address": 300.0, "name": 30.0}
"""A name waits less than an address: whoever guesses must not lock its owner out for long."""
_IPV6_PREFIX = 64
"""What one customer of a provider has: a /64; each address of it alone would be no limit."""


class _Recent(OrderedDict[tuple[str, str], deque[float]]):
    """When something happened, for each of a bounded number of keys."""

    def of(self, key: tuple[str, str]) -> deque[float]:
        """Return the times of a key, which is now the one used last."""
        times = self.setdefault(key, deque())
        self.move_to_end(key)
        while len(self) > _N_KEYS:
            self.popitem(last=False)
        return times


class Window:
    """So many events of one name in so many seconds, and no more."""

    def __init__(self, most: int, *, seconds: float = 60.0, clock: Clock = time.monotonic) -> None:
        """Allow `most` events in any `seconds`."""
        self._most, self._seconds, self._clock = most, seconds, clock
        self._recent = _Recent()

    def allows(self, name: str) -> bool:
        """Count an event and return True, or return False when there were too many."""
        now, times = self._clock(), self._recent.of(("name", name))
        while times and times[0] <= now - self._seconds:
            times.popleft()
        if len(times) >= self._most:
            return False
        times.append(now)
        return True


class Limits:
    """Questions of one person: how many at once, and how many in a minute."""

    def __init__(self, max_waiting: int, per_minute: int, *, clock: Clock = time.monotonic) -> None:
        """Allow `max_waiting` questions at once, and `per_minute` in any 60 seconds."""
        self._max_waiting, self._per_minute = max_waiting, per_minute
        self._window = Window(per_minute, clock=clock)
        self._waiting: dict[str, int] = {}

    @contextlib.contextmanager
    def question(self, name: str) -> Iterator[None]:
        """Let a question of this person wait and be answered meanwhile.

        Raises:
            QuestionError: too many of them wait, or were asked within a minute; nothing is counted.
        """
        n_waiting = self._waiting.get(name, 0)
        if n_waiting >= self._max_waiting:
            waiting = "1 question" if n_waiting == 1 else f"{n_waiting} questions"
            raise QuestionError(f"You have {waiting} waiting; wait for one to end, then ask again.")
        if not self._window.allows(name):
            asked = "1 question" if self._per_minute == 1 else f"{self._per_minute} questions"
            raise QuestionError(f"That is {asked} in a minute; wait a moment, then ask again.")
        self._waiting[name] = n_waiting + 1
        try:
            yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]


class Throttle:
    """Wrong passwords: five are free, then each makes the next one wait twice as long.

    An address waits up to five minutes. A name waits up to half a minute, whatever address asks,
    except one from which this name has signed in before.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        """Remember nothing yet."""
        self._clock = clock
        self._wrong, self._right = _Recent(), _Recent()

    def attempt(self, name: str, address: str) -> int:
        """Count an attempt as wrong until `succeeded` says otherwise, and return 0.

        It is counted before the password is looked at, so that attempts at the same time count.

        Returns:
            Whole seconds to wait before the next attempt; above 0 nothing was counted, and the
            password must not be looked at.
        """
        keys = self._keys(name, address)
        wait = max(self._wait(key) for key in keys)
        if wait:
            return wait
        for key in keys:
            times = self._wrong.of(key)
            times.append(self._clock())
            if len(times) > _N_KEPT:
                times.popleft()  # the delay is the longest already
        return 0

    def succeeded(self, name: str, address: str) -> None:
        """Take back the attempt that was right, and know the address of this name from now on."""
        for key in self._keys(name, address):
            times = self._wrong.of(key)
            if key[0] == "name":
                times.clear()
            elif times:
                times.pop()
        self._right.of((name, _network(address)))

    def _keys(self, name: str, address: str) -> list[tuple[str, str]]:
        network = _network(address)
        keys = [("address", network)]
        return keys if (name, network) in self._right else [*keys, ("name", name)]

    def _wait(self, key: tuple[str, str]) -> int:
        times = self._wrong.get(key)
        now = self._clock()
        if not times or now - times[-1] > _MEMORY_S:
            self._wrong.pop(key, None)
            return 0
        if len(times) < _N_FREE:
            return 0
        delay = min(2.0 ** (len(times) - _N_FREE), _LONGEST_S[key[0]])
        return max(0, math.ceil(times[-1] + delay - now))


def _network(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, _IPV6_PREFIX), strict=False))
    return str(ip)
