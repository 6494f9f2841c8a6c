"""Real tables of other writers: each is read whole and exactly, or refused by one sentence.

`../shared/data/delta_tables.json` lists them. Its `query_builder` says what deltalake's engine
made of a table; where `expected/` lies beside the table, it holds the rows as its own writer
wrote them.
"""

from __future__ import annotations

import json
import math
import re
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import SHARED
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from rag.errors import FeatureUnsupported, TableError
from rag.table import Snapshot, open_table

BETWEEN = "\x1f"
LARGE = {"COVID-19_NYT", "parquet-decimal-type"}
PYTHON = re.compile(r"\bb'|Decimal\(|datetime\.|\bNone\b|\bTrue\b|\bFalse\b")
LISTED = SHARED / "delta_tables.json"
TABLES = json.loads(LISTED.read_text()) if LISTED.is_file() else []


def named(tables: list[dict[str, Any]]) -> list[Any]:
    """Each table as a parameter; without the shared data, one that is skipped."""
    marked = [
        pytest.param(t, id=t["table"], marks=pytest.mark.proof if t["table"] in LARGE else ())
        for t in tables
    ]
    return marked or [pytest.param({}, id="no shared data")]


def is_readable(entry: dict[str, Any]) -> bool:
    return str(entry["query_builder"]).startswith("ok")


def is_golden(entry: dict[str, Any]) -> bool:
    return "content" in str(entry["query_builder"]).lower()


def opened(shared_data: Path, entry: dict[str, Any]) -> Snapshot:
    """The table with all its columns in the template."""
    uri = str(shared_data / entry["path"])
    try:
        columns = [f.name for f in DeltaTable(uri).schema().fields]
    except DeltaError:
        columns = ["any"]
    return open_table(uri, template=BETWEEN.join(f"{{{c}}}" for c in columns), key=[])


def test_the_whole_list_is_walked() -> None:
    if TABLES:
        assert len(TABLES) == 85
        assert sum(map(is_golden, TABLES)) >= 28
        assert sum(not is_readable(t) for t in TABLES) == 6


@pytest.mark.parametrize("entry", named([t for t in TABLES if is_readable(t)]))
def test_every_row_is_read(shared_data: Path, entry: dict[str, Any]) -> None:
    snapshot = opened(shared_data, entry)
    contents = snapshot.contents()
    n_rows, n_texts = 0, 0
    for rows in snapshot.rows(contents.frame):
        n_rows += len(rows.keys)
        texts = pl.DataFrame([rows.texts.alias("text")])
        n_texts += texts.filter(pl.col("text").str.contains(r"[^\x1f\s]")).height
        assert not [t for t in rows.texts if PYTHON.search(t)]
    assert n_rows == n_texts == len(contents.frame)
    if entry["expected_rows"] is not None:
        assert n_rows + contents.n_blank == entry["expected_rows"]
    assert contents.n_left_out == 0


@pytest.mark.parametrize("entry", named([t for t in TABLES if not is_readable(t)]))
def test_a_table_that_needs_more_is_refused_by_name(
    shared_data: Path, entry: dict[str, Any]
) -> None:
    with pytest.raises(TableError) as failure:
        opened(shared_data, entry).contents()
    assert isinstance(failure.value, FeatureUnsupported)
    said = str(failure.value)
    assert "\n" not in said
    # the reader has these two
    wanted = [f for f in entry["reader_features"] if f not in ("variantType", "timestampNtz")]
    if "catalogManaged" in wanted:
        wanted = ["catalogManaged"]  # the reader stops at it
    assert wanted
    assert all(f"'{feature}'" in said for feature in wanted)
    assert "RAG_TABLE__URI" in said


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it, maps as objects; independent of the code under test."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return {as_text(k): jsonable(v) for k, v in value}
    if isinstance(value, list):
        return [jsonable(v) for v in value]
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if value is None or isinstance(value, (int, float, str)):
        return value
    return as_text(value)


