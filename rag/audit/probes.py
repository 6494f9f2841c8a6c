"""Tries what readers of the index rely on besides its rows: search indexes, tags, sound files.

Knows the index only. Everything is opened afresh, because what a process has read stays in its
cache when the file beneath it is damaged.
"""

from __future__ import annotations

import contextlib
import re

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileSession

from rag.errors import IndexingError
from rag.index import Index, Opened, index_cause, is_in, tag_name
from rag.upkeep import KEYS, Coverage, recall

_CACHE_BYTES = 64 << 20
_N_SAMPLES = 100
_N_WORDS = 20
"""Words that are looked up in the text index; each lookup scans the ids."""
# between blanks, so that no tokenizer sees the word as a part of another
_WORD = re.compile(r"(?<!\S)[A-Za-z]{3,20}(?!\S)")


def opened_afresh(index: Index, number: int) -> lance.LanceDataset:
    """Open a Lance version with caches of its own."""
    return lance.dataset(
        index.nodes_uri,
        version=number,
        storage_options=index.storage_options,
        index_cache_size_bytes=_CACHE_BYTES,
        metadata_cache_size_bytes=_CACHE_BYTES,
    )


def damaged_indexes(
    index: Index, dataset: lance.LanceDataset, coverage: list[Coverage]
) -> dict[str, str]:
    """Return the search indexes that cannot be read, or do not find what is there, with why."""
    n_rows = dataset.count_rows()
    chosen = np.unique(np.linspace(0, n_rows - 1, min(n_rows, _N_SAMPLES)).astype(int))
    sample = dataset.take(chosen, columns=["id", *KEYS[1:], "text"])
    sample = sample.filter(sample["row_hash"].is_valid())
    found = unreadable_indexes(index, dataset)
    for entry in coverage:
        if entry.name in found:
            continue
        try:
            with index.reading():
                n_missed = _n_missed(dataset, entry.column, sample)
        except IndexingError as e:
            found[entry.name] = index_cause(e.__cause__ or e)
            continue
        if n_missed:
            found[entry.name] = f"it does not find {n_missed} of {len(sample)} nodes"
    return found


def unreadable_indexes(index: Index, dataset: lance.LanceDataset) -> dict[str, str]:
    """Return the search indexes whose files cannot be read, with why."""
    found: dict[str, str] = {}
    for entry in dataset.describe_indices():
        try:
            with index.reading():
                for segment in entry.segments:
                    _read_files(index, str(segment.uuid))
        except IndexingError as e:
            found[entry.name] = index_cause(e.__cause__ or e)
    return found


def _read_files(index: Index, segment: str) -> None:
    """Read the files of an index segment to their ends; they are Lance files as well."""
    # not by `prewarm_index`, which wants the whole index in memory
    options = index.storage_options
    session = LanceFileSession(f"{index.nodes_uri}/_indices/{segment}", storage_options=options)
    for name in session.list():
        for batch in session.open_reader(name).read_all(batch_size=1_024).to_batches():
            batch.validate()


def _n_missed(dataset: lance.LanceDataset, column: str, sample: pa.Table) -> int:
    if column in KEYS:
        values = [v for v in sample[column].to_pylist() if v is not None]
        hits = dataset.to_table(columns=["id"], filter=is_in(column, values))
        return len(set(sample["id"].to_pylist()) - set(hits["id"].to_pylist()))
    if column == "vector":
        recall(dataset, n_queries=1)  # whether it answers at all; what it finds is asked elsewhere
    if column != "text":
        return 0
    words = {
        name: word[0]
        for name, text in zip(sample["id"].to_pylist(), sample["text"].to_pylist(), strict=True)
        if (word := _WORD.search(text or ""))
    }
    return sum(not _has_word(dataset, *pair) for pair in list(words.items())[:_N_WORDS])


def _has_word(dataset: lance.LanceDataset, name: str, word: str) -> bool:
    scanner = dataset.scanner(
        columns=["id", "_score"],
        full_text_query={"columns": ["text"], "query": word},
        filter=is_in("id", [name]),
        prefilter=True,
        use_scalar_index=False,  # of the ids: that one may be damaged too
        limit=1,
    )
    return bool(scanner.to_table().num_rows)


def wrong_tags(index: Index, sound: Opened) -> dict[str, str]:
    """Return the tags that do not lead to a mirror of their Delta version, with why.

    Args:
        index: The index.
        sound: A version that was read in full; files that others share with it are not read again.
    """
    try:
        with index.reading():
            tags = index.tags()
    except IndexingError:
        return {name: f"Tag {name!r} cannot be read" for name in _unreadable(index, sound)}
    files = _files(sound.table.to_lance())
    found: dict[str, str] = {}
    for version, number in tags.items():
        name = tag_name(version)
        try:
            with index.reading():
                state = index.at(number).state
                dataset = opened_afresh(index, number)
                for path in _files(dataset).keys() - files.keys():
                    _files(dataset)[path].head(1)
        except IndexingError:
            found[name] = f"Tag {name!r} leads to a version of the index that cannot be read"
            continue
        if state.table_version != version:
            found[name] = f"Tag {name!r} leads to the mirror of version {state.table_version}"
    return found


def _files(dataset: lance.LanceDataset) -> dict[tuple[str, str], lance.LanceFragment]:
    """Return the fragments by the data and deletion files that they are read from."""
    return {
        (str([f.path for f in fragment.data_files()]), str(fragment.deletion_file())): fragment
        for fragment in dataset.get_fragments()
    }


def _unreadable(index: Index, sound: Opened) -> list[str]:
    """Return the tags that cannot be read; one such hides the names of them all."""
    tags = index.dataset().tags
    names = {tag_name(sound.state.table_version)}
    for version in index.dataset().versions():
        with contextlib.suppress(IndexingError), index.reading():
            names.add(tag_name(index.at(version["version"]).state.table_version))
    found = []
    for name in sorted(names):
        try:
            tags.get_version(name)
        except ValueError:  # there is none
            continue
        except (OSError, RuntimeError):
            found.append(name)
    return found
