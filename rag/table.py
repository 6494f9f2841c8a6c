"""Delta: open a version, read its rows as text and typed columns.

Knows deltalake and polars; does not know the index or any model. `DeltaTable.scan` is the reader
because it is the widest (deletion vectors, column mapping) and streams.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.schema import PrimitiveType
from llama_index.core.schema import Document

from rag.errors import (
    ColumnNotFound,
    RowKeyError,
    TableError,
    TableNotFound,
    VersionNotFound,
    cause,
)
from rag.template import Template, content_hashes, text_hash, text_of

DEFAULT_KEY = "row_id"
RESERVED = ("table_uri", "table_version", "row_key")
"""Metadata names that are ours; a column of the same name appears as `column.<name>`."""

_CHANGE = "_change_type"
_CHANGES_IN = ["insert", "update_postimage"]
_N_EXAMPLES = 3
_FAILURES = (DeltaError, OSError)
"""What deltalake raises: its own errors, and OSError for object storage."""


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
    delta: DeltaTable = field(repr=False, compare=False)

    def commit_of(self, version: int) -> str:
        """Return the identity of the commit that made a version; empty when its log is gone."""
        log = Path(self.uri.removeprefix("file://")) / "_delta_log" / f"{version:020}.json"
        try:
            if log.is_file():
                return text_hash(log.read_text(errors="replace"))
            # on object storage; slower, because deltalake reads the whole log for it
            found = [c for c in self.delta.history() if c.get("version") == version]
        except _FAILURES:
            return ""
        return text_hash(json.dumps(found[0], sort_keys=True, default=str)) if found else ""

    def rows(self) -> Iterator[Rows]:
        """Yield the rows in batches, in no promised order; blank rows are left out.

        Raises:
            RowKeyError: a key is null or occurs twice.
            TableError: the table needs a feature that the reader lacks, or a file is missing.
        """
        if self.key:
            self._check_key()
        n_seen: dict[str, int] = {}
        for frame in self._frames():
            blank = frame.select(self.template.is_blank(frame.schema)).to_series()
            kept = frame.filter(~blank)
            hashes = content_hashes(kept, kept.columns)
            keys = self._keys(kept) if self.key else _content_keys(hashes, n_seen)
            yield self._rows(kept, keys, hashes, n_blank=len(frame) - len(kept))

    def changes(self, since: int) -> Iterator[Change]:
        """Yield what the change data feed tells of the versions after `since`, up to this one.

        The feed says more than it should (an overwrite takes every row out and puts it in again,
        in no promised order): count the rows in and out.

        Raises:
            FeedUnreadable: it was not on all the time, was cleaned up, or the reader lacks it.
        """
        columns = [f'"{c.replace(chr(34), chr(34) * 2)}"' for c in self.columns]

        def feed() -> Iterable[Any]:
            return self.delta.load_cdf(since + 1, self.version, columns=[*columns, _CHANGE])

        for frame in _polars(feed, FeedUnreadable):
            came = pl.col(_CHANGE).is_in(_CHANGES_IN)
            signs = frame.select(pl.when(came).then(1).otherwise(-1).alias("sign")).to_series()
            yield self._change(frame.drop(_CHANGE), signs)

    def _change(self, frame: pl.DataFrame, signs: pl.Series) -> Change:
        blank = frame.select(self.template.is_blank(frame.schema)).to_series()
        kept = frame.filter(~blank)
        if self.key and kept.select(_any_null(self.key)).to_series().any():
            raise FeedUnreadable("a key is null")
        hashes = content_hashes(kept, kept.columns)
        keys = self._keys(kept) if self.key else hashes.alias("row_key")
        return Change(
            self._rows(kept, keys, hashes, n_blank=0),
            signs.filter(~blank),
            n_blank=int(signs.filter(blank).sum()),
        )

    def _rows(
        self, kept: pl.DataFrame, keys: pl.Series, hashes: pl.Series, *, n_blank: int
    ) -> Rows:
        texts = kept.select(self.template.text(kept.schema).alias("text")).to_series()
        return Rows(keys, hashes, texts, kept.with_columns(_storable(kept.schema)), n_blank)

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
        return frame.with_columns(_storable(frame.schema)).to_arrow().schema

    def _frames(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        def scan() -> Iterable[Any]:
            return self.delta.scan(columns=list(columns) if columns is not None else None)

        def unreadable(why: str) -> TableError:
            return TableError(
                f"Delta table {self.uri!r} at version {self.version} cannot be read: {why}."
            )

        yield from _polars(scan, unreadable)

    def _keys(self, frame: pl.DataFrame) -> pl.Series:
        if len(self.key) == 1:
            return frame.select(pl.col(self.key[0]).cast(pl.String).alias("row_key")).to_series()
        values = frame.select(self.key).rows()
        return pl.Series(
            "row_key", [json.dumps(v, ensure_ascii=False, default=str) for v in values]
        )

    def _check_key(self) -> None:
        # a blank row is not indexed, so its key does not matter
        needed = list(dict.fromkeys([*self.key, *self.template.columns]))
        filled = (f.filter(~self.template.is_blank(f.schema)) for f in self._frames(needed))
        frames = [f.select(self._keys(f), _null=_any_null(self.key)) for f in filled]
        if not frames:
            return
        keys = pl.concat(frames)
        n_null = int(keys["_null"].sum())
        if n_null:
            raise RowKeyError(self.uri, self.key, problem="is null", n_rows=n_null, examples=[])
        counts = keys.group_by("row_key").len().filter(pl.col("len") > 1)
        if len(counts):
            examples = counts.sort("row_key")["row_key"].head(_N_EXAMPLES).to_list()
            raise RowKeyError(
                self.uri,
                self.key,
                problem="is not unique: it repeats",
                n_rows=int(counts["len"].sum()),
                examples=examples,
            )


@dataclass(frozen=True)
class Rows:
    """A batch of rows: parallel series, and their columns."""

    keys: pl.Series
    hashes: pl.Series
    """Content hash of each row, over all columns."""
    texts: pl.Series
    columns: pl.DataFrame
    n_blank: int
    """Rows of the batch that were left out because they have no text."""

    def take(self, index: Sequence[int]) -> Rows:
        """Return rows by position."""
        chosen = pl.Series(index, dtype=pl.UInt32)
        return self._of(lambda s: s.gather(chosen), self.columns[list(index)])

    def with_keys(self, keys: Sequence[str]) -> Rows:
        """Return the same rows under other keys."""
        return replace(self, keys=pl.Series("row_key", keys, dtype=pl.String))

    def slice(self, start: int, length: int) -> Rows:
        """Return some of the rows, in order."""
        return self._of(lambda s: s.slice(start, length), self.columns.slice(start, length))

    def filter(self, mask: pl.Series) -> Rows:
        """Return the rows where `mask` is true."""
        return self._of(lambda s: s.filter(mask), self.columns.filter(mask))

    def _of(self, pick: Callable[[pl.Series], pl.Series], columns: pl.DataFrame) -> Rows:
        return Rows(pick(self.keys), pick(self.hashes), pick(self.texts), columns, n_blank=0)


@dataclass(frozen=True)
class Change:
    """A batch of the change feed."""

    rows: Rows
    """For a table without a key, `keys` are the content hashes."""
    signs: pl.Series
    """1 for a row that came in, -1 for one that went out."""
    n_blank: int
    """Blank rows that came in, less those that went out."""


class FeedUnreadable(Exception):
    """The change feed cannot be read; its text says why. The whole table can be read instead."""


def content_key(content: str, n: int) -> str:
    """Return the key of the `n`-th row (from 1) of equal content in a table without a key."""
    return f"h:{content}" if n == 1 else f"h:{content}:{n}"


def open_table(
    uri: str,
    *,
    template: str,
    key: Sequence[str] | None = None,
    version: int | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Snapshot:
    """Open a version of a Delta table.

    Args:
        uri: Folder or URL.
        template: Text of a row, see `rag.template`.
        key: Columns that identify a row; None is `row_id` where there is one, else the content.
        version: None is the latest.
        storage_options: For object storage.

    Raises:
        TableNotFound: nothing there, or no Delta table.
        VersionNotFound: it has no such version.
        ColumnNotFound: the template or the key names a column that is not there.
    """
    options = dict(storage_options) if storage_options else None
    parsed = Template.parse(template)
    delta = _open(uri, options)
    if version is not None:
        latest = delta.version()
        try:
            delta = DeltaTable(uri, version=version, storage_options=options)
        except _FAILURES as e:
            raise VersionNotFound(uri, version, latest) from e
    columns = tuple(f.name for f in delta.schema().fields)
    if key is None:
        key = (DEFAULT_KEY,) if DEFAULT_KEY in columns else ()
    for name in parsed.columns:
        if name not in columns:
            raise ColumnNotFound(uri, name, columns, setting="RAG_TABLE__TEMPLATE")
    for name in key:
        if name not in columns:
            raise ColumnNotFound(uri, name, columns, setting="RAG_TABLE__KEY")
        kind = next(f.type for f in delta.schema().fields if f.name == name)
        if not isinstance(kind, PrimitiveType) or kind.type == "binary":
            raise TableError(
                f"Key column {name!r} of Delta table {uri!r} holds values of type {kind}. "
                "Set RAG_TABLE__KEY to columns of text, numbers or dates."
            )
    return Snapshot(
        uri=uri,
        version=delta.version(),
        table_id=str(delta.metadata().id),
        columns=columns,
        key=tuple(key),
        template=parsed,
        delta=delta,
    )


def documents(snapshot: Snapshot) -> Iterator[Document]:
    """Yield one LlamaIndex document a row, lazily; its id is the row key."""
    for rows in snapshot.rows():
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
    table_uri: str, table_version: int, row_key: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a node's metadata: where the row stands, and its columns with their values."""
    ours = {"table_uri": table_uri, "table_version": table_version, "row_key": row_key}
    columns = {f"column.{k}" if k in RESERVED else k: v for k, v in values.items()}
    return {**ours, **columns}


