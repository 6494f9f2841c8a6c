"""Figures of retrieval, answers and refusal, each with how far chance may have moved it.

Knows numbers and row keys; does not know where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CUTOFFS = (1, 5, 10)
"""The k of recall@k; MRR and nDCG are cut at the last one."""
N_RESAMPLES = 1_000
_SEED = 0
_CONFIDENCE = 0.95
_AT_ONCE = 2_000_000
"""Numbers of a resampling that are in memory at once (16 MB)."""

Array = np.ndarray[Any, np.dtype[Any]]
Ranking = Sequence[Collection[str]]
"""The row keys that each hit stands for, best hit first: its own and those of equal passages."""


@dataclass(frozen=True)
class Estimate:
    """A figure, and the 95 % percentile bootstrap interval around it.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13;
    questions are resampled, 1,000 times, with a fixed seed.
    """

    value: float
    low: float
    high: float
    n: int
    """What it was measured on: questions, or claims or citations where those are counted."""


def recall(found: Ranking, expected: Collection[str], k: int) -> float:
    """Return the share of the expected rows among the first `k` hits, 0 to 1."""
    wanted = set(expected)
    return len(wanted & {key for keys in found[:k] for key in keys}) / len(wanted)


def reciprocal_rank(found: Ranking, expected: Collection[str], k: int) -> float:
    """Return 1 / rank of the first hit that is an expected row; 0 where the first `k` are not."""
    wanted = set(expected)
    ranks = (rank for rank, keys in enumerate(found[:k], 1) if not wanted.isdisjoint(keys))
    return 1 / next(ranks, math.inf)


def ndcg(found: Ranking, expected: Collection[str], k: int) -> float:
    """Return the normalised discounted cumulative gain of the first `k` hits, 0 to 1.

    Every expected row gains the same. Expected rows that one hit stands for count as one, so that
    the best possible order has 1.

    Source: K. Järvelin, J. Kekäläinen, ACM TOIS 20(4), 2002.
    """
    missing = set(expected)
    gain, n_wanted = 0.0, len(missing)
    for rank, keys in enumerate(found[:k], 1):
        covered = missing.intersection(keys)
        if covered:
            missing -= covered
            n_wanted -= len(covered) - 1
            gain += 1 / math.log2(rank + 1)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(n_wanted, k) + 1))
    return gain / ideal


def contains(answer: str, reference: str) -> bool:
    """Return whether an answer holds the reference, whatever the case and the blanks."""
    return _normal(reference) in _normal(answer)


def ratio(part: Sequence[float], whole: Sequence[float] | None = None) -> Estimate | None:
    """Estimate the sum of `part` over the sum of `whole`.

    Args:
        part: One number for each question.
        whole: As many; None is 1 for each, which makes the ratio a mean.

    Returns:
        None where the whole is nothing.
    """
    parts = np.asarray(part, dtype=float)
    wholes = np.ones_like(parts) if whole is None else np.asarray(whole, dtype=float)
    if not wholes.sum():
        return None

    def statistic(drawn: Array) -> Array:
        return _divided(parts[drawn].sum(axis=1), wholes[drawn].sum(axis=1))

    return _estimate(parts.sum() / wholes.sum(), len(parts), statistic, n=round(wholes.sum()))


def quantile(values: Sequence[float], q: float) -> Estimate | None:
    """Estimate a quantile, linear between two values; None where there are no values."""
    seen = np.asarray(values, dtype=float)
    if not len(seen):
        return None
    return _estimate(np.quantile(seen, q), len(seen), lambda i: np.quantile(seen[i], q, axis=1))


def auc(positive: Sequence[float], negative: Sequence[float]) -> Estimate | None:
    """Estimate the probability that a positive scores above a negative; a tie counts as half.

    Returns:
        None where one of the two is empty.
    """
    if not len(positive) or not len(negative):
        return None
    values, at = np.unique(np.r_[positive, negative], return_inverse=True)
    is_positive = np.arange(len(at)) < len(positive)

    def statistic(drawn: Array) -> Array:
        # how often each distinct value was drawn, of both kinds: (resamples, values)
        above = _counts(at[drawn], is_positive[drawn], len(values))
        below = _counts(at[drawn], ~is_positive[drawn], len(values))
        beaten = below.cumsum(axis=1) - below / 2
        return _divided((above * beaten).sum(axis=1), above.sum(axis=1) * below.sum(axis=1))

    return _estimate(statistic(np.arange(len(at))[None])[0], len(at), statistic)


def _estimate(
    value: float, n_drawn: int, statistic: Callable[[Array], Array], *, n: int | None = None
) -> Estimate:
    drawn = np.concatenate([statistic(rows) for rows in _resamples(n_drawn)])
    tail = (1 - _CONFIDENCE) / 2
    # a resample without what is divided by says nothing
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high), n_drawn if n is None else n)


def _resamples(n: int) -> Iterator[Array]:
    """Yield which of `n` questions each resample holds, in portions `(resamples, n)`."""
    random = np.random.default_rng(_SEED)
    portion = max(1, _AT_ONCE // n)
    for start in range(0, N_RESAMPLES, portion):
        yield random.integers(0, n, (min(portion, N_RESAMPLES - start), n))


def _divided(part: Array, whole: Array) -> Array:
    """Divide; NaN where there is nothing to divide by."""
    undefined: Array = np.full(len(part), np.nan)
    np.divide(part, whole, out=undefined, where=whole > 0)
    return undefined


def _counts(values: Array, chosen: Array, n_values: int) -> Array:
    """Return how often each value occurs in each line where it is chosen: `(lines, n_values)`."""
    lines = np.arange(len(values))[:, None] * n_values
    flat = (values + lines)[chosen]
    return np.bincount(flat, minlength=len(values) * n_values).reshape(-1, n_values)


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()
