"""Which row comes first, and how likely it helps: by meaning and by words.

Knows numbers and words; does not know stores or models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rag.words import stems

_COVERAGE = 0.12
"""What a row that holds all words of the question gains on one that holds none, in cosine.

Source: 2026-11-22, on SQuAD 2.0 and XQuAD in four languages any value from 0.08 to 0.15 ranks
better than vectors or BM25 alone; from 0.2 on the demo suffers. Reciprocal rank fusion does not:
it lets a search by words that found nothing but "how do I" speak as loudly as one that found a
code (`benchmarks/quality.py retrieval` prints both).
"""
_N_MISSING = 2


def coverage(question: str, texts: Sequence[str]) -> list[float]:
    """Return the share of the question that each text holds, 0 to 1.

    A share of its content words, each weighed by how few of the texts hold it (the inverse document
    frequency of BM25, among the candidates): a word that all of them hold tells them not apart. Two
    more words are counted as missing, because a question of one word says too little to be sure of:
    "What is the weather?" is not answered by any row with bad weather.

    Args:
        question: As searched for.
        texts: All candidates.
    """
    asked = stems(question)
    held = [asked & stems(text) for text in texts]
    n_holding = Counter(stem for found in held for stem in found)
    n = len(texts)
    weights = {w: _rarity(n_holding[w], n) for w in asked}
    whole = sum(weights.values()) + _N_MISSING * _rarity(0, n)
    return [sum(weights[w] for w in found) / whole for found in held]


def _rarity(n_holding: int, n: int) -> float:
    return math.log(1 + (n - n_holding + 0.5) / (n_holding + 0.5))


def fused(cosine: float, covered: float) -> float:
    """Return the score of a row that was searched by meaning and by words.

    Args:
        cosine: Similarity of row and question.
        covered: Share of the question that the row holds, see `coverage`.
    """
    return cosine + _COVERAGE * covered


_BIAS, _COSINE, _GAP, _COVERED = -103.54, 121.44, 1.54, 22.26
"""Source: logistic regression of 2026-11-22 by `benchmarks/relevance.py`: multilingual-e5-small on
four SQuAD 2.0 articles (Huguenot, Normans, Steam engine, 1973 oil crisis), answerable questions
against questions on other articles. README: what it reaches elsewhere."""
_FOREIGN = 0.3
"""Coverage that a row of another language than the question has at least: few words are the same in
both. Source: XQuAD, questions in German and Spanish to English paragraphs, all taken as foreign: 69
and 76 % are answered at 0.7, and 97 % of the off-topic ones refused; without it 25 % and 100 %."""
_DENSE = {"CJK": 0.025}
"""By script, how much nearer to each other E5 puts texts than in English. Source: half of XQuAD zh:
at 0.7, 98 % are answered and 95 % of the off-topic questions refused, without it 100 and 38 %."""


def relevance(
    cosine: float,
    cosines: Sequence[float],
    covered: float,
    *,
    asked_in: str | None = None,
    written_in: str | None = None,
) -> float:
    """Return the probability that a row helps with a question.

    Args:
        cosine: Similarity of the row.
        cosines: Similarities of the rows nearest by meaning, best first.
        covered: Share of the question that the row holds, see `coverage`.
        asked_in: Language of the question, see `words.language`; None where it does not tell.
        written_in: Language of the row.
    """
    rest = cosines[1:]
    gap = cosine - fmean(rest) if rest else 0.0
    if asked_in is not None and written_in is not None and asked_in != written_in:
        covered = max(covered, _FOREIGN)
    elif asked_in == written_in:
        cosine -= _DENSE.get(written_in or "", 0.0)
    z = _BIAS + _COSINE * cosine + _GAP * gap + _COVERED * covered
    return 1 / (1 + math.exp(-z))
