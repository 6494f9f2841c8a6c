"""Upkeep of the Lance table: its search indexes, its compaction, its old versions.

Knows Lance only; not what a node means, nor Delta, nor who syncs when. Everything follows the
change and not the table: new rows get a small index segment of their own, and segments, like
fragments, are merged with others of their size only, as in a log-structured merge tree. So each
row is rewritten a number of times that grows with the logarithm of the table.

Every function works on a `lance.LanceDataset` at its latest version and raises Lance's own errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Literal

import lance
import numpy as np

KEYS = ("id", "row_key", "row_hash", "text_hash")
"""Columns that a sync looks up by value."""
KEYS_FROM = 20_000
"""Rows from which `KEYS` have an index; up to here a sync of one row takes 10 ms with and without.

Source: measured 2026-11-22 to 20,000 rows. At 1,000,000, a sync of 100 takes 60 ms with and 560 ms
without (an earlier measurement, lancedb 0.40).
"""
VECTOR_FROM = 10_000
"""Rows from which vectors have an index: 1.9 times as fast as reading them all, no faster at 5,000.

Source: benchmarks/search.py, 2026-11-22, 384 dimensions.
"""
VECTOR_INDEX: dict[str, Any] = {"index_type": "IVF_RQ", "metric": "cosine", "num_bits": 2}
N_PROBES = 20
REFINE_FACTOR = 20
"""What a vector search of an indexed table asks for; both are ignored without an index."""

Tokenizer = Literal["words", "ngrams"]
"""How the text index cuts texts: into words, found by their forms, or into all their pieces."""

# Words by Unicode's rules, which also part Chinese and Thai; no stop words: "The Who" is a name.
# nDCG@10 on XQuAD en, de, es, zh and SQuAD, every 4th question, lancedb 0.40: words .962 .927 .954
# .955 .890; 2- to 4-grams .965 .951 .965 .949 .882; 2- to 3-grams .948 .939 .947 .953 .842;
# trigrams .961 .942 .956 .888 .858; words as written .953 .916 .947 .955 .856; words between blanks
# found no Chinese, .134. Of 20,000 short rows, 2- to 4-grams take 24 MB instead of 3, a question
# 190 ms instead of 1.4, a code 9 instead of 0.4.
_TOKENIZERS: dict[Tokenizer, dict[str, Any]] = {
    "words": {"base_tokenizer": "icu/split", "stem": True, "remove_stop_words": False},
    "ngrams": {
        "base_tokenizer": "ngram",
        "min_ngram_length": 2,
        "max_ngram_length": 4,
        "stem": False,
        "remove_stop_words": False,
    },
}
_UNINDEXED = 1_000
_UNINDEXED_SHARE = 0.002
"""So many rows without an index, and such a share, get a segment: text search reads them all."""
_FANOUT = 8
"""So many fragments of one size become one."""
_LARGEST = 1_048_576
"""Rows; Lance's own size of a full fragment."""
_WORN = 32
_WORN_SHARE = 0.2
"""A fragment with so many deleted rows, and such a share of them, is rewritten."""
_OLD = 32
_FEW_OLD = 8
"""So many versions past their grace are removed together; fewer of a small table."""
_GRACE = timedelta(minutes=1)
"""How long a version stays for a reader that has it open."""
_HURRY = timedelta(seconds=1)
"""The grace while versions outweigh the rows: such a table is small, and read in milliseconds."""


@dataclass(frozen=True)
class Coverage:
    """How much of the table a search index holds."""

    name: str
    column: str
    kind: str
    """As Lance calls it: `Inverted`, `BTree`, `IVF_RQ`."""
    n_indexed: int
    n_unindexed: int
    """Rows that a search scans; they are found all the same."""


@dataclass(frozen=True)
class _Fragment:
    id: int
    n_rows: int
    n_deleted: int
    segments: frozenset[str]
    """Index segments that hold it; Lance merges only fragments of the same."""


def tend(dataset: lance.LanceDataset, tokenizer: Tokenizer = "words") -> None:
    """Do what a publish made due: compact, index, remove old versions; usually next to nothing.

    Args:
        dataset: At its latest version; it stays there.
        tokenizer: Of the text index; one that cuts texts otherwise is built anew.
    """
    _compact(dataset)
    _create(dataset, tokenizer, missing=True)
    for behind in due(dataset):
        _merge(dataset, [f.id for f in _fragments(dataset) if not f.segments])
        _extend(dataset, behind, tokenizer)
    _clean(dataset)


