"""Which passages support a sentence, and where.

Knows words, and how to have texts embedded; does not know models, stores or what a turn is.
Citations are made here, after the model has written a sentence: nothing that a model says about
its sources is believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rag.claims import MIN_WORDS, Claim, Passage, Support
from rag.words import language, sentences, stems

Embed = Callable[[list[str]], list[list[float]]]
"""Texts in, a vector of length 1 out for each."""

MIN_SIMILARITY = 0.89
"""Cosine of a sentence and a sentence of a passage in another language that count as the same.

Source: XQuAD, 12 of its 48 articles in en, de, es and zh, multilingual-e5-small, 2026-11-22. Of
3,987 sentences against the aligned paragraph in another language 34 % are supported; against
another paragraph of the article none of 3,987, against the aligned paragraph without the aligned
sentence 0.7 % of 2,392: a precision of 0.98 at worst. At 0.88: 40 %, 0.05 %, 1.2 %.
Within one language meaning does not decide: at 0.89 it would accept 13 % of other paragraphs."""
_EMBEDDED_CHARS = 400
"""Of a sentence, so that it fits the embedding model's window."""
_PREFERRED = 0.15
"""What a marker of the model's own is worth, as a share of words."""
_DECLINES = re.compile(
    r"\b(?:i|we) (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t) "
    r"(?:know|say|tell|find|answer|see|have (?:any |enough )?information)\b"
    r"|\b(?:i|we)(?: am|['’]m| are|['’]re) (?:not sure|unable|sorry)\b"
    r"|\b(?:passages?|text|table|context|sources?|rows?|documents?|information|records?)\b"
    r"[^.,;]{0,30}\b(?:do(?:es)? not|don['’]t|doesn['’]t|cannot)\b"
    r"|\bno (?:information|mention|answer|passage|row)\b"
    r"|\bnot (?:mentioned|stated|specified|given|provided|answered) (?:in|by) the\b"
    r"|\b(?:ich weiß (?:es )?nicht|steht nicht in|keine (?:angabe|information)|no lo sé|"
    r"no se menciona|je ne sais pas)|不知道|没有提到|没有相关",
    re.IGNORECASE,
)
"""A model that says it has no answer, in the words that instructed models use."""


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


class Evidence:
    """The passages of one turn, and what they support.

    Args:
        passages: Texts, best first.
        question: Words and numbers that it holds are not news in an answer.
        embed: Embeds texts, as passages; None decides by words alone. It is called only for a
            sentence that words do not decide, and for the passages at most once.
    """

    def __init__(
        self, passages: Sequence[str], *, question: str = "", embed: Embed | None = None
    ) -> None:
        self._passages = [Passage(text) for text in passages]
        self._asked = stems(question)
        self._question = Passage(question)
        self._embed = embed

    def supports(self, sentence: str, preferred: Collection[int] = ()) -> list[Support]:
        """Return what supports a sentence: nothing, one passage, or several in parts.

        Args:
            sentence: One sentence of an answer.
            preferred: Indexes of passages that the model named: they win when about as good.
        """
        claim = Claim(sentence, self._asked)
        whole = self._best(claim, preferred)
        parts = [p for p in claim.parts() if p.n_items >= MIN_WORDS]
        if whole is None or (whole.share < 1 and len(parts) > 1):
            found = [self._best(p, [whole.index] if whole else preferred) for p in parts]
            held = _distinct([whole, *found])
            is_whole = len(parts) > 1 and None not in found
            if whole or (is_whole and claim.is_held([self._passages[s.index] for s in held])):
                return held
            by_meaning = self._by_meaning(claim)
            return [by_meaning] if by_meaning else []
        return [whole]

    def holds_number(self, values: Collection[str]) -> bool:
        """Whether a passage or the question holds a number."""
        wanted = {f"#{v}" for v in values}
        return any(wanted & p.keys for p in (*self._passages, self._question))

    def holds_code(self, code: str) -> bool:
        """Whether a passage or the question holds a code such as `INV-4471`."""
        return any(p.holds_code(code) for p in (*self._passages, self._question))

    def holds_text(self, text: str) -> bool:
        """Whether a passage or the question holds these words, however spaced and cased."""
        return any(p.holds_text(text) for p in (*self._passages, self._question))

    def _best(self, claim: Claim, preferred: Collection[int]) -> Support | None:
        found = [s for i, p in enumerate(self._passages) if (s := claim.support(p, i))]
        return max(
            found,
            key=lambda s: (s.share + _PREFERRED * (s.index in preferred), -s.index),
            default=None,
        )

    def _by_meaning(self, claim: Claim) -> Support | None:
        if self._embed is None or not self._passages or claim.n_items < MIN_WORDS:
            return None
        spoken = language(claim.text)
        fitting = [
            i
            for i, p in enumerate(self._passages)
            if spoken and p.language and spoken != p.language and claim.is_held([p])
        ]
        if not fitting:
            return None
        where, vectors = self._sentences
        vector = np.asarray(self._embed([claim.text[:_EMBEDDED_CHARS]])[0], dtype=np.float32)
        best = max(
            (
                Support(i, start, end, float(v @ vector))
                for (i, start, end), v in zip(where, vectors, strict=True)
                if i in fitting
            ),
            key=lambda s: s.share,
            default=None,
        )
        return best if best is not None and best.share >= MIN_SIMILARITY else None

    @cached_property
    def _sentences(self) -> tuple[list[tuple[int, int, int]], np.ndarray]:
        assert self._embed is not None
        where = [(i, *span) for i, p in enumerate(self._passages) for span in sentences(p.text)]
        texts = [self._passages[i].text[start:end][:_EMBEDDED_CHARS] for i, start, end in where]
        return where, np.asarray(self._embed(texts) if texts else [], dtype=np.float32)


def find_support(sentence: str, passages: Sequence[str]) -> Support | None:
    """Return the passage that supports a sentence best, by its words; None if none does."""
    return next(iter(Evidence(passages).supports(sentence)), None)


def declines(sentence: str) -> bool:
    """Whether a sentence says that there is no answer: no claim, and nothing to hold against it."""
    return bool(_DECLINES.search(sentence))


def makes_claim(sentence: str, *, least: int = MIN_WORDS) -> bool:
    """Whether a sentence says something that a passage could support.

    Args:
        sentence: One that no passage supports.
        least: Words and numbers that a claim has.
    """
    claim = Claim(sentence, ())
    is_open = sentence.rstrip().endswith(("?", "？", ":", "："))
    return not is_open and claim.n_items >= least and not claim.is_pleasant


def _distinct(found: Sequence[Support | None]) -> list[Support]:
    """Return the supports of distinct passages, the first one of each."""
    by_index: dict[int, Support] = {}
    for support in found:
        if support is not None:
            by_index.setdefault(support.index, support)
    return list(by_index.values())
