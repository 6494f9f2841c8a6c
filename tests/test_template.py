from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import SettingsError
from rag.template import Template, content_hashes


def render(template: str, frame: pl.DataFrame) -> list[str]:
    return frame.select(Template.parse(template).text(frame.schema)).to_series().to_list()


def test_columns_become_text() -> None:
    frame = pl.DataFrame(
        {
            "a b": ["x", None],
            "n": [1, 2],
            "price": [Decimal("1.20"), None],
            "day": [dt.date(2026, 1, 2)] * 2,
            "ok": [True, False],
            "tags": [["p", "q"], []],
            "nested": [{"x": 1, "y": b"\x00"}] * 2,
            "raw": [b"\x01", None],
        }
    )
    text = "{a b}|{n}|{price}|{day}|{ok}|{tags}|{nested}|{raw}|{{n}}"
    assert render(text, frame) == [
        "x|1|1.20|2026-01-02|true|p, q|" + '{"x": 1, "y": "00"}' + "|01|{n}",
        "|2||2026-01-02|false||" + '{"x": 1, "y": "00"}' + "||{n}",
    ]


def test_times_have_no_idle_zeros() -> None:
    times = [
        dt.datetime(2026, 1, 2),
        dt.datetime(2026, 1, 2, 3, 4, 5, 60_000),
        dt.datetime(1, 1, 1, 3, 4, 5, 6),
    ]
    written = ["2026-01-02 00:00:00", "2026-01-02 03:04:05.060", "0001-01-01 03:04:05.000006"]
    zoned = [t.replace(tzinfo=dt.UTC) for t in times]
    frame = pl.DataFrame({"t": times, "z": zoned, "l": [times] * 3, "s": [{"z": z} for z in zoned]})
    assert render("{t}", frame) == written
    assert render("{z}", frame) == [f"{w} UTC" for w in written]
    assert render("{l}", frame) == [", ".join(written)] * 3
    assert render("{s}", frame) == [json.dumps({"z": f"{w} UTC"}) for w in written]


def test_nested_values_become_json() -> None:
    maps = [[("a", Decimal("1E-9")), ("b", None)], [], None]
    twice = [[(1, b"x"), (1, b"y")], [(2, b"z")], None]
    table = pa.table(
        {
            "m": pa.array(maps, pa.map_(pa.string(), pa.decimal128(12, 9))),
            "n": pa.array(twice, pa.map_(pa.int32(), pa.binary())),
            "l": pa.array(
                [[{"f": 0.1, "d": dt.date(2026, 1, 2)}], [{"f": math.nan, "d": None}], []],
                pa.list_(pa.struct({"f": pa.float32(), "d": pa.date32()})),
            ),
            "raw": pa.array([[b"\x01", b"\xff"], [], None], pa.list_(pa.binary())),
            "void": pa.nulls(3),
        }
    )
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    assert render("{m}|{n}|{l}|{raw}|{void}", frame) == [
        (
            '{"a": "0.000000001", "b": null}|[["1", "78"], ["1", "79"]]'
            '|[{"f": 0.1, "d": "2026-01-02"}]|01, ff|'
        ),
        '{}|{"2": "7a"}|[{"f": "nan", "d": null}]||',
        "||[]||",
    ]


def test_what_reads_alike_hashes_apart() -> None:
    lists = pl.DataFrame({"a": [["p, q"], ["p", "q"], ["p", None, "q"], [], None]})
    assert render("{a}", lists) == ["p, q", "p, q", "p, q", "", ""]
    assert content_hashes(lists, ["a"]).n_unique() == 5


def test_a_row_is_blank_when_all_its_columns_are() -> None:
    frame = pl.DataFrame({"a": ["x", None, "  \u3000", "\x1e"], "b": [None, "y", None, "\n"]})
    template = Template.parse("{a} and {b}")
    blank = frame.select(template.is_blank(frame.schema)).to_series().to_list()
    assert blank == [False, False, True, True]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a", "single '{' at character 1"),
        ("a} {b}", "single '}' at character 2"),
        ("{}", "single"),
        ("text", "names no column"),
    ],
)
def test_a_template_that_cannot_be_parsed(template: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Template.parse(template)


cells = st.one_of(st.none(), st.text(max_size=3))


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=30))
def test_rows_have_equal_hashes_only_when_they_are_equal(rows: list[tuple[str, str]]) -> None:
    schema = {"a": pl.String, "b": pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    hashes = content_hashes(frame, ["a", "b"])
    assert content_hashes(frame, ["b", "a"]).to_list() == hashes.to_list()
    assert len(set(hashes)) == len(set(rows))
