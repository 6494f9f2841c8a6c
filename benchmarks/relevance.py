"""Fit the relevance of `rag.ranking` on four articles of the SQuAD 2.0 sample.

Run from the checkout, with the shared data beside it: `python benchmarks/relevance.py`. Prints the
constants to put into the code; what they reach elsewhere is what `quality.py refusal` prints.
Takes about ten minutes on 2 cores, most of it embedding the questions.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
from corpora import SQUAD_FIT, Corpus, squad
from llama_index.core.schema import QueryBundle
from scipy.optimize import minimize

from rag.store import N_CANDIDATES


def features(corpus: Corpus, asked: list[int]) -> np.ndarray:
    """Return cosine, gap and coverage of the first row for each question: `(n, 3)`."""
    both = corpus.retriever(titles=SQUAD_FIT)
    nearest = corpus.retriever(titles=SQUAD_FIT, mode="vector", top_k=N_CANDIDATES)
    found = []
    for i in asked:
        bundle = QueryBundle(corpus.questions[i].text, embedding=corpus.embeddings[i].tolist())
        first = both.retrieve(bundle)[0]
        rest = [hit.cosine for hit in nearest.retrieve(bundle)][1:]
        found.append((first.cosine, first.cosine - fmean(rest), first.coverage))
    return np.array(found)


def fit(answerable: np.ndarray, off_topic: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights and the bias of a logistic regression."""
    x = np.vstack([answerable, off_topic])
    sign = np.r_[np.ones(len(answerable)), -np.ones(len(off_topic))]
    mean, spread = x.mean(0), x.std(0)
    z = np.c_[(x - mean) / spread, np.ones(len(x))]

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -sign * (z @ w)).mean() + 1e-4 * (w**2).sum())

    w = minimize(loss, np.zeros(z.shape[1])).x
    return w[:-1] / spread, float(w[-1] - (w[:-1] * mean / spread).sum())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = squad(Path(folder))
        inside = corpus.numbers(SQUAD_FIT)
        outside = [i for i, q in enumerate(corpus.questions) if q.title not in SQUAD_FIT]
        outside = random.Random(0).sample(outside, len(inside))
        slope, bias = fit(features(corpus, inside), features(corpus, outside))
    shown = ", ".join(f"{s:.2f}" for s in slope)
    print(f"_BIAS, _COSINE, _GAP, _COVERED = {bias:.2f}, {shown}")


if __name__ == "__main__":
    main()
