from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from llama_index.core.schema import MetadataMode

from rag.errors import (
    ColumnNotFound,
    RowKeyError,
    TableError,
    TableNotFound,
    VersionNotFound,
)
from rag.table import documents, open_table

Write = Callable[..., str]


def keys(uri: str, **options: object) -> list[str]:
    snapshot = open_table(uri, template="{t}", **options)
    return sorted(k for rows in snapshot.rows() for k in rows.keys)


def test_row_id_is_the_default_key(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"row_id": [1, 2], "t": ["a", "b"]}))
    assert keys(uri) == ["1", "2"]
    assert all(k.startswith("h:") for k in keys(uri, key=[]))


def test_several_columns_make_a_json_key(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"a": ["x", 'y"'], "b": [1, 2], "t": ["a", "b"]}))
    assert [json.loads(k) for k in keys(uri, key=["a", "b"])] == [["x", 1], ['y"', 2]]


def test_rows_without_a_key_are_identified_by_content(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"t": ["a", "b", "a", "a"]}))
    found = keys(uri)
    assert len(set(found)) == 4
    again = write_table(pl.DataFrame({"t": ["a", "a", "b", "a"]}), name="again")
    assert keys(again) == found


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["a", None, None], "is null in 2 rows"), (["a", "a", "b"], "repeats in 2 rows .*'a'")],
)
def test_a_key_that_does_not_identify_is_refused(
    write_table: Write, ids: list[str | None], message: str
) -> None:
    uri = write_table(pl.DataFrame({"row_id": ids, "t": ["a", "b", "c"]}))
    with pytest.raises(RowKeyError, match=message):
        keys(uri)


def test_blank_rows_are_left_out_and_counted(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"row_id": [1, 2, 3], "t": ["a", None, "  "]}))
    rows = list(open_table(uri, template="{t}").rows())
    assert [k for r in rows for k in r.keys] == ["1"]
    assert sum(r.n_blank for r in rows) == 2


def test_an_older_version_is_read_as_it_was(write_table: Write) -> None:
    write_table(pl.DataFrame({"row_id": [1], "t": ["old"]}))
    uri = write_table(pl.DataFrame({"row_id": [1], "t": ["new"]}))
    assert next(documents(open_table(uri, template="{t}", version=0))).text == "old"
    assert next(documents(open_table(uri, template="{t}"))).text == "new"


def test_documents_are_lazy_and_carry_the_row(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"row_id": [7], "t": ["a"], "row_key": ["mine"]}))
    (document,) = islice(documents(open_table(uri, template="{t}!")), 5)
    assert document.text == document.get_content(MetadataMode.LLM) == "a!"
    assert document.id_ == "7"
    assert document.metadata == {
        "table_uri": uri,
        "table_version": 0,
        "row_key": "7",
        "row_id": 7,
        "t": "a",
        "column.row_key": "mine",
    }


def test_what_is_not_a_delta_table(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("nothing", "folder", "file"):
        with pytest.raises(TableNotFound, match="RAG_TABLE__URI"):
            open_table(str(tmp_path / name), template="{t}")


def test_a_damaged_log_is_one_sentence(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"t": ["a"]}))
    (Path(uri) / "_delta_log" / "00000000000000000001.json").write_text("garbage")
    with pytest.raises(TableError) as failure:
        open_table(uri, template="{t}")
    assert "\n" not in str(failure.value)


def test_a_missing_data_file_is_one_sentence(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"t": ["a"]}))
    for path in Path(uri).glob("*.parquet"):
        path.unlink()
    with pytest.raises(TableError, match="cannot be read"):
        keys(uri)


def test_unknown_columns_and_versions_are_named(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"Scenario": ["a"], "Advice": ["b"]}))
    with pytest.raises(ColumnNotFound, match="'Scenari'; it has 'Scenario', 'Advice'.*mean 'Sc"):
        open_table(uri, template="{Scenari}")
    with pytest.raises(ColumnNotFound, match="RAG_TABLE__KEY"):
        open_table(uri, template="{Advice}", key=["id"])
    with pytest.raises(VersionNotFound, match="no readable version 9; its latest is 0"):
        open_table(uri, template="{Advice}", version=9)


@pytest.mark.parametrize("column", ["raw", "many"])
def test_a_key_that_cannot_be_written_is_refused(write_table: Write, column: str) -> None:
    uri = write_table(pl.DataFrame({"raw": [b"\xff"], "many": [["a"]], "t": ["x"]}))
    with pytest.raises(TableError, match=f"Key column '{column}'.*RAG_TABLE__KEY"):
        open_table(uri, template="{t}", key=[column])


def test_tables_of_other_writers_are_read_whole(shared_data: Path) -> None:
    """Every shared table that delta-rs reads has as many rows here as it should."""
    listed = json.loads((shared_data / "delta_tables.json").read_text())
    n_checked = 0
    for entry in listed:
        expected = entry["expected_rows"]
        if expected is None or expected > 10_000 or not entry["query_builder"].startswith("ok"):
            continue
        uri = str(shared_data / entry["path"])
        column = DeltaTable(uri).schema().fields[0].name
        snapshot = open_table(uri, template=f"{{{column}}}", key=[])
        n_rows = sum(len(rows.keys) + rows.n_blank for rows in snapshot.rows())
        assert n_rows == expected, entry["table"]
        n_checked += 1
    assert n_checked > 40
