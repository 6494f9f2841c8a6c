"""Delta: open a version, read its rows as text and typed columns, and what changed.

Knows deltalake and polars; does not know the index or any model. `DeltaTable.scan` is the reader
because it is the widest (deletion vectors, column mapping) and streams.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from llama_index.core.schema import Document

from rag.errors import RowKeyError, TableError
from rag.table.batches import Rows, frames, storable
from rag.table.contents import BadKeys, Contents, Wanted, read_contents
from rag.table.facts import ColumnFacts, column_facts, titles
from rag.table.feed import (
    CHANGE,
    VERSION,
    Change,
    FeedUnreadable,
    last_versions,
    signs_and_versions,
)
from rag.table.keys import content_key, row_keys
from rag.table.lookup import Row, find, predicate
from rag.table.opening import FAILURES, check_columns, has_feed, open_delta, told_cause, unreadable
from rag.template import Template, content_hashes, text_hash

__all__ = [
    "DEFAULT_KEY",
    "RESERVED",
    "Change",
    "ColumnFacts",
    "Contents",
    "FeedUnreadable",
    "OnBadKey",
    "Row",
    "Rows",
    "Snapshot",
    "content_key",
    "documents",
    "open_table",
    "row_metadata",
]

DEFAULT_KEY = "row_id"
RESERVED = ("table_uri", "table_version", "row_key", "row_version")
"""Metadata names that are ours; a column of the same name appears as `column.<name>`."""

OnBadKey = Literal["refuse", "pick"]
"""What becomes of rows that their key does not identify: an error, or one row of each key."""

_FEED_SETTING = "delta.enableChangeDataFeed"
_MOST_CHANGES = 10_000
"""Changes that are always read, however small the table."""


@dataclass(frozen=True)
class Snapshot:
    """One version of a Delta table, open for reading."""

    uri: str
    version: int
    table_id: str
    """Identity of the table; a table written anew at the same place has another."""
    columns: tuple[str, ...]
    key: tuple[str, ...]
    """Columns that identify a row; empty when its content does."""
    template: Template
    on_bad_key: OnBadKey
    """With `pick`, the row with the least content hash stands for its key, null keys go."""
    delta: DeltaTable = field(repr=False, compare=False)

    def commit_of(self, version: int) -> str:
        """Return the identity of the commit that made a version; empty when its log is gone."""
        log = Path(self.uri.removeprefix("file://")) / "_delta_log" / f"{version:020}.json"
        try:
            if log.is_file():
                return text_hash(log.read_text(errors="replace"))
            # on object storage; slower, because deltalake reads the whole log for it, and from the
            # latest version: opened at an older one it would count the commits wrong
            latest = open_delta(self.uri, None, self.delta._storage_options)
            found = [c for c in latest.history() if c.get("version") == version]
        except (*FAILURES, TableError):
            return ""
        return text_hash(json.dumps(found[0], sort_keys=True, default=str)) if found else ""

    def contents(self, tell: Callable[[int], None] | None = None) -> Contents:
        """Read which rows there are, by key and content hash, in one streaming pass.

        Args:
            tell: Called after each batch with the rows seen so far, blank ones included.

        Raises:
            RowKeyError: a key is null or occurs twice, and `on_bad_key` says to refuse that.
            TableError: the table needs a feature that the reader lacks, or a file is missing.
        """
        found, bad = read_contents(self._frames(), key=self.key, template=self.template, tell=tell)
        if bad is not None and self.on_bad_key == "refuse":
            raise self._refusal(bad)
        return found

    def rows(self, wanted: pl.DataFrame | None = None) -> Iterator[Rows]:
        """Yield rows in batches, in no promised order.

        Args:
            wanted: `row_key` and `row_hash` (String) of the rows to yield, each key once; each
                is yielded once, and the rest costs little. None: all rows that are not blank;
                keys are not checked, see `contents`.

        Raises:
            TableError: the table needs a feature that the reader lacks, or a file is missing.
        """
        if wanted is None and not (self.key and self.on_bad_key == "refuse"):
            # equal rows are numbered, or one is picked: that takes a look at all of them
            wanted = self.contents().frame
        if wanted is not None:
            yield from self._wanted(Wanted(wanted, self.key))
            return
        for frame in self._frames():
            kept = frame.filter(~self.template.is_blank(frame.schema))
            hashes = content_hashes(kept, kept.columns)
            keys = row_keys(kept, self.key)
            yield self._rows(kept, keys, hashes, n_blank=len(frame) - len(kept))

    def _wanted(self, wanted: Wanted) -> Iterator[Rows]:
        if not wanted.n_left:
            return
        for frame in self._frames():
            kept, keys, hashes = wanted.take(frame)
            if len(kept):
                yield self._rows(kept, keys, hashes, n_blank=0)
            if not wanted.n_left:
                return

    def changes(self, since: int) -> Iterator[Change]:
        """Yield what the change data feed tells of the versions after `since`, up to this one.

        The feed says more than it should (an overwrite takes every row out and puts it in again,
        in no promised order): count the rows in and out.

        Raises:
            FeedUnreadable: it was not on all the time, was cleaned up, or the reader lacks it.
        """
        for frame in self._feed(since):
            yield self._change(frame)

    def row_versions(self, since: int | None) -> pl.DataFrame | None:
        """Find the last version at which each content of each row came in, from the feed.

        Rows that came in and are gone again are among them. Nothing is told of a row that last
        came in before.

        Args:
            since: The versions after this one are looked at; None: all, from version 0.

        Returns:
            `row_key`, `row_hash` (String) and `row_version` (Int64), each hash once; without a
            key, equal rows share the line of the first of them. None when the feed is not on,
            cannot be read, or tells so much that reading the table costs less.
        """
        if self.delta.metadata().configuration.get(_FEED_SETTING) != "true":
            return None
        try:
            return last_versions(
                self._feed(-1 if since is None else since),
                key=self.key,
                template=self.template,
                most=2 * self.n_rows() + _MOST_CHANGES,
            )
        except FeedUnreadable:
            return None

    def row(self, key: str) -> Row | None:
        """Return one row by its row key, blank or not; None when there is no such row.

        Raises:
            TableError: the table needs a feature that the reader lacks, or a file is missing.
        """
        kinds = {f.name: str(getattr(f.type, "type", "")) for f in self.delta.schema().fields}
        where = predicate(key, {c: kinds[c] for c in self.key}) if self.key else None
        return find(
            key, columns=self.key, template=self.template, scan=lambda: self._frames(where=where)
        )

    def facts(self) -> list[ColumnFacts]:
        """Return what of its columns a reader can filter by, in order; it reads all rows.

        Raises:
            TableError: the table needs a feature that the reader lacks, or a file is missing.
        """
        # a key of one column names a row, which nobody filters by
        return column_facts(self._frames, without=self.key if len(self.key) == 1 else ())

    def titles(self, n: int, *, max_chars: int) -> list[str]:
        """Return what some rows are called, see `rag.table.facts`; it reads all rows."""
        return titles(self._frames, self.template, n, max_chars=max_chars)

    def n_rows(self) -> int:
        """Return how many rows the log says there are; 0 when it does not say."""
        actions = pl.DataFrame(self.delta.get_add_actions(flatten=True))
        if "num_records" not in actions.columns:
            return 0
        return int(actions["num_records"].sum() or 0)

    def schema(self) -> pa.Schema:
        """Return the Arrow schema of the columns, in types that Lance stores."""
        empty = pa.schema(pa.schema(self.delta.schema().to_arrow())).empty_table()
        frame = pl.from_arrow(empty)
        assert isinstance(frame, pl.DataFrame)
        return frame.with_columns(storable(frame.schema)).to_arrow().schema

    def _frames(
        self, columns: Sequence[str] | None = None, *, where: str | None = None
    ) -> Iterator[pl.DataFrame]:
        wanted = None if columns is None else list(columns)

        def failure(error: BaseException) -> TableError:
            features = self.delta.protocol().reader_features or ()
            return unreadable(self.uri, self.version, error, features)

        yield from frames(lambda: self.delta.scan(wanted, where), failure)

    def _feed(self, since: int) -> Iterator[pl.DataFrame]:
        if since >= self.version:
            return
        if not has_feed(self.uri):
            raise FeedUnreadable("its reader breaks on the characters [ ] ^ | in the path")
        columns = [f'"{c.replace(chr(34), chr(34) * 2)}"' for c in self.columns]

        def feed() -> Iterable[Any]:
            return self.delta.load_cdf(since + 1, self.version, columns=[*columns, CHANGE, VERSION])

        yield from frames(feed, lambda e: FeedUnreadable(told_cause(e)))

    def _change(self, frame: pl.DataFrame) -> Change:
        is_blank = frame.select(self.template.is_blank(frame.schema)).to_series()
        signs, versions = signs_and_versions(frame)
        kept = frame.drop(CHANGE, VERSION).filter(~is_blank)
        hashes = content_hashes(kept, kept.columns)
        keys = row_keys(kept, self.key) if self.key else hashes.alias("row_key")
        if keys.null_count():
            raise FeedUnreadable("a key is null")
        return Change(
            self._rows(kept, keys, hashes, n_blank=0),
            signs.filter(~is_blank),
            versions.filter(~is_blank),
            n_blank=int(signs.filter(is_blank).sum()),
        )

    def _rows(
        self, kept: pl.DataFrame, keys: pl.Series, hashes: pl.Series, *, n_blank: int
    ) -> Rows:
        texts = kept.select(self.template.text(kept.schema).alias("text")).to_series()
        return Rows(keys, hashes, texts, kept.with_columns(storable(kept.schema)), n_blank)

    def _refusal(self, bad: BadKeys) -> RowKeyError:
        return RowKeyError(
            self.uri,
            self.key,
            null=(bad.n_null, bad.null_examples),
            repeated=(bad.n_repeated, bad.repeated_examples),
        )


def open_table(
    uri: str,
    *,
    template: str,
    key: Sequence[str] | None = None,
    version: int | None = None,
    on_bad_key: OnBadKey = "refuse",
    storage_options: Mapping[str, str] | None = None,
) -> Snapshot:
    """Open a version of a Delta table.

    Args:
        uri: Folder or URL.
        template: Text of a row, see `rag.template`.
        key: Columns that identify a row; None is `row_id` where there is one, else the content.
        version: None is the latest.
        on_bad_key: What becomes of rows whose key is null or occurs twice.
        storage_options: For object storage.

    Raises:
        TableNotFound: nothing there, or no Delta table.
        VersionNotFound: it has no such version.
        ColumnNotFound: the template or the key names a column that is not there.
    """
    parsed = Template.parse(template)
    delta = open_delta(uri, version, dict(storage_options) if storage_options else None)
    columns = tuple(f.name for f in delta.schema().fields)
    if key is None:
        key = (DEFAULT_KEY,) if DEFAULT_KEY in columns else ()
    check_columns(delta, uri, template=parsed.columns, key=key)
    return Snapshot(
        uri=uri,
        version=delta.version(),
        table_id=str(delta.metadata().id),
        columns=columns,
        key=tuple(key),
        template=parsed,
        on_bad_key=on_bad_key,
        delta=delta,
    )


def documents(snapshot: Snapshot) -> Iterator[Document]:
    """Yield one LlamaIndex document a row, lazily; its id is the row key."""
    contents = snapshot.contents()
    for rows in snapshot.rows(contents.frame if contents.n_left_out or not snapshot.key else None):
        columns = rows.columns.iter_rows(named=True)
        for key, text, values in zip(rows.keys, rows.texts, columns, strict=True):
            metadata = row_metadata(snapshot.uri, snapshot.version, key, values)
            hidden = list(metadata)
            yield Document(
                id_=key,
                text=text,
                metadata=metadata,
                # a prompt or an embedding gets the template's text, nothing else
                excluded_embed_metadata_keys=hidden,
                excluded_llm_metadata_keys=hidden,
            )


def row_metadata(
    table_uri: str,
    table_version: int,
    row_key: str,
    values: Mapping[str, Any],
    *,
    row_version: int | None = None,
) -> dict[str, Any]:
    """Return a node's metadata: where the row stands, and its columns with their values.

    Args:
        table_uri: The table.
        table_version: The Delta version read.
        row_key: The row.
        values: Its columns.
        row_version: The Delta version at which it last changed; None is left out.
    """
    ours: dict[str, Any] = {"table_uri": table_uri, "table_version": table_version}
    ours["row_key"] = row_key
    if row_version is not None:
        ours["row_version"] = row_version
    columns = {f"column.{k}" if k in RESERVED else k: v for k, v in values.items()}
    return {**ours, **columns}
