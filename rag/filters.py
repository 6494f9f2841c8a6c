"""LlamaIndex metadata filters as a LanceDB predicate, typed by the table's schema.

Knows LlamaIndex's filter classes and Lance's SQL; opens nothing. A column name is checked against
the schema and quoted; a value is converted to the column's type and written as a literal of that
type, so that no value can become SQL. A comparison with a null is false, its negation true.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any, TypeVar

import pyarrow as pa
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from rag.errors import FilterError, nearest

T = TypeVar("T")

_COMPARISONS = {
    FilterOperator.EQ: "=",
    FilterOperator.GT: ">",
    FilterOperator.LT: "<",
    FilterOperator.GTE: ">=",
    FilterOperator.LTE: "<=",
}
_NEGATED = {
    FilterOperator.NE: FilterOperator.EQ,
    FilterOperator.NIN: FilterOperator.IN,
}
_TEXT = (
    FilterOperator.TEXT_MATCH,
    FilterOperator.TEXT_MATCH_INSENSITIVE,
    FilterOperator.CONTAINS,
)


def where(filters: MetadataFilters, columns: pa.Schema, *, prefix: str) -> str:
    """Return the predicate that `filters` mean.

    Args:
        filters: Comparisons, nested as deep as wanted.
        columns: The table's columns and their types.
        prefix: The struct column of the index that holds them.

    Raises:
        FilterError: no such column, or a value or operator that its type does not take.
    """
    parts = [
        where(f, columns, prefix=prefix)
        if isinstance(f, MetadataFilters)
        else _one(f, columns, prefix)
        for f in filters.filters
    ]
    if not parts:
        return "true"
    if filters.condition == FilterCondition.NOT:
        return f"NOT ({' AND '.join(parts)})"
    return f"({(' OR ' if filters.condition == FilterCondition.OR else ' AND ').join(parts)})"


def _one(f: MetadataFilter, columns: pa.Schema, prefix: str) -> str:
    if f.operator in _NEGATED:
        positive = MetadataFilter(key=f.key, value=f.value, operator=_NEGATED[f.operator])
        return f"NOT {_one(positive, columns, prefix)}"
    name = f.key
    if name not in columns.names and name.startswith("column."):
        name = name.removeprefix("column.")
    if name not in columns.names:
        close = nearest(name, columns.names)
        hint = f" Did you mean {close!r}?" if close else ""
        listed = ", ".join(repr(c) for c in columns.names)
        raise FilterError(f"A filter names column {f.key!r}; the table has {listed}.{hint}")
    path = f"{prefix}.`{name.replace('`', '``')}`"
    kind = columns.field(name).type
    return (
        f"({_predicate(f, path, kind)} AND {path} IS NOT NULL)"
        if (f.operator != FilterOperator.IS_EMPTY)
        else _empty(path, kind)
    )


def _empty(path: str, kind: pa.DataType) -> str:
    if _is_text(kind):
        return f"({path} IS NULL OR {path} = '')"
    if _is_list(kind):
        return f"({path} IS NULL OR array_length({path}) IS NULL OR array_length({path}) = 0)"
    return f"({path} IS NULL)"


def _predicate(f: MetadataFilter, path: str, kind: pa.DataType) -> str:
    operator, value = f.operator, f.value
    if _is_list(kind):
        return _list_predicate(f, path, kind.value_type)
    literal = _literal_of(kind, f)
    if pa.types.is_integer(kind) and operator in _COMPARISONS:
        return _whole_predicate(f, path, kind)
    if operator in _COMPARISONS:
        return f"{path} {_COMPARISONS[operator]} {literal(value)}"
    if operator == FilterOperator.IN:
        values = [v for v in map(literal, _several(f)) if v]
        return f"{path} IN ({', '.join(values)})" if values else "false"
    if operator in _TEXT and _is_text(kind):
        needle = literal(value)
        if operator == FilterOperator.TEXT_MATCH_INSENSITIVE:
            return f"contains(lower({path}), lower({needle}))"
        return f"contains({path}, {needle})"
    raise _misfit(f, kind)


def _whole_predicate(f: MetadataFilter, path: str, kind: pa.DataType) -> str:
    """Compare a whole number with any number, exactly: as doubles, both would be rounded."""
    bound = _converted(_exact, kind, f)(f.value)
    # the nearest whole number on the side where the comparison holds for the same ones
    is_floor = f.operator in (FilterOperator.GT, FilterOperator.LTE)
    whole = bound.to_integral_value(ROUND_FLOOR if is_floor else ROUND_CEILING)
    least, most = _range(kind)
    if f.operator == FilterOperator.EQ:
        text = _member(bound, kind)
        return f"{path} = {text}" if text else "false"
    if least <= whole <= most:
        return f"{path} {_COMPARISONS[f.operator]} {_whole(int(whole))}"
    is_below = f.operator in (FilterOperator.LT, FilterOperator.LTE)
    return "true" if is_below == (whole > most) else "false"


def _list_predicate(f: MetadataFilter, path: str, element: pa.DataType) -> str:
    literal = _literal_of(element, f)

    def has(value: Any) -> str:
        text = literal(value)
        return f"array_has({path}, {text})" if text else "false"

    if f.operator == FilterOperator.CONTAINS:
        return has(f.value)
    if f.operator in (FilterOperator.ANY, FilterOperator.IN):
        tests = [has(v) for v in _several(f)]
        return f"({' OR '.join(tests)})" if tests else "false"
    if f.operator == FilterOperator.ALL:
        tests = [has(v) for v in _several(f)]
        return f"({' AND '.join(tests)})" if tests else "true"
    raise _misfit(f, pa.list_(element))


def _several(f: MetadataFilter) -> Sequence[Any]:
    if not isinstance(f.value, (list, tuple, set)):
        raise FilterError(
            f"Filter {f.operator.value!r} on column {f.key!r} takes a list, found {f.value!r}."
        )
    return list(f.value)


def _literal_of(kind: pa.DataType, f: MetadataFilter) -> Callable[[Any], str]:
    writer = _writer(kind)
    if writer is None:
        raise _misfit(f, kind)
    return _converted(writer, kind, f)


def _converted(
    convert: Callable[[Any], T], kind: pa.DataType, f: MetadataFilter
) -> Callable[[Any], T]:
    def checked(value: Any) -> T:
        try:
            return convert(value)
        except (TypeError, ValueError, OverflowError, InvalidOperation) as e:
            raise FilterError(
                f"Filter on column {f.key!r} compares with {value!r}, "
                f"but the column holds {kind} values."
            ) from e

    return checked


def _writer(kind: pa.DataType) -> Callable[[Any], str] | None:
    if _is_text(kind):
        return _text
    if pa.types.is_boolean(kind):
        return _boolean
    if pa.types.is_integer(kind):
        return lambda value: _member(_exact(value), kind)
    if pa.types.is_floating(kind):
        return _number
    if pa.types.is_decimal(kind):
        return _decimal
    if pa.types.is_date(kind):
        return _date
    if pa.types.is_timestamp(kind):
        return lambda value: _timestamp(value, kind)
    return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return "'" + value.replace("'", "''") + "'"


_BOOLEANS = {"true": "true", "false": "false", "1": "true", "0": "false"}


def _boolean(value: Any) -> str:
    # LlamaIndex's own filter class takes no bool, but text and numbers
    text = str(value).lower()
    if text not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[text]


def _number(value: Any) -> str:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        value = float(value) if any(c in value for c in ".eE") else int(value)
    if isinstance(value, Decimal):
        value = float(value)
    if not isinstance(value, (int, float)) or value != value or value in (_INF, -_INF):
        raise ValueError
    return f"({value!r})" if -_BIG <= value < _BIG else f"({float(value)!r})"


def _exact(value: Any) -> Decimal:
    if isinstance(value, bool):
        raise TypeError
    number = Decimal(value)
    if not number.is_finite():
        raise ValueError
    return number


def _member(number: Decimal, kind: pa.DataType) -> str:
    """Return a number as a literal; nothing when no row of its column can hold it."""
    least, most = _range(kind)
    if not least <= number <= most or number != number.to_integral_value():
        return ""
    return _whole(int(number))


def _whole(number: int) -> str:
    # Lance reads the digits before the sign, and the least 64-bit number has one too many
    return f"({number})" if number > -_BIG else f"CAST('{number}' AS BIGINT)"


def _range(kind: pa.DataType) -> tuple[int, int]:
    if pa.types.is_unsigned_integer(kind):
        return 0, 2**kind.bit_width - 1
    return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1


_INF = float("inf")
_BIG = 2**63


_DECIMAL_DIGITS = 38


def _decimal(value: Any) -> str:
    if isinstance(value, bool):
        raise TypeError
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError
    scale = max(0, -int(number.as_tuple().exponent))
    if scale + max(0, number.adjusted() + 1) > _DECIMAL_DIGITS:
        raise ValueError
    return f"CAST('{number:f}' AS DECIMAL(38, {scale}))"


def _date(value: Any) -> str:
    day = value if isinstance(value, dt.date) else dt.date.fromisoformat(value)
    if isinstance(day, dt.datetime):
        day = day.date()
    return f"date '{day.isoformat()}'"


def _timestamp(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value)
    elif not isinstance(value, dt.datetime):
        value = dt.datetime.combine(value, dt.time())
    if value.tzinfo is not None:
        value = value.astimezone(dt.UTC).replace(tzinfo=None)
    text = value.isoformat(sep=" ")
    return f"timestamp '{text}+00:00'" if kind.tz else f"timestamp '{text}'"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _misfit(f: MetadataFilter, kind: pa.DataType) -> FilterError:
    return FilterError(
        f"Filter {f.operator.value!r} does not work on column {f.key!r}, which holds {kind} values."
    )
