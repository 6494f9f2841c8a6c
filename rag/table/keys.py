"""What tells a row from the others: its key columns as one text, or its content.

Knows polars; does not know deltalake.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import polars as pl

_AS_THEY_ARE = (pl.String, pl.Boolean, pl.Float64, pl.Float32)


def row_keys(frame: pl.DataFrame, key: Sequence[str]) -> pl.Series:
    """Return the row key of each row: one column as text, several as a JSON list.

    A row where any of the columns is null has the key null.
    """
    if len(key) == 1:
        # a copy: a view of the text would keep its whole Arrow batch in memory, all columns of it
        text = pl.concat_str(pl.col(key[0]).cast(pl.String), pl.lit(""))
        return frame.select(text.alias("row_key")).to_series()
    # numbers, booleans and texts are JSON's own; a date is written as it is in a single key
    values = frame.select(
        pl.col(c) if t.is_integer() or t in _AS_THEY_ARE else pl.col(c).cast(pl.String)
        for c, t in ((c, frame.schema[c]) for c in key)
    )
    return pl.Series(
        "row_key",
        [None if None in v else json.dumps(v, ensure_ascii=False) for v in values.rows()],
        dtype=pl.String,
    )


def content_key(content: str, n: int) -> str:
    """Return the key of the `n`-th row (from 1) of equal content in a table without a key."""
    return f"h:{content}" if n == 1 else f"h:{content}:{n}"


def content_keys(hashes: pl.Series) -> pl.DataFrame:
    """Return `row_key` and `row_hash` of rows told apart by content, as `content_key` has it."""
    rows = pl.DataFrame([hashes.sort().alias("row_hash")]).with_row_index("at")
    is_first = pl.col("row_hash") != pl.col("row_hash").shift(1).fill_null("")
    # sorted, so that equal rows stand together: counted from the first of them
    n = 1 + pl.col("at") - pl.when(is_first).then("at").forward_fill()
    number = pl.when(n > 1).then(pl.format(":{}", n)).otherwise(pl.lit(""))
    return rows.select(pl.format("h:{}{}", "row_hash", number).alias("row_key"), "row_hash")
