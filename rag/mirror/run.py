"""One sync: look, recover, plan, stage, publish.

Knows what the index answers with and what is wanted instead, and chooses the way from the one to
the other; the steps themselves are in the other rooms of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import polars as pl
from lancedb.table import LanceTable

from rag.errors import IndexingError, OtherTable, TableEmpty
from rag.index import Index, IndexState, Opened, nodes_schema
from rag.mirror import publishing
from rag.mirror.plan import Plan, by_feed, by_rows
from rag.mirror.staging import STAGE, Embedder, Staging, Vectors, cut, drop_stages
from rag.progress import Progress, SyncReport
from rag.table import FeedUnreadable, Snapshot
from rag.template import text_hash
from rag.upkeep import Tokenizer

_log = logging.getLogger(__name__)

_FEW = 50_000
"""Rows that are compared in well under a second."""


@dataclass(frozen=True)
class Recipe:
    """How passages become vectors; an index is of one recipe."""

    embedding: str
    """Identity of the embedding space."""
    dimension: int
    chunk_tokens: int
    chunk_overlap: int
    embedder: Embedder = field(compare=False)


@dataclass(frozen=True)
class Options:
    """How a sync is done."""

    rebuild: bool = False
    """Build everything anew, from whatever table is there."""
    replaces: bool = False
    """Build anew, instead of refusing, when another table is now at the URI."""
    is_pinned: bool = False
    """Whether the version was asked for: older than the one that answers, it is mirrored beside."""
    distrusts: frozenset[str] = frozenset()
    """Keys of rows to write anew, whatever the index holds for them."""
    purge: bool = False
    """Afterwards remove from disk what is deleted, and every older version of the index."""
    keep_versions: int = 10
    """Mirrored versions that stay addressable."""
    tokenizer: Tokenizer = "words"
    """How the text index cuts texts; mirrors of older versions keep theirs."""


class Run:
    """One sync.

    Args:
        index: The index.
        snapshot: The Delta version to mirror.
        recipe: How passages become vectors.
        options: How it is done.
        progress: Told about rows.

    Raises:
        OtherTable: the index was made from another table.
        IndexingError: it cannot be read, and is not to be built anew.
    """

    def __init__(
        self,
        index: Index,
        snapshot: Snapshot,
        recipe: Recipe,
        *,
        options: Options,
        progress: Progress,
    ) -> None:
        self._index, self._snapshot, self._recipe = index, snapshot, recipe
        self._options, self._progress = options, progress
        self._wanted = _state(snapshot, recipe)
        self._schema = nodes_schema(recipe.dimension, snapshot.schema())
        self._answering: Opened | None = None
        self._base: Opened | None = None
        """What the index is moved on from; None when it is built anew."""
        self._look()

    def run(self) -> SyncReport:
        """Do whatever is left to do.

        Raises:
            TableEmpty: no row has any text.
            IndexWriteError: the index could not be written; the old one still serves.
        """
        self._recover()
        was_settled = self._answering is None or publishing.is_settled(
            self._index, self._answering, self._options.tokenizer
        )
        if not was_settled:  # a tag keeps what answers from being cleaned up under a longer build
            with self._index.writing():
                publishing.mark(self._index)
        if self._is_done():
            if not was_settled:
                self._progress("building the search indexes", 0, 0)
                self._settle()
            if not self._options.is_pinned:  # no other version is on its way
                drop_stages(self._index, self._stage())
            return self._reported(self._nothing())
        plan, version = self._plan(), self._snapshot.version
        if not plan.n_rows:
            raise TableEmpty(self._snapshot.uri, version, plan.n_blank, plan.n_left_out)
        staging = self._staging()
        staged = staging.fill(plan.rows(), plan.wanted, self._progress)
        self._progress("publishing", 0, 0)
        self._publish(plan, staging, staged)
        drop_stages(self._index, staging.name)
        return self._reported(plan.report(version, n_embedded=staging.n_embedded))

    def preview(self) -> SyncReport:
        """Return what `run` would do."""
        if self._is_done():
            return self._nothing()
        plan = self._plan()
        known = self._known()
        new: set[str] = set()
        for rows, _ in plan.rows():
            hashes = set(cut(rows, self._recipe.embedder.splitter()).hashes) - new
            new |= hashes - known.find(sorted(hashes)).keys()
        return plan.report(self._snapshot.version, n_embedded=len(new))

    def glance(self) -> SyncReport | None:
        """Return what changed, where that is told quickly; None where the table is large."""
        if self._is_done():
            return self._nothing()
        if self._base is None:
            return None
        if not self._follows(self._base.state) and self._snapshot.n_rows() > _FEW:
            return None
        return self._plan().report(self._snapshot.version, n_embedded=0)

    # -- where the index stands --------------------------------------------------------------

    def _look(self) -> None:
        try:
            self._answering = self._index.answering()
        except IndexingError:
            if not self._options.rebuild:
                raise
            self._answering = None
        state = self._state_now()
        if state is None:
            return
        may_replace = self._options.rebuild or self._options.replaces
        if state.table_id != self._snapshot.table_id and not may_replace:
            raise OtherTable(self._index.uri, mirrored=state.table_uri, found=self._snapshot.uri)
        assert self._answering is not None
        has_columns = self._answering.table.schema.equals(self._schema)
        self._base = self._answering if self._moves_on() and has_columns else None

    def _recover(self) -> None:
        """Finish, or take back, what a killed sync has left."""
        try:
            newest = self._index.newest()
        except IndexingError:
            if not self._options.rebuild:
                raise
            publishing.discard(self._index)
            return
        if newest is None or newest.state.answers is None:
            return
        if self._answering is None and newest.state.answers and self._options.rebuild:
            publishing.discard(self._index)  # what should answer cannot be read
            return
        if not newest.state.is_beside and newest.state.is_alike(self._wanted):
            publishing.switch(self._index, self._options.tokenizer)
        elif newest.state.answers:
            publishing.fall_back(self._index, newest.state.answers)
        self._look()

    def _state_now(self) -> IndexState | None:
        return None if self._answering is None else self._answering.state

    def _moves_on(self) -> bool:
        """Whether only the table's version moved, so that equal rows can stay as they are."""
        state = self._state_now()
        return state is not None and not self._options.rebuild and state.is_alike(self._wanted)

    def _is_beside(self) -> bool:
        """Whether an older version is to be mirrored while the newer one goes on answering."""
        state = self._state_now()
        return (
            state is not None
            and self._options.is_pinned
            and self._moves_on()
            and self._snapshot.version < state.table_version
        )

    def _is_done(self) -> bool:
        if not self._moves_on() or self._options.distrusts:
            return False
        mirrored = self._answering
        if self._is_beside():
            mirrored = self._index.mirrored(self._snapshot.version)
        return mirrored is not None and mirrored.state.is_of_one_version(self._wanted)

    # -- what is to be done ----------------------------------------------------------------------

    def _plan(self) -> Plan:
        """Find out what differs."""
        since = None if self._base is None else self._base.state.table_version
        if self._base is not None and not self._follows(self._base.state):
            since = None
        if self._base is not None and since is not None and not self._options.distrusts:
            try:
                return by_feed(
                    self._snapshot, self._base.state, self._held, progress=self._progress
                )
            except FeedUnreadable as e:
                _log.info("Reading the whole table, not its change feed: %s", e)
        return by_rows(
            self._snapshot,
            self._held,
            keeps_equal=self._base is not None,
            since=since,
            progress=self._progress,
        )

    def _follows(self, base: IndexState) -> bool:
        # a table restored from a backup and written on is another one from that version on
        return (
            base.table_version < self._snapshot.version
            and base.on_bad_key == self._wanted.on_bad_key
            and bool(base.commit)
            and base.commit == self._snapshot.commit_of(base.table_version)
        )

    def _held(self, column: str, among: list[str] | None) -> pl.DataFrame:
        """Return what the index holds; of a row that is not to be trusted, another content."""
        state = self._state_now()
        is_other = state is not None and state.table_id != self._snapshot.table_id
        if self._answering is None or self._options.rebuild or is_other:
            return pl.DataFrame(schema=_HELD)
        held = self._index.hashes(self._answering.table, column=column, among=among)
        if not self._options.distrusts:
            return held
        is_bad = pl.col("row_key").is_in(list(self._options.distrusts))
        return held.with_columns(
            pl.when(is_bad).then(pl.lit("")).otherwise(pl.col("row_hash")).alias("row_hash")
        )

    def _known(self) -> Vectors:
        """Return where vectors can be taken from: what answers, then earlier mirrored versions."""

        def tables() -> Iterator[LanceTable]:
            now = self._answering
            if now is None or self._options.rebuild or self._options.distrusts:
                return
            if now.state.embedding != self._wanted.embedding:
                return
            yield now.table
            for number in self._index.tags().values():
                if now.state.oldest <= number != now.number:
                    yield self._index.at(number).table

        return Vectors(self._index, tables)

    def _staging(self) -> Staging:
        return Staging(
            self._index, self._stage(), self._schema, self._recipe.embedder, self._known()
        )

    def _stage(self) -> str:
        recipe = replace(self._wanted, table_version=0, commit="", table_uri="")
        return STAGE + text_hash(recipe.to_json() + str(self._schema))[:12]

    def _publish(self, plan: Plan, staging: Staging, staged: pl.DataFrame) -> None:
        """Commit what was staged, and let it answer, or stand beside what answers."""
        is_beside, answering = self._is_beside(), self._answering
        newest = self._index.newest()
        state = replace(
            self._wanted,
            n_rows=plan.n_rows,
            n_nodes=plan.n_nodes_kept + int(staged["n_nodes"].sum()),
            n_blank=plan.n_blank,
            n_left_out=plan.n_left_out,
            is_beside=is_beside,
        )
        if answering is not None and self._moves_on() and (is_beside or self._goes_on()):
            state = replace(state, oldest=answering.state.oldest)
        elif newest is not None:
            state = replace(state, oldest=newest.number + 1)
        goes_on = answering.number if answering is not None else 0
        if self._base is not None:
            if is_beside:
                state = replace(state, answers=goes_on)
            gone = plan.gone(staged)
            publishing.merge(self._index, self._base, staging.batches(), gone, state)
        else:
            state = replace(state, answers=goes_on)
            publishing.replace_all(self._index, staging.batches(), self._schema, state)
            if is_beside:
                publishing.furnish(self._index, self._options.tokenizer)
            else:
                self._progress("building the search indexes", 0, 0)
                publishing.switch(self._index, self._options.tokenizer)
        if is_beside:
            with self._index.writing():
                publishing.mark(self._index)
            publishing.fall_back(self._index, goes_on)
        self._settle()

    def _goes_on(self) -> bool:
        """Whether the mirrored version is still one of the table's; a backup may have others."""
        state = self._state_now()
        if state is None or self._snapshot.version < state.table_version:
            return False
        there = self._snapshot.commit_of(state.table_version)
        return there in (state.commit, "") or not state.commit

    def _settle(self) -> None:
        # the version beside was asked for: it is not the one too many
        least = 2 if self._is_beside() else 1
        keep = max(self._options.keep_versions, least)
        publishing.settle(self._index, self._options.tokenizer, keep=keep)

    # -- what is told ----------------------------------------------------------------------------

    def _nothing(self) -> SyncReport:
        mirrored = self._index.mirrored(self._snapshot.version)
        assert mirrored is not None
        return SyncReport(
            table_version=self._snapshot.version,
            n_added=0,
            n_updated=0,
            n_deleted=0,
            n_unchanged=mirrored.state.n_rows,
            n_embedded=0,
            seconds=0.0,
            n_blank=mirrored.state.n_blank,
            n_left_out=mirrored.state.n_left_out,
            read="nothing",
        )

    def _reported(self, report: SyncReport) -> SyncReport:
        now = self._index.answering()
        return replace(report, answering_version=now.state.table_version if now else None)


def _state(snapshot: Snapshot, recipe: Recipe) -> IndexState:
    return IndexState(
        table_uri=snapshot.uri,
        table_id=snapshot.table_id,
        table_version=snapshot.version,
        key=snapshot.key,
        on_bad_key=snapshot.on_bad_key,
        template=snapshot.template.source,
        embedding=recipe.embedding,
        dimension=recipe.dimension,
        chunk_tokens=recipe.chunk_tokens,
        chunk_overlap=recipe.chunk_overlap,
        commit=snapshot.commit_of(snapshot.version),
    )


_HELD = {"row_key": pl.String, "row_hash": pl.String, "n_nodes": pl.UInt32}
