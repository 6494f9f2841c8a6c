"""How long a turn takes, as sentences: for a reader who waits, and when the answer is there.

Knows the figures that a turn tells; does not know who shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loads LlamaIndex, which takes seconds; the port of the web chat opens before
    from rag.events import TurnTimings, Waiting

_MODELS_S = 0.05
"""A rule makes a question self-contained in far less, its searches apart; a model in more."""


def waits(waiting: Waiting) -> str:
    """Return where a question stands: `2 questions come before yours, about 8 s.`."""
    n = waiting.place
    others = "1 question comes" if n == 1 else f"{n:,} questions come"
    about = f", about {_about(waiting.wait_s)}" if waiting.wait_s else ""
    return f"{others} before yours{about}."


def took(timings: TurnTimings) -> str:
    """Return what a turn took, as far as it is known; of a refusal only the search."""
    parts = []
    if timings.rewrite_s - timings.retrieval_s >= _MODELS_S:
        parts.append(f"question rewritten in {seconds(timings.rewrite_s)}")
    parts.append(f"search {seconds(timings.retrieval_s)}")
    if timings.first_token_s is not None:
        parts.append(f"waited {seconds(timings.queue_s)}")
        parts += _prompt(timings)
        parts.append(f"first word after {seconds(timings.first_token_s)}")
    if timings.tokens_per_s:
        parts.append(f"{timings.tokens_per_s:,.0f} tokens/s")
    return f"Answered in {seconds(timings.total_s)}: {', '.join(parts)}."


def seconds(value: float) -> str:
    """Return seconds with as many digits as a reader wants: `0.05 s`, `1.4 s`, `12 s`."""
    digits = 2 if value < 0.1 else 1 if value < 10 else 0
    return f"{round(value, digits):g} s" if value < 1000 else f"{value:,.0f} s"


def _prompt(timings: TurnTimings) -> list[str]:
    new, known = timings.n_evaluated, timings.n_reused
    if new is None:
        return []
    if known is None:
        return [f"prompt {new:,} tokens read"]
    return [f"prompt {new + known:,} tokens read ({new:,} new)"]


def _about(value: float) -> str:
    return f"{max(1, round(value))} s" if value < 90 else f"{round(value / 60)} min"
