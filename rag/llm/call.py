"""What a language model is told besides the prompt, and what it tells besides the answer.

The same for a model in this process and one behind a server; knows neither.

While a call waits for its turn, a stream yields responses without a delta whose `raw` is
`{"waiting": Waiting(place=2, wait_s=4.1)}`. The last response of a stream has `raw` with
`finish_reason` (`stop`, `length` or `cancelled`), `n_prompt_tokens`, `n_tokens` and `timings`, a
`Timings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Stop(Protocol):
    """An order to stop, as `threading.Event` is one."""

    def is_set(self) -> bool:
        """Return whether to stop."""


class AnyStop:
    """Stops when any of several orders does."""

    def __init__(self, *stops: Stop | None) -> None:
        self._stops = [s for s in stops if s is not None]

    def is_set(self) -> bool:
        """Return whether to stop."""
        return any(s.is_set() for s in self._stops)


@dataclass(frozen=True)
class Caller:
    """Who asks: whose turn it is in the queue, and whose earlier prompt may be continued."""

    user: str = ""
    """Calls of one user queue behind each other, those of several take turns."""
    conversation: str = ""
    """Prompts of one conversation begin alike; what the model has read of it is kept."""


@dataclass(frozen=True)
class Waiting:
    """Where a call stands in the queue."""

    place: int
    """Calls that come before it, the running ones included."""
    wait_s: float
    """Estimate of how long that takes; 0 before any call has ended."""


@dataclass(frozen=True)
class Timings:
    """Where the time of one call went; None is what a server does not tell."""

    queue_s: float = 0.0
    """Until it was this call's turn."""
    n_evaluated: int | None = None
    """Prompt tokens that had to be read."""
    n_reused: int | None = None
    """Prompt tokens that were still known from an earlier call."""
    prompt_s: float | None = None
    """Reading of the prompt, up to the first token."""
    n_tokens: int | None = None
    """Tokens generated."""
    decode_s: float | None = None
    """From the first token to the last."""
    n_drafted: int = 0
    """Tokens guessed by prompt lookup."""
    n_accepted: int = 0
    """Of those, the ones that the model would have said too."""
