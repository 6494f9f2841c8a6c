"""The public question sets in `../shared/data`, mirrored as any Delta table is, and asked.

Used by `quality.py` and `relevance.py`; nothing of the data is copied into the repository.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from deltalake import write_deltalake
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

import rag
from rag.retrieval import Hit, RetrievalOptions, TableRetriever
from rag.settings import Mode
from rag.wiring import parts

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SQUAD_FIT = ("Huguenot", "Normans", "Steam engine", "1973 oil crisis")
"""SQuAD 2.0 articles that constants are fitted on; figures are reported on the others."""


@dataclass(frozen=True)
class Asked:
    """A question of a set."""

    text: str
    gold: str
    """Row key of the paragraph that it is about."""
    title: str
    """Article of that paragraph."""
    is_answerable: bool


@dataclass
class Corpus:
    """Paragraphs in an index, and questions to them, embedded."""

    settings: rag.Settings
    questions: list[Asked]
    titles: list[str]
    """Articles, in order."""
    embeddings: np.ndarray
    """Of the questions, `(n, 384) float32`."""

    def retriever(
        self,
        *,
        mode: Mode = "hybrid",
        titles: Collection[str] | None = None,
        top_k: int = 10,
    ) -> TableRetriever:
        """Return what finds rows, of some articles only or of all."""
        filters = None
        if titles is not None:
            chosen = MetadataFilter(key="title", value=sorted(titles), operator=FilterOperator.IN)
            filters = MetadataFilters(filters=[chosen])
        options = RetrievalOptions(top_k=top_k, mode=mode, filters=filters)
        store, model = parts.open_store(self.settings), parts.load_embedding(self.settings)
        return TableRetriever(store, model, options)

    def ask(self, retriever: TableRetriever, asked: Sequence[int]) -> list[list[Hit]]:
        """Return the hits of some questions, by their numbers."""
        return [
            retriever.retrieve(
                QueryBundle(self.questions[i].text, embedding=self.embeddings[i].tolist())
            )
            for i in asked
        ]

    def numbers(self, titles: Collection[str], *, is_answerable: bool = True) -> list[int]:
        """Return the numbers of the questions on some articles."""
        return [
            i
            for i, q in enumerate(self.questions)
            if q.title in titles and q.is_answerable == is_answerable
        ]


def squad(folder: Path) -> Corpus:
    """Mirror the SQuAD 2.0 sample: 294 paragraphs of 8 articles, 2,805 questions."""
    passages = pl.read_parquet(DATA / "squad2" / "passages.parquet")
    questions = pl.read_parquet(DATA / "squad2" / "questions.parquet").select(
        "question", gold="gold_id", is_answerable=~pl.col("is_impossible")
    )
    return _mirrored(folder / "squad", passages.select("id", "title", "text"), questions)


def xquad(folder: Path, lang: str, *, asked_in: str | None = None) -> Corpus:
    """Mirror XQuAD of one language: 240 paragraphs of 48 articles, 1,190 questions.

    Args:
        folder: Where table and index are made.
        lang: `en`, `de`, `es` or `zh`.
        asked_in: Language of the questions; None is the paragraphs'.
    """
    passages = pl.read_parquet(DATA / "xquad" / "passages.parquet").filter(lang=lang)
    # paragraphs are aligned: a question of any language knows its paragraph's number
    passages = passages.select(id=pl.col("para").cast(pl.String), title="article", text="text")
    questions = pl.read_parquet(DATA / "xquad" / "questions.parquet")
    questions = questions.filter(lang=asked_in or lang).select(
        "question", gold=pl.col("gold_para").cast(pl.String), is_answerable=True
    )
    return _mirrored(folder / f"xquad-{lang}", passages, questions)


def _mirrored(folder: Path, passages: pl.DataFrame, questions: pl.DataFrame) -> Corpus:
    """Write the paragraphs as a Delta table, mirror it, and embed the questions."""
    passages = passages.with_columns(pl.col("title").cast(pl.String))
    settings = rag.Settings(
        table={"uri": str(folder / "table"), "template": "{text}", "key": ["id"]},
        index={"uri": str(folder / "index")},
    )
    if not folder.exists():
        write_deltalake(folder / "table", passages)
        rag.sync(settings)
    rows = questions.join(passages.select(gold="id", title="title"), on="gold", how="left")
    assert rows["title"].null_count() == 0, "each question belongs to a paragraph"
    columns = rows.select("question", "gold", "title", "is_answerable")
    asked = [Asked(*values) for values in columns.iter_rows()]
    model = parts.load_embedding(settings)
    # LlamaIndex embeds questions one by one; thousands of them are ten times as fast in batches
    embeddings = np.array(model._embed([q.text for q in asked], "query"), np.float32)
    titles = passages["title"].unique(maintain_order=True).to_list()
    return Corpus(settings, asked, titles, embeddings)
