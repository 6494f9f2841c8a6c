"""Find the number of rows from which a vector index is faster than reading every vector.

Run from the checkout, with the shared data beside it: `python benchmarks/search.py`.
Embeds 6,000 paragraphs and questions of SQuAD and XQuAD and asks 100 other questions. Larger tables
hold mixtures of two of those vectors with a little noise: as near to each other as real texts are.
Takes about six minutes on 2 cores; read the ratio of a line, not its milliseconds.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import lance
import numpy as np
import polars as pl
import pyarrow as pa

from rag import upkeep, weights
from rag.embedding.torch_engine import E5Embedding

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZES = (5_000, 10_000, 20_000, 50_000, 100_000)
N_REAL, N_QUERIES, K = 6_000, 100, 10
CHARS = 400
"""Of a paragraph; what comes after makes embedding slower, not search."""


def embedded() -> tuple[np.ndarray, np.ndarray]:
    """Return real passages `(n, 384)` and queries `(100, 384)`, both float32 and normalised."""
    texts: list[str] = []
    for folder in ("squad2", "xquad"):
        texts += pl.read_parquet(DATA / folder / "passages.parquet")["text"].to_list()
        texts += pl.read_parquet(DATA / folder / "questions.parquet")["question"].to_list()
    texts = list(dict.fromkeys(text[:CHARS] for text in texts))
    random.Random(0).shuffle(texts)
    questions = [text for text in texts if text.endswith("?")][-N_QUERIES:]
    model = E5Embedding(weights.embedding_folder("multilingual-e5-small"))
    passages = model.get_text_embedding_batch(sorted(texts[:N_REAL], key=len))
    queries = [model.get_query_embedding(question) for question in questions]
    return normalised(np.array(passages)), normalised(np.array(queries))


def normalised(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def grown(real: np.ndarray, n: int) -> np.ndarray:
    """Return `n` vectors: the real ones, then mixtures of two of them with some noise."""
    rng = np.random.default_rng(0)
    n_more = max(0, n - len(real))
    one, other = rng.integers(len(real), size=(2, n_more))
    share = rng.uniform(0.15, 0.5, size=(n_more, 1)).astype(np.float32)
    noise = rng.standard_normal((n_more, real.shape[1])).astype(np.float32) * 0.004
    return np.vstack([real[:n], normalised((1 - share) * real[one] + share * real[other] + noise)])


def p50_ms(dataset: lance.LanceDataset, queries: np.ndarray) -> float:
    times = []
    for query in queries:
        nearest = {
            "column": "vector",
            "q": query,
            "k": K,
            "metric": "cosine",
            "nprobes": upkeep.N_PROBES,
            "refine_factor": upkeep.REFINE_FACTOR,
        }
        start = time.perf_counter()
        dataset.to_table(columns=["id", "_distance"], nearest=nearest)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1_000


def main() -> None:
    real, queries = embedded()
    print("| rows | flat p50 | indexed p50 | flat : indexed | recall@10 | build |")
    print("|---|---|---|---|---|---|")
    for n in SIZES:
        vectors = grown(real, n)
        table = pa.table(
            {
                "id": [str(i) for i in range(n)],
                "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            dataset = lance.write_dataset(table, f"{folder}/nodes.lance")
            flat = p50_ms(dataset, queries)
            start = time.perf_counter()
            dataset.create_index("vector", **upkeep.VECTOR_INDEX)
            built = time.perf_counter() - start
            indexed = p50_ms(dataset, queries)
            recall = upkeep.recall(dataset, n_queries=N_QUERIES, k=K)
        print(
            f"| {n:,} | {flat:.1f} ms | {indexed:.1f} ms | {flat / indexed:.1f} "
            f"| {recall:.3f} | {built:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
