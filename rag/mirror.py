"""A Delta version becomes an index version.

Knows the table, the store and what embeds; does not know settings or where models come from.
Rows are compared by key and content hash; only new text is embedded. What changed is collected
in a staging table first (a killed sync continues there), then one commit publishes it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import filelock
import polars as pl
import pyarrow as pa
from lancedb.table import LanceTable
from llama_index.core.base.embeddings.base import BaseEmbedding

from rag.errors import IndexMismatch, TableEmpty
from rag.progress import Progress, SyncReport, silent
from rag.store import IndexState, NodeStore, node_id, nodes_schema
from rag.table import Rows, Snapshot
from rag.template import text_hash

_SLICE = 256
"""Rows embedded and staged at a time: what a kill can lose."""
_PIECE = 32
"""Texts embedded between two reports of progress: about two seconds on a laptop."""


class Splitter(Protocol):
    """Cuts texts that are longer than the embedding model's window."""

    def spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return the character spans of each text's nodes."""


@dataclass(frozen=True)
class Recipe:
    """How passages become vectors; an index is of one recipe."""

    embedding: str
    """Identity of the embedding space."""
    dimension: int
    chunk_tokens: int
    chunk_overlap: int


Load = Callable[[], tuple[BaseEmbedding, Splitter]]
"""Loads the embedding model; called only when there is text to embed."""


def sync(
    store: NodeStore,
    snapshot: Snapshot,
    recipe: Recipe,
    load: Load,
    *,
    rebuild: bool = False,
    replaces: bool = False,
    progress: Progress = silent,
) -> SyncReport:
    """Make the index mirror a Delta version.

    Args:
        store: The index.
        snapshot: The Delta version.
        recipe: How passages become vectors.
        load: Loads what embeds.
        rebuild: Build everything anew.
        replaces: Build anew, instead of refusing, when another table is now at the URI.
        progress: Told about rows.

    Raises:
        IndexMismatch: the index was made from another table.
        RowKeyError: a key is null or occurs twice; nothing was changed.
        TableEmpty: no row has any text.
        IndexWriteError: the disk is full; the old index still serves.
    """
    started = time.monotonic()
    with _alone(str(store.uri), progress):
        table = store.snapshot()
        state = store.state(table) if table is not None else None
        is_other = state is not None and state.table_id != snapshot.table_id
        if rebuild or (replaces and is_other):
            state = None
        if state is not None and state.table_id != snapshot.table_id:
            raise IndexMismatch(
                "table id",
                built=state.table_id,
                wanted=snapshot.table_id,
                mend=f"Another table is now at {snapshot.uri!r}: "
                "run `rag sync --rebuild` to index that one instead.",
            )
        wanted = _state(snapshot, recipe)
        if state is not None and state == _counts_of(state, wanted):
            return _report(state, _Changes(n_unchanged=state.n_rows), started)
        run = _Sync(store, snapshot, recipe, load, progress, table, state, wanted)
        changes = run.collect()
        state = run.publish(changes)
        return _report(state, changes, started)


@dataclass
class _Changes:
    """What the comparison found; all rows, but for `n_embedded` and `gone`."""

    n_added: int = 0
    n_updated: int = 0
    n_deleted: int = 0
    n_unchanged: int = 0
    n_embedded: int = 0
    n_blank: int = 0
    n_nodes: int = 0
    gone: tuple[str, ...] = ()
    """Ids of nodes that go."""


