from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from itertools import islice

import polars as pl
import pytest
from llama_index.core.schema import MetadataMode

from rag.errors import (
    ColumnNotFound,
    RowKeyError,
    TableError,
    VersionNotFound,
)
from rag.table import Snapshot, content_key, documents, open_table
from rag.template import content_hashes

Write = Callable[..., str]


def keys(uri: str, **options: object) -> list[str]:
    snapshot = open_table(uri, template="{t}", **options)
    return sorted(k for rows in snapshot.rows() for k in rows.keys)


def held(snapshot: Snapshot, wanted: pl.DataFrame | None = None) -> list[tuple[str, str, str]]:
    """Key, hash and text of each row that comes back."""
    batches = [zip(r.keys, r.hashes, r.texts, strict=True) for r in snapshot.rows(wanted)]
    return sorted(row for batch in batches for row in batch)


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
    [
        (["a", None, None], "is null in 2 rows .*'b', 'c'"),
        (["a", "a", None], "is null in 1 row .*'c'.* and repeats in 2 rows .*'a'"),
        (["a", "a", "b"], "repeats in 2 rows .*'a'"),
    ],
)
def test_a_key_that_does_not_identify_is_refused(
    write_table: Write, ids: list[str | None], message: str
) -> None:
    uri = write_table(pl.DataFrame({"row_id": ids, "t": ["a", "b", "c"]}))
    with pytest.raises(RowKeyError, match=message) as failure:
        open_table(uri, template="{t}").contents()
    assert "RAG_TABLE__ON_BAD_KEY=pick" in str(failure.value)
    with pytest.raises(RowKeyError, match=message):
        next(documents(open_table(uri, template="{t}")))


def test_one_row_of_each_key_is_picked_where_that_is_set(write_table: Write) -> None:
    ids = ["a", "b", "b", "b", None, None, "z"]
    frame = pl.DataFrame({"row_id": ids, "t": ["1", "2", "3", "3", "4", "5", " "]})
    picked = []
    for name, order in (("there", frame), ("back", frame.reverse())):
        snapshot = open_table(write_table(order, name=name), template="{t}", on_bad_key="pick")
        contents = snapshot.contents()
        assert (contents.n_blank, contents.n_left_out) == (1, 4)
        least = min(content_hashes(frame[1:3], frame.columns))
        assert dict(contents.frame.iter_rows())["b"] == least
        assert held(snapshot, contents.frame) == held(snapshot)
        picked.append(held(snapshot))
    assert picked[0] == picked[1]
    assert [key for key, _, _ in picked[0]] == ["a", "b"]


def test_a_blank_row_is_no_bad_key(write_table: Write) -> None:
    frame = pl.DataFrame({"row_id": ["a", "a", None], "t": ["1", " ", None]})
    contents = open_table(write_table(frame), template="{t}").contents()
    assert contents.frame["row_key"].to_list() == ["a"]
    assert (contents.n_blank, contents.n_left_out) == (2, 0)


def test_contents_tell_how_far_they_are(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"row_id": range(20_000), "t": ["x"] * 20_000}))
    told: list[int] = []
    contents = open_table(uri, template="{t}").contents(told.append)
    assert len(contents.frame) == told[-1] == 20_000
    assert len(told) > 1
    assert told == sorted(set(told))


@pytest.mark.parametrize("key", [("row_id",), ("row_id", "t"), ()])
def test_wanted_rows_come_back_each_once(write_table: Write, key: tuple[str, ...]) -> None:
    n = 9000  # more than a batch
    frame = pl.DataFrame(
        {"row_id": [f"it's {i}" for i in range(n)], "t": [f"{i}" for i in range(n)]}
    )
    doubled = frame if key else pl.concat([frame, frame.head(50)])
    snapshot = open_table(write_table(doubled), template="{t}!", key=key)
    contents = snapshot.contents().frame
    everything = held(snapshot)
    assert [row[:2] for row in everything] == sorted(contents.iter_rows())
    wanted = contents.sample(70, seed=1)
    assert held(snapshot, wanted) == [r for r in everything if r[0] in set(wanted["row_key"])]
    assert held(snapshot, wanted.clear()) == []
    elsewhere = wanted.with_columns(row_hash=pl.lit("0" * 32))
    assert held(snapshot, elsewhere) == []