def as_text(value: Any) -> str:
    """A plain value as a reader expects to see it."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case bytes():
            return value.hex()
        case Decimal():
            return f"{value:f}"
        case int() | str() | date() | float():
            return str(value)
    raise AssertionError(type(value))


def has_text(value: Any) -> bool:
    return any(map(has_text, value)) if isinstance(value, list) else value not in (None, "")


def has_map(kind: pa.DataType) -> bool:
    return "map<" in str(kind)


def comparable(value: Any) -> str:
    """A typed value as text that is equal only for an equal value of the same type."""
    if isinstance(value, dict):
        return str({k: comparable(v) for k, v in value.items()})
    if isinstance(value, list):
        return str([comparable(v) for v in value])
    if isinstance(value, datetime):  # one time zone has several objects
        return f"{value.isoformat()} {value.tzinfo is not None}"
    return repr(value)


def same_text(text: str, value: Any, kind: pa.DataType) -> bool:
    """Whether the template wrote a golden value as it should."""
    if value is None:
        return text == ""
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(text.replace(" UTC", "+00:00")) == value
    if pa.types.is_floating(kind):
        return math.isclose(float(text), value, rel_tol=1e-6)
    if pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type):
        parts = [p for p in text.split(", ") if p]
        plain = [v for v in value if v is not None]
        return len(parts) == len([v for v in plain if as_text(v)]) and all(
            same_text(p, v, kind.value_type) for p, v in zip(parts, plain, strict=False)
        )
    if pa.types.is_nested(kind):
        found = json.loads(text)
        # an empty list and an empty map are both [] to pyarrow
        return normal(found) == normal(jsonable(value))
    return text == as_text(value)


def normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: normal(v) for k, v in value.items()} or []
    if isinstance(value, list):
        return [normal(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def golden(shared_data: Path, entry: dict[str, Any]) -> pa.Table:
    folder = (shared_data / entry["path"]).parent / "expected"
    table = pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("*.parquet"))])
    if entry["table"] == "data-reader-partition-values":
        # The value in the log, "2021-09-08 11:11:11", names no time zone. Delta leaves it to the
        # session: the golden rows were written in California, our reader takes UTC.
        at = table.schema.get_field_index("as_timestamp")
        shifted = pc.subtract(table["as_timestamp"], pa.scalar(timedelta(hours=7)))
        table = table.set_column(at, table.schema.field(at), shifted)
    return table


def line(values: dict[str, Any]) -> str:
    return str(sorted((name, comparable(v)) for name, v in values.items()))


def ours(snapshot: Snapshot, mapped: list[str]) -> tuple[dict[str, list[str]], int, pl.Schema]:
    """Text of every column by the row's values; how many rows; and their types."""
    texts: dict[str, list[str]] = {}
    n_rows, schema = 0, pl.Schema()
    for rows in snapshot.rows():
        schema = rows.columns.schema
        n_rows += len(rows.keys)
        for values, text in zip(rows.columns.iter_rows(named=True), rows.texts, strict=True):
            for name in mapped:
                values[name] = normal(json.loads(values[name])) if values[name] else None
            texts[line(values)] = text.split(BETWEEN)
    return texts, n_rows, schema


@pytest.mark.parametrize("entry", named([t for t in TABLES if is_golden(t)]))
def test_values_are_the_writers_own(shared_data: Path, entry: dict[str, Any]) -> None:
    expected = golden(shared_data, entry)
    snapshot = opened(shared_data, entry)
    mapped = [f.name for f in expected.schema if has_map(f.type)]  # kept as JSON text
    texts, n_rows, schema = ours(snapshot, mapped)
    theirs: set[str] = set()
    n_blank = 0
    for values in expected.to_pylist():
        if not any(has_text(v) for v in values.values()):
            n_blank += 1
            continue
        row = line({n: normal(jsonable(v)) if n in mapped else v for n, v in values.items()})
        theirs.add(row)
        assert row in texts
        for name, text in zip(snapshot.columns, texts[row], strict=True):
            assert same_text(text, values[name], expected.schema.field(name).type), (name, text)
    assert theirs == set(texts)
    assert n_rows == expected.num_rows - n_blank
    if n_rows:
        typed = pl.from_arrow(expected.drop_columns(mapped))
        assert isinstance(typed, pl.DataFrame)
        assert {n: t for n, t in schema.items() if n not in mapped} == dict(typed.schema)