def purge(dataset: lance.LanceDataset) -> None:
    """Remove from every file what is no longer in the latest version.

    Rewrites each fragment with deleted rows and builds all indexes anew, because postings,
    B-trees and centroids keep what was deleted. No other process may read or write meanwhile,
    and no tag may be left: a tagged version keeps its files.

    Args:
        dataset: At its latest version; it stays there.
    """
    dataset.optimize.compact_files(materialize_deletions_threshold=0.0)
    _create(dataset, tokenizer_of(dataset) or "words", missing=False)
    dataset.cleanup_old_versions(
        timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
    )


def tokenizer_of(dataset: lance.LanceDataset) -> Tokenizer | None:
    """Return how the text index cuts texts, as Lance keeps it; None where that is neither way."""
    indexes = (i for i in dataset.describe_indices() if i.field_names == ["text"])
    details: dict[str, Any] = next((i.details for i in indexes), {})
    names = (name for name, how in _TOKENIZERS.items() if how.items() <= details.items())
    return next(names, None)


def coverage(dataset: lance.LanceDataset) -> list[Coverage]:
    """Return each search index with the rows that it holds, in order of the columns."""
    rows = {f.id: f.n_rows for f in _fragments(dataset)}
    found = []
    for index in dataset.describe_indices():
        n = sum(_n_rows(segment, rows) for segment in index.segments)
        (column,) = index.field_names
        found.append(Coverage(index.name, column, index.index_type, n, sum(rows.values()) - n))
    return sorted(found, key=lambda c: c.column)


def recall(
    dataset: lance.LanceDataset, *, n_queries: int = 100, k: int = 10, seed: int = 0
) -> float:
    """Return the share of the `k` nearest neighbours that the vector index finds.

    Stored vectors are the queries, each without itself. A neighbour as near as the last of the
    exact ones counts as found, so equal texts do not count as missed.

    Args:
        dataset: At any version.
        n_queries: Vectors to sample.
        k: Neighbours of each.
        seed: Of the sample.

    Returns:
        0 to 1; 1 for a table without an index, or without two vectors.
    """
    rng = np.random.default_rng(seed)
    n = dataset.count_rows()
    chosen = np.sort(rng.choice(n, size=min(n, n_queries), replace=False))
    sample = dataset.take(chosen, columns=["id", "vector"])
    sample = sample.filter(sample["vector"].is_valid())
    if not len(sample):
        return 1.0
    exact = _neighbours(dataset, sample, k, use_index=False)
    found = _neighbours(dataset, sample, k, use_index=True)
    n_exact = sum(len(distances) for distances in exact)
    n_found = sum(
        sum(d <= far[-1] + 1e-6 for d in near)
        for near, far in zip(found, exact, strict=True)
        if far
    )
    return n_found / n_exact if n_exact else 1.0


def _neighbours(
    dataset: lance.LanceDataset, sample: Any, k: int, *, use_index: bool
) -> list[list[float]]:
    """Return the distances of each sampled row's neighbours, nearest first."""
    ids, vectors = sample["id"].to_pylist(), np.array(sample["vector"].to_pylist(), np.float32)
    nearest = {
        "column": "vector",
        "q": vectors,
        "k": k + 1,
        "metric": "cosine",
        "nprobes": N_PROBES,
        "refine_factor": REFINE_FACTOR,
        "use_index": use_index,
    }
    hits = dataset.to_table(columns=["id", "_distance"], nearest=nearest)
    found: list[list[float]] = [[] for _ in ids]
    for query, hit, distance in zip(*(hits[c].to_pylist() for c in hits.column_names), strict=True):
        if hit != ids[query]:
            found[query].append(distance)
    return [sorted(distances)[:k] for distances in found]


# -- indexes -----------------------------------------------------------------------------------


def _create(dataset: lance.LanceDataset, tokenizer: Tokenizer, *, missing: bool) -> None:
    """Build the indexes that a table of this size needs.

    Args:
        dataset: At its latest version.
        tokenizer: Of the text index; one that cuts otherwise is as good as none.
        missing: Only those that are not there; else those that are, anew, as well.
    """
    there = {column for index in dataset.describe_indices() for column in index.field_names}
    there -= set() if tokenizer_of(dataset) == tokenizer else {"text"}
    n = dataset.count_rows()
    needed = {"text"} | (set(KEYS) if n >= KEYS_FROM else set())
    needed |= {"vector"} if n >= VECTOR_FROM else set()
    for column in sorted(needed - there if missing else needed | there):
        _build(dataset, column, tokenizer)


