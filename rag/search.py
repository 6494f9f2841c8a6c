"""What a question finds in one version of the index: by meaning, by words.

Knows LanceDB's searches and LlamaIndex's nodes; does not rank, and knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.table import LanceTable
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilters

from rag.filters import where
from rag.index import COLUMNS, IndexState, Opened, is_in
from rag.table import row_metadata
from rag.upkeep import N_PROBES, REFINE_FACTOR

NODE = ["id", "row_key", "start", "end", "row_version", "text", COLUMNS]
"""Columns that a node is made of."""


@dataclass(frozen=True)
class Found:
    """A node that was found, and what each search says of it."""

    node: TextNode
    cosine: float
    """Similarity to the question, -1 to 1."""
    bm25: float | None
    """Score of the search by words; None where it did not find the node among its best."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched for, and among which nodes."""

    embedding: Sequence[float] | None = None
    """Of the question, normalised."""
    words: str = ""
    """The question; blank finds nothing by words."""
    n: int
    """Nodes wanted of each search."""
    filters: MetadataFilters | None = None
    row_keys: Sequence[str] | None = None
    node_ids: Sequence[str] | None = None


def by_vector(opened: Opened, asked: Search) -> list[Found]:
    """Return the nodes nearest by meaning, nearest first."""
    return [
        Found(node_of(row, opened.state), 1.0 - row["_distance"], None)
        for row in _near(opened.table, asked)
    ]


def by_words(opened: Opened, asked: Search) -> list[tuple[TextNode, float]]:
    """Return the best nodes by words with their BM25 scores, best first."""
    return [(node_of(row, opened.state), row["_score"]) for row in _worded(opened.table, asked)]


def by_both(opened: Opened, asked: Search) -> list[Found]:
    """Return the nodes nearest by meaning, then those best by words that are not among them."""
    worded = _worded(opened.table, asked, "vector")
    bm25 = {row["id"]: row["_score"] for row in worded}
    found = {
        row["id"]: Found(node_of(row, opened.state), 1.0 - row["_distance"], bm25.get(row["id"]))
        for row in _near(opened.table, asked)
    }
    for row in worded:
        if row["id"] not in found:
            cosine = _cosine(asked.embedding or (), row["vector"])
            found[row["id"]] = Found(node_of(row, opened.state), cosine, row["_score"])
    return list(found.values())


def predicate(table: LanceTable, filters: MetadataFilters) -> str:
    """Return what filters on the Delta table's columns mean in the index."""
    struct = table.schema.field(COLUMNS).type
    columns = pa.schema([struct.field(i) for i in range(struct.num_fields)])
    return where(filters, columns, prefix=COLUMNS)


def _near(table: LanceTable, asked: Search) -> list[dict[str, Any]]:
    query = table.search(np.asarray(asked.embedding, np.float32), vector_column_name="vector")
    query = query.distance_type("cosine").nprobes(N_PROBES).refine_factor(REFINE_FACTOR)
    return _rows(table, asked, query, "_distance")


def _worded(table: LanceTable, asked: Search, *more: str) -> list[dict[str, Any]]:
    if not asked.words.strip():
        return []
    query = table.search(asked.words, query_type="fts", fts_columns="text")
    return _rows(table, asked, query, "_score", *more)


def _rows(table: LanceTable, asked: Search, query: Any, *more: str) -> list[dict[str, Any]]:
    parts = [is_in("row_key", asked.row_keys)] if asked.row_keys else []
    parts += [is_in("id", asked.node_ids)] if asked.node_ids else []
    parts += [predicate(table, asked.filters)] if asked.filters is not None else []
    if parts:
        query = query.where(" AND ".join(parts), prefilter=True)
    found: list[dict[str, Any]] = query.limit(asked.n).select([*NODE, *more]).to_arrow().to_pylist()
    return found


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    a, b = np.asarray(one, np.float32), np.asarray(other, np.float32)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def node_of(row: dict[str, Any], state: IndexState) -> TextNode:
    """Return a row of the index as LlamaIndex's node."""
    metadata = row_metadata(
        state.table_uri,
        state.table_version,
        row["row_key"],
        row[COLUMNS],
        row_version=state.no_later(row["row_version"]),
    )
    hidden = list(metadata)
    return TextNode(
        id_=row["id"],
        text=row["text"],
        start_char_idx=row["start"],
        end_char_idx=row["end"],
        metadata=metadata,
        # a prompt or an embedding gets the template's text, nothing else
        excluded_embed_metadata_keys=hidden,
        excluded_llm_metadata_keys=hidden,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=row["row_key"])},
    )
