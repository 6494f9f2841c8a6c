"""LanceDB: the mirrored table on disk, and which of its versions answers.

Knows LanceDB, pylance and Arrow; does not know Delta, LlamaIndex, models or settings.

One Lance table, `nodes`, holds a row for each node and one more, the state row, that says which
Delta version this is: data and version are committed together, so a reader sees one version or the
next, never a mixture. The state row has no vector and no text, so no search can return it. Every
commit is a Lance version. The newest one answers, unless its state row names another that answers
until the newest is complete; one that mirrors Delta version N completely has the tag `delta-N`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lance
import lancedb
import polars as pl
import pyarrow as pa
from lance.file import LanceFileSession
from lancedb.table import LanceTable

from rag.errors import IndexingError, IndexWriteError, cause

NODES = "nodes"
COLUMNS = "metadata"
"""The struct of the Delta table's columns; the name the stock store expects."""
STATE_ID = "state"
"""Id of the state row; a node's id holds a colon, so it cannot be this."""
IS_NODE = "row_hash IS NOT NULL"
FORMAT = 2
"""Layout of the index; an index of another format is built anew, from its own vectors."""
FAILURES = (OSError, RuntimeError, ValueError)
"""Lance raises all three for I/O and for damaged files."""

_RECIPE = (
    "table_id",
    "key",
    "template",
    "embedding",
    "dimension",
    "chunk_tokens",
    "chunk_overlap",
    "format",
)
"""What makes an index another one; the rest of its state moves with the table."""
_VERSION = ("table_version", "commit", "table_uri", "on_bad_key")
_PANICS = ("PanicException", "RustPanic")
"""Classes that cannot be imported, of pylance and of lancedb."""
_TAG = "delta-"
_AMONG = 2_000
"""Values in one IN list."""


@dataclass(frozen=True)
class IndexState:
    """What the index mirrors and what it was built with."""

    table_uri: str
    table_id: str
    table_version: int
    key: tuple[str, ...]
    on_bad_key: str
    template: str
    embedding: str
    """Identity of the embedding space."""
    dimension: int
    chunk_tokens: int
    chunk_overlap: int
    n_rows: int = 0
    n_nodes: int = 0
    n_blank: int = 0
    """Rows without any text, which are not indexed."""
    n_left_out: int = 0
    """Rows whose key was null or taken, left out because the settings say so."""
    commit: str = ""
    """Identity of the mirrored commit; a table restored from a backup has another."""
    answers: int | None = None
    """The Lance version that answers instead of this one; 0 while there is none."""
    is_beside: bool = False
    """Whether this never answers by itself: it mirrors an older Delta version beside the one that
    does, or only a part of a newer one."""
    oldest: int = 0
    """The Lance version that this recipe began with, or this history of the table; earlier ones
    are of another."""
    format: int = FORMAT

    def is_alike(self, other: IndexState) -> bool:
        """Whether both are of one recipe, so that equal rows have equal nodes."""
        return all(getattr(self, name) == getattr(other, name) for name in _RECIPE)

    def is_of_one_version(self, other: IndexState) -> bool:
        """Whether both, of one recipe, mirror the very same commit."""
        return all(getattr(self, name) == getattr(other, name) for name in _VERSION)

    def to_json(self) -> str:
        """Return the state row's text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> IndexState:
        """Read what `to_json` wrote, in this release or another."""
        values = {"on_bad_key": "refuse", "format": 1, **json.loads(text)}
        known = {f.name for f in fields(cls)}
        return cls(
            **{k: v for k, v in values.items() if k in known} | {"key": tuple(values["key"])}
        )

    def no_later(self, row_version: int | None) -> int | None:
        """Return a row's version, no later than the mirrored one: a newer mirror shares rows."""
        return None if row_version is None else min(row_version, self.table_version)


@dataclass(frozen=True)
class Opened:
    """One Lance version, open for reading; what is read from it belongs together."""

    table: LanceTable
    state: IndexState

    @property
    def number(self) -> int:
        """Number of the Lance version."""
        return int(self.table.version)


