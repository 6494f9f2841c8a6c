"""Commits to the index, each safe to be killed in: afterwards it is as before, or as wanted.

Knows the index and its upkeep; does not know the Delta table or what embeds. Whatever is committed,
one version answers all the time: a new build, and a version beside the one that answers, carry in
their state row the version that answers instead.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

import lance
import pyarrow as pa

from rag import upkeep
from rag.errors import IndexingError
from rag.index import (
    FAILURES,
    NODES,
    STATE_ID,
    Index,
    IndexState,
    Opened,
    index_cause,
    tag_name,
)

_log = logging.getLogger(__name__)

_PORTION = 64 << 20
"""Bytes of rows in one commit. Lance refuses what does not fit into 300 MB, beside its keys."""
_TOMBSTONE = f"row_hash IS NULL AND id <> '{STATE_ID}'"


def merge(
    index: Index,
    base: Opened,
    nodes: Iterable[pa.RecordBatch],
    gone: Iterable[list[str]],
    state: IndexState,
) -> None:
    """Upsert nodes, remove those of the ids in `gone` and set the state.

    That is one commit, unless there is more than Lance joins in memory: then the commits before the
    last are versions that never answer.

    Args:
        index: The index.
        base: Its newest version, which the changes were worked out against.
        nodes: New and changed ones.
        gone: Ids, in portions.
        state: What the index mirrors from now on.

    Raises:
        IndexWriteError: another sync committed since `base` was opened, or the disk is full.
    """
    schema = base.table.schema
    # `is_beside`, so that after a kill it is taken back
    answers = base.number if state.answers is None else state.answers
    part = _state_row(schema, replace(state, answers=answers, is_beside=True))
    portions = _portions(itertools.chain(nodes, _tombstones(schema, gone)))
    with index.writing():
        # lancedb has no way to refuse a commit on a stale base; pylance has
        dataset = lance.dataset(
            index.nodes_uri, version=base.number, storage_options=index.storage_options
        )
        held = next(portions, [])
        for portion in portions:
            _upsert(dataset, [*held, part])
            held = portion
        _upsert(dataset, [*held, _state_row(schema, state)])


def _upsert(dataset: lance.LanceDataset, rows: list[pa.RecordBatch]) -> None:
    """Commit rows on top of the version that is open, and open what comes of it."""
    upsert = dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    reader = pa.RecordBatchReader.from_batches(rows[0].schema, rows)
    upsert.conflict_retries(0).execute(reader)


def _portions(rows: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    portion: list[pa.RecordBatch] = []
    for batch in rows:
        if portion and sum(b.nbytes for b in (*portion, batch)) > _PORTION:
            yield portion
            portion = []
        portion.append(batch)
    if portion:
        yield portion


def replace_all(
    index: Index, nodes: Iterable[pa.RecordBatch], schema: pa.Schema, state: IndexState
) -> None:
    """Make the newest version hold exactly these nodes and this state, in one commit."""
    rows = itertools.chain(nodes, [_state_row(schema, state)])
    with index.writing():
        # pylance writes what it is given; lancedb would inspect each vector first
        lance.write_dataset(
            pa.RecordBatchReader.from_batches(schema, rows),
            index.nodes_uri,
            mode="create" if index.open(NODES) is None else "overwrite",
            storage_options=index.storage_options,
        )


def settle(index: Index, tokenizer: upkeep.Tokenizer, *, keep: int) -> None:
    """Bring the newest version into order: tombstones, search indexes, its tag, old tags.

    What it holds is right with or without that, so a failure is only logged, and the next sync
    tries again.

    Args:
        index: The index.
        tokenizer: Of the text index.
        keep: Mirrored versions that stay addressable.
    """
    try:
        dataset = index.dataset()
        if dataset.count_rows(_TOMBSTONE):
            dataset.delete(_TOMBSTONE)
        upkeep.tend(index.dataset(), tokenizer)
        retire(index, keep=keep)
        mark(index)
    except (*FAILURES, IndexingError) as e:
        _log.warning("The index at %s could not be tidied: %s", index.uri, index_cause(e))


def is_settled(index: Index, opened: Opened, tokenizer: upkeep.Tokenizer) -> bool:
    """Whether nothing is left to be done for a version: its tag is what `settle` sets last."""
    is_tagged = index.tags().get(opened.state.table_version) == opened.number
    return is_tagged and upkeep.tokenizer_of(opened.table.to_lance()) == tokenizer


def switch(index: Index, tokenizer: upkeep.Tokenizer) -> None:
    """Let the newest version, completely built, answer from now on."""
    furnish(index, tokenizer)  # before anybody reads it
    newest = index.newest()
    assert newest is not None
    merge(index, newest, [], [], replace(newest.state, answers=None))


def furnish(index: Index, tokenizer: upkeep.Tokenizer) -> None:
    """Build the search indexes of the newest version."""
    with index.writing():
        upkeep.tend(index.dataset(), tokenizer)


def fall_back(index: Index, number: int) -> None:
    """Make the newest version what an older Lance version is; nobody notices, for that answers."""
    with index.writing():
        dataset = lance.dataset(
            index.nodes_uri, version=number, storage_options=index.storage_options
        )
        dataset.restore()


def mark(index: Index) -> None:
    """Tag the newest version with the Delta version that it mirrors."""
    newest = index.newest()
    assert newest is not None
    tags = index.dataset().tags
    name = tag_name(newest.state.table_version)
    if name in tags.list():
        tags.update(name, newest.number)
    else:
        tags.create(name, newest.number)


def retire(index: Index, *, keep: int) -> list[int]:
    """Remove the tags of all but the last mirrored versions; the one that answers stays.

    Args:
        index: The index.
        keep: Versions that stay, with the one that answers.

    Returns:
        The Delta versions that are no longer addressable.
    """
    answering = index.answering()
    assert answering is not None
    tags = index.tags()
    now = answering.state
    others = [v for v, number in tags.items() if number >= now.oldest and v != now.table_version]
    kept = [now.table_version, *others[: max(keep - 1, 0)]]
    gone = sorted(set(tags) - set(kept))
    if gone:
        dataset = index.dataset()
        for version in gone:
            dataset.tags.delete(tag_name(version))
    return gone


def purge(index: Index) -> list[int]:
    """Remove from disk what is deleted, and every version but the one that answers.

    Returns:
        The Delta versions that are no longer addressable.
    """
    with index.writing():
        gone = retire(index, keep=0)
        newest = index.newest()
        assert newest is not None
        index.dataset().tags.delete(tag_name(newest.state.table_version))
        upkeep.purge(index.dataset())
        mark(index)
    return gone


def discard(index: Index) -> None:
    """Drop an index that cannot be read."""
    with index.writing():
        if NODES in index.connection.list_tables().tables:
            index.connection.drop_table(NODES)


def _tombstones(schema: pa.Schema, gone: Iterable[list[str]]) -> Iterator[pa.RecordBatch]:
    # an id and nulls: no search returns it, and it needs no second commit
    for ids in gone:
        columns = [
            pa.array(ids, f.type) if f.name == "id" else pa.nulls(len(ids), f.type) for f in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _state_row(schema: pa.Schema, state: IndexState) -> pa.RecordBatch:
    row = {**dict.fromkeys(schema.names), "id": STATE_ID, "state": state.to_json()}
    return pa.RecordBatch.from_pylist([row], schema=schema)
