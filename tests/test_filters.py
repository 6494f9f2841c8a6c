from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from conftest import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from rag.errors import FilterError

ROWS = pl.DataFrame(
    {
        "row_id": ["a", "b", "c", "d"],
        "text": ["red apple", "blue sky", "green grass", "grey mouse"],
        "n": [1, 2, 3, None],
        "x": [0.5, 1.5, None, 2.5],
        "ok": [True, False, True, None],
        "price": [Decimal("1.20"), Decimal("2.00"), None, Decimal("3.25")],
        "day": [dt.date(2026, 1, 1), dt.date(2026, 2, 1), dt.date(2026, 3, 1), None],
        "at": [dt.datetime(2026, 1, 1, 12), dt.datetime(2026, 1, 2), None, None],
        "zoned": pl.Series(
            [dt.datetime(2026, 1, 1, 12), None, None, None], dtype=pl.Datetime("us", "UTC")
        ),
        "tags": [["p", "q"], ["q"], [], None],
        "a.b `c`": ["it's", 'say "x"', "", None],
        "nested": [{"z": 1}] * 4,
    }
)


@dataclass(frozen=True)
class Case:
    column: str
    operator: str
    value: Any
    found: str

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.value}"


CASES = [
    Case("text", "==", "blue sky", "b"),
    Case("text", "!=", "blue sky", "acd"),
    Case("text", "text_match", "apple", "a"),
    Case("text", "text_match_insensitive", "APPLE", "a"),
    Case("text", "contains", "gr", "cd"),
    Case("text", "in", ["blue sky", "red apple", "x"], "ab"),
    Case("text", "nin", ["blue sky"], "acd"),
    Case("text", "in", [], ""),
    Case("n", "==", 2, "b"),
    Case("n", "!=", 2, "acd"),
    Case("n", ">", 1, "bc"),
    Case("n", ">=", 1.5, "bc"),
    Case("n", "<", "3", "ab"),
    Case("n", "in", [1, 2.5], "a"),
    Case("n", "<", 2**70, "abc"),
    Case("n", ">", -(2**40), "abc"),
    Case("ok", "==", 1, "ac"),
    Case("n", "is_empty", None, "d"),
    Case("x", "<=", 1.5, "ab"),
    Case("ok", "==", "true", "ac"),
    Case("price", "==", "1.20", "a"),
    Case("price", "<", 2.001, "ab"),
    Case("price", ">=", 2, "bd"),
    Case("price", "in", ["1.2", "3.25"], "ad"),
    Case("day", ">", "2026-01-15", "bc"),
    Case("day", "==", "2026-01-01", "a"),
    Case("at", ">=", "2026-01-01T13:00:00", "b"),
    Case("zoned", "<", "2026-01-01T13:00:00+01:00", ""),
    Case("zoned", "<=", "2026-01-01T13:00:00+01:00", "a"),
    Case("tags", "contains", "q", "ab"),
    Case("tags", "any", ["p", "z"], "a"),
    Case("tags", "all", ["p", "q"], "a"),
    Case("tags", "is_empty", None, "cd"),
    Case("a.b `c`", "==", "it's", "a"),
    Case("a.b `c`", "is_empty", None, "cd"),
]


def found(world: World, filters: MetadataFilters) -> str:
    nodes = world.store.get_nodes(filters=filters)
    return "".join(sorted(n.metadata["row_key"] for n in nodes))


def one(column: str, operator: str, value: Any) -> MetadataFilters:
    return MetadataFilters(
        filters=[MetadataFilter(key=column, operator=FilterOperator(operator), value=value)]
    )


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("filters"))
    world.write(ROWS)
    world.sync()
    return world


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_filter_finds_exactly_its_rows(filtered: World, case: Case) -> None:
    assert found(filtered, one(case.column, case.operator, case.value)) == case.found


def test_filters_nest(filtered: World) -> None:
    either = MetadataFilters(
        filters=[
            MetadataFilter(key="n", operator=FilterOperator.EQ, value=1),
            MetadataFilter(key="text", operator=FilterOperator.EQ, value="blue sky"),
        ],
        condition=FilterCondition.OR,
    )
    not_red = MetadataFilters(
        filters=[one("text", "text_match", "red")], condition=FilterCondition.NOT
    )
    assert found(filtered, MetadataFilters(filters=[either, not_red])) == "b"
    assert found(filtered, MetadataFilters(filters=[])) == "abcd"


@pytest.mark.parametrize(
    ("column", "operator", "value", "message"),
    [
        ("prise", "==", 1, "'prise'; the table has .*Did you mean 'price'"),
        ("day", "==", "yesterday", "compares with 'yesterday'.*date32"),
        ("n", "==", "many", "int64"),
        ("text", "==", 1, "string"),
        ("x", ">", "nan", "double"),
        ("price", "==", "NaN", "decimal"),
        ("price", "text_match", "x", "does not work on column 'price'"),
        ("nested", "==", "x", "does not work on column 'nested'"),
        ("n", "in", 3, "takes a list"),
    ],
)
def test_a_filter_that_does_not_fit(
    filtered: World, column: str, operator: str, value: Any, message: str
) -> None:
    with pytest.raises(FilterError, match=message):
        found(filtered, one(column, operator, value))


hostile = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["x' OR '1'='1", "'; DROP TABLE nodes; --", "\\' OR true --", "%", "_", "`", '"', "\x00'"]
    ),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=hostile, operator=st.sampled_from(["==", "in", "text_match", "contains"]))
def test_no_value_becomes_sql(filtered: World, value: str, operator: str) -> None:
    given_value = [value] if operator == "in" else value
    matches = {
        "==": lambda text: text == value,
        "in": lambda text: text == value,
        "text_match": lambda text: value in text,
        "contains": lambda text: value in text,
    }[operator]
    expected = [i for i, t in zip(ROWS["row_id"], ROWS["text"], strict=True) if matches(t)]
    assert found(filtered, one("text", operator, given_value)) == "".join(expected)
