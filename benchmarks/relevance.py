"""Fit and check the relevance of `rag.retrieval` on the SQuAD 2.0 sample.

Run from the checkout, with the shared data beside it: `python benchmarks/relevance.py`.
Fits on four articles (answerable questions against questions on other articles), reports the
other four. Takes about four minutes on 2 cores; prints the constants to put into the code.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import polars as pl
from scipy.optimize import minimize

from rag import weights
from rag.embedding import E5Embedding
from rag.retrieval import overlap
from rag.splitting import Splitter

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "squad2"
FIT = {"Huguenot", "Normans", "Steam engine", "1973 oil crisis"}
N_CONTEXT = 20


@dataclass(frozen=True)
class Corpus:
    """Nodes of all articles, and the questions, embedded."""

    titles: list[str]
    rows: list[int]
    texts: list[str]
    vectors: np.ndarray
    questions: pl.DataFrame
    queries: np.ndarray


def load() -> Corpus:
    passages = pl.read_parquet(DATA / "passages.parquet")
    questions = pl.read_parquet(DATA / "questions.parquet")
    questions = questions.join(
        passages.select(gold_id="id", title="title"), on="gold_id", how="left"
    )
    folder = weights.embedding_folder("multilingual-e5-small")
    model = E5Embedding(folder)
    rows, texts = [], []
    for i, (text, spans) in enumerate(
        zip(passages["text"], Splitter(folder).spans(passages["text"].to_list()), strict=True)
    ):
        for start, end in spans:
            rows.append(i)
            texts.append(text[start:end])
    return Corpus(
        titles=passages["title"].to_list(),
        rows=rows,
        texts=texts,
        vectors=np.array(model.get_text_embedding_batch(texts)),
        questions=questions,
        queries=np.array([model.get_query_embedding(q) for q in questions["question"]]),
    )


def features(corpus: Corpus, articles: set[str], asked: list[int]) -> np.ndarray:
    """Return cosine, gap and overlap of the best row for each question: `(n, 3)`."""
    nodes = [i for i, row in enumerate(corpus.rows) if corpus.titles[row] in articles]
    found = []
    for q in asked:
        cosines = corpus.vectors[nodes] @ corpus.queries[q]
        best: dict[int, tuple[float, int]] = {}
        for i in np.argsort(-cosines)[:N_CONTEXT]:
            best.setdefault(corpus.rows[nodes[i]], (float(cosines[i]), nodes[i]))
        scores = [score for score, _ in best.values()]
        node = next(iter(best.values()))[1]
        shared = overlap(corpus.questions["question"][q], corpus.texts[node])
        found.append((scores[0], scores[0] - fmean(scores[1:]), shared))
    return np.array(found)


def both(corpus: Corpus, articles: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of answerable and of as many off-topic questions."""
    titles, impossible = corpus.questions["title"], corpus.questions["is_impossible"]
    inside = [i for i, t in enumerate(titles) if t in articles and not impossible[i]]
    outside = [i for i, t in enumerate(titles) if t not in articles]
    random.Random(0).shuffle(outside)
    return (
        features(corpus, articles, inside),
        features(corpus, articles, outside[: len(inside)]),
    )


def unanswered(corpus: Corpus, articles: set[str]) -> np.ndarray:
    """Return the features of questions that sound like an article but have no answer in it."""
    titles, impossible = corpus.questions["title"], corpus.questions["is_impossible"]
    asked = [i for i, t in enumerate(titles) if t in articles and impossible[i]]
    return features(corpus, articles, asked)


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


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the probability that a positive scores above a negative."""
    rank = np.concatenate([positive, negative]).argsort().argsort()
    n = len(positive)
    return float((rank[:n].sum() - n * (n - 1) / 2) / (n * len(negative)))


def main() -> None:
    corpus = load()
    slope, bias = fit(*both(corpus, FIT))
    print(f"_BIAS, _COSINE, _GAP, _OVERLAP = {bias:.2f}, " + ", ".join(f"{s:.2f}" for s in slope))
    others = set(corpus.titles) - FIT
    answerable, off_topic = (x @ slope + bias for x in both(corpus, others))
    print(f"other articles: AUC {auc(answerable, off_topic):.3f}")
    impossible = unanswered(corpus, others) @ slope + bias
    print(f"against questions on them without an answer: AUC {auc(answerable, impossible):.3f}")
    print(f"at 0.5: answers {(answerable >= 0).mean():.1%}, refuses {(off_topic < 0).mean():.1%}")


if __name__ == "__main__":
    main()
