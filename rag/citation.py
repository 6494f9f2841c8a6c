"""Which passage supports a sentence, and where.

Knows words; does not know models, stores or what is asked. Citations are made here, after the
model has written a sentence: nothing that a model says about its sources is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag.words import Word, content_words, numbers

MIN_SUPPORT = 0.5
"""Share of a sentence's content words that a passage must hold to count as its source."""
_MIN_WORDS = 2
"""A sentence with fewer content words makes no claim."""


@dataclass(frozen=True)
class Citation:
    """A sentence of the answer bound to a source."""

    n: int
    """Number of the source, from 1, in `source_nodes`."""
    row_key: str
    start: int
    """First character of the supporting span in the node's text."""
    end: int
    """One past its last character."""


@dataclass(frozen=True)
class Support:
    """The passage that supports a sentence best."""

    index: int
    start: int
    end: int
    share: float
    """Of the sentence's content words that the passage holds, 0 to 1."""


def find_support(sentence: str, passages: Sequence[str]) -> Support | None:
    """Return the passage that supports a sentence, or None.

    A sentence is supported when a passage holds at least half of its content words and every
    number in it.
    """
    claimed = {w.stem for w in content_words(sentence)}
    if len(claimed) < _MIN_WORDS:
        return None
    best: Support | None = None
    for index, passage in enumerate(passages):
        if numbers(sentence) - numbers(passage):
            continue
        matched = [w for w in content_words(passage) if w.stem in claimed]
        share = len({w.stem for w in matched}) / len(claimed)
        if share >= MIN_SUPPORT and (best is None or share > best.share):
            start, end = _shortest_window(matched)
            best = Support(index, start, end, share)
    return best


def _shortest_window(matched: Sequence[Word]) -> tuple[int, int]:
    """Return the shortest span that holds each matched stem at least once."""
    n_wanted = len({w.stem for w in matched})
    counts: dict[str, int] = {}
    best = (matched[0].start, matched[-1].end)
    left = 0
    for right in matched:
        counts[right.stem] = counts.get(right.stem, 0) + 1
        while len(counts) == n_wanted:
            first = matched[left]
            if right.end - first.start < best[1] - best[0]:
                best = (first.start, right.end)
            counts[first.stem] -= 1
            if not counts[first.stem]:
                del counts[first.stem]
            left += 1
    return best
