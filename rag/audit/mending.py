"""Takes out of the index what a sync would not replace, before a sync mends the rest.

Knows the index and what a verdict says of it; reads no table and embeds nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import lance

from rag.audit import probes
from rag.audit.verifying import Verdict
from rag.errors import IndexingError
from rag.index import STATE_ID, Index, is_in, tag_name
from rag.mirror import publishing
from rag.mirror.lock import alone
from rag.mirror.run import Options
from rag.progress import Progress, silent

_STATE = frozenset({STATE_ID})
"""What a sync distrusts where no row is to blame, so that it does look at every row."""


def mend(
    index: Index, verdict: Verdict, options: Options, *, progress: Progress = silent
) -> Options:
    """Remove what a sync would not replace: stray nodes, damaged search indexes, wrong tags.

    Args:
        index: The index.
        verdict: What is wrong with it.
        options: Of a sync of the version of the verdict.
        progress: Told who holds the lock.

    Returns:
        The options of the sync that does the rest.

    Raises:
        IndexWriteError: the index cannot be written.
    """
    with alone(index.uri, index.storage_options, progress):
        if not _is_readable(index):
            return _clear(index, options)
        newest, answering = index.newest(), index.answering()
        is_beside = answering is not None and verdict.table_version < answering.state.table_version
        bad_tags = set(verdict.bad_tags)
        if verdict.is_unreadable and not is_beside:
            return replace(options, rebuild=True)
        if verdict.is_unreadable:
            bad_tags.add(tag_name(verdict.table_version))
        with index.writing():
            dataset = index.dataset()
            for name in sorted(bad_tags):
                dataset.tags.delete(name)
            # an unfinished build is the newest version, and was not verified
            if newest is not None and newest.state.answers is None and not is_beside:
                _remove(dataset, verdict)
    return replace(options, distrusts=_distrusted(verdict))


def _is_readable(index: Index) -> bool:
    try:
        with index.reading():
            return index.answering() is not None
    except IndexingError:
        return False


def _clear(index: Index, options: Options) -> Options:
    """Make an index that cannot be opened one that can; as a last resort an empty one."""
    # the state row is looked up by its id: it may be that search index only
    with contextlib.suppress(IndexingError), index.reading():
        dataset = index.dataset()
        for name in probes.unreadable_indexes(index, dataset):
            dataset.drop_index(name)
    if _is_readable(index):
        return replace(options, distrusts=_STATE)
    publishing.discard(index)
    return replace(options, rebuild=True)


def _distrusted(verdict: Verdict) -> frozenset[str]:
    # a sync sees these by itself, and takes the vectors over
    if {p.kind for p in verdict.problems} <= {"commit", "format", "table"}:
        return frozenset()
    return verdict.bad_keys or _STATE


def _remove(dataset: lance.LanceDataset, verdict: Verdict) -> None:
    there = {i.name for i in dataset.describe_indices()}
    for name in sorted(verdict.bad_indexes & there):
        dataset.drop_index(name)
    ids = sorted(verdict.stray_ids)
    for i in range(0, len(ids), 1_000):
        dataset.delete(is_in("id", ids[i : i + 1_000]))
    is_state = f"id = '{STATE_ID}'"
    states = dataset.to_table(columns=["id"], filter=is_state, with_row_id=True)["_rowid"]
    for row in sorted(states.to_pylist())[:-1]:
        dataset.delete(f"_rowid = {row}")