class _Sync:
    """One run: compare, stage, publish."""

    def __init__(
        self,
        store: NodeStore,
        snapshot: Snapshot,
        recipe: Recipe,
        load: Load,
        progress: Progress,
        table: LanceTable | None,
        state: IndexState | None,
        wanted: IndexState,
    ) -> None:
        self.store, self.snapshot, self.recipe = store, snapshot, recipe
        self.load, self.progress, self.wanted = load, progress, wanted
        self.schema = nodes_schema(recipe.dimension, snapshot.schema())
        self.table = table
        self.is_merge = state is not None and _same_build(state, wanted, table, self.schema)
        self.has_vectors = state is not None and state.embedding == recipe.embedding
        self.old = store.hashes(table) if table is not None and state is not None else {}
        base = state.table_version if self.is_merge and state is not None else "none"
        mark = text_hash(wanted.to_json())[:12]
        self.stage_name = f"stage-{base}-{snapshot.version}-{mark}"
        self.stage = store.stage(self.stage_name, self.schema)
        self.staged = store.hashes(self.stage)
        self.embedder: tuple[BaseEmbedding, Splitter] | None = None
        self.n_seen, self.n_total = 0, snapshot.n_rows()

    def collect(self) -> _Changes:
        """Compare all rows with the index; stage the nodes of those that differ."""
        changes = _Changes()
        left = dict(self.old)
        gone: list[str] = []
        for rows in self.snapshot.rows():
            changes.n_blank += rows.n_blank
            self.n_seen += rows.n_blank
            for part in _slices(rows):
                old = [left.pop(key, None) for key in part.keys]
                same = [
                    self.is_merge and before is not None and before[0] == h
                    for before, h in zip(old, part.hashes, strict=True)
                ]
                changes.n_unchanged += sum(same)
                changes.n_added += sum(before is None for before in old)
                changes.n_updated += sum(
                    before is not None and not s for before, s in zip(old, same, strict=True)
                )
                changes.n_nodes += sum(
                    before[1] for before, s in zip(old, same, strict=True) if s and before
                )
                differs = pl.Series([not s for s in same], dtype=pl.Boolean)
                n_nodes = self._stage(part.filter(differs), changes)
                for key, before in zip(part.keys, old, strict=True):
                    if before is not None and key in n_nodes:
                        gone += [node_id(key, i) for i in range(n_nodes[key], before[1])]
                self.n_seen += len(part.keys)
                self._tell(0)
        for key, (_, n) in left.items():
            gone += [node_id(key, i) for i in range(n)]
        changes.n_deleted = len(left)
        changes.gone = tuple(gone)
        return changes

    def publish(self, changes: _Changes) -> IndexState:
        """Commit what was staged."""
        n_rows = changes.n_added + changes.n_updated + changes.n_unchanged
        if not n_rows:
            raise TableEmpty(self.snapshot.uri, self.snapshot.version, changes.n_blank)
        state = replace(
            self.wanted, n_rows=n_rows, n_nodes=changes.n_nodes, n_blank=changes.n_blank
        )
        self.progress("publishing", 0, 0)
        if self.is_merge and self.table is not None:
            self.store.merge(self.table, self.stage, changes.gone, state)
        else:
            self.store.replace(self.stage, state)
        self.store.drop(self.stage_name)
        return state

    def _tell(self, n_more: int) -> None:
        n_done = self.n_seen + n_more
        self.progress("rows", n_done, max(self.n_total, n_done))

    def _stage(self, rows: Rows, changes: _Changes) -> dict[str, int]:
        """Embed and stage rows; return each row's number of nodes."""
        n_nodes = {
            key: self.staged[key][1]
            for key, h in zip(rows.keys, rows.hashes, strict=True)
            if self.staged.get(key, ("", 0))[0] == h
        }
        rows = rows.filter(~rows.keys.is_in(list(n_nodes)))
        if len(rows.keys):
            model, splitter = self.embedder = self.embedder or self.load()
            nodes = _cut(rows, splitter)
            vectors = self._vectors(nodes, model, changes)
            self.store.append(self.stage, nodes.batch(vectors, self.schema))
            for row in nodes.row:
                key = rows.keys[row]
                n_nodes[key] = n_nodes.get(key, 0) + 1
        changes.n_nodes += sum(n_nodes.values())
        return n_nodes

    def _vectors(self, nodes: _Nodes, model: BaseEmbedding, changes: _Changes) -> list[list[float]]:
        known: dict[str, list[float]] = {}
        if self.has_vectors and self.table is not None:
            known = self.store.vectors(self.table, sorted(set(nodes.hashes)))
        new = {h: text for h, text in zip(nodes.hashes, nodes.texts, strict=True) if h not in known}
        # of like length, so that no batch is mostly padding; in pieces, so that progress shows
        order = sorted(new, key=lambda h: len(new[h]))
        for start in range(0, len(order), _PIECE):
            piece = order[start : start + _PIECE]
            embedded = model.get_text_embedding_batch([new[h] for h in piece])
            known |= dict(zip(piece, embedded, strict=True))
            changes.n_embedded += len(piece)
            n_done = start + len(piece)
            self._tell(len(nodes.rows.keys) * n_done // len(order))
        return [known[h] for h in nodes.hashes]


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


def _slices(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows.keys), _SLICE):
        yield rows.slice(start, _SLICE)


def _state(snapshot: Snapshot, recipe: Recipe) -> IndexState:
    return IndexState(
        table_uri=snapshot.uri,
        table_id=snapshot.table_id,
        table_version=snapshot.version,
        key=snapshot.key,
        template=snapshot.template.source,
        embedding=recipe.embedding,
        dimension=recipe.dimension,
        chunk_tokens=recipe.chunk_tokens,
        chunk_overlap=recipe.chunk_overlap,
        n_rows=0,
        n_nodes=0,
        n_blank=0,
    )


def _counts_of(state: IndexState, wanted: IndexState) -> IndexState:
    """Return `wanted` with the counts of `state`, so that the rest can be compared."""
    return replace(wanted, n_rows=state.n_rows, n_nodes=state.n_nodes, n_blank=state.n_blank)


def _same_build(
    state: IndexState, wanted: IndexState, table: LanceTable | None, schema: pa.Schema
) -> bool:
    """Whether only the table's version moved, so that equal rows can stay as they are."""
    moved = replace(
        _counts_of(state, wanted), table_version=state.table_version, table_uri=state.table_uri
    )
    return table is not None and state == moved and table.schema.equals(schema)


def _report(state: IndexState, changes: _Changes, started: float) -> SyncReport:
    return SyncReport(
        table_version=state.table_version,
        n_added=changes.n_added,
        n_updated=changes.n_updated,
        n_deleted=changes.n_deleted,
        n_unchanged=changes.n_unchanged,
        n_embedded=changes.n_embedded,
        seconds=time.monotonic() - started,
        n_blank=state.n_blank,
    )


@contextlib.contextmanager
def _alone(uri: str, progress: Progress) -> Iterator[None]:
    """Hold the index's lock; a second sync on this machine waits for the first."""
    if "://" in uri:  # on object storage the commit itself refuses a stale base
        yield
        return
    Path(uri).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(Path(uri) / ".sync.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress("waiting for another sync", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
