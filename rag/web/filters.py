"""Filters: columns of the table as fields of the chat settings, and what a reader put into them.

Knows Chainlit's fields and their values; does not know the table or the index. A value comes from
the browser: it may be anything, and is checked here. A field that is not there, or that says "any",
filters nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from chainlit.input_widget import InputWidget, MultiSelect, Select, TextInput

from rag.errors import FilterError

if TYPE_CHECKING:  # both load what takes seconds; the port opens before that
    from llama_index.core.vector_stores.types import MetadataFilters

    from rag.table import ColumnFacts

PREFIX = "filter:"
"""What the id of each of these fields begins with."""
MOST_COLUMNS = 40
"""Columns that get a field, the first ones of the table: a longer list nobody reads."""

_ANY = "any"
_BOOLEANS = {"yes": "true", "no": "false"}
_LABEL_CHARS = 60
_TOLD_CHARS = 40
_N_TOLD = 3
_TYPED_CHARS = 100
_MOST_DIGITS = 38
"""Of a decimal in Delta; a number of more is a slip."""


@dataclass(frozen=True)
class _Test:
    """One comparison, in LlamaIndex's words."""

    operator: str
    value: str | list[str]


@dataclass(frozen=True)
class _Chosen:
    """What is asked of one column."""

    tests: tuple[_Test, ...]
    told: str


def widgets(
    facts: Sequence[ColumnFacts], values: Mapping[str, Any] | None = None
) -> list[InputWidget]:
    """Return a field for each column, two for a range, in the table's order.

    Args:
        facts: The columns.
        values: What the reader has put in so far, by field; other ids are ignored.
    """
    given = values or {}
    return [widget for column in facts[:MOST_COLUMNS] for widget in _widgets(column, given)]


def chosen(facts: Sequence[ColumnFacts], values: Mapping[str, Any]) -> MetadataFilters | None:
    """Return what the fields say as a filter; None when they filter nothing.

    Raises:
        FilterError: a field holds what its column cannot be compared with.
    """
    from llama_index.core.vector_stores.types import (
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
    )

    tests = [
        MetadataFilter(key=name, value=test.value, operator=FilterOperator(test.operator))
        for name, found in _all(facts, values)
        for test in found.tests
    ]
    return MetadataFilters(filters=tests) if tests else None


def told(facts: Sequence[ColumnFacts], values: Mapping[str, Any]) -> list[str]:
    """Return what the fields say, a few words for each column, as `price_gold ≤ 40`.

    The words are the table's and the reader's: they are no Markdown and no HTML.

    Raises:
        FilterError: a field holds what its column cannot be compared with.
    """
    return [found.told for _, found in _all(facts, values)]


def field(name: str, end: str = "") -> str:
    """Return the id of a column's field.

    Args:
        name: The column; in a form, dots, brackets and quotes would be a path.
        end: `from` or `to` of a range.
    """
    written = quote(name, safe="").replace(".", "%2E")
    return f"{PREFIX}{written}:{end}" if end else f"{PREFIX}{written}"


def _widgets(column: ColumnFacts, given: Mapping[str, Any]) -> list[InputWidget]:
    name = column.name
    shown = {"id": field(name), "label": _short(name, _LABEL_CHARS) or "(no name)"}
    if len(name) > _LABEL_CHARS:
        shown["tooltip"] = name
    match column.kind:
        case "choice":
            values = list(column.choices)
            return [MultiSelect(**shown, values=values, initial=_choices(column, given))]
        case "boolean":
            # an empty value would break the page
            items = {"Any": _ANY, "Yes": "yes", "No": "no"}
            return [Select(**shown, items=items, initial_value=_answer(column, given) or _ANY)]
        case "text":
            return [TextInput(**shown, initial=_typed(given, field(name)), placeholder="Any")]
    # as text, because Chainlit shows 0 in a number field that is not set, and its calendar sends
    # midnight of a zone that it does not name
    return [
        TextInput(
            **{**shown, "id": field(name, end), "label": f"{shown['label']}, {end}"},
            initial=_typed(given, field(name, end)),
            placeholder=_written(bound),
        )
        for end, bound in (("from", column.least), ("to", column.most))
    ]


def _written(bound: object) -> str:
    return bound.date().isoformat() if isinstance(bound, datetime) else str(bound)


def _all(facts: Sequence[ColumnFacts], values: Mapping[str, Any]) -> Iterator[tuple[str, _Chosen]]:
    for column in facts[:MOST_COLUMNS]:
        found = _CHOSEN[column.kind](column, values)
        if found is not None:
            yield column.name, found