def test_some_of_equal_rows_are_wanted(write_table: Write) -> None:
    snapshot = open_table(write_table(pl.DataFrame({"t": ["a", "a", "b", "a"]})), template="{t}")
    contents = snapshot.contents().frame
    third = contents.filter(pl.col("row_key").str.ends_with(":3"))
    assert [(key, text) for key, _, text in held(snapshot, third)] == [
        (content_key(content_hashes(pl.DataFrame({"t": ["a"]}), ["t"])[0], 3), "a")
    ]
    assert [text for _, _, text in held(snapshot, contents)] == [t for _, _, t in held(snapshot)]


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


def test_unknown_columns_and_versions_are_named(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"Scenario": ["a"], "Advice": ["b"]}))
    with pytest.raises(ColumnNotFound, match="'Scenari'; it has 'Scenario', 'Advice'.*mean 'Sc"):
        open_table(uri, template="{Scenari}")
    with pytest.raises(ColumnNotFound, match="RAG_TABLE__KEY"):
        open_table(uri, template="{Advice}", key=["id"])
    with pytest.raises(VersionNotFound, match="no readable version 9; its latest is 0"):
        open_table(uri, template="{Advice}", version=9)
    # deltalake itself looks for each version up to this one, for hours
    with pytest.raises(VersionNotFound, match="its latest is 0"):
        open_table(uri, template="{Advice}", version=2**63 - 1)


@pytest.mark.parametrize("column", ["raw", "many"])
def test_a_key_that_cannot_be_written_is_refused(write_table: Write, column: str) -> None:
    uri = write_table(pl.DataFrame({"raw": [b"\xff"], "many": [["a"]], "t": ["x"]}))
    with pytest.raises(TableError, match=f"Key column '{column}'.*RAG_TABLE__KEY"):
        open_table(uri, template="{t}", key=[column])


KEYS = pl.DataFrame(
    {
        "text": ["it's", 'a "b"', "back\\slash", "ü -- ; \n", "", "\U0010ffff" * 40],
        "number": [0, -1, 2**62, 3, 4, 5],
        "small": pl.Series([-128, 127, 0, 1, 2, 3], dtype=pl.Int8),
        "day": [
            dt.date(1, 1, 1),
            dt.date(9999, 12, 31),
            *(dt.date(2026, 1, d) for d in range(1, 5)),
        ],
        "price": pl.Series(
            [Decimal("-0.01"), Decimal("1.20"), *map(Decimal, range(4))], dtype=pl.Decimal(12, 2)
        ),
        "at": [dt.datetime(2026, 1, 1, 2, 3, 4, i, tzinfo=dt.UTC) for i in range(6)],
        "plain_at": [dt.datetime(1, 1, 1, 2, 3, 4, i) for i in range(6)],
        "ratio": [0.1, -0.0, 1e300, float("inf"), 1 / 3, 2.0],
        "is_ok": [True, False] * 3,
        'odd "name", c.d': list("uvwxyz"),
    }
)


@pytest.mark.parametrize(
    "key", [*((c,) for c in KEYS.columns), ("text", "is_ok", "at"), tuple(KEYS.columns), ()]
)
def test_one_row_back_by_its_key(write_table: Write, key: tuple[str, ...]) -> None:
    frame = KEYS.head(2) if key == ("is_ok",) else KEYS
    doubled = pl.concat([frame, frame.head(3)]) if not key else frame
    snapshot = open_table(write_table(doubled), template="{text}{number}!", key=key)
    found = {}
    for rows in snapshot.rows():
        for k, text, values in zip(
            rows.keys, rows.texts, rows.columns.iter_rows(named=True), strict=True
        ):
            found[k] = (text, values)
            row = snapshot.row(k)
            assert row is not None
            assert (row.key, row.text, row.columns, row.is_blank) == (k, text, values, False)
    assert len(found) == len(doubled)
    wrong = ["nothing", "", "1e", "[]", '["x", 1]', "h:zz", "null", "' OR 'a' = 'a", "2026-01-09"]
    wrong += [f"{k} " for k in found] + [f"{k}:1" for k in found] + [f"{k}:3" for k in found]
    for other in set(wrong) - set(found):
        assert snapshot.row(other) is None


def test_a_blank_row_can_be_shown(write_table: Write) -> None:
    frame = pl.DataFrame({"row_id": [1, 2, 2, 2], "t": ["  ", " ", "b", "c"]})
    snapshot = open_table(write_table(frame), template="{t}", on_bad_key="pick")
    blank, picked = snapshot.row("1"), snapshot.row("2")
    assert blank is not None
    assert blank.is_blank
    assert picked is not None
    assert [("2", picked.text)] == [(k, t) for k, _, t in held(snapshot)]
