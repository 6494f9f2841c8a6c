"""The demo library, and how it becomes a Delta table.

Knows deltalake and the library's rows; does not know settings, models or the index. The table has
the change data feed on and four versions: create, append, update of ten rows, delete of five. It
carries a mark, so that a table which is not ours is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import polars as pl
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from rag.demo.library import STARTERS, Commits, DemoRow, commits, rows
from rag.errors import TableError, cause

__all__ = ["STARTERS", "DemoReport", "DemoRow", "rows", "write"]

_NAME = "fantasy-library"
_DESCRIPTION = "The demo library that `rag demo` writes; it is safe to delete."
"""Name and description together are the mark of a table of ours."""

_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "row_id": pl.String,
    "Scenario": pl.String,
    "Advice": pl.String,
    "creature": pl.String,
    "biome": pl.String,
    "danger": pl.Int64,
    "price_gold": pl.Decimal(9, 2),
    "in_stock": pl.Boolean,
    "added_on": pl.Date,
}
_FAILURES = (DeltaError, OSError)
"""What deltalake raises: its own errors, and OSError for disks and object storage."""


@dataclass(frozen=True)
class DemoReport:
    """What `write` found or did."""

    uri: str
    version: int
    """The table's latest version."""
    n_rows: int
    """Rows of that version."""
    was_written: bool
    """False when the table was already there."""


def write(uri: str, *, storage_options: Mapping[str, str] | None = None) -> DemoReport:
    """Write the demo library as a Delta table, unless it is already there.

    A local table appears in one rename, complete or not at all. On object storage there is no
    rename: a run that was killed leaves a table with fewer versions, and the next run goes on.

    Args:
        uri: Folder or URL.
        storage_options: For object storage.

    Raises:
        TableError: something else is at the URI, or it cannot be written.
    """
    options = dict(storage_options or {})
    try:
        folder = _local_folder(uri)
        was_written = (
            _commit_missing(uri, uri, options) if folder is None else _write_local(uri, folder)
        )
        table = DeltaTable(uri, storage_options=options)
        return DemoReport(uri, table.version(), table.count(), was_written)
    except _FAILURES as e:
        raise TableError(
            f"The demo library cannot be written to {uri!r}: {cause(e)}. "
            "Set RAG_TABLE__URI to a folder or URL that can be written."
        ) from e


def _write_local(uri: str, folder: Path) -> bool:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder.parent):
        prefix = f".{folder.name}.rag-demo-"
        for leftover in folder.parent.glob(f"{glob.escape(prefix)}*"):  # of a killed run
            shutil.rmtree(leftover)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not folder.is_dir():
                raise _foreign(uri, "a file")
            if not DeltaTable.is_deltatable(str(folder)):
                raise _foreign(uri, "a folder that holds other files")
            return _commit_missing(uri, str(folder), {})
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
            staged = Path(temporary) / folder.name
            _commit_missing(uri, str(staged), {})
            staged.rename(folder)
    return True


def _commit_missing(uri: str, place: str, options: dict[str, str]) -> bool:
    """Bring the table at `place` to the last version of the library; `uri` is its name in errors.

    Returns:
        Whether anything was missing.
    """
    n_there = 0
    if DeltaTable.is_deltatable(place, storage_options=options):
        table = DeltaTable(place, storage_options=options)
        if not _is_ours(table):
            raise _foreign(uri, "another Delta table")
        n_there = table.version() + 1
    missing = _steps(commits())[n_there:]
    for step in missing:
        step(place, options)
    return bool(missing)


def _steps(history: Commits) -> Sequence[Callable[[str, dict[str, str]], None]]:
    """Return one function for each version, in order."""
    return (
        partial(_create, history.create),
        partial(_append, history.append),
        partial(_update, history.update),
        partial(_delete, history.delete),
    )


def _create(new: Sequence[DemoRow], place: str, options: dict[str, str]) -> None:
    write_deltalake(
        place,
        _frame(new),
        name=_NAME,
        description=_DESCRIPTION,
        configuration={"delta.enableChangeDataFeed": "true"},
        storage_options=options,
    )


def _append(new: Sequence[DemoRow], place: str, options: dict[str, str]) -> None:
    write_deltalake(place, _frame(new), mode="append", storage_options=options)


def _update(changed: Sequence[DemoRow], place: str, options: dict[str, str]) -> None:
    table = DeltaTable(place, storage_options=options)
    merger = table.merge(
        _frame(changed),
        predicate="target.row_id = source.row_id",
        source_alias="source",
        target_alias="target",
    )
    merger.when_matched_update_all().execute()


def _delete(keys: Sequence[str], place: str, options: dict[str, str]) -> None:
    listed = ", ".join(f"'{key}'" for key in keys)
    DeltaTable(place, storage_options=options).delete(f"row_id in ({listed})")


def _frame(some: Sequence[DemoRow]) -> pl.DataFrame:
    columns = {name: [getattr(r, name.lower()) for r in some] for name in _SCHEMA}
    return pl.DataFrame(columns, schema=_SCHEMA)


def _is_ours(table: DeltaTable) -> bool:
    metadata = table.metadata()
    return (metadata.name, metadata.description) == (_NAME, _DESCRIPTION)


def _foreign(uri: str, found: str) -> TableError:
    return TableError(
        f"The demo library was not written: {uri!r} is {found}, which `rag demo` never touches. "
        "Set RAG_TABLE__URI to another folder."
    )


def _local_folder(uri: str) -> Path | None:
    """Return the folder that a URI names, links followed, or None for object storage."""
    if "://" not in uri:
        return Path(uri).resolve()
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)).resolve() if parts.scheme == "file" else None


@contextlib.contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Wait until no other `write` works in this folder; a killed process lets go by itself."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