def _of_choice(column: ColumnFacts, values: Mapping[str, Any]) -> _Chosen | None:
    wanted = _choices(column, values)
    if not wanted:
        return None
    names = [_short(w, _TOLD_CHARS) for w in wanted[:_N_TOLD]]
    more = len(wanted) - len(names)
    ending = f" and {more} more" if more else ""
    listed = ", ".join(names) if more else " or ".join(names)
    return _Chosen((_Test("in", wanted),), f"{_told(column)}: {listed}{ending}")


def _of_boolean(column: ColumnFacts, values: Mapping[str, Any]) -> _Chosen | None:
    answer = _answer(column, values)
    if answer is None:
        return None
    return _Chosen((_Test("==", _BOOLEANS[answer]),), f"{_told(column)}: {answer}")


def _of_text(column: ColumnFacts, values: Mapping[str, Any]) -> _Chosen | None:
    text = _typed(values, field(column.name))
    if not text:
        return None
    test = _Test("text_match_insensitive", text)
    return _Chosen((test,), f"{_told(column)} contains “{_short(text, _TOLD_CHARS)}”")


def _of_number(column: ColumnFacts, values: Mapping[str, Any]) -> _Chosen | None:
    least, most = (_number(column, _typed(values, field(column.name, e))) for e in ("from", "to"))
    if least is not None and most is not None and least > most:
        raise _backwards(column, _plain(least), _plain(most))
    tests = [
        _Test(operator, _plain(bound))
        for operator, bound in ((">=", least), ("<=", most))
        if bound is not None
    ]
    return _range(column, tests, [_plain(b) if b is not None else "" for b in (least, most)])


def _of_date(column: ColumnFacts, values: Mapping[str, Any]) -> _Chosen | None:
    first, last = (_day(column, _typed(values, field(column.name, e))) for e in ("from", "to"))
    if first is not None and last is not None and first > last:
        raise _backwards(column, first.isoformat(), last.isoformat())
    tests = [_Test(">=", first.isoformat())] if first is not None else []
    if last is not None and last < date.max and isinstance(column.most, datetime):
        # a day of a column of times ends where the next one begins
        tests.append(_Test("<", (last + timedelta(days=1)).isoformat()))
    elif last is not None:
        tests.append(_Test("<=", last.isoformat()))
    return _range(column, tests, [d.isoformat() if d is not None else "" for d in (first, last)])


_CHOSEN = {
    "choice": _of_choice,
    "boolean": _of_boolean,
    "text": _of_text,
    "number": _of_number,
    "date": _of_date,
}


def _range(column: ColumnFacts, tests: list[_Test], ends: list[str]) -> _Chosen | None:
    if not tests:
        return None
    name, (least, most) = _told(column), ends
    if least and most:
        told = f"{name} = {least}" if least == most else f"{name} {least} – {most}"
    else:
        told = f"{name} ≥ {least}" if least else f"{name} ≤ {most}"
    return _Chosen(tuple(tests), told)


def _choices(column: ColumnFacts, values: Mapping[str, Any]) -> list[str]:
    """Return what was chosen, as far as it is a choice: another version may have had others."""
    given = values.get(field(column.name))
    wanted = given if isinstance(given, list) else []
    return [choice for choice in column.choices if choice in wanted]


def _answer(column: ColumnFacts, values: Mapping[str, Any]) -> str | None:
    given = values.get(field(column.name))
    return given if isinstance(given, str) and given in _BOOLEANS else None


def _typed(values: Mapping[str, Any], id_: str) -> str:
    given = values.get(id_)
    # a number where a text is typed comes from a program
    text = str(given) if isinstance(given, str | int | float) else ""
    # half a character, which JSON can hold, is none that the index can
    return " ".join(text.encode(errors="replace").decode().split())[:_TYPED_CHARS]


def _number(column: ColumnFacts, text: str) -> Decimal | None:
    if not text:
        return None
    try:
        number = Decimal(text)
        is_usual = number.is_finite() and abs(number.adjusted()) < _MOST_DIGITS
    except InvalidOperation:
        is_usual = False
    if not is_usual:
        raise FilterError(
            f"The filter of column {_told(column)!r} takes a number such as "
            f"{_written(column.least)}, found {_short(text, _TOLD_CHARS)!r}; "
            "write a point before the fraction, and nothing between thousands."
        )
    return number


def _day(column: ColumnFacts, text: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as e:
        raise FilterError(
            f"The filter of column {_told(column)!r} takes a date such as "
            f"{_written(column.least)}, found {_short(text, _TOLD_CHARS)!r}; "
            "write year, month and day."
        ) from e


def _backwards(column: ColumnFacts, least: str, most: str) -> FilterError:
    return FilterError(
        f"The filter of column {_told(column)!r} goes from {least} to {most}, "
        "which no row can meet; write the lesser one first."
    )


def _plain(number: Decimal) -> str:
    return f"{number:f}"


def _told(column: ColumnFacts) -> str:
    return _short(column.name, _LABEL_CHARS)


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
