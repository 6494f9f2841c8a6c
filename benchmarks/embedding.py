"""Both embedding engines of the default model, in one run: speed, agreement, and what is found.

    python benchmarks/embedding.py            # with the shared data beside the checkout, 20 minutes
    python benchmarks/embedding.py speed      # or a part of it: `speed`, `agreement`, `retrieval`

The engines take turns, text by text and batch by batch, so that a busy machine slows both; read
the ratios. Batches are made as a sync makes them: 256 texts a call, sorted by length within.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from statistics import median

import numpy as np
import polars as pl
from corpora import DATA
from llama_index.core.base.embeddings.base import BaseEmbedding

import rag
from rag import weights
from rag.embedding import export, parity
from rag.evaluation.metrics import ndcg
from rag.splitting import Splitter
from rag.wiring import parts

MODEL = rag.Settings().embedding.model
ENGINES = ("torch", "onnx")
ROUNDS = 5
N_TEXTS, N_PARAGRAPHS, N_QUERIES = 128, 32, 40
LANGUAGES = ("en", "de", "es", "zh")


@cache
def engine(name: str) -> BaseEmbedding:
    return parts.load_embedding(
        rag.Settings(embedding={"engine": name, "device": "cpu"}),
    )


def main() -> None:
    chosen = sys.argv[1:] or ["speed", "agreement", "retrieval"]
    for name in chosen:
        {"speed": speed, "agreement": agreement, "retrieval": retrieval}[name]()


# -- speed ----------------------------------------------------------------------------------------


def speed() -> None:
    """Print texts a second and milliseconds a query of both engines, and their ratios."""
    squad = pl.read_parquet(DATA / "squad2" / "passages.parquet")["text"].to_list()
    asked = pl.read_parquet(DATA / "squad2" / "questions.parquet")["question"].to_list()
    short = [" ".join(text.split()[:30]) for text in squad[:N_TEXTS]]
    paragraphs = [" ".join(text.split()[:130]) for text in squad[:N_PARAGRAPHS]]
    for name in ENGINES:  # what a first call costs is not the speed
        engine(name).get_text_embedding_batch(short[:16])
    print("\n| on a CPU, the engines in turns | torch | onnx | ratio |")
    print("|---|--:|--:|--:|")
    for what, texts in (("texts of 30 words", short), ("paragraphs of 130 words", paragraphs)):
        found = _in_turns(lambda model, texts=texts: model.get_text_embedding_batch(texts), ROUNDS)
        torch, onnx = (len(texts) / found[name] for name in ENGINES)
        print(f"| {what}, a second | {torch:.1f} | {onnx:.1f} | {onnx / torch:.2f}x |", flush=True)
    for what, n in (("questions in a row, milliseconds each", 8), ("a question after a pause", 1)):
        each = [
            _in_turns(lambda model, few=few: _ask(model, few), ROUNDS)
            for few in (asked[i : i + n] for i in range(0, N_QUERIES, n))
        ]
        torch, onnx = (median(found[name] for found in each) * 1000 / n for name in ENGINES)
        print(f"| {what} | {torch:.1f} | {onnx:.1f} | {torch / onnx:.2f}x |", flush=True)


def _ask(model: BaseEmbedding, questions: list[str]) -> None:
    for question in questions:
        model.get_query_embedding(question)


def _in_turns(work: Callable[[BaseEmbedding], object], n_rounds: int) -> dict[str, float]:
    """Return the seconds of each engine, in the round that was disturbed least."""
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    for _ in range(n_rounds):
        for name, times in seconds.items():
            model = engine(name)
            # the other engine's threads spin for a while, waiting for more; its weights have
            # taken the cache, as a language model's do in a chat
            time.sleep(0.02)
            started = time.perf_counter()
            work(model)
            times.append(time.perf_counter() - started)
    return {name: min(times) for name, times in seconds.items()}


# -- agreement ------------------------------------------------------------------------------------


def agreement() -> None:
    """Print the least cosine of the engines, on the parity check's texts and on public ones."""
    recorded = export.recorded(weights.embedding_fingerprint(MODEL))
    assert recorded is not None, "loading the engine made it"
    sets = {"the texts of the parity check": parity.texts(_splitter())}
    for lang in LANGUAGES:
        rows = pl.read_parquet(DATA / "xquad" / "passages.parquet").filter(lang=lang)
        sets[f"XQuAD {lang}, 60 paragraphs"] = _fitting(rows["text"].to_list()[::4])
    print(
        f"\nLeast cosine of the two engines (recorded with the export: {recorded.min_cosine:.4f})"
    )
    for name, texts in sets.items():
        ours, theirs = (parity.embedded(engine(e)._embed, texts) for e in ENGINES)
        print(f"- {name}: {parity.min_cosine(ours, theirs):.4f}", flush=True)


