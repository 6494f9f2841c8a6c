"""What of a version's columns a reader can filter by, and titles of some of its rows.

Knows polars; does not know deltalake or filters: frames come in, a batch at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from operator import itemgetter
from typing import Any, Literal

import polars as pl

from rag.template import Template, text_hash

MOST_CHOICES = 25
"""A text column of more distinct values is no choice."""
LONGEST_TEXT = 80
"""A column with a longer text, in characters, is prose: nobody filters by it."""

Kind = Literal["choice", "number", "boolean", "date", "text"]
Bound = int | float | Decimal | date
"""A `datetime` where the column holds times."""
Read = Callable[[Sequence[str] | None], Iterable[pl.DataFrame]]
"""Streams all rows; of the columns named, or of all."""

_SHORTEST_TITLE = 3


@dataclass(frozen=True)
class ColumnFacts:
    """What a column holds, as far as a filter asks for it."""

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    """All its texts that are not blank, most frequent first; empty unless it is a choice."""
    least: Bound | None = None
    """Of a number or a date, the least value that is finite; None of other kinds."""
    most: Bound | None = None
    counts: tuple[int, ...] = ()
    """Rows of each choice."""


class _Texts:
    """A column of texts: how many there are of each, until there are too many kinds."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._is_choice, self._longest = True, 0

    def see(self, values: pl.Series) -> None:
        texts = values.cast(pl.String).drop_nulls()
        longest = texts.str.len_chars().max()
        assert longest is None or isinstance(longest, int)
        self._longest = max(self._longest, longest or 0)
        if not self._is_choice or self._longest > LONGEST_TEXT:
            return
        counted = texts.filter(texts.str.contains(r"\S")).value_counts(name="n")
        for text, n in counted.iter_rows():
            self._counts[text] = self._counts.get(text, 0) + n
        self._is_choice = len(self._counts) <= MOST_CHOICES

    def facts(self, name: str) -> ColumnFacts | None:
        if self._longest > LONGEST_TEXT:
            return None
        if not self._is_choice:
            return ColumnFacts(name, "text")
        if len(self._counts) < 2:
            return None
        by_count = sorted(self._counts.items(), key=lambda c: (-c[1], c[0]))
        choices, counts = zip(*by_count, strict=True)
        return ColumnFacts(name, "choice", choices=choices, counts=counts)


class _Range:
    """A column with an order: its least and its greatest value."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._least: Any = None
        self._most: Any = None

    def see(self, values: pl.Series) -> None:
        if values.dtype.is_float():
            values = values.filter(values.is_finite())
        elif values.dtype.is_temporal():
            # what no date of Python can hold, as other writers may have
            values = values.filter(values.dt.year().is_between(1, 9999))
        least, most = values.min(), values.max()
        if least is not None:
            self._least = least if self._least is None else min(self._least, least)
            self._most = most if self._most is None else max(self._most, most)

    def facts(self, name: str) -> ColumnFacts | None:
        if self._least == self._most:
            return None
        bounds = (None, None) if self._kind == "boolean" else (self._least, self._most)
        return ColumnFacts(name, self._kind, least=bounds[0], most=bounds[1])


def column_facts(read: Read, *, without: Sequence[str] = ()) -> list[ColumnFacts]:
    """Return what a reader can filter by, in the table's order.

    Left out are columns of one value, of lists, structs and binary, and of long texts.

    Args:
        read: Reads the rows, at most twice: the first batch of all columns, and all batches of
            the columns that may do.
        without: Columns that nobody filters by.
    """
    first = next(iter(read(None)), None)
    if first is None:
        return []
    wanted = [c for c in first.columns if c not in without and _may_do(first[c])]
    seen = {name: seer for name in wanted if (seer := _seer(first.schema[name]))}
    for frame in read(list(seen)) if seen else ():
        for name, column in seen.items():
            column.see(frame[name])
    found = (column.facts(name) for name, column in seen.items())
    return [f for f in found if f is not None]


def _may_do(values: pl.Series) -> bool:
    # prose is most of a table: what shows as such at once is not read
    if values.dtype != pl.String:
        return True
    return not values.str.len_chars().gt(LONGEST_TEXT).any()


def _seer(dtype: pl.DataType) -> _Texts | _Range | None:
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        return _Texts()
    if dtype.is_numeric():
        return _Range("number")
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return _Range("date")
    return _Range("boolean") if isinstance(dtype, pl.Boolean) else None


def titles(read: Read, template: Template, n: int, *, max_chars: int) -> list[str]:
    """Return what some rows are called, spread over the table, the same of the same rows.

    Args:
        read: Reads the rows, at most twice: the first batch, and of all the title alone.
        template: A title is its first column; where that holds no texts, the whole text.
        n: How many, at most; each once.
        max_chars: Titles up to this length are preferred, longer ones are cut.
    """
    first = next(iter(read(template.columns)), None)
    if first is None:
        return []
    named = template.columns[0]
    is_text = isinstance(first.schema[named], pl.String)
    text = pl.col(named) if is_text else template.text(first.schema)
    line = text.fill_null("").str.replace_all(r"\s+", " ").str.strip_chars().alias("title")
    best: dict[str, tuple[bool, str]] = {}
    for frame in read([named] if is_text else template.columns):
        found = frame.select(line).to_series().unique()
        found = found.filter(found.str.len_chars() >= _SHORTEST_TITLE)
        # by hash: neither the order of the batches nor that of the rows matters
        best |= {t: (len(t) > max_chars, text_hash(t)) for t in found}
        best = dict(heapq.nsmallest(n, best.items(), key=itemgetter(1)))
    return [_cut(t, max_chars) for t in best]


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    head = text[: max_chars - 1]
    at_word = head.rpartition(" ")[0] if " " in head[max_chars // 2 :] else head
    return at_word.rstrip(" ,;:.–-") + "…"
