"""Rows that differ become nodes with vectors, collected in a staging table.

Knows the store and what embeds; does not know why a row differs. What is staged survives a kill:
the next sync between the same two states finds it and does not embed it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import polars as pl
import pyarrow as pa
from lancedb.table import LanceTable
from llama_index.core.base.embeddings.base import BaseEmbedding

from rag.store import NodeStore, node_id
from rag.table import Rows
from rag.template import text_hash

_SLICE = 256
"""Rows embedded and staged at a time: what a kill can lose."""
_PIECE = 32
"""Texts embedded between two reports of progress: two to three seconds on 2 cores."""


class Splitter(Protocol):
    """Cuts texts that are longer than the embedding model's window."""

    def spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return the character spans of each text's nodes."""


Load = Callable[[], tuple[BaseEmbedding, Splitter]]
"""Loads the embedding model; called only when there is text to embed."""


class Staging:
    """Embeds rows into a staging table.

    Args:
        store: The index.
        name: Of the staging table; equal work has an equal name.
        schema: Of the nodes.
        load: Loads what embeds.
        known: Holds vectors of the same embedding space to take over; None where there are none.
    """

    def __init__(
        self,
        store: NodeStore,
        name: str,
        schema: pa.Schema,
        load: Load,
        known: LanceTable | None,
    ) -> None:
        self.name = name
        self.n_nodes = 0
        """Nodes of the rows added."""
        self.n_embedded = 0
        self._store, self._schema, self._load, self._known = store, schema, load, known
        self.table = store.stage(name, schema)
        self._staged = store.hashes(self.table)
        self._embedder: tuple[BaseEmbedding, Splitter] | None = None

    def add(self, rows: Rows, tell: Callable[[int], None]) -> dict[str, int]:
        """Stage rows.

        Args:
            rows: Of distinct keys.
            tell: Told how many of them are embedded.

        Returns:
            The number of nodes of each row, by key.
        """
        n_nodes: dict[str, int] = {}
        for part in slices(rows):
            n_nodes |= self._add(part, partial(_tell_more, tell, len(n_nodes)))
        self.n_nodes += sum(n_nodes.values())
        return n_nodes

    def _add(self, rows: Rows, tell: Callable[[int], None]) -> dict[str, int]:
        n_nodes = {
            key: self._staged[key][1]
            for key, h in zip(rows.keys, rows.hashes, strict=True)
            if self._staged.get(key, ("", 0))[0] == h
        }
        rows = rows.filter(~rows.keys.is_in(list(n_nodes)))
        if len(rows.keys):
            model, splitter = self._embedder = self._embedder or self._load()
            nodes = _cut(rows, splitter)
            vectors = self._vectors(nodes, model, tell)
            self._store.append(self.table, nodes.batch(vectors, self._schema))
            for row in nodes.row:
                key = rows.keys[row]
                n_nodes[key] = n_nodes.get(key, 0) + 1
        return n_nodes

    def _vectors(
        self, nodes: _Nodes, model: BaseEmbedding, tell: Callable[[int], None]
    ) -> list[list[float]]:
        found: dict[str, list[float]] = {}
        if self._known is not None:
            found = self._store.vectors(self._known, sorted(set(nodes.hashes)))
        new = {h: text for h, text in zip(nodes.hashes, nodes.texts, strict=True) if h not in found}
        # of like length, so that no batch is mostly padding; in pieces, so that progress shows
        order = sorted(new, key=lambda h: len(new[h]))
        for start in range(0, len(order), _PIECE):
            piece = order[start : start + _PIECE]
            embedded = model.get_text_embedding_batch([new[h] for h in piece])
            found |= dict(zip(piece, embedded, strict=True))
            self.n_embedded += len(piece)
            tell(len(nodes.rows.keys) * (start + len(piece)) // len(order))
        return [found[h] for h in nodes.hashes]


def _tell_more(tell: Callable[[int], None], n_before: int, n_more: int) -> None:
    tell(n_before + n_more)


def slices(rows: Rows) -> Iterator[Rows]:
    """Yield the rows in the portions that are staged at a time."""
    for start in range(0, len(rows.keys), _SLICE):
        yield rows.slice(start, _SLICE)


@dataclass
class _Nodes:
    """The nodes of some rows: parallel lists."""

    rows: Rows
    row: list[int]
    """Which row of `rows` each node is of."""
    chunk_no: list[int]
    spans: list[tuple[int, int]]
    texts: list[str]
    hashes: list[str]

    def batch(self, vectors: list[list[float]], schema: pa.Schema) -> pa.RecordBatch:
        """Return the Arrow batch that the store keeps."""
        index = pl.Series(self.row, dtype=pl.UInt32)
        keys = self.rows.keys.gather(index).to_list()
        columns = self.rows.columns[self.row].to_arrow().combine_chunks()
        struct = schema.field("metadata").type
        values: dict[str, pa.Array] = {
            "id": pa.array([node_id(k, n) for k, n in zip(keys, self.chunk_no, strict=True)]),
            "row_key": pa.array(keys, pa.string()),
            "chunk_no": pa.array(self.chunk_no, pa.int32()),
            "start": pa.array([s for s, _ in self.spans], pa.int32()),
            "end": pa.array([e for _, e in self.spans], pa.int32()),
            "row_hash": pa.array(self.rows.hashes.gather(index).to_list(), pa.string()),
            "text_hash": pa.array(self.hashes, pa.string()),
            "text": pa.array(self.texts, pa.string()),
            "vector": pa.array(vectors, schema.field("vector").type),
            "metadata": pa.StructArray.from_arrays(
                [
                    columns.column(f.name).combine_chunks().cast(f.type)
                    for f in (struct.field(i) for i in range(struct.num_fields))
                ],
                fields=list(struct),
            ),
            "state": pa.nulls(len(keys), pa.string()),
        }
        return pa.RecordBatch.from_arrays([values[n] for n in schema.names], schema=schema)


def _cut(rows: Rows, splitter: Splitter) -> _Nodes:
    nodes = _Nodes(rows, [], [], [], [], [])
    texts = rows.texts.to_list()
    for row, (text, spans) in enumerate(zip(texts, splitter.spans(texts), strict=True)):
        for chunk_no, (start, end) in enumerate(spans):
            nodes.row.append(row)
            nodes.chunk_no.append(chunk_no)
            nodes.spans.append((start, end))
            nodes.texts.append(text[start:end])
            nodes.hashes.append(text_hash(text[start:end]))
    return nodes