# -- retrieval ------------------------------------------------------------------------------------


def retrieval() -> None:
    """Print nDCG@10 by meaning alone: each engine, and an index of one asked with the other."""
    pairs = [(built, asked) for built in ENGINES for asked in ENGINES]
    heads = " | ".join(f"{asked} asks {built}'s index" for built, asked in pairs)
    print(f"\n| nDCG@10, by cosine | questions | {heads} |")
    print("|---|--:|" + "--:|" * len(pairs))
    for name, passages, questions, gold in _sets():
        index = {e: _unit(engine(e)._embed(passages, "text")) for e in ENGINES}
        asked = {e: _unit(engine(e)._embed(questions, "query")) for e in ENGINES}
        cells = [f"{_ndcg(index[built], asked[by], gold):.4f}" for built, by in pairs]
        print(f"| {name} | {len(questions):,} | " + " | ".join(cells) + " |", flush=True)


def _sets() -> list[tuple[str, list[str], list[str], list[int]]]:
    """Return each set's name, paragraphs, questions, and the number of each one's paragraph."""
    passages = pl.read_parquet(DATA / "squad2" / "passages.parquet")
    questions = pl.read_parquet(DATA / "squad2" / "questions.parquet")
    found = [
        _numbered("SQuAD 2.0", passages, questions.filter(~pl.col("is_impossible")), "gold_id")
    ]
    passages = pl.read_parquet(DATA / "xquad" / "passages.parquet").with_columns(id="para")
    questions = pl.read_parquet(DATA / "xquad" / "questions.parquet")
    for lang in LANGUAGES:
        of_lang = passages.filter(lang=lang), questions.filter(lang=lang)
        found.append(_numbered(f"XQuAD {lang}", *of_lang, gold="gold_para"))
    return found


def _numbered(
    name: str, passages: pl.DataFrame, questions: pl.DataFrame, gold: str
) -> tuple[str, list[str], list[str], list[int]]:
    number = {key: i for i, key in enumerate(passages["id"].to_list())}
    gold_numbers = [number[key] for key in questions[gold].to_list()]
    texts = _fitting(passages["text"].to_list())
    return name, texts, questions["question"].to_list(), gold_numbers


@cache
def _splitter() -> Splitter:
    return Splitter(weights.embedding_folder(MODEL), overlap=0)


def _fitting(texts: list[str]) -> list[str]:
    """Return what the model can read of each paragraph: of a few long ones, the beginning."""
    spans = _splitter().spans(texts)
    return [text[slice(*pieces[0])] for text, pieces in zip(texts, spans, strict=True)]


def _unit(embeddings: list[list[float]]) -> np.ndarray:
    return np.array(embeddings, np.float32)


def _ndcg(index: np.ndarray, asked: np.ndarray, gold: list[int]) -> float:
    nearest = np.argsort(-(asked @ index.T), axis=1)[:, :10]
    rankings = [[[str(i)] for i in row] for row in nearest]
    pairs = zip(rankings, gold, strict=True)
    return float(np.mean([ndcg(found, [str(g)], 10) for found, g in pairs]))


if __name__ == "__main__":
    main()
