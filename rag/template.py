"""A row as text: the template, and how each column type is written.

Knows polars; does not know Delta or the index. `{column}` stands for a column's value (any
name, spaces included), `{{` and `}}` for braces. A null is written as nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from rag.errors import SettingsError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[^{}]+|[{}]")


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
        return pl.all_horizontal(
            [
                text_of(c, schema[c]).fill_null("").str.strip_chars().str.len_bytes() == 0
                for c in self.columns
            ]
        )


def text_of(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return the expression that writes a column as text; null stays null."""
    value = pl.col(column)
    if dtype == pl.String:
        return value
    if dtype == pl.Binary:
        return value.bin.encode("hex")
    if isinstance(dtype, pl.List) and not dtype.inner.is_nested() and dtype.inner != pl.Binary:
        return value.list.eval(pl.element().cast(pl.String)).list.join(", ")
    if dtype.is_nested():
        return value.map_batches(_as_json, return_dtype=pl.String)
    return value.cast(pl.String)


def _as_json(values: pl.Series) -> pl.Series:
    # polars' own JSON writer panics on binary inside a struct
    return pl.Series(
        values.name,
        [
            None if v is None else json.dumps(v, ensure_ascii=False, default=str)
            for v in values.to_arrow().to_pylist()
        ],
        dtype=pl.String,
    )


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
    return pl.Series("row_hash", [text_hash(c) for c in canonical], dtype=pl.String)


def text_hash(text: str) -> str:
    """Return 32 hexadecimal digits that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
