"""One row: as it was in a version, and what became of it since.

Knows the table, and the index where the table's own files are gone; does not know who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rag.errors import OtherTable, RowNotFound, TableError, VersionGone
from rag.index import COLUMNS, IS_NODE, Index, Opened, is_in
from rag.table import Row, Snapshot

Fate = Literal["unchanged", "changed", "deleted", "unknown"]


@dataclass(frozen=True)
class ColumnChange:
    """A column whose value differs; None stands for no value and for no such column."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class RowView:
    """A row as it was, and what became of it."""

    table_uri: str
    table_version: int
    row_key: str
    row_version: int | None
    """Delta version at which the row last changed, as far as the log tells; None where no index
    holds it."""
    text: str
    columns: dict[str, Any]
    read_from: Literal["table", "index"]
    """The index, where the table's files of that version are gone."""
    latest_version: int | None
    """The version that it is compared with; None when that cannot be read."""
    fate: Fate
    changes: list[ColumnChange]
    """From the row as it was to the row as it is."""


def look(
    row_key: str, at: Snapshot, latest: Snapshot | None, *, index: Index, mirrored: Opened | None
) -> RowView:
    """Return a row as it was in a version, compared with the row as it is.

    Args:
        row_key: The row.
        at: The version.
        latest: The version to compare with; None when the table cannot be read.
        index: The index.
        mirrored: What mirrors the version `at`; None when nothing does.

    Raises:
        RowNotFound: that version has no such row.
        TableError: that version cannot be read, and is not mirrored.
        OtherTable: the index is of another table.
    """
    if mirrored is not None and mirrored.state.table_id != at.table_id:
        raise OtherTable(index.uri, mirrored=mirrored.state.table_uri, found=at.uri)
    held = _held(index, mirrored, row_key) if mirrored is not None else None
    read_from: Literal["table", "index"] = "table"
    try:
        row = at.row(row_key)
    except VersionGone:
        if held is None:
            raise
        row, read_from = held[0], "index"
    if row is None:
        raise RowNotFound(at.uri, at.version, row_key, at.key)
    fate, changes = _compare(row, latest, row_key)
    return RowView(
        table_uri=at.uri,
        table_version=at.version,
        row_key=row_key,
        row_version=held[1] if held else None,
        text=row.text,
        columns=row.columns,
        read_from=read_from,
        latest_version=latest.version if latest is not None and fate != "unknown" else None,
        fate=fate,
        changes=changes,
    )


def _compare(row: Row, latest: Snapshot | None, row_key: str) -> tuple[Fate, list[ColumnChange]]:
    if latest is None:
        return "unknown", []
    try:
        now = latest.row(row_key)
    except TableError:
        return "unknown", []
    if now is None:
        return "deleted", []
    changes = _differences(row.columns, now.columns)
    return ("changed" if changes else "unchanged"), changes


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ColumnChange]:
    names = dict.fromkeys([*before, *after])
    return [
        ColumnChange(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _held(index: Index, mirrored: Opened, row_key: str) -> tuple[Row, int | None] | None:
    """Return the row that the index holds, put together from its nodes, and its `row_version`."""
    names = ["chunk_no", "start", "text", "row_version", COLUMNS]
    with index.reading():
        search = mirrored.table.search().where(f"{IS_NODE} AND {is_in('row_key', [row_key])}")
        nodes = search.limit(None).select(names).to_arrow().to_pylist()
    if not nodes:
        return None
    text = ""
    for node in sorted(nodes, key=lambda n: n["chunk_no"]):  # neighbours overlap
        text = text[: node["start"]] + node["text"]
    first = nodes[0]
    row_version = mirrored.state.no_later(first["row_version"])
    return Row(row_key, text, first[COLUMNS], is_blank=False), row_version
