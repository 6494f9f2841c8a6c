"""A Delta version becomes an index version.

Knows the table, the store and what embeds; does not know settings or where models come from.
What changed is found by key and content hash (`compare`), only new text is embedded, into a
staging table (`staging`), and one commit publishes it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import pyarrow as pa
from lancedb.table import LanceTable

from rag.errors import IndexingError, IndexMismatch, IndexWriteError, TableEmpty
from rag.mirror.compare import Changes, by_feed, by_rows
from rag.mirror.staging import Load, Splitter, Staging
from rag.progress import Progress, SyncReport, silent
from rag.store import STAGE, IndexState, NodeStore, nodes_schema
from rag.table import FeedUnreadable, Snapshot
from rag.template import text_hash

__all__ = ["Load", "Recipe", "Splitter", "sync"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How passages become vectors; an index is of one recipe."""

    embedding: str
    """Identity of the embedding space."""
    dimension: int
    chunk_tokens: int
    chunk_overlap: int


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
        table, state = _opened(store, drops_unreadable=rebuild)
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
            store.tidy()
            return _report(state, Changes(n_unchanged=state.n_rows, read="nothing"), 0, started)
        run = _Sync(store, snapshot, load, progress, table=table, state=state, wanted=wanted)
        changes = run.collect()
        state = run.publish(changes)
        return _report(state, changes, run.staging.n_embedded, started)


def _opened(
    store: NodeStore, *, drops_unreadable: bool
) -> tuple[LanceTable | None, IndexState | None]:
    try:
        table = store.snapshot()
        return table, store.state(table) if table is not None else None
    except IndexingError:
        if not drops_unreadable:
            raise
        store.discard()
        return None, None


class _Sync:
    """One run: compare, stage, publish."""

    def __init__(
        self,
        store: NodeStore,
        snapshot: Snapshot,
        load: Load,
        progress: Progress,
        *,
        table: LanceTable | None,
        state: IndexState | None,
        wanted: IndexState,
    ) -> None:
        self.store, self.snapshot, self.progress = store, snapshot, progress
        self.table, self.state, self.wanted = table, state, wanted
        schema = nodes_schema(wanted.dimension, snapshot.schema())
        self.base = state if state and _same_build(state, wanted, table, schema) else None
        """What the index can be moved on from; None when it is built anew."""
        has_vectors = state is not None and state.embedding == wanted.embedding
        base = "none" if self.base is None else self.base.table_version
        mark = text_hash(wanted.to_json())[:12]
        self.staging = Staging(
            store,
            f"{STAGE}{base}-{snapshot.version}-{mark}",
            schema,
            load,
            table if has_vectors else None,
        )

    def collect(self) -> Changes:
        """Find out what differs, and stage it."""
        if self.base is not None and self.table is not None and self._follows(self.base):
            try:
                return by_feed(
                    self.snapshot,
                    self.base,
                    self.store,
                    self.table,
                    self.staging,
                    progress=self.progress,
                )
            except FeedUnreadable as e:
                _log.info("Reading the whole table, not its change feed: %s", e)
        old = {}
        if self.table is not None and self.state is not None:
            old = self.store.hashes(self.table)
        return by_rows(
            self.snapshot,
            old,
            self.staging,
            keeps_equal=self.base is not None,
            progress=self.progress,
        )

    def publish(self, changes: Changes) -> IndexState:
        """Commit what was staged."""
        n_rows = changes.n_added + changes.n_updated + changes.n_unchanged
        if not n_rows:
            raise TableEmpty(self.snapshot.uri, self.snapshot.version, changes.n_blank)
        state = replace(
            self.wanted, n_rows=n_rows, n_nodes=changes.n_nodes, n_blank=changes.n_blank
        )
        self.progress("publishing", 0, 0)
        if self.base is not None and self.table is not None:
            self.store.merge(self.table, self.staging.table, changes.gone, state)
        else:
            self.store.replace(self.staging.table, state)
        self.store.tidy()
        return state

    def _follows(self, base: IndexState) -> bool:
        # a table restored from a backup and written on is another one from that version on
        return base.table_version < self.snapshot.version and bool(
            base.commit and base.commit == self.snapshot.commit_of(base.table_version)
        )


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
        commit=snapshot.commit_of(snapshot.version),
    )


def _counts_of(state: IndexState, wanted: IndexState) -> IndexState:
    """Return `wanted` with the counts of `state`, so that the rest can be compared."""
    return replace(wanted, n_rows=state.n_rows, n_nodes=state.n_nodes, n_blank=state.n_blank)


def _same_build(
    state: IndexState, wanted: IndexState, table: LanceTable | None, schema: pa.Schema
) -> bool:
    """Whether only the table's version moved, so that equal rows can stay as they are."""
    moved = replace(
        _counts_of(state, wanted),
        table_version=state.table_version,
        table_uri=state.table_uri,
        commit=state.commit,
    )
    return table is not None and state == moved and table.schema.equals(schema)


def _report(state: IndexState, changes: Changes, n_embedded: int, started: float) -> SyncReport:
    return SyncReport(
        table_version=state.table_version,
        n_added=changes.n_added,
        n_updated=changes.n_updated,
        n_deleted=changes.n_deleted,
        n_unchanged=changes.n_unchanged,
        n_embedded=n_embedded,
        seconds=time.monotonic() - started,
        n_blank=state.n_blank,
        read=changes.read,
    )


@contextlib.contextmanager
def _alone(uri: str, progress: Progress) -> Iterator[None]:
    """Hold the index's lock; a second sync on this machine waits for the first."""
    if "://" in uri:  # on object storage the commit itself refuses a stale base
        yield
        return
    try:
        Path(uri).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise IndexWriteError(uri, str(e)) from e
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
