"""Rows become nodes with vectors, collected in a staging table.

Knows the index and what embeds; does not know why a row is wanted. What is staged survives a kill:
the next sync of the same recipe finds it and does not embed it again, whatever version it mirrors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import pyarrow as pa
from lancedb.table import LanceTable
from llama_index.core.base.embeddings.base import BaseEmbedding

from rag.errors import IndexingError, IndexWriteError
from rag.index import COLUMNS, FAILURES, Index, index_cause, is_in, node_id
from rag.mirror.plan import together
from rag.progress import Progress
from rag.table import Rows
from rag.template import text_hash

_log = logging.getLogger(__name__)

STAGE = "rag-stage-"
"""How the names of staging tables begin; other tables of the database are left alone."""
_FEW = 2_000
"""Texts that are looked up in earlier versions too."""
_MOST_KEPT = 20_000
"""Vectors kept in memory, 30 MB of 384 dimensions."""
_KEPT = timedelta(days=7)
"""A stage of another recipe may be an interrupted switch; this long it can be gone on with."""


class Splitter(Protocol):
    """Cuts texts that are longer than the embedding model's window."""

    def spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return the character spans of each text's nodes."""


@dataclass(frozen=True)
class Embedder:
    """Loads what embeds; called only when there is text to embed."""

    model: Callable[[], BaseEmbedding]
    splitter: Callable[[], Splitter]