def _build(dataset: lance.LanceDataset, column: str, tokenizer: Tokenizer) -> None:
    if column == "vector":
        dataset.create_index(column, replace=True, **VECTOR_INDEX)
    elif column == "text":
        dataset.create_scalar_index(column, "INVERTED", replace=True, **_TOKENIZERS[tokenizer])
    else:
        dataset.create_scalar_index(column, "BTREE", replace=True)


def due(dataset: lance.LanceDataset) -> list[Coverage]:
    """Return the indexes that have fallen behind."""
    limit = max(_UNINDEXED, int(dataset.count_rows() * _UNINDEXED_SHARE))
    return [c for c in coverage(dataset) if c.n_unindexed > limit]


def _extend(dataset: lance.LanceDataset, behind: Coverage, tokenizer: Tokenizer) -> None:
    """Index the new rows, together with the segments that are not much larger than they are."""
    rows = {f.id: f.n_rows for f in _fragments(dataset)}
    (index,) = (i for i in dataset.describe_indices() if i.name == behind.name)
    sizes = [_n_rows(segment, rows) for segment in index.segments]
    n_merged, total = 0, behind.n_unindexed
    for size in reversed(sizes):
        if size > 2 * total:
            break
        n_merged, total = n_merged + 1, total + size
    if n_merged == len(sizes):
        # merging keeps the old centroids and the postings of deleted rows; from the rows neither
        _build(dataset, behind.column, tokenizer)
    else:
        dataset.optimize.optimize_indices(index_names=[index.name], num_indices_to_merge=n_merged)


def _n_rows(segment: Any, rows: dict[int, int]) -> int:
    return sum(rows.get(fragment, 0) for fragment in segment.fragment_ids)


# -- fragments ---------------------------------------------------------------------------------


def _fragments(dataset: lance.LanceDataset) -> list[_Fragment]:
    held = [(s.uuid, set(s.fragment_ids)) for i in dataset.describe_indices() for s in i.segments]
    found = []
    for metadata in (f.metadata for f in dataset.get_fragments()):
        segments = frozenset(uuid for uuid, ids in held if metadata.id in ids)
        found.append(_Fragment(metadata.id, metadata.num_rows, metadata.num_deletions, segments))
    return found


def _compact(dataset: lance.LanceDataset) -> None:
    fragments = _fragments(dataset)
    _merge(dataset, {*_crowd(fragments), *_worn(fragments)})


def _crowd(fragments: list[_Fragment]) -> list[int]:
    """Return the fragments of the smallest size of which there are too many."""
    size = _FANOUT
    while size <= _LARGEST:
        small = _neighbouring(fragments, size)
        if sum(f.n_rows >= size // _FANOUT for f in small) >= _FANOUT:
            return [f.id for f in small]
        size *= _FANOUT
    return []


def _neighbouring(fragments: list[_Fragment], size: int) -> list[_Fragment]:
    """Return the fragments with fewer rows that Lance can merge with one beside them."""
    runs = groupby(fragments, key=lambda f: (f.n_rows < size, f.segments))
    small = [list(run) for (is_small, _), run in runs if is_small]
    return [f for run in small if len(run) > 1 for f in run]


def _worn(fragments: list[_Fragment]) -> list[int]:
    return [
        f.id for f in fragments if f.n_deleted >= max(_WORN, _WORN_SHARE * (f.n_rows + f.n_deleted))
    ]


def _merge(dataset: lance.LanceDataset, ids: Iterable[int]) -> None:
    """Rewrite these fragments without their deleted rows, neighbours as one."""
    chosen = set(ids)
    others = [f.fragment_id for f in dataset.get_fragments() if f.fragment_id not in chosen]
    if chosen:
        dataset.optimize.compact_files(
            target_rows_per_fragment=_LARGEST, excluded_fragment_ids=others
        )


# -- versions ----------------------------------------------------------------------------------


def _clean(dataset: lance.LanceDataset) -> None:
    """Remove versions that are past their grace, many at a time; tagged ones stay."""
    n, n_versions = dataset.count_rows(), len(dataset.version_refs())
    n_due = min(_OLD, max(_FEW_OLD, n // 64))
    if n_versions <= n_due:
        return
    # a version of one changed row takes some 5 kB, a row 2 kB
    grace = _GRACE if n_versions <= max(n_due, n // 16) else _HURRY
    tagged = {tag["version"] for tag in dataset.tags.list().values()}
    limit = datetime.now().astimezone() - grace
    old = [
        v
        for v in dataset.versions()
        if v["version"] not in tagged and v["timestamp"].astimezone() < limit
    ]
    if len(old) >= n_due:
        dataset.cleanup_old_versions(grace, error_if_tagged_old_versions=False)
