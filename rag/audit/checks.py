"""What is wrong with the nodes of an index: found batch by batch, told by row key.

Knows what a row and its template make of a node; does not open the index or the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from rag.index import COLUMNS, STATE_ID
from rag.template import Template, content_hashes, text_hash

NEEDED = [
    "id",
    "row_key",
    "chunk_no",
    "start",
    "end",
    "row_hash",
    "text_hash",
    "text",
    "vector",
    COLUMNS,
]
"""Columns of the index that are checked."""

_NORM_SLACK = 1e-3
"""How far the length of a vector may be from 1; float32 of 4,096 dimensions stays below 1e-5."""
_ROWS = {"row_key": pl.String, "row_hash": pl.String}
_KEPT = {
    **_ROWS,
    "chunk_no": pl.Int32,
    "start": pl.Int32,
    "end": pl.Int32,
    "length": pl.UInt32,
}


@dataclass
class Found:
    """What the nodes come to: some 150 bytes a node, whatever their texts."""

    bad: dict[str, set[str]] = field(default_factory=dict)
    """Keys of the rows that each kind of damage was found in."""
    stray_ids: set[str] = field(default_factory=set)
    """Ids that no sync writes, so that none would remove them."""
    several: set[str] = field(default_factory=set)
    """Keys of rows with several nodes: one too many of these shows in the number of nodes only."""
    n_states: int = 0
    n_nodes: int = 0
    n_tombstones: int = 0
    rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_ROWS))
    """`row_key` and `row_hash` (String) of each row."""

    def blame(self, kind: str, keys: Iterable[str]) -> None:
        """Note that rows are damaged."""
        names = set(keys)
        if names:
            self.bad.setdefault(kind, set()).update(names)


class Nodes:
    """Collects what is wrong with nodes.

    Args:
        template: What made their texts.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._found = Found()
        self._parts = [pl.DataFrame(schema=_KEPT)]

    def take(self, batch: pa.RecordBatch) -> None:
        """Check a batch of the index, with the columns of `NEEDED`.

        Raises:
            ValueError: it holds what no text can be.
        """
        batch.validate(full=True)  # damaged bytes need not be UTF-8, and polars trusts they are
        frame = pl.from_arrow(batch.drop_columns(["vector"]))
        assert isinstance(frame, pl.DataFrame)
        found = self._found
        is_state = frame["id"] == STATE_ID
        is_node = frame["row_hash"].is_not_null() & ~is_state
        found.n_states += int(is_state.sum())
        found.n_tombstones += int((~is_node & ~is_state).sum())
        nodes = frame.filter(is_node)
        found.n_nodes += len(nodes)
        vectors = batch.column("vector").filter(is_node.to_arrow())
        self._check_ids(nodes)
        length = self._check_texts(nodes)
        self._blame("vector", nodes, ~pl.Series(_are_unit(vectors), dtype=pl.Boolean))
        kept = nodes.with_columns(length).select(
            # copies: a view would keep its whole batch in memory, vectors and all
            pl.concat_str(c, pl.lit("")) if dtype == pl.String else pl.col(c) + 0
            for c, dtype in _KEPT.items()
        )
        self._parts.append(kept.drop_nulls("row_key"))

    def found(self) -> Found:
        """Return what was found, once every batch was taken."""
        nodes = pl.concat(self._parts)
        self._parts.clear()
        is_shared = nodes["row_key"].is_duplicated()
        single, several = nodes.filter(~is_shared), nodes.filter(is_shared)
        del nodes
        is_whole = (pl.col("start") == 0) & (pl.col("end") == pl.col("length"))
        first = pl.col("chunk_no") == 0
        self._found.blame("numbers", single.filter(~first)["row_key"])
        self._found.blame("span", single.filter(first & ~is_whole)["row_key"])
        self._stray(single.filter(~first))
        rows = self._several(several)
        self._found.rows = pl.concat([single.select(*_ROWS), rows])
        return self._found

    def _check_ids(self, nodes: pl.DataFrame) -> None:
        right = pl.format("{}:{}", "chunk_no", "row_key")
        wrong = nodes.filter((pl.col("id") != right).fill_null(value=True))
        # of a null key nothing can be told but its id
        self._found.blame("id", wrong["row_key"].fill_null(wrong["id"]))
        self._found.stray_ids.update(wrong["id"])

    def _check_texts(self, nodes: pl.DataFrame) -> pl.Series:
        """Compare hashes, columns and texts; return the length of each node's whole text."""
        hashes = [None if t is None else text_hash(t) for t in nodes["text"]]
        is_hashed = nodes["text_hash"] == pl.Series(hashes, dtype=pl.String)
        self._blame("text", nodes, ~is_hashed.fill_null(value=False))
        columns = nodes[COLUMNS].struct.unnest()
        content = content_hashes(columns, columns.columns)
        self._blame("columns", nodes, content != nodes["row_hash"])
        whole = columns.select(self._template.text(columns.schema).alias("whole")).to_series()
        n = pl.max_horizontal(pl.col("end") - pl.col("start"), 0)
        cut = nodes.with_columns(whole).select(
            is_cut=(pl.col("whole").str.slice("start", n) == pl.col("text"))
            & (pl.col("start") >= 0)
            & (pl.col("end") > pl.col("start")),
            length=pl.col("whole").str.len_chars(),
        )
        self._blame("span", nodes, ~cut["is_cut"].fill_null(value=False))
        return cut["length"]

    def _several(self, nodes: pl.DataFrame) -> pl.DataFrame:
        """Check rows of several nodes as a whole: numbered from 0, and without a gap."""
        nodes = nodes.sort("row_key", "chunk_no")
        prior = nodes.select(
            pl.col("row_hash").shift(1).over("row_key").alias("prior_hash"),
            pl.col("end").cum_max().shift(1).over("row_key").alias("reached"),
            right=pl.int_range(pl.len(), dtype=pl.Int32).over("row_key"),
            is_last=pl.col("row_key") != pl.col("row_key").shift(-1).fill_null(""),
        )
        nodes = nodes.hstack(prior)
        is_first = pl.col("right") == 0
        numbered = pl.col("chunk_no") == pl.col("right")
        begins = pl.when(is_first).then(pl.col("start") == 0)
        follows = pl.col("start") <= pl.col("reached")
        ends = ~pl.col("is_last") | (pl.max_horizontal("reached", "end") == pl.col("length"))
        alike = (pl.col("prior_hash") == pl.col("row_hash")).fill_null(value=True)
        unnumbered = nodes.filter(~numbered.fill_null(value=False))
        self._found.blame("numbers", unnumbered["row_key"])
        self._stray(unnumbered)
        joined = (begins.otherwise(follows) & ends).fill_null(value=False)
        known = pl.lit(unnumbered["row_key"].unique()).implode()
        gaps = nodes.filter(~joined, ~pl.col("row_key").is_in(known))
        self._found.blame("span", gaps["row_key"])
        self._found.blame("hashes", nodes.filter(~alike)["row_key"])
        rows = nodes.unique("row_key", keep="first").select(*_ROWS)
        self._found.several = set(rows["row_key"])
        return rows

    def _stray(self, nodes: pl.DataFrame) -> None:
        ids = nodes.select(pl.format("{}:{}", "chunk_no", "row_key").alias("id"))
        self._found.stray_ids.update(ids["id"].drop_nulls())

    def _blame(self, kind: str, nodes: pl.DataFrame, is_bad: pl.Series) -> None:
        self._found.blame(kind, nodes["row_key"].filter(is_bad).drop_nulls())


