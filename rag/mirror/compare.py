"""What differs between the index and a version of the table.

Two ways to one result: `by_feed` reads only what changed, where Delta's change data feed tells
it; `by_rows` reads the whole table and is always right. Knows the table, the store's hashes and
the staging; publishes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import polars as pl
from lancedb.table import LanceTable

from rag.mirror.staging import Staging, slices
from rag.progress import Progress
from rag.store import IndexState, NodeStore, node_id
from rag.table import FeedUnreadable, Rows, Snapshot, content_key

Old = dict[str, tuple[str, int]]
"""Content hash and number of nodes of a row in the index, by row key."""


_MOST = 10_000
"""Changes that are always followed, however small the table."""


@dataclass
class Changes:
    """What was found; everything counts rows, but for `n_nodes` and `gone`."""

    n_added: int = 0
    n_updated: int = 0
    n_deleted: int = 0
    n_unchanged: int = 0
    n_blank: int = 0
    n_nodes: int = 0
    """Nodes of the whole index afterwards."""
    gone: list[str] = field(default_factory=list)
    """Ids of nodes that go."""
    read: Literal["nothing", "feed", "table"] = "table"


def by_rows(
    snapshot: Snapshot, old: Old, staging: Staging, *, keeps_equal: bool, progress: Progress
) -> Changes:
    """Compare every row of the table with the index, and stage those that differ.

    Args:
        snapshot: The version to mirror.
        old: What the index holds.
        staging: Takes the rows that differ.
        keeps_equal: Whether a row of equal content stays as it is; else all are staged.
        progress: Told about rows.
    """
    changes = Changes()
    left = dict(old)
    n_seen, n_total = 0, snapshot.n_rows()

    def tell(n_more: int) -> None:
        progress("rows", n_seen + n_more, max(n_total, n_seen + n_more))

    for rows in snapshot.rows():
        changes.n_blank += rows.n_blank
        n_seen += rows.n_blank
        for part in slices(rows):
            before = [left.pop(key, None) for key in part.keys]
            same = [
                keeps_equal and b is not None and b[0] == h
                for b, h in zip(before, part.hashes, strict=True)
            ]
            changes.n_unchanged += sum(same)
            changes.n_added += sum(b is None for b in before)
            changes.n_updated += len(before) - sum(same) - sum(b is None for b in before)
            changes.n_nodes += sum(b[1] for b, s in zip(before, same, strict=True) if s and b)
            n_nodes = staging.add(part.filter(~pl.Series(same, dtype=pl.Boolean)), tell)
            for key, b in zip(part.keys, before, strict=True):
                if b is not None and key in n_nodes:
                    changes.gone += _nodes(key, n_nodes[key], b[1])
            n_seen += len(part.keys)
            tell(0)
    changes.n_deleted = len(left)
    for key, (_, n) in left.items():
        changes.gone += _nodes(key, 0, n)
    changes.n_nodes += staging.n_nodes
    return changes


def by_feed(
    snapshot: Snapshot,
    state: IndexState,
    store: NodeStore,
    table: LanceTable,
    staging: Staging,
    *,
    progress: Progress,
) -> Changes:
    """Stage what changed since the mirrored version, as the change feed tells it.

    Args:
        snapshot: The version to mirror, newer than the mirrored one.
        state: What the index mirrors.
        store: The index.
        table: The handle on it that `state` was read from.
        staging: Takes the rows that differ.
        progress: Told about rows.

    Raises:
        FeedUnreadable: the feed cannot be read, or does not explain what the index holds.
    """
    feed = _Feed()
    most = max(_MOST, snapshot.n_rows())
    for change in snapshot.changes(state.table_version):
        feed.count(change.rows, change.signs)
        feed.n_blank += change.n_blank
        if feed.n_read > most:  # an overwrite a night tells every row, every night
            raise FeedUnreadable("it tells more rows than the table holds")
        progress("changes read", feed.n_read, 0)
    if snapshot.key:
        old = store.hashes(table, among=feed.keys())
        after = feed.after(old)
    else:
        old = store.hashes(table, column="row_hash", among=feed.keys())
        after = feed.after_keyless(old)
    changes = Changes(n_blank=state.n_blank + feed.n_blank, read="feed")
    replaced = {k: old[k] for k, new in after.items() if k in old and old[k][0] != new}
    staged = {k: new for k, new in after.items() if new and (k not in old or k in replaced)}
    n_nodes = (
        staging.add(feed.rows(staged), lambda n: progress("changed rows", n, len(staged)))
        if staged
        else {}
    )
    for key, (_, n) in replaced.items():
        changes.gone += _nodes(key, n_nodes.get(key, 0), n)
    changes.n_added = sum(k not in old for k in staged)
    changes.n_updated = len(staged) - changes.n_added
    changes.n_deleted = len(replaced) - changes.n_updated
    changes.n_unchanged = state.n_rows - len(replaced)
    changes.n_nodes = state.n_nodes - sum(n for _, n in replaced.values()) + staging.n_nodes
    return changes


class _Feed:
    """The change feed, counted: what each content of each key comes to in the end."""

    def __init__(self) -> None:
        self.n_blank = self.n_read = 0
        self._net: dict[str, Counter[str]] = {}
        self._came: list[Rows] = []
        self._place: dict[str, tuple[int, int]] = {}

    def count(self, rows: Rows, signs: pl.Series) -> None:
        """Count a batch in."""
        self.n_read += len(signs)
        for key, content, sign in zip(rows.keys, rows.hashes, signs, strict=True):
            self._net.setdefault(key, Counter())[content] += sign
        came = rows.filter(signs > 0)
        for i, content in enumerate(came.hashes):
            self._place[content] = (len(self._came), i)
        self._came.append(came)

    def keys(self) -> list[str]:
        """Return the row keys (without a key: the contents) that changed on the way."""
        return list(self._net)

    def after(self, old: Old) -> dict[str, str | None]:
        """Return the content that each touched key has in the end; None where the row is gone.

        Raises:
            FeedUnreadable: the feed takes out what the index does not hold, or a key has two rows.
        """
        found: dict[str, str | None] = {}
        for key, net in self._net.items():
            contents = Counter(net)
            if key in old:
                contents[old[key][0]] += 1
            left = {content: n for content, n in contents.items() if n}
            if any(n != 1 for n in left.values()) or len(left) > 1:
                raise FeedUnreadable(f"it does not explain the row of key {key!r}")
            found[key] = next(iter(left), None)
        return found

    def after_keyless(self, old: Old) -> dict[str, str | None]:
        """Do as `after` for rows known by their content: the last of equal rows come and go."""
        n_old = Counter(content for content, _ in old.values())
        found: dict[str, str | None] = {}
        for content, net in self._net.items():
            n_new = n_old[content] + net[content]
            if n_new < 0:
                raise FeedUnreadable("it takes out rows that the index does not hold")
            for n in range(1, max(n_old[content], n_new) + 1):
                found[content_key(content, n)] = content if n <= n_new else None
        return found

    def rows(self, wanted: dict[str, str]) -> Rows:
        """Return the rows of these contents, under these keys."""
        frames: list[Rows] = []
        by_batch: dict[int, list[tuple[str, int]]] = {}
        for key, content in wanted.items():
            batch, i = self._place[content]
            by_batch.setdefault(batch, []).append((key, i))
        for batch, places in by_batch.items():
            taken = self._came[batch].take([i for _, i in places])
            frames.append(taken.with_keys([key for key, _ in places]))
        return _together(frames)


def _together(parts: Iterable[Rows]) -> Rows:
    parts = list(parts)
    return Rows(
        pl.concat([p.keys for p in parts]),
        pl.concat([p.hashes for p in parts]),
        pl.concat([p.texts for p in parts]),
        pl.concat([p.columns for p in parts]),
        n_blank=0,
    )


def _nodes(key: str, start: int, stop: int) -> list[str]:
    return [node_id(key, i) for i in range(start, stop)]
