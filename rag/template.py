"""A row as text: the template, and how each column type is written.

Knows polars; does not know Delta or the index. `{column}` stands for a column's value (any
name, spaces included), `{{` and `}}` for braces. A null is written as nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from rag.errors import SettingsError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[^{}]+|[{}]")
_VISIBLE = r"[^\s\x1c-\x1f]"
"""What is no white space; the four separators of ASCII are some to Python and none to Unicode."""


@dataclass(frozen=True)
class Template:
    """A parsed template: literal texts and column names, in order."""

    source: str
    pieces: tuple[tuple[str, bool], ...]
    """`(text, is_column)`."""

    @classmethod
    def parse(cls, source: str) -> Template:
        """Parse a template.

        Raises:
            SettingsError: a single brace, or no column at all.
        """
        pieces: list[tuple[str, bool]] = []
        for match in _PIECE.finditer(source):
            text = match.group()
            if match.group(1) is not None:
                pieces.append((match.group(1), True))
            elif text in ("{", "}"):
                raise SettingsError(
                    f"Template {source!r} has a single {text!r} at character {match.start() + 1}. "
                    "Write '{column}' for a column's value and '{{' for a brace."
                )
            else:
                pieces.append((text[0] if text in ("{{", "}}") else text, False))
        if not any(is_column for _, is_column in pieces):
            raise SettingsError(
                f"Template {source!r} names no column. Write '{{column}}' where a value belongs."
            )
        return cls(source, tuple(pieces))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it names, in order, each once."""
        return tuple(dict.fromkeys(text for text, is_column in self.pieces if is_column))

    def text(self, schema: Mapping[str, pl.DataType]) -> pl.Expr:
        """Return the expression of a row's text."""
        return pl.concat_str(
            [
                text_of(text, schema[text]).fill_null("") if is_column else pl.lit(text)
                for text, is_column in self.pieces
            ]
        )

    def is_blank(self, schema: Mapping[str, pl.DataType]) -> pl.Expr:
        """Return the expression of whether all its columns are null or white space."""
        return ~pl.any_horizontal(
            [text_of(c, schema[c]).fill_null("").str.contains(_VISIBLE) for c in self.columns]
        )


def text_of(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return the expression that writes a column as text; null stays null.

    Plain values are written as themselves, a list of them with commas between, bytes in
    hexadecimal digits, times without a fraction of 0; anything deeper is JSON.
    """
    value = pl.col(column)
    if isinstance(dtype, pl.List) and not dtype.inner.is_nested():
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        return value.list.eval(_plain_text(pl.element(), inner)).list.join(", ")
    if dtype.is_nested():
        return value.map_batches(_as_json, return_dtype=pl.String)
    return _plain_text(value, dtype)


def _plain_text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.Binary:
        return value.bin.encode("hex")
    if isinstance(dtype, pl.Datetime):
        return value.dt.to_string("%Y-%m-%d %H:%M:%S%.f" + (" %Z" if dtype.time_zone else ""))
    return value.cast(pl.String)


def _as_json(values: pl.Series) -> pl.Series:
    # polars' own JSON writer panics on binary inside a struct, and it has no maps
    arrow = values.to_arrow()
    return pl.Series(
        values.name,
        [
            None if v is None else json.dumps(_jsonable(v, arrow.type), ensure_ascii=False)
            for v in arrow.to_pylist()
        ],
        dtype=pl.String,
    )


def _jsonable(value: Any, kind: pa.DataType) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if pa.types.is_map(kind):
        names = [str(_jsonable(k, kind.key_type)) for k, _ in value]
        values = [_jsonable(v, kind.item_type) for _, v in value]
        # one name twice would lose a value
        pairs = list(zip(names, values, strict=True))
        return dict(pairs) if len(set(names)) == len(names) else pairs
    if pa.types.is_struct(kind):
        return {f.name: _jsonable(value[f.name], f.type) for f in kind}
    if isinstance(value, list):
        return [_jsonable(v, kind.value_type) for v in value]
    if isinstance(value, float):
        exact = float(str(np.float32(value))) if pa.types.is_float32(kind) else value
        return exact if math.isfinite(exact) else str(exact)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return f"{value:f}"  # never as 5E-9
    if isinstance(value, datetime):
        return _time_text(value)
    return str(value)


def _time_text(value: datetime) -> str:
    # as polars' %.f has it: no fraction, milliseconds or microseconds
    unit = "microseconds" if value.microsecond % 1000 else "milliseconds"
    written = value.replace(tzinfo=None).isoformat(" ", unit if value.microsecond else "seconds")
    return f"{written} UTC" if value.tzinfo else written


def content_hashes(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Hash the content of each row.

    Args:
        frame: Rows.
        columns: Which columns count; their order does not.

    Returns:
        A String series of 32 hexadecimal digits a row: BLAKE2b-128 of every column's name and
        value, each with its length before it and nulls marked. polars' own hash is faster but
        not promised to stay the same between its versions.
    """
    parts: list[pl.Expr] = []
    for name in sorted(columns):
        dtype = frame.schema[name]
        # a list written for reading is ambiguous: ["a, b"] and ["a", "b"] look the same
        text = (
            pl.col(name).map_batches(_as_json, return_dtype=pl.String)
            if dtype.is_nested()
            else text_of(name, dtype)
        )
        sized = pl.concat_str([text.str.len_bytes().cast(pl.String), pl.lit(":"), text])
        parts += [pl.lit(f"{len(name)}:{name}"), sized.fill_null("null")]
    canonical = frame.select(pl.concat_str(parts).alias("canonical")).to_series()
    digests = [_digest(c) for c in canonical.cast(pl.Binary).to_list()]
    return pl.Series("row_hash", digests, dtype=pl.String)


def text_hash(text: str) -> str:
    """Return 32 hexadecimal digits that stand for a text."""
    return _digest(text.encode())


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()
