"""Questions in, rows out, best first; and how likely each one helps.

Knows the store, what embeds, and how rows are ranked; does not know language models or settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilters

from rag.errors import QuestionError
from rag.index import node_id
from rag.ranking import coverage, fused, relevance
from rag.search import Found
from rag.settings import Mode
from rag.store import N_CANDIDATES, NodeStore
from rag.words import language

_OVERFETCH = 4
"""Nodes asked for each row wanted, because several nodes can be of one row."""
_N_JOINED = 2
"""The best nodes become one passage when they are of one row and touch: what is asked for may
straddle them. More would make a passage that a small model loses its way in."""
_TITLE_CHARS = 80

Rerank = Callable[[str, Sequence[str]], Sequence[float]]
"""`(question, passages) -> scores`, greater is better."""


class Hit(NodeWithScore):
    """A row found; `score` is what put it into its place: fused, cosine, BM25 or the reranker's."""

    cosine: float
    """Similarity of question and passage by meaning."""
    bm25: float | None
    """Score of the search by words; None where it was not asked or did not find the passage."""
    coverage: float
    """Share of the question's words that the passage holds, 0 to 1, rare ones weighing more."""
    relevance: float
    """Calibrated probability, 0 to 1, that the row helps with the question."""
    title: str
    """One line that names the row."""
    also: tuple[str, ...] = ()
    """Keys of other rows with the very same passage, which are not listed themselves."""


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """How rows are found."""

    top_k: int
    """Distinct passages to return at most."""
    mode: Mode = "hybrid"
    filters: MetadataFilters | None = None
    """Only rows that match; keys are columns of the table."""
    title_column: str | None = None
    """The column that names a row; None takes the start of its text."""
    n_neighbours: int = 0
    """Nodes before and after, of the same row, that are joined to the one found."""
    rerank: Rerank | None = None
    rerank_rows: int = 20
    """Best rows that are ranked anew."""


@dataclass(frozen=True)
class _Ranked:
    """A node with what its place in the ranking is by."""

    found: Found
    score: float
    covered: float


@dataclass(frozen=True)
class _Asked:
    """What of a question the relevance of a row needs."""

    language: str | None
    cosines: Sequence[float]
    """Of the rows nearest by meaning, best first."""


@dataclass(frozen=True)
class _Row:
    """A row that was found."""

    best: _Ranked
    others: Sequence[TextNode]
    """More of its nodes that were found."""
    also: tuple[str, ...] = ()


