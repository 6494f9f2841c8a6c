"""A Delta version becomes an index version.

Knows the table, the index and what embeds; does not know settings or where models come from.
What changed is found by key and content hash (`plan`), only new text is embedded, into a staging
table (`staging`), and one commit publishes it (`publishing`), under a lock (`lock`).
"""

from __future__ import annotations

import time
from dataclasses import replace

from rag.index import Index
from rag.mirror import publishing
from rag.mirror.lock import Holder, alone, holder
from rag.mirror.run import Options, Recipe, Run
from rag.mirror.staging import Embedder, Splitter, drop_stages, stages
from rag.progress import Progress, SyncReport, silent
from rag.table import Snapshot

__all__ = [
    "Embedder",
    "Holder",
    "Options",
    "Recipe",
    "Splitter",
    "glance",
    "holder",
    "n_staged",
    "pending",
    "sync",
]


def sync(
    index: Index,
    snapshot: Snapshot,
    recipe: Recipe,
    *,
    options: Options | None = None,
    progress: Progress = silent,
) -> SyncReport:
    """Make the index mirror a Delta version.

    Args:
        index: The index.
        snapshot: The Delta version.
        recipe: How passages become vectors.
        options: How it is done.
        progress: Told about rows.

    Raises:
        OtherTable: the index was made from another table.
        RowKeyError: a key is null or occurs twice; nothing was changed.
        TableEmpty: no row has any text.
        IndexWriteError: the disk is full; the old index still serves.
    """
    options = options or Options()
    started = time.monotonic()
    with alone(index.uri, index.storage_options, progress) as told:
        report = Run(index, snapshot, recipe, options=options, progress=told).run()
        if options.purge:
            told("purging", 0, 0)
            drop_stages(index, None)
            report = replace(report, purged=tuple(publishing.purge(index)))
    return replace(report, seconds=time.monotonic() - started)


def pending(
    index: Index,
    snapshot: Snapshot,
    recipe: Recipe,
    *,
    options: Options | None = None,
    progress: Progress = silent,
) -> SyncReport:
    """Return what a sync would do, without writing anything.

    Args:
        index: The index.
        snapshot: The Delta version.
        recipe: How passages become vectors.
        options: How it would be done.
        progress: Told about rows.

    Raises:
        OtherTable: the index was made from another table.
        RowKeyError: a key is null or occurs twice.
    """
    started = time.monotonic()
    run = Run(index, snapshot, recipe, options=options or Options(), progress=progress)
    return replace(run.preview(), seconds=time.monotonic() - started)


def glance(index: Index, snapshot: Snapshot, recipe: Recipe) -> SyncReport | None:
    """Return the rows that changed since the mirrored version; None where that takes long.

    Args:
        index: The index.
        snapshot: The version to compare with.
        recipe: How passages become vectors.
    """
    return Run(index, snapshot, recipe, options=Options(), progress=silent).glance()


def n_staged(index: Index) -> int:
    """Return how many nodes an interrupted or running build has staged."""
    with index.reading():
        tables = [index.open(name) for name in stages(index)]
        return sum(table.count_rows() for table in tables if table is not None)
