"""Which rows a version holds, by key and content hash; and those that are asked for.

Knows polars; does not know deltalake: frames come in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from rag.table.keys import content_keys, row_keys
from rag.template import Template, content_hashes

_N_EXAMPLES = 3
_EXAMPLE_CHARS = 60


@dataclass(frozen=True)
class Contents:
    """Which rows a version holds: about 100 bytes a row, whatever their texts."""

    frame: pl.DataFrame
    """`row_key` and `row_hash`, both String; each key once."""
    n_blank: int
    """Rows without text: no part of the frame."""
    n_left_out: int
    """Rows left out because their key is null or another row of the same key was picked."""


@dataclass(frozen=True)
class BadKeys:
    """Rows that the key columns do not identify."""

    n_null: int
    null_examples: Sequence[str]
    """Texts of such rows: they have no key to name them by."""
    n_repeated: int
    repeated_examples: Sequence[str]


def read_contents(
    frames: Iterable[pl.DataFrame],
    *,
    key: Sequence[str],
    template: Template,
    tell: Callable[[int], None] | None,
) -> tuple[Contents, BadKeys | None]:
    """Read rows down to key and content hash.

    Args:
        frames: Rows with all their columns.
        key: Columns that identify a row; empty when its content does.
        template: Says which rows are blank.
        tell: Called after each frame with the rows seen so far.

    Returns:
        The contents, where of equal keys the row with the least content hash is kept; and what
        is wrong with the keys, None when nothing is.
    """
    parts = [pl.DataFrame(schema={"row_key": pl.String, "row_hash": pl.String})]
    n_seen = n_blank = 0
    nameless: list[str] = []
    for frame in frames:
        kept = frame.filter(~template.is_blank(frame.schema))
        keys = row_keys(kept, key) if key else pl.repeat("", len(kept), eager=True)
        if len(nameless) < _N_EXAMPLES and keys.null_count():
            nameless += _texts(kept.filter(keys.is_null()), template)
        hashes = content_hashes(kept, kept.columns)
        parts.append(pl.DataFrame([keys.alias("row_key"), hashes]))
        n_seen += len(frame)
        n_blank += len(frame) - len(kept)
        if tell is not None:
            tell(n_seen)
    found = pl.concat(parts)
    parts.clear()
    if not key:
        return Contents(content_keys(found["row_hash"]), n_blank, 0), None
    picked, bad = _picked(found, nameless[:_N_EXAMPLES])
    return Contents(picked, n_blank, len(found) - len(picked)), bad


def _texts(frame: pl.DataFrame, template: Template) -> list[str]:
    few = frame.head(_N_EXAMPLES)
    texts = few.select(template.text(few.schema).str.slice(0, _EXAMPLE_CHARS)).to_series()
    return [str(t) for t in texts]


def _picked(found: pl.DataFrame, nameless: list[str]) -> tuple[pl.DataFrame, BadKeys | None]:
    named = found.drop_nulls("row_key") if nameless else found
    if not nameless and named["row_key"].n_unique() == len(named):
        return named, None
    is_repeated = named["row_key"].is_duplicated()
    repeated = named.filter(is_repeated)
    of_each = repeated.group_by("row_key").agg(pl.col("row_hash").min())
    examples = of_each["row_key"].sort().head(_N_EXAMPLES).to_list()
    bad = BadKeys(len(found) - len(named), nameless, len(repeated), examples)
    return pl.concat([named.filter(~is_repeated), of_each]), bad


class Wanted:
    """Rows that are asked for, found in a stream: each once, however often it is there."""

    def __init__(self, wanted: pl.DataFrame, key: Sequence[str]) -> None:
        # the hash covers the key columns too: without a key it alone tells the rows apart
        self._key = key
        self._rows = wanted.sort("row_key" if key else "row_hash")
        self._names = self._rows["row_key" if key else "row_hash"]
        self._n_taken = np.zeros(len(wanted), dtype=np.int64)
        self.n_left = len(wanted)
        """How many were not found yet."""

    def take(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
        """Return the rows of a frame that are asked for, with their keys and content hashes."""
        if self._key:
            # only rows with a wanted key are worth a hash
            frame = frame.filter(self._is_named(row_keys(frame, self._key)))
        hashes = content_hashes(frame, frame.columns)
        names = row_keys(frame, self._key) if self._key else hashes
        first = self._names.search_sorted(names, side="left")
        n_equal = self._names.search_sorted(names, side="right") - first
        here = pl.DataFrame({"first": first, "n_equal": n_equal, "row_hash": hashes})
        here = here.with_row_index("at").filter(n_equal > 0)
        here = here.filter(here["row_hash"] == self._rows["row_hash"].gather(here["first"]))
        # of equal rows, this is the n-th: the n-th of those wanted, where so many are
        n_before = pl.Series(self._n_taken[here["first"].to_numpy()])
        here = here.with_columns(n=pl.int_range(pl.len()).over("first") + n_before)
        here = here.filter(pl.col("n") < pl.col("n_equal"))
        np.add.at(self._n_taken, here["first"].to_numpy(), 1)
        self.n_left -= len(here)
        keys = self._rows["row_key"].gather(here["first"] + here["n"])
        return frame[here["at"]], keys, here["row_hash"]

    def _is_named(self, names: pl.Series) -> pl.Series:
        known = names.fill_null("")
        first = self._names.search_sorted(known, side="left")
        return (self._names.search_sorted(known, side="right") > first) & names.is_not_null()
