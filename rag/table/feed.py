"""What the change data feed tells: rows that came and went, and when each content came.

Knows how Delta names a change; does not know deltalake: frames come in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from rag.table.batches import Rows
from rag.table.keys import row_keys
from rag.template import Template, content_hashes

CHANGE, VERSION = "_change_type", "_commit_version"
"""Columns that the feed adds to those of the table."""

_CHANGES_IN = ["insert", "update_postimage"]
_SCHEMA = {"row_key": pl.String, "row_hash": pl.String, "row_version": pl.Int64, "sign": pl.Int64}


@dataclass(frozen=True)
class Change:
    """A batch of the change feed."""

    rows: Rows
    """For a table without a key, `keys` are the content hashes."""
    signs: pl.Series
    """1 for a row that came in, -1 for one that went out."""
    versions: pl.Series
    """The Delta version at which it did, Int64."""
    n_blank: int
    """Blank rows that came in, less those that went out."""


class FeedUnreadable(Exception):
    """The change feed cannot be read; its text says why. The whole table can be read instead."""


def signs_and_versions(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Return 1 for each row that came in and -1 for one that went out; and at which version."""
    came = pl.col(CHANGE).is_in(_CHANGES_IN)
    found = frame.select(
        sign=pl.when(came).then(1).otherwise(-1).cast(pl.Int64),
        row_version=pl.col(VERSION).cast(pl.Int64),
    )
    return found["sign"], found["row_version"]


def last_versions(
    frames: Iterable[pl.DataFrame], *, key: Sequence[str], template: Template, most: int
) -> pl.DataFrame | None:
    """Find the last version at which each content of each row came in.

    An overwrite takes each row out and puts it in again in one version: only what is left of a
    version, when its rows in and out are counted, counts as a change.

    Args:
        frames: The change feed.
        key: Columns that identify a row; empty when its content does.
        template: Says which rows are blank.
        most: Rows of the feed that are read.

    Returns:
        `row_key`, `row_hash` (String, each once) and `row_version` (Int64); None when the feed
        tells more than `most` rows.
    """
    parts = [pl.DataFrame(schema=_SCHEMA)]
    n_read = 0
    for frame in frames:
        n_read += len(frame)
        if n_read > most:
            return None
        kept = frame.filter(~template.is_blank(frame.schema))
        signs, versions = signs_and_versions(kept)
        rows = kept.drop(CHANGE, VERSION)
        hashes = content_hashes(rows, rows.columns)
        keys = row_keys(rows, key) if key else hashes.alias("row_key")
        parts.append(pl.DataFrame([keys, hashes, versions, signs]).drop_nulls("row_key"))
    found = _last_in(pl.concat(parts))
    name = pl.col("row_key") if key else pl.format("h:{}", "row_hash")
    return found.select(name.alias("row_key"), "row_hash", "row_version")


def _last_in(rows: pl.DataFrame) -> pl.DataFrame:
    # sorted and compared with the next line: a group_by takes three times the memory
    # the hash covers the key columns, so it alone tells rows apart
    rows = rows.sort("row_hash", "row_version")
    last_of_version = pl.any_horizontal(
        pl.col(c) != pl.col(c).shift(-1) for c in ("row_hash", "row_version")
    ).fill_null(value=True)
    ends = rows.with_columns(total=pl.col("sign").cum_sum()).filter(last_of_version)
    net = pl.col("total") - pl.col("total").shift(1, fill_value=0)
    came = ends.filter(net > 0)
    return came.filter((pl.col("row_hash") != pl.col("row_hash").shift(-1)).fill_null(value=True))