def nodes_schema(dimension: int, columns: pa.Schema) -> pa.Schema:
    """Return the Arrow schema of the index.

    Args:
        dimension: Of the vectors.
        columns: The Delta table's columns; they become one struct, so that filters can use them.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("row_key", pa.string()),
            pa.field("chunk_no", pa.int32()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("row_version", pa.int64()),
            pa.field("row_hash", pa.string()),
            pa.field("text_hash", pa.string()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dimension)),
            pa.field(COLUMNS, pa.struct(list(columns))),
            pa.field("state", pa.string()),
        ]
    )


def node_id(row_key: str, chunk_no: int) -> str:
    """Return the id of a row's node."""
    return f"{chunk_no}:{row_key}"


class Index:
    """A LanceDB database that holds one mirrored table.

    Args:
        uri: Folder or URL of the database.
        storage_options: For object storage.

    Raises:
        IndexWriteError: the place cannot hold a database.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options) if storage_options else None

    @functools.cached_property
    def connection(self) -> lancedb.db.DBConnection:
        """The database; its folder is made when it is first asked for."""
        with self.writing():
            return lancedb.connect(self.uri, storage_options=self.storage_options)

    # -- versions ------------------------------------------------------------------------------

    def newest(self) -> Opened | None:
        """Open the newest version, complete or not; None when nothing was built."""
        with self.reading():
            table = self.open(NODES)
            return None if table is None else self._opened(table)

    def answering(self) -> Opened | None:
        """Open the version that answers; None when there is none yet."""
        newest = self.newest()
        if newest is None or newest.state.answers is None:
            return newest
        return self.at(newest.state.answers) if newest.state.answers else None

    def mirrored(self, table_version: int) -> Opened | None:
        """Open what mirrors a Delta version; None when that one is not mirrored."""
        answering = self.answering()
        if answering is None or answering.state.table_version == table_version:
            return answering
        number = self.tags().get(table_version, -1)
        return self.at(number) if number >= answering.state.oldest else None

    def versions(self) -> list[int]:
        """Return the Delta versions that can be asked, in order."""
        answering = self.answering()
        if answering is None:
            return []
        oldest, now = answering.state.oldest, answering.state.table_version
        return sorted({now} | {v for v, number in self.tags().items() if number >= oldest})

    def at(self, number: int) -> Opened:
        """Open a Lance version."""
        with self.reading():
            table = self.connection.open_table(NODES)
            table.checkout(number)
            return self._opened(table)

    def tags(self) -> dict[int, int]:
        """Return the Lance version that mirrors each Delta version, the latest mirrored first."""
        with self.reading():
            tags = self._tags()
        found = {
            int(name.removeprefix(_TAG)): int(tag["version"])
            for name, tag in tags.items()
            if re.fullmatch(rf"{_TAG}\d+", name)
        }
        return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))

    def _tags(self) -> dict[str, Any]:
        table = self.open(NODES)
        if table is None:
            return {}
        with contextlib.suppress(*FAILURES):  # one may be removed while they are read
            return dict(table.tags.list())
        return dict(table.tags.list())

    def open(self, name: str) -> LanceTable | None:
        """Open the newest version of any table; None when nothing was ever committed to it."""
        if "://" not in self.uri and not Path(self.uri).exists():
            return None  # looking makes no folder
        if name not in self.connection.list_tables().tables:
            return None
        try:
            return self.connection.open_table(name)
        except FAILURES:
            # a kill in the first commit leaves files that no version names
            files = LanceFileSession(self._place(name), storage_options=self.storage_options)
            if any(files.list(part) for part in ("_versions", "_refs", "_indices")):
                raise
            return None

    def _opened(self, table: LanceTable) -> Opened:
        rows = table.search().where(f"id = '{STATE_ID}'").select(["state"]).limit(1).to_list()
        try:
            return Opened(table, IndexState.from_json(rows[0]["state"]))
        except (IndexError, KeyError, TypeError, ValueError) as e:
            raise IndexingError(
                f"The index at {self.uri!r} was made by another program or release. "
                "Run `rag sync --rebuild` to build it anew."
            ) from e

    # -- what a version holds --------------------------------------------------------------------

    def hashes(
        self, table: LanceTable, *, column: str = "row_key", among: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Return the content of rows by key, without their text.

        Args:
            table: A version, or a stage.
            column: `row_key` or `row_hash`, what `among` lists.
            among: Only these; None is all rows.

        Returns:
            Columns `row_key`, `row_hash` (String) and `n_nodes` (UInt32); one line a row.
        """
        parts = [IS_NODE]
        if among is not None:
            parts = [f"{IS_NODE} AND {p}" for p in _in_portions(column, among)]
        frames = [self._read(table, part, ["row_key", "row_hash"]) for part in parts]
        nodes = pl.concat(frames) if frames else _NO_HASHES
        return nodes.group_by("row_key").agg(
            pl.col("row_hash").first(), n_nodes=pl.len().cast(pl.UInt32)
        )

    def vectors(self, table: LanceTable, text_hashes: Sequence[str]) -> dict[str, list[float]]:
        """Return the vectors of the texts that a version already holds, by text hash."""
        found: dict[str, list[float]] = {}
        for part in _in_portions("text_hash", text_hashes):
            nodes = self._read(table, f"{IS_NODE} AND {part}", ["text_hash", "vector"])
            nodes = nodes.unique("text_hash")
            found |= dict(zip(nodes["text_hash"], nodes["vector"].to_list(), strict=True))
        return found

    def _read(self, table: LanceTable, where: str, columns: list[str]) -> pl.DataFrame:
        with self.reading():
            found = pl.from_arrow(table.to_lance().to_table(columns=columns, filter=where))
        assert isinstance(found, pl.DataFrame)
        return found

    # -- the border to Lance -----------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn Lance's failures into one sentence; it panics at some damaged files."""
        try:
            yield
        except BaseException as e:  # one of the panics is no Exception
            if not isinstance(e, FAILURES) and type(e).__name__ not in _PANICS:
                raise
            raise IndexingError(
                f"The index at {self.uri!r} cannot be read: {index_cause(e)}. "
                "Run `rag verify --repair` to mend it."
            ) from e

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn Lance's failures into one sentence that says the old index still serves."""
        try:
            yield
        except FAILURES as e:
            raise IndexWriteError(self.uri, index_cause(e)) from e

    def dataset(self) -> lance.LanceDataset:
        """Return the newest version for writing; pylance can refuse a commit on a stale base."""
        return lance.dataset(self.nodes_uri, storage_options=self.storage_options)

    @property
    def nodes_uri(self) -> str:
        """Where the Lance table is."""
        return self._place(NODES)

    def _place(self, name: str) -> str:
        return str(self.connection.uri).rstrip("/") + f"/{name}.lance"


def tag_name(table_version: int) -> str:
    """Return the tag of the Lance version that mirrors a Delta version."""
    return f"{_TAG}{table_version}"


def index_cause(error: BaseException) -> str:
    """Return the one line of Lance's error that tells something."""
    # Lance adds where in its own sources it failed, which tells a user nothing
    return re.split(r",? ?(?:/rustc|/root|/home|rust/)", cause(error))[0].rstrip(". ")


def is_in(column: str, values: Sequence[str]) -> str:
    """Return the predicate that a text column holds one of these values."""
    # single quotes are strings in Lance's SQL, doubled inside
    listed = ", ".join("'" + v.replace("'", "''") + "'" for v in values)
    return f"{column} IN ({listed})" if values else "false"


def _in_portions(column: str, values: Sequence[str]) -> Iterator[str]:
    for i in range(0, len(values), _AMONG):
        yield is_in(column, values[i : i + _AMONG])


_NO_HASHES = pl.DataFrame(schema={"row_key": pl.String, "row_hash": pl.String})
