from __future__ import annotations

import datetime as dt
from decimal import Decimal

import polars as pl
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
        "x|1|1.20|2026-01-02|true|p, q|" + '{"x": 1, "y": "b\'\\\\x00\'"}' + "|01|{n}",
        "|2||2026-01-02|false||" + '{"x": 1, "y": "b\'\\\\x00\'"}' + "||{n}",
    ]


def test_a_row_is_blank_when_all_its_columns_are() -> None:
    frame = pl.DataFrame({"a": ["x", None, "  ", ""], "b": [None, "y", None, "\n"]})
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
