"""The index follows the table: sync, what a sync would do, verify, one row back.

Reads settings and hands the parts to the rooms that do the work.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from rag.errors import (
    IndexingError,
    RagError,
    RowNotFound,
    TableError,
)
from rag.progress import Progress, SyncReport, silent
from rag.settings import Settings
from rag.wiring.chats import forget_purged
from rag.wiring.parts import (
    chosen_version,
    open_index,
    open_snapshot,
    recipe_of,
    table_options,
)
from rag.wiring.standing import table_version

if TYPE_CHECKING:
    from rag import audit, mirror
    from rag.demo import DemoReport
    from rag.index import Index, IndexState
    from rag.provenance import RowView
    from rag.table import Snapshot

_REPAIRS = 2
"""What could not be read is verified only once it can: that takes a second look."""


def write_demo(settings: Settings) -> DemoReport:
    """Write the demo library at the table's URI; nothing happens when it is there already."""
    from rag import demo

    return demo.write(settings.table.uri, storage_options=table_options(settings))


def sync(
    settings: Settings,
    *,
    version: int | None = None,
    rebuild: bool = False,
    purge: bool = False,
    progress: Progress = silent,
) -> SyncReport:
    """Make the index mirror the Delta table; only changed text is embedded.

    Args:
        settings: Which table, model and index.
        version: Delta version; None is the settings' or the latest. One older than the version
            that answers is mirrored beside it.
        rebuild: Build anew even when the index was made from another table.
        purge: Afterwards remove from disk what is deleted, and every older version of the index;
            chats forget the rows that are gone.
        progress: Told how far it is.

    Raises:
        TableError: the table cannot be read as asked; the old index still serves.
        IndexingError: the index is of another table, or cannot be written.
        WeightsError: the embedding model's files are missing or corrupt.
        AccountsError: chats cannot be purged; all else is.
    """
    from rag import mirror

    chosen, index = chosen_version(settings, version), open_index(settings)
    report = mirror.sync(
        index,
        open_snapshot(settings, chosen),
        recipe_of(settings, progress),
        options=_options(settings, chosen, rebuild=rebuild, purge=purge),
        progress=progress,
    )
    if purge:
        progress("purging chats", 0, 0)
        forget_purged(settings, index)
    return report


def pending(
    settings: Settings,
    *,
    version: int | None = None,
    rebuild: bool = False,
    progress: Progress = silent,
) -> SyncReport:
    """Return what `sync` would do, without writing or embedding anything.

    Args:
        settings: Which table, model and index.
        version: Delta version; None is the settings' or the latest.
        rebuild: As for `sync`.
        progress: Told how far it is.
    """
    from rag import mirror

    chosen = chosen_version(settings, version)
    return mirror.pending(
        open_index(settings),
        open_snapshot(settings, chosen),
        recipe_of(settings, progress),
        options=_options(settings, chosen, rebuild=rebuild),
        progress=progress,
    )


def follow(
    settings: Settings, *, every_s: float, progress: Progress = silent
) -> Iterator[SyncReport | RagError]:
    """Sync again whenever the table has a new version, for ever.

    Args:
        settings: Which table, model and index.
        every_s: Seconds between two looks at the table.
        progress: Told how far a sync is.

    Yields:
        What each sync did. A failure is yielded once and tried again: the table may come back.
    """
    mirrored: int | None = None
    failure = ""
    while True:
        try:
            if table_version(settings) != mirrored:
                report = sync(settings, progress=progress)
                mirrored, failure = report.table_version, ""
                yield report
        except (TableError, IndexingError) as e:
            if str(e) != failure:
                failure = str(e)
                yield e
        time.sleep(every_s)


def _options(
    settings: Settings, version: int | None, *, rebuild: bool = False, purge: bool = False
) -> mirror.Options:
    from rag.mirror import Options

    return Options(
        rebuild=rebuild,
        # the bundled demo is ours: written anew, it is simply indexed anew
        replaces=settings.is_demo,
        is_pinned=version is not None,
        purge=purge,
        keep_versions=settings.index.keep_versions,
        tokenizer=settings.index.tokenizer,
    )


