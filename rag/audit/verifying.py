"""Whether the index is what a sync of the table would make.

Reads everything and believes nothing but the table: the keys, the content, each node's text and
vector, the counts, the search indexes and the tags. Only whether a vector is its text's is not
asked: that would take the embedding model. Writes nothing; `mending` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import lance

from rag import upkeep
from rag.audit import probes
from rag.audit.checks import NEEDED, Found, Nodes, differing
from rag.errors import IndexingError, IndexNotBuilt, VersionNotMirrored
from rag.index import FORMAT, Index, IndexState, Opened, nodes_schema
from rag.mirror.staging import stages
from rag.progress import Progress, silent
from rag.table import Contents, Snapshot

LEAST_RECALL = 0.95
"""Recall@10 of the vector index below which it is worth building anew."""

_N_EXAMPLES = 3
_BATCH = 4_096
_READ_AHEAD = 64 << 20
"""Bytes."""
_ROWS = {
    "missing": "in the table, but not in the index",
    "extra": "in the index, but not in the table",
    "changed": "with another content than in the table",
    "columns": "whose columns do not match their content hash",
    "hashes": "whose nodes are of different contents",
    "numbers": "whose nodes are not numbered from 0, each number once",
    "id": "with a node under the id of another",
    "text": "with a text that does not match its hash",
    "span": "with a text that is not what the template makes of the row",
    "vector": "with a vector that is missing or not of length 1",
}
"""What can be wrong with rows, in the order in which it is told."""


@dataclass(frozen=True)
class Problem:
    """One way in which the index is not what it should be."""

    kind: str
    n: int
    """How often."""
    sentence: str
    examples: tuple[str, ...] = ()
    """Three row keys at most."""


@dataclass(frozen=True)
class Verdict:
    """What was compared and what was found."""

    table_uri: str
    table_version: int
    n_rows: int = 0
    """Rows of the table that were compared."""
    n_nodes: int = 0
    """Nodes of the index that were read."""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    """What is worth knowing, and no problem."""
    bad_keys: frozenset[str] = frozenset()
    """Rows that a repair writes anew."""
    is_unreadable: bool = False
    """Whether a file that answers depend on cannot be read: only a build anew mends that."""
    coverage: tuple[upkeep.Coverage, ...] = ()
    recall: float | None = None
    """Recall@10 of the vector index; None when it was not measured."""
    stray_ids: frozenset[str] = frozenset()
    """Nodes that no sync writes and none would remove."""
    bad_indexes: frozenset[str] = frozenset()
    """Search indexes that a repair builds anew."""
    bad_tags: frozenset[str] = frozenset()
    """Tags that a repair removes."""

    @property
    def is_ok(self) -> bool:
        """Whether the index is exactly the mirror of the table."""
        return not self.problems


def verify(
    index: Index, snapshot: Snapshot, *, recall: bool = False, progress: Progress = silent
) -> Verdict:
    """Compare the index with the Delta version that it mirrors.

    Args:
        index: The index; nothing is written.
        snapshot: The mirrored version, opened with the key and the template of the index.
        recall: Whether to measure how much the vector index finds.
        progress: Told about nodes and rows.

    Raises:
        IndexNotBuilt: nothing mirrors that version.
        TableError: the table cannot be read at that version any more.
    """
    blank = Verdict(snapshot.uri, snapshot.version)
    try:
        with index.reading():
            opened = index.mirrored(snapshot.version)
    except IndexingError as e:
        return _unreadable(blank, e)
    if opened is None:
        raise IndexNotBuilt(index.uri)
    of_whole = _of_whole(opened, snapshot)
    if of_whole:
        return replace(blank, problems=of_whole)
    try:
        with index.reading():
            dataset = probes.opened_afresh(index, opened.number)
            found = _scan(dataset, snapshot, progress)
    except IndexingError as e:
        return _unreadable(blank, e)
    contents = snapshot.contents(lambda n: progress("reading the table", n, 0))
    verdict = replace(_compared(blank, opened.state, found, contents), notes=_notes(index, found))
    commit = _of_commit(opened.state, snapshot)
    verdict = replace(verdict, problems=(*commit, *verdict.problems))
    progress("checking the search indexes", 0, 0)
    return _with_tags(index, opened, _with_searches(index, dataset, verdict, recall=recall))


def state_of(index: Index, version: int | None) -> IndexState | None:
    """Return what a mirror says of itself; None when it cannot be read.

    Args:
        index: The index.
        version: The mirrored Delta version; None is the one that answers.

    Raises:
        IndexNotBuilt: no sync has completed.
        VersionNotMirrored: that version is not mirrored.
    """
    try:
        with index.reading():
            opened = index.answering() if version is None else index.mirrored(version)
            known = index.versions() if opened is None else []
    except IndexingError:
        return None
    if opened is not None:
        return opened.state
    if not known:
        raise IndexNotBuilt(index.uri)
    assert version is not None  # where anything is mirrored, something answers
    raise VersionNotMirrored(index.uri, known, version)


# -- what is read ------------------------------------------------------------------------------


def _scan(dataset: lance.LanceDataset, snapshot: Snapshot, progress: Progress) -> Found:
    nodes = Nodes(snapshot.template)
    n_total = dataset.count_rows()
    n_read = 0
    # a damaged scalar index must not hide a row; and few batches in flight keep memory small
    batches = dataset.scanner(
        columns=NEEDED,
        batch_size=_BATCH,
        batch_readahead=2,
        fragment_readahead=1,
        io_buffer_size=_READ_AHEAD,
        use_scalar_index=False,
    ).to_batches()
    for batch in batches:
        nodes.take(batch)
        n_read += batch.num_rows
        progress("reading the index", n_read, n_total)
    return nodes.found()


def _compared(blank: Verdict, state: IndexState, found: Found, contents: Contents) -> Verdict:
    for kind, keys in differing(found.rows, contents.frame).items():
        found.blame(kind, keys)
    bad = set().union(*found.bad.values())
    if not bad and state.n_nodes != found.n_nodes:
        bad = found.several
    return replace(
        blank,
        n_rows=len(contents.frame),
        n_nodes=found.n_nodes,
        problems=(*_of_rows(found), *_of_counts(state, found, contents)),
        bad_keys=frozenset(bad),
        stray_ids=frozenset(found.stray_ids),
    )


def _unreadable(verdict: Verdict, error: IndexingError) -> Verdict:
    problem = Problem("unreadable", 1, str(error))
    return replace(verdict, problems=(*verdict.problems, problem), is_unreadable=True)


# -- what is told ------------------------------------------------------------------------------


def _of_whole(opened: Opened, snapshot: Snapshot) -> tuple[Problem, ...]:
    """Return why rows need not be compared at all; nothing when they do."""
    state = opened.state
    if state.table_id != snapshot.table_id:
        told = (
            f"The index mirrors the table of id {state.table_id!r}, but now {snapshot.uri!r} is "
            f"the table of id {snapshot.table_id!r}: `rag sync --rebuild` indexes that one."
        )
        return (Problem("table", 1, told),)
    if state.format != FORMAT:
        told = (
            f"The index was made by another release (format {state.format}, this one writes "
            f"{FORMAT}): `rag sync` builds it anew from its own vectors."
        )
        return (Problem("format", 1, told),)
    wanted = nodes_schema(state.dimension, snapshot.schema())
    if not opened.table.schema.equals(wanted):
        names = [f.name for f in wanted if f not in list(opened.table.schema)]
        told = f"The index has other columns than the table asks for: {', '.join(names)} differ."
        return (Problem("schema", len(names), told, tuple(names[:_N_EXAMPLES])),)
    return ()


def _of_rows(found: Found) -> Iterator[Problem]:
    for kind, what in _ROWS.items():
        keys = found.bad.get(kind)
        if keys:
            examples = tuple(sorted(keys)[:_N_EXAMPLES])
            yield Problem(kind, len(keys), _told(len(keys), what, examples), examples)


def _told(n: int, what: str, examples: Iterable[str]) -> str:
    rows = "1 row" if n == 1 else f"{n:,} rows"
    return f"{rows} {what}, for example {', '.join(map(repr, examples))}."


def _of_commit(state: IndexState, snapshot: Snapshot) -> Iterator[Problem]:
    there = snapshot.commit_of(snapshot.version)
    if state.commit and there and state.commit != there:
        told = (
            f"Version {snapshot.version} of the table is not the one that was mirrored, as after "
            "a restore from a backup."
        )
        yield Problem("commit", 1, told)


def _of_counts(state: IndexState, found: Found, contents: Contents) -> Iterator[Problem]:
    there = {
        "rows": (state.n_rows, len(contents.frame)),
        "nodes": (state.n_nodes, found.n_nodes),
        "blank rows": (state.n_blank, contents.n_blank),
        "rows left out": (state.n_left_out, contents.n_left_out),
    }
    wrong = {what: pair for what, pair in there.items() if pair[0] != pair[1]}
    if found.bad:  # which says why the nodes do not add up
        wrong.pop("nodes", None)
    if wrong:
        said = ", ".join(
            f"{said:,} {what} where there are {n:,}" for what, (said, n) in wrong.items()
        )
        yield Problem("counts", len(wrong), f"The index's state row counts {said}.")
    if found.n_states != 1:
        told = f"The index has {found.n_states:,} state rows instead of one."
        yield Problem("state", found.n_states, told)


def _notes(index: Index, found: Found) -> tuple[str, ...]:
    notes = []
    if found.n_tombstones:
        notes.append(f"{found.n_tombstones:,} marks of deleted nodes go with the next sync.")
    staged = stages(index)
    if staged:
        notes.append(f"{len(staged)} unfinished builds are staged; `rag sync` goes on with them.")
    return tuple(notes)


def _with_searches(
    index: Index, dataset: lance.LanceDataset, verdict: Verdict, *, recall: bool
) -> Verdict:
    try:
        with index.reading():
            coverage = upkeep.coverage(dataset)
            damaged = probes.damaged_indexes(index, dataset, coverage)
            behind = {c.name: c.n_unindexed for c in upkeep.due(dataset)}
            measured = upkeep.recall(dataset) if recall and not damaged else None
    except IndexingError as e:
        return _unreadable(verdict, e)
    bad = {*damaged, *behind}
    problems = list(_of_searches(coverage, damaged, behind))
    if measured is not None and measured < LEAST_RECALL:
        bad |= {c.name for c in coverage if c.column == "vector"}
        told_recall = f"Recall@10 is {measured:.3f}; {LEAST_RECALL} is the least that is right."
        problems.append(Problem("recall", 1, told_recall))
    n_scanned = max((c.n_unindexed for c in coverage), default=0)
    scanned = f"{n_scanned:,} nodes are in no search index yet: a search scans them."
    notes = [scanned] if n_scanned > 1 else []  # one is the state row
    return replace(
        verdict,
        problems=(*verdict.problems, *problems),
        notes=(*verdict.notes, *notes),
        coverage=tuple(coverage),
        recall=measured,
        bad_indexes=frozenset(bad),
    )


def _of_searches(
    coverage: list[upkeep.Coverage], damaged: dict[str, str], behind: dict[str, int]
) -> Iterator[Problem]:
    if not any(c.column == "text" for c in coverage):
        yield Problem("no text index", 1, "The index has no text index, so it finds no words.")
    for name, why in damaged.items():
        yield Problem("search index", 1, f"Search index {name!r} is damaged: {why}.")
    for name, n in behind.items():
        if name not in damaged:
            yield Problem("behind", n, f"Search index {name!r} lacks {n:,} nodes.")


def _with_tags(index: Index, opened: Opened, verdict: Verdict) -> Verdict:
    wrong = probes.wrong_tags(index, opened)
    problems = [Problem("tag", 1, f"{why}.") for why in wrong.values()]
    return replace(verdict, problems=(*verdict.problems, *problems), bad_tags=frozenset(wrong))