def _open(uri: str, options: dict[str, str] | None) -> DeltaTable:
    try:
        return DeltaTable(uri, storage_options=options)
    except TableNotFoundError as e:
        raise TableNotFound(uri, _cause(e)) from e
    except _FAILURES as e:
        if "not exist" in str(e):
            raise TableNotFound(uri, _cause(e)) from e
        raise TableError(f"Delta table {uri!r} cannot be opened: {_cause(e)}.") from e


def _polars(
    read: Callable[[], Iterable[Any]], unreadable: Callable[[str], Exception]
) -> Iterator[pl.DataFrame]:
    """Yield what deltalake streams, as polars frames; its failures become `unreadable`."""
    batches: Iterator[Any] | None = None
    while True:
        try:
            batches = batches or iter(read())
            batch = next(batches, None)
        # a missing or damaged file surfaces as a bare Exception of the Arrow C interface
        except Exception as e:
            raise unreadable(_cause(e)) from e
        if batch is None:
            return
        frame = pl.from_arrow(pa.record_batch(batch))
        assert isinstance(frame, pl.DataFrame)
        yield frame


def _content_keys(hashes: pl.Series, n_seen: dict[str, int]) -> pl.Series:
    # equal rows get the numbers 2, 3, … so that each keeps a key of its own
    keys: list[str] = []
    for content in hashes:
        n = n_seen[content] = n_seen.get(content, 0) + 1
        keys.append(content_key(content, n))
    return pl.Series("row_key", keys, dtype=pl.String)


def _storable(schema: pl.Schema) -> list[pl.Expr]:
    # Lance stores neither maps nor columns without a type: they are kept as text
    return [
        text_of(name, dtype).cast(pl.String).alias(name)
        for name, dtype in schema.items()
        if not _is_storable(dtype)
    ]


def _is_storable(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Struct):
        return all(_is_storable(f.dtype) for f in dtype.fields if isinstance(f.dtype, pl.DataType))
    if isinstance(dtype, (pl.List, pl.Array)):
        return not isinstance(dtype.inner, pl.DataType) or _is_storable(dtype.inner)
    return not isinstance(dtype, (pl.Map, pl.Null))


def _any_null(columns: Sequence[str]) -> pl.Expr:
    return pl.any_horizontal([pl.col(c).is_null() for c in columns])


def _cause(error: BaseException) -> str:
    text = cause(error)
    if "No files in log segment" in text:
        return "the folder holds no Delta log"
    return text.split(". Known schemes")[0]
