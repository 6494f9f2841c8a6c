"""How alike two engines embed: on texts of our own, in many languages, short and long.

Knows neither engine. The texts are lines of `parity.txt`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rag.embedding import e5
    from rag.splitting import Splitter

MIN_COSINE = 0.99
"""From here on two engines share an index: nDCG@10 of public sets then differs by less than 0.005.

Source: measured with benchmarks/embedding.py, 2026-11-23."""

Embed = Callable[[list[str], "e5.Prompt"], list[list[float]]]
"""Texts, and what they are, become embeddings of length 1."""

_LINES = Path(__file__).with_name("parity.txt")


def texts(splitter: Splitter) -> list[str]:
    """Return each line, and all lines joined in two orders and cut into pieces of the most tokens.

    Args:
        splitter: Cuts what is longer than the model's window.
    """
    lines = _LINES.read_text("utf-8").splitlines()
    long = [" ".join(lines), " ".join(lines[::2] + lines[1::2])]
    every = [*lines, *long]
    spans = splitter.spans(every)
    return [
        text[start:end] for text, pieces in zip(every, spans, strict=True) for start, end in pieces
    ]


def embedded(embed: Embed, passages: list[str]) -> npt.NDArray[np.float32]:
    """Return the embeddings of texts `(2 n, dim)`: as passages in batches, as questions one by one.

    That is how an index is built, and how it is asked.
    """
    questions = [embed([text], "query")[0] for text in passages]
    return np.array([*embed(passages, "text"), *questions], np.float32)


def min_cosine(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """Return the least cosine of two engines' embeddings of the same texts, `(n, dim)` each."""
    return float((ours * theirs).sum(axis=1).min())
