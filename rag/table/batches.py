"""Arrow batches from deltalake as polars frames, and a batch of rows as it leaves this room.

Knows how a failure of the stream surfaces; does not know keys, versions or the change feed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pyarrow as pa

from rag.template import text_of


@dataclass(frozen=True)
class Rows:
    """A batch of rows: parallel series, and their columns."""

    keys: pl.Series
    hashes: pl.Series
    """Content hash of each row, over all columns."""
    texts: pl.Series
    columns: pl.DataFrame
    n_blank: int
    """Rows of the batch that were left out because they have no text."""

    def take(self, index: Sequence[int]) -> Rows:
        """Return rows by position."""
        chosen = pl.Series(index, dtype=pl.UInt32)
        return self._of(lambda s: s.gather(chosen), self.columns[list(index)])

    def with_keys(self, keys: Sequence[str]) -> Rows:
        """Return the same rows under other keys."""
        return replace(self, keys=pl.Series("row_key", keys, dtype=pl.String))

    def slice(self, start: int, length: int) -> Rows:
        """Return some of the rows, in order."""
        return self._of(lambda s: s.slice(start, length), self.columns.slice(start, length))

    def filter(self, mask: pl.Series) -> Rows:
        """Return the rows where `mask` is true."""
        return self._of(lambda s: s.filter(mask), self.columns.filter(mask))

    def _of(self, pick: Callable[[pl.Series], pl.Series], columns: pl.DataFrame) -> Rows:
        return Rows(pick(self.keys), pick(self.hashes), pick(self.texts), columns, n_blank=0)


def frames(
    read: Callable[[], Iterable[Any]], unreadable: Callable[[BaseException], Exception]
) -> Iterator[pl.DataFrame]:
    """Yield what deltalake streams, as polars frames; its failures become `unreadable`."""
    batches: Iterator[Any] | None = None
    while True:
        try:
            batches = batches or iter(read())
            batch = next(batches, None)
        except Exception as e:  # so the Arrow C interface tells of a missing or damaged file
            raise unreadable(e) from e
        except BaseException as e:  # Rust's panics are no Exception
            if type(e).__name__ != "PanicException":
                raise
            raise unreadable(e) from e
        if batch is None:
            return
        frame = pl.from_arrow(pa.record_batch(batch))
        assert isinstance(frame, pl.DataFrame)
        yield frame


def storable(schema: pl.Schema) -> list[pl.Expr]:
    """Return expressions that make text of the columns that Lance does not store.

    Those are maps, and columns without a type.
    """
    return [
        text_of(name, dtype).cast(pl.String).alias(name)
        for name, dtype in schema.items()
        if not _is_storable(dtype)
    ]


def _is_storable(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Struct):
        return all(_is_storable(f.dtype) for f in dtype.fields if isinstance(f.dtype, pl.DataType))
    if isinstance(dtype, (pl.List, pl.Array)):
        return not isinstance(dtype.inner, pl.DataType) or _is_storable(dtype.inner)
    return not isinstance(dtype, (pl.Map, pl.Null))
