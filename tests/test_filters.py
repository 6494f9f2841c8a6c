from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from conftest import SHARED, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
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


# --- any filter, on the values of rows that attack, against plain Python ---

_FILE = SHARED / "hostile" / "rows.parquet"
_HOSTILE = pl.read_parquet(_FILE).select("id", "title", "text") if _FILE.is_file() else None
_ATTACKS = (
    [v[:500] for c in _HOSTILE.columns for v in _HOSTILE[c]] if _HOSTILE is not None else []
) + ["", "' OR '1'='1", "\\", "\\'", "%", "_", "`", "x'; --", "\x00", "İ", "ΟΔΟΣ", "null"]
_INTEGERS = [0, 1, -1, 2**53 + 1, 2**53, 2**63 - 1, -(2**63), None]
_FLOATS = [0.0, 0.1, -1.5, 1e300, 5e-324, 2.0**63, None]
_DECIMALS = [Decimal(d) for d in ("0.00", "1.20", "-99.99", "99999999.99")] + [None]
_DAYS = [dt.date(1, 1, 1), dt.date(1970, 1, 1), dt.date(2026, 2, 1), dt.date(9999, 12, 31), None]


def hostile_table() -> pl.DataFrame:
    values = sorted(set(_ATTACKS))
    n = len(values)

    def spread(items: list[Any]) -> list[Any]:
        return [items[i % len(items)] for i in range(n)]

    columns = {
        "id": pl.Series(values),
        "word": pl.Series(spread([*values[::-3], None])),
        "n": pl.Series(spread(_INTEGERS), dtype=pl.Int64),
        "x": pl.Series(spread(_FLOATS), dtype=pl.Float64),
        "ok": pl.Series(spread([True, False, None, True, False])),
        "price": pl.Series(spread(_DECIMALS), dtype=pl.Decimal(10, 2)),
        "day": pl.Series(spread(_DAYS), dtype=pl.Date),
        "tags": pl.Series(
            [
                spread([None, [], [values[i]], [values[i], values[i // 2]], [None, "x"]])[i]
                for i in range(n)
            ],
            dtype=pl.List(pl.String),
        ),
        "marks": pl.Series(
            spread([None, [], [1, 2], [2, None], [-(2**63), 7], [2**53 + 1]]),
            dtype=pl.List(pl.Int64),
        ),
    }
    return pl.DataFrame(columns).with_columns(text=pl.lit("row of ") + pl.col("id"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> World:
    if _HOSTILE is None:
        pytest.skip("the shared test data is not beside this checkout")
    world = World(tmp_path_factory.mktemp("attacked"))
    world.key = ("id",)
    world.write(hostile_table())
    world.sync()
    return world


_BY_ORDER = ["==", "!=", ">", ">=", "<", "<=", "in", "nin", "is_empty"]
_BY_TEXT = ["text_match", "text_match_insensitive", "contains"]
_BY_LIST = ["contains", "any", "all", "in", "nin", "is_empty"]
words = st.one_of(st.sampled_from(_ATTACKS), st.text(max_size=6))
integers = st.one_of(
    st.sampled_from([i for i in _INTEGERS if i is not None]), st.integers(-(2**64), 2**64)
)
floats = st.one_of(
    st.sampled_from([x for x in _FLOATS if x is not None]),
    st.floats(allow_nan=False, allow_infinity=False),
)
_KINDS: dict[str, tuple[list[str], st.SearchStrategy[Any]]] = {
    "id": (_BY_ORDER + _BY_TEXT, words),
    "word": (_BY_ORDER + _BY_TEXT, words),
    "n": (_BY_ORDER, st.one_of(integers, floats)),
    "x": (_BY_ORDER, floats),
    "ok": (_BY_ORDER, st.sampled_from(["true", "false", "True", "1", "0"])),
    "price": (_BY_ORDER, st.decimals(-(10**9), 10**9, places=3).map(str)),
    "day": (_BY_ORDER, st.one_of(st.sampled_from(_DAYS[:4]), st.dates()).map(dt.date.isoformat)),
    "tags": (_BY_LIST, words),
    "marks": (_BY_LIST, integers),
}


@st.composite
def leaves(draw: st.DrawFn) -> MetadataFilter:
    column = draw(st.sampled_from(sorted(_KINDS)))
    operators, values = _KINDS[column]
    operator = draw(st.sampled_from(operators))
    value: Any = None
    if operator in ("in", "nin", "any", "all"):
        value = draw(st.lists(values, max_size=3))
        if len({type(v) for v in value}) > 1:  # LlamaIndex's class takes lists of one type
            value = [v for v in value if isinstance(v, int)]
    elif operator != "is_empty":
        value = draw(values)
    return MetadataFilter(key=column, operator=FilterOperator(operator), value=value)


trees = st.recursive(
    leaves(),
    lambda inner: st.builds(
        MetadataFilters,
        filters=st.lists(inner, max_size=3),
        condition=st.sampled_from(list(FilterCondition)),
    ),
    max_leaves=5,
)


def means(f: MetadataFilter | MetadataFilters, row: dict[str, Any]) -> bool:
    """Say in plain Python whether a row is meant."""
    if isinstance(f, MetadataFilters):
        told = [means(part, row) for part in f.filters]
        if not told:
            return True
        if f.condition == FilterCondition.OR:
            return any(told)
        return all(told) != (f.condition == FilterCondition.NOT)
    held, operator = row[f.key], f.operator.value
    if operator in ("!=", "nin"):
        return not means_one({"!=": "==", "nin": "in"}[operator], held, f)
    return means_one(operator, held, f)


def means_one(operator: str, held: Any, f: MetadataFilter) -> bool:
    if operator == "is_empty":
        return held is None or held == "" or held == []
    if held is None:
        return False
    if isinstance(f.value, list):
        value: Any = [typed(f.key, v) for v in f.value]
    else:
        value = typed(f.key, f.value)
    if isinstance(held, list):
        several = value if isinstance(value, list) else [value]
        return (all if operator in ("all", "contains") else any)(v in held for v in several)
    return {
        "==": lambda: held == value,
        ">": lambda: held > value,
        ">=": lambda: held >= value,
        "<": lambda: held < value,
        "<=": lambda: held <= value,
        "in": lambda: held in value,
        "text_match": lambda: value in held,
        "contains": lambda: value in held,
        "text_match_insensitive": lambda: value.lower() in held.lower(),
    }[operator]()


def typed(column: str, value: Any) -> Any:
    if column == "ok":
        return value.lower() in ("true", "1")
    if column == "price":
        return Decimal(value)
    return dt.date.fromisoformat(value) if column == "day" else value


@pytest.mark.parametrize("operator", ["==", "!=", ">", ">=", "<", "<=", "in", "nin"])
@pytest.mark.parametrize(
    "value",
    [float(2**53), 2**53 + 1, 2**63 - 1, 2**63, float(2**63), -(2**63), -(2**63) - 1, 2**70, 0.5, -0.5,
     -1e300, 5e-324],
)  # fmt: skip
def test_a_whole_number_is_compared_exactly(attacked: World, operator: str, value: Any) -> None:
    filters = one("n", operator, [value] if operator in ("in", "nin") else value)
    expected = {row["id"] for row in hostile_table().to_dicts() if means(filters, row)}
    assert {n.metadata["row_key"] for n in attacked.store.get_nodes(filters=filters)} == expected


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=trees)
def test_any_filter_finds_what_plain_python_finds(
    attacked: World, tree: MetadataFilter | MetadataFilters
) -> None:
    filters = tree if isinstance(tree, MetadataFilters) else MetadataFilters(filters=[tree])
    expected = {row["id"] for row in hostile_table().to_dicts() if means(filters, row)}
    nodes = attacked.store.get_nodes(filters=filters)
    assert {n.metadata["row_key"] for n in nodes} == expected
    query = VectorStoreQuery(
        query_embedding=attacked.embedding.get_query_embedding("row"),
        similarity_top_k=1000,
        filters=filters,
    )
    hits = attacked.store.query(query).nodes or []
    assert {n.metadata["row_key"] for n in hits} == expected
