"""How long work reports where it is and what it did; it does not know who draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, n_done, n_total)`; `n_total` is 0 while it is unknown."""


def silent(what: str, n_done: int, n_total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, or would do; everything counts rows, but `n_embedded` counts nodes."""

    table_version: int
    n_added: int
    n_updated: int
    n_deleted: int
    n_unchanged: int
    n_embedded: int
    seconds: float
    n_blank: int = 0
    """Rows left out because they have no text."""
    n_left_out: int = 0
    """Rows left out because their key is null or taken, see `RAG_TABLE__ON_BAD_KEY`."""
    read: Literal["nothing", "feed", "table"] = "table"
    """What was read to find the changes: the change data feed, or the whole table."""
    answering_version: int | None = None
    """The Delta version that answers; another one when this sync mirrored an older version beside
    it. None when nothing was written."""
    purged: tuple[int, ...] = ()
    """Delta versions that a purge made no longer addressable."""