class Pace:
    """How many to take at a time, so that each portion takes about as long.

    Args:
        least: To start with.
        most: However fast it goes.
        seconds: What a portion should take.
    """

    def __init__(self, least: int, most: int, seconds: float) -> None:
        self.n = least
        self._least, self._most, self._seconds = least, most, seconds

    def took(self, n: int, seconds: float) -> None:
        """Learn how long a portion took."""
        if n >= self.n and seconds < self._seconds / 2:
            self.n = min(self.n * 2, self._most)
        elif seconds > self._seconds * 2:
            self.n = max(self.n // 2, self._least)


class Vectors:
    """Vectors of texts that were embedded before, by text hash.

    Args:
        index: The index.
        tables: Yields the versions that hold vectors of the same embedding space, likeliest first.
    """

    def __init__(self, index: Index, tables: Callable[[], Iterator[LanceTable]]) -> None:
        self._index, self._tables = index, tables
        self._kept: dict[str, np.ndarray] = {}

    def find(self, text_hashes: Sequence[str]) -> dict[str, list[float]]:
        """Return the vectors of those texts that are known."""
        found = {h: self._kept[h].tolist() for h in text_hashes if h in self._kept}
        for n, table in enumerate(self._tables()):
            missing = [h for h in text_hashes if h not in found]
            # earlier versions differ in few rows: worth a look for a restore, not for a build
            if not missing or (n and len(missing) > _FEW):
                break
            found |= self._index.vectors(table, missing)
        return found

    def keep(self, text_hashes: Sequence[str], vectors: Sequence[list[float]]) -> None:
        """Keep some for the rest of this sync: a text that repeats does so again and again."""
        for text, vector in zip(text_hashes, vectors, strict=True):
            if len(self._kept) < _MOST_KEPT:
                self._kept[text] = np.array(vector, np.float32)


class Staging:
    """Embeds rows into a staging table.

    Args:
        index: Holds the stage.
        name: Of the staging table; equal recipes and columns have an equal name.
        schema: Of the nodes.
        embedder: Loads what embeds.
        known: Vectors of the same embedding space, to take over.
    """

    def __init__(
        self,
        index: Index,
        name: str,
        schema: pa.Schema,
        embedder: Embedder,
        known: Vectors,
    ) -> None:
        self.name = name
        self.n_embedded = 0
        self._n_nodes = 0
        self._wanted = pl.DataFrame()
        """In order of the keys; empty when another sync has left nothing."""
        self._index, self._schema = index, schema
        self._embedder, self._known = embedder, known
        with index.writing():
            left = index.open(name)
            self.table = (
                index.connection.create_table(name, schema=schema) if left is None else left
            )
        # a kill can lose at most this much: 256 rows, or as many as are embedded in 20 seconds
        self._window = Pace(256, 8_192, 20.0)
        # between two reports of progress
        self._piece = Pace(32, 4_096, 1.0)

    def fill(
        self, rows: Iterable[tuple[Rows, pl.Series]], wanted: pl.DataFrame, progress: Progress
    ) -> pl.DataFrame:
        """Stage rows, so that the stage holds exactly the wanted ones.

        Args:
            rows: Reads the wanted rows, each batch with the `row_version` of its rows.
            wanted: `row_key`, `row_hash` and `row_version` of all of them.
            progress: Told how many are staged.

        Returns:
            What is staged: `row_key`, `row_hash` and `n_nodes`.

        Raises:
            IndexWriteError: another sync wrote into the same stage, or the disk is full.
        """
        left = self._left_by_another(wanted)
        if len(left):
            self._wanted = wanted.sort("row_key")
        self._n_nodes = int(left["n_nodes"].sum())
        done = len(left)
        progress("rows", done, len(wanted))
        is_staged = left["row_key"].implode()
        for part, versions in _windows(rows, self._window):
            new = ~part.keys.is_in(is_staged)
            n_new = int(new.sum())
            if not n_new:
                continue
            started = time.monotonic()
            tell = partial(_tell, progress, done, len(wanted))
            self._add(part.filter(new), versions.filter(new), tell)
            self._window.took(n_new, time.monotonic() - started)
            done += n_new
            progress("rows", done, len(wanted))
        with self._index.reading():
            self.table.checkout_latest()
        staged = self._index.hashes(self.table)
        if int(staged["n_nodes"].sum()) != self._n_nodes:  # its lock was lost or broken
            raise IndexWriteError(self._index.uri, "another sync staged nodes at the same time")
        return staged

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the staged nodes."""
        for batch in self.table.to_lance().to_batches():
            yield batch if self._wanted.is_empty() else self._dated(batch)

    def _dated(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Set the `row_version` of this sync: what was left may be of another one."""
        at = self._wanted["row_key"].search_sorted(pl.Series(batch["row_key"].to_pylist()))
        versions = pa.array(self._wanted["row_version"].gather(at).to_list(), pa.int64())
        column = batch.schema.get_field_index("row_version")
        return batch.set_column(column, self._schema.field("row_version"), versions)

    def _left_by_another(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """Return what an interrupted sync has staged and this one wants; the rest is dropped."""
        staged = self._index.hashes(self.table)
        content = ["row_key", "row_hash"]
        stale = staged.join(wanted, on=content, how="anti")["row_key"].to_list()
        for i in range(0, len(stale), 1_000):
            with self._index.writing():
                self.table.delete(is_in("row_key", stale[i : i + 1_000]))
        return staged.join(wanted, on=content, how="semi")

    def _add(self, rows: Rows, versions: pl.Series, tell: Callable[[int], None]) -> None:
        nodes = cut(rows, self._embedder.splitter())
        batch = nodes.batch(self._vectors(nodes, tell), versions, self._schema)
        self._n_nodes += batch.num_rows
        with self._index.writing():
            self.table.add(pa.Table.from_batches([batch]))

    def _vectors(self, nodes: Nodes, tell: Callable[[int], None]) -> list[list[float]]:
        found = self._known.find(sorted(set(nodes.hashes)))
        new = {h: text for h, text in zip(nodes.hashes, nodes.texts, strict=True) if h not in found}
        # of like length, so that no batch is mostly padding; in pieces, so that progress shows
        order = sorted(new, key=lambda h: len(new[h]))
        start = 0
        while start < len(order):
            piece = order[start : start + self._piece.n]
            started = time.monotonic()
            embedded = self._embedder.model().get_text_embedding_batch([new[h] for h in piece])
            self._piece.took(len(piece), time.monotonic() - started)
            found |= dict(zip(piece, embedded, strict=True))
            self._known.keep(piece, embedded)
            start += len(piece)
            self.n_embedded += len(piece)
            tell(len(nodes.rows.keys) * start // len(order))
        return [found[h] for h in nodes.hashes]


def _tell(progress: Progress, n_before: int, n_total: int, n_more: int) -> None:
    progress("rows", n_before + n_more, n_total)


def stages(index: Index) -> list[str]:
    """Return the names of all staging tables."""
    if "://" not in index.uri and not Path(index.uri).exists():
        return []
    with index.reading():
        return [n for n in index.connection.list_tables().tables if n.startswith(STAGE)]


def drop_stages(index: Index, done: str | None) -> None:
    """Drop the stage that was published, and those that nobody went on with for a week.

    A stage that stays does no harm, so a failure is only logged.

    Args:
        index: Holds the stages.
        done: Name of the published one; None drops them all.
    """
    try:
        for name in stages(index):
            table = index.open(name)
            if done in (name, None) or table is None or _is_old(table):
                index.connection.drop_table(name)
    except (*FAILURES, IndexingError) as e:
        _log.warning("A staging table of %s could not be dropped: %s", index.uri, index_cause(e))


def _is_old(stage: LanceTable) -> bool:
    written = stage.list_versions()[-1]["timestamp"].astimezone(UTC)
    return bool(datetime.now(UTC) - written > _KEPT)


def _windows(
    rows: Iterable[tuple[Rows, pl.Series]], window: Pace
) -> Iterator[tuple[Rows, pl.Series]]:
    """Cut and join batches into portions of the window's size."""
    parts: list[tuple[Rows, pl.Series]] = []
    n = 0
    for batch, versions in rows:
        start = 0
        while start < len(versions):
            part = batch.slice(start, window.n - n), versions.slice(start, window.n - n)
            parts.append(part)
            n += len(part[1])
            start += len(part[1])
            if n >= window.n:
                yield _joined(parts)
                parts, n = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[tuple[Rows, pl.Series]]) -> tuple[Rows, pl.Series]:
    return together(rows for rows, _ in parts), pl.concat([versions for _, versions in parts])


@dataclass
class Nodes:
    """The nodes of some rows: parallel lists."""

    rows: Rows
    row: list[int]
    """Which row of `rows` each node is of."""
    chunk_no: list[int]
    spans: list[tuple[int, int]]
    texts: list[str]
    hashes: list[str]

    def batch(
        self, vectors: list[list[float]], versions: pl.Series, schema: pa.Schema
    ) -> pa.RecordBatch:
        """Return the Arrow batch that the index keeps.

        Args:
            vectors: Of each node.
            versions: `row_version` of each row.
            schema: Of the index.
        """
        index = pl.Series(self.row, dtype=pl.UInt32)
        keys = self.rows.keys.gather(index).to_list()
        columns = self.rows.columns[self.row].to_arrow().combine_chunks()
        struct = schema.field(COLUMNS).type
        values: dict[str, pa.Array] = {
            "id": pa.array([node_id(k, n) for k, n in zip(keys, self.chunk_no, strict=True)]),
            "row_key": pa.array(keys, pa.string()),
            "chunk_no": pa.array(self.chunk_no, pa.int32()),
            "start": pa.array([s for s, _ in self.spans], pa.int32()),
            "end": pa.array([e for _, e in self.spans], pa.int32()),
            "row_version": pa.array(versions.gather(index).to_list(), pa.int64()),
            "row_hash": pa.array(self.rows.hashes.gather(index).to_list(), pa.string()),
            "text_hash": pa.array(self.hashes, pa.string()),
            "text": pa.array(self.texts, pa.string()),
            "vector": pa.array(vectors, schema.field("vector").type),
            COLUMNS: pa.StructArray.from_arrays(
                [
                    columns.column(f.name).combine_chunks().cast(f.type)
                    for f in (struct.field(i) for i in range(struct.num_fields))
                ],
                fields=list(struct),
            ),
            "state": pa.nulls(len(keys), pa.string()),
        }
        return pa.RecordBatch.from_arrays([values[n] for n in schema.names], schema=schema)


def cut(rows: Rows, splitter: Splitter) -> Nodes:
    """Return the nodes of some rows."""
    nodes = Nodes(rows, [], [], [], [], [])
    texts = rows.texts.to_list()
    for row, (text, spans) in enumerate(zip(texts, splitter.spans(texts), strict=True)):
        for chunk_no, (start, end) in enumerate(spans):
            nodes.row.append(row)
            nodes.chunk_no.append(chunk_no)
            nodes.spans.append((start, end))
            nodes.texts.append(text[start:end])
            nodes.hashes.append(text_hash(text[start:end]))
    return nodes