def differing(rows: pl.DataFrame, table: pl.DataFrame) -> Mapping[str, pl.Series]:
    """Return the keys of rows that are missing from the index, too many in it, or differ.

    Args:
        rows: `row_key` and `row_hash` of the index.
        table: The same of the table.
    """
    both = table.join(rows, on="row_key", how="left", suffix="_index", coalesce=True)
    is_missing = pl.col("row_hash_index").is_null()
    return {
        "missing": both.filter(is_missing)["row_key"],
        "extra": rows.join(table, on="row_key", how="anti")["row_key"],
        "changed": both.filter(~is_missing, pl.col("row_hash_index") != pl.col("row_hash"))[
            "row_key"
        ],
    }


def _are_unit(vectors: pa.FixedSizeListArray) -> np.ndarray:
    """Return whether each vector is there, finite and of length 1; `(n,) bool`."""
    is_there = vectors.is_valid().to_numpy(zero_copy_only=False).copy()
    values = vectors.flatten().to_numpy(zero_copy_only=False)  # leaves the nulls out
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.reshape(-1, vectors.type.list_size)
        norms = np.sqrt(np.einsum("ij,ij->i", found, found))
        is_there[is_there] = np.abs(norms - 1) <= _NORM_SLACK  # false for NaN too
    return np.asarray(is_there)
