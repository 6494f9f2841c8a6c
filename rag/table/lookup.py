"""One row back by its key: which rows to ask deltalake for, and the row that came.

Knows the SQL that `DeltaTable.scan` takes; does not know deltalake: frames come in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from rag.table.batches import storable
from rag.table.keys import row_keys
from rag.template import Template, content_hashes

_CONTENT_KEY = re.compile(r"h:([0-9a-f]{32})(?::([1-9]\d*))?")


@dataclass(frozen=True)
class Row:
    """A row as it is in one version of the table."""

    key: str
    text: str
    """What the template makes of it."""
    columns: dict[str, Any]
    is_blank: bool
    """Whether it has no text, so that no index holds it."""


def predicate(key: str, columns: Mapping[str, str]) -> str | None:
    """Return an SQL predicate that every row of this key fulfils.

    Args:
        key: A row key.
        columns: Delta type of each key column, in order.

    Returns:
        None where no column has a type whose values are safely found so: floats are not exact,
        and timestamps are coarser in the statistics that leave files out than in the rows.
    """
    values: Any = key
    if len(columns) > 1:
        try:
            values = json.loads(key)
        except ValueError:
            return None
    if isinstance(values, str):
        values = [values]
    if not isinstance(values, list) or len(values) != len(columns):
        return None
    parts = []
    for (name, kind), value in zip(columns.items(), values, strict=True):
        literal = _literal(value if isinstance(value, str) else json.dumps(value), kind)
        if literal is not None:
            parts.append(f'"{name.replace(chr(34), chr(34) * 2)}" = {literal}')
    return " AND ".join(parts) or None


def _literal(text: str, kind: str) -> str | None:
    if kind == "string":
        return "'" + text.replace("'", "''") + "'"
    if kind == "boolean" and text in ("true", "false"):
        return text
    if kind in ("byte", "short", "integer", "long") and re.fullmatch(r"-?\d{1,19}", text):
        return text
    if kind == "date" and re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return f"CAST('{text}' AS DATE)"
    if kind.startswith("decimal(") and re.fullmatch(r"-?\d{1,38}(\.\d{1,38})?", text):
        return f"CAST('{text}' AS {kind.upper()})"
    return None


def find(
    key: str,
    *,
    columns: Sequence[str],
    template: Template,
    scan: Callable[[], Iterable[pl.DataFrame]],
) -> Row | None:
    """Return the row of a key; None when no row has it.

    Args:
        key: A row key, for a table without key columns a content key.
        columns: Columns that identify a row; empty when its content does.
        template: Makes the text.
        scan: Yields at least all rows of the key.
    """
    if not columns:
        found = _nth_equal(key, scan)
        return None if found is None else _row(key, found, template)
    matches = [f.filter(row_keys(f, columns).eq_missing(pl.lit(key, pl.String))) for f in scan()]
    frame = pl.concat([f for f in matches if len(f)]) if any(map(len, matches)) else None
    if frame is None:
        return None
    # of several, the one that `on_bad_key="pick"` puts into the index
    order = [frame.select(template.is_blank(frame.schema)).to_series().alias("is_blank")]
    order.append(content_hashes(frame, frame.columns).alias("row_hash"))
    first = pl.DataFrame(order).with_row_index("at").sort("is_blank", "row_hash")["at"][0]
    return _row(key, frame[[first]], template)


def _nth_equal(key: str, scan: Callable[[], Iterable[pl.DataFrame]]) -> pl.DataFrame | None:
    parsed = _CONTENT_KEY.fullmatch(key)
    if parsed is None or parsed[2] == "1":
        return None
    n_left = int(parsed[2] or 1)
    for frame in scan():
        same = frame.filter(content_hashes(frame, frame.columns) == parsed[1])
        n_left -= len(same)
        if n_left <= 0:
            return same.head(1)
    return None


def _row(key: str, frame: pl.DataFrame, template: Template) -> Row:
    text = frame.select(template.text(frame.schema)).item()
    is_blank = frame.select(template.is_blank(frame.schema)).item()
    return Row(key, text, frame.with_columns(storable(frame.schema)).row(0, named=True), is_blank)