def verify(
    settings: Settings, *, recall: bool = False, repair: bool = False, progress: Progress = silent
) -> audit.Verdict:
    """Compare the index with the Delta version that it mirrors, row by row.

    Args:
        settings: Which table and index; `table.version` chooses which mirrored version.
        recall: Whether to measure how much the vector index finds.
        repair: Whether to mend what differs, and to look again.
        progress: Told how far it is.

    Returns:
        What was found; after a repair what was found then, with what was mended in the notes.

    Raises:
        IndexNotBuilt: no sync has completed.
        TableError: the table cannot be read at the mirrored version any more.
        IndexingError: the index cannot be mended.
    """
    from rag import audit

    index = open_index(settings)
    state = audit.state_of(index, settings.table.version)
    try:
        verdict = audit.verify(
            index, _snapshot_of(settings, state), recall=recall, progress=progress
        )
    except TableError as e:
        latest = _refuse_unless_gone(settings, state, e, repair=repair)
        sync(settings, progress=progress)
        verdict = verify(settings, recall=recall, repair=True, progress=progress)
        gone = f"The mirrored version can no longer be read; now {latest} is mirrored, the latest."
        return replace(verdict, notes=(gone, *verdict.notes))
    if not repair:
        return verdict
    mended: list[str] = []
    for _ in range(_REPAIRS):
        if verdict.is_ok:
            break
        _repair(settings, index, verdict, progress)
        version = verdict.table_version
        mended += [f"Mended by mirroring version {version}: {p.sentence}" for p in verdict.problems]
        verdict = verify(settings, recall=recall, progress=progress)
    return replace(verdict, notes=(*mended, *verdict.notes))


def _repair(settings: Settings, index: Index, verdict: audit.Verdict, progress: Progress) -> None:
    from rag import audit, mirror

    version = verdict.table_version
    options = audit.mend(index, verdict, _options(settings, version), progress=progress)
    mirror.sync(
        index,
        open_snapshot(settings, version),
        recipe_of(settings, progress),
        options=options,
        progress=progress,
    )


def _snapshot_of(settings: Settings, state: IndexState | None) -> Snapshot:
    """Open the version of the table that the index mirrors, as the index was built from it."""
    from rag import table

    if state is None:
        return open_snapshot(settings, settings.table.version)
    return table.open_table(
        settings.table.uri,
        template=state.template,
        key=state.key,
        on_bad_key=cast("table.OnBadKey", state.on_bad_key),
        version=state.table_version,
        storage_options=table_options(settings),
    )


def _refuse_unless_gone(
    settings: Settings, state: IndexState | None, error: TableError, *, repair: bool
) -> int:
    """Return the latest version, which a repair mirrors instead of one that is gone."""
    latest = table_version(settings)  # raises where the table itself is the problem
    if state is None or latest == state.table_version:
        raise error
    if repair and settings.table.version is None:
        return latest
    raise TableError(
        f"The index mirrors version {state.table_version} of Delta table {settings.table.uri!r}, "
        "whose rows or log are no longer there, so the two cannot be compared. "
        f"Run `rag sync` to mirror the latest version, {latest}."
    ) from error


def row(settings: Settings, key: str, *, version: int | None = None) -> RowView:
    """Return a row as it was in a version, and what became of it since.

    Args:
        settings: Which table and index.
        key: The row key, as citations name it.
        version: Delta version; None is the settings', else the one that answers, else the latest.

    Raises:
        RowNotFound: that version has no such row.
        TableError: that version cannot be read, and is not mirrored.
    """
    from rag import provenance

    index = open_index(settings)
    chosen = chosen_version(settings, version)
    older: list[int] = []
    if chosen is None and (answering := index.answering()) is not None:
        chosen = answering.state.table_version
        # a row that is gone is shown as an earlier mirrored version had it
        older = [v for v in reversed(index.versions()) if v < chosen]
    latest: Snapshot | None = None
    with contextlib.suppress(TableError):  # told as a fate that is not known
        latest = open_snapshot(settings, None)

    def look(at_version: int | None) -> RowView:
        at = open_snapshot(settings, at_version)
        mirrored = index.mirrored(at.version)
        return provenance.look(key, at, latest, index=index, mirrored=mirrored)

    try:
        return look(chosen)
    except RowNotFound:
        for earlier in older:
            with contextlib.suppress(RowNotFound):
                return look(earlier)
        raise
