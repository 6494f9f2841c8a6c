"""Which row comes first, and how likely it helps: by meaning and by words.

Knows numbers and words; does not know stores or models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from rag.words import stems

_COVERAGE = 0.08
"""What a row that holds all words of the question gains on one that holds none, in cosine.

Source: `benchmarks/quality.py`, 2026-11-22: on SQuAD 2.0 and XQuAD in four languages any value from
0.06 to 0.1 ranks better than vectors or BM25 alone. Reciprocal rank fusion (k = 60) does not: it
lets a search by words that found nothing but "how do I" speak as loudly as one that found a code.
"""


def coverage(question: str, texts: Sequence[str]) -> list[float]:
    """Return the share of the question that each text holds, 0 to 1.

    A share of its content words, each weighed by how few of the texts hold it (the inverse document
    frequency of BM25, among the candidates): a word that all of them hold tells them not apart.

    Args:
        question: As searched for.
        texts: All candidates.
    """
    asked = stems(question)
    held = [asked & stems(text) for text in texts]
    n_holding = Counter(stem for found in held for stem in found)
    n = len(texts)
    weights = {w: math.log(1 + (n - n_holding[w] + 0.5) / (n_holding[w] + 0.5)) for w in asked}
    whole = sum(weights.values())
    return [sum(weights[w] for w in found) / whole if whole else 0.0 for found in held]


def fused(cosine: float, covered: float) -> float:
    """Return the score of a row that was searched by meaning and by words.

    Args:
        cosine: Similarity of row and question.
        covered: Share of the question that the row holds, see `coverage`.
    """
    return cosine + _COVERAGE * covered


_BIAS, _COSINE, _GAP, _COVERED = -107.95, 126.12, 28.20, 11.55
"""Source: logistic regression of 2026-11-22 by `benchmarks/relevance.py`: multilingual-e5-small on
four SQuAD 2.0 articles (Huguenot, Normans, Steam engine, 1973 oil crisis), answerable questions
against questions on other articles. README: what it reaches elsewhere."""
_FOREIGN = 0.5
"""Coverage that a row of another language than the question has at least: few words are the same in
both. Source: XQuAD, questions in German and Spanish to English paragraphs, all taken as foreign: 73
and 78 % are answered instead of 33 and 37 %, and 98 % of the off-topic ones refused."""
_DENSE = {"CJK": 0.025}
"""By script, how much nearer to each other E5 puts texts than in English. Source: half of XQuAD zh:
98 % are answered and 95 % of the off-topic questions refused, without it 100 and 36 %."""


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