class TableRetriever(BaseRetriever):
    """Finds the rows of the mirrored table that help with a question.

    Args:
        store: The index.
        embed_model: What embedded it.
        options: How rows are found.
    """

    def __init__(
        self, store: NodeStore, embed_model: BaseEmbedding, options: RetrievalOptions
    ) -> None:
        super().__init__()
        self._store, self._embed_model, self._options = store, embed_model, options

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        question = query_bundle.query_str
        if not question.strip():
            raise QuestionError("The question is empty. Ask something about the table.")
        embedding = query_bundle.embedding or self._embed_model.get_query_embedding(question)
        found = self._found(question, embedding)
        rows = self._reranked(question, _rows(self._ranked(question, found)))
        asked = _Asked(language(question), _cosines(found))
        return [self._hit(row, asked) for row in rows[: self._options.top_k]]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _found(self, question: str, embedding: list[float]) -> list[Found]:
        """Return nodes of enough distinct rows, or all that there are."""
        options = self._options
        words = "" if options.mode == "vector" else question
        n_rows = max(options.top_k, options.rerank_rows if options.rerank else 0)
        n = max(n_rows * _OVERFETCH, N_CANDIDATES)
        while True:
            found = self._store.search(embedding, words, n=n, filters=options.filters)
            counted = [f for f in found if options.mode != "text" or f.bm25 is not None]
            if len({_row_key(f) for f in counted}) >= n_rows or len(counted) < n:
                return found
            n *= 2

    def _ranked(self, question: str, found: Sequence[Found]) -> list[_Ranked]:
        """Return the nodes that the mode may find, best first."""
        shares = coverage(question, [f.node.text for f in found])
        if self._options.mode == "text":
            worded = [(f, share) for f, share in zip(found, shares, strict=True) if f.bm25]
            ranked = [_Ranked(f, f.bm25 or 0.0, share) for f, share in worded]
        else:
            is_hybrid = self._options.mode == "hybrid"
            ranked = [
                _Ranked(f, fused(f.cosine, share) if is_hybrid else f.cosine, share)
                for f, share in zip(found, shares, strict=True)
            ]
        return sorted(ranked, key=lambda r: r.score, reverse=True)

    def _reranked(self, question: str, rows: list[_Row]) -> list[_Row]:
        if self._options.rerank is None or not rows:
            return rows
        best = rows[: self._options.rerank_rows]
        scores = self._options.rerank(question, [r.best.found.node.text for r in best])
        anew = [
            replace(row, best=replace(row.best, score=float(score)))
            for row, score in zip(best, scores, strict=True)
        ]
        return sorted(anew, key=lambda r: r.best.score, reverse=True)

    def _hit(self, row: _Row, asked: _Asked) -> Hit:
        best = row.best
        return Hit(
            node=self._widened(row),
            score=best.score,
            cosine=best.found.cosine,
            bm25=best.found.bm25,
            coverage=best.covered,
            relevance=relevance(
                best.found.cosine,
                asked.cosines,
                best.covered,
                asked_in=asked.language,
                written_in=language(best.found.node.text),
            ),
            title=self._title(best.found.node),
            also=row.also,
        )

    def _widened(self, row: _Row) -> TextNode:
        """Return the node found, joined with the ones of its row that touch it."""
        node, others = row.best.found.node, row.others
        if self._options.n_neighbours:
            others = [*others, *self._neighbours(node)]
        return joined(node, others)

    def _neighbours(self, node: TextNode) -> list[TextNode]:
        number, _, key = node.node_id.partition(":")
        reach = range(1, self._options.n_neighbours + 1)
        wanted = [int(number) + step for n in reach for step in (-n, n)]
        ids = [node_id(key, n) for n in wanted if n >= 0]
        beside = self._store.get_nodes(ids)
        # a sync between the two reads may have moved the index on: no row is made of two versions
        version = node.metadata["table_version"]
        return [n for n in beside if n.metadata["table_version"] == version]

    def _title(self, node: TextNode) -> str:
        column = self._options.title_column
        value = node.metadata.get(column) if column else None
        text = " ".join(str(value or node.text).split())
        return text if len(text) <= _TITLE_CHARS else text[: _TITLE_CHARS - 1].rstrip() + "…"


def joined(node: TextNode, others: Sequence[TextNode]) -> TextNode:
    """Return a node that also holds those of its row that overlap or adjoin it.

    Args:
        node: Its id and metadata stay.
        others: Nodes of the same row and version, in any order; those that do not touch are left.
    """
    passages: list[tuple[int, int, str]] = []
    for start, end, text in sorted(map(_span, [node, *others])):
        first, last, held = passages[-1] if passages else (0, -1, "")
        if start > last:
            passages.append((start, end, text))
        elif end > last:
            passages[-1] = (first, end, held + text[last - start :])
    own = node.start_char_idx or 0
    start, end, text = next(p for p in reversed(passages) if p[0] <= own)
    span = {"text": text, "start_char_idx": start, "end_char_idx": end}
    return node.model_copy(update=span)


def _span(node: TextNode) -> tuple[int, int, str]:
    start = node.start_char_idx or 0
    return start, start + len(node.text), node.text


def _rows(ranked: Sequence[_Ranked]) -> list[_Row]:
    """Return one row for each key and passage, best first.

    Nodes of one row that touch each other are one passage when both are among the best; rows with
    the very same passage are one row, which names the others.
    """
    of_row: dict[str, list[_Ranked]] = {}
    for r in ranked:
        of_row.setdefault(_row_key(r.found), []).append(r)
    by_text: dict[str, _Row] = {}
    near = {r.found.node.node_id for r in ranked[:_N_JOINED]}
    for key, nodes in of_row.items():
        best = nodes[0]
        same = by_text.get(best.found.node.text)
        if same is not None:
            by_text[best.found.node.text] = replace(same, also=(*same.also, key))
            continue
        others = [r.found.node for r in nodes[1:] if r.found.node.node_id in near]
        by_text[best.found.node.text] = _Row(best, others)
    return list(by_text.values())


def _cosines(found: Sequence[Found]) -> list[float]:
    best: dict[str, float] = {}
    for f in found:
        best[_row_key(f)] = max(f.cosine, best.get(_row_key(f), -1.0))
    return sorted(best.values(), reverse=True)[:N_CANDIDATES]


def _row_key(found: Found) -> str:
    return str(found.node.metadata["row_key"])
