"""What differs between the index and a version of the table.

Two ways to one result: `by_feed` reads only what changed, where Delta's change data feed tells
it; `by_rows` reads the whole table and is always right. Knows the table and what the index holds;
stages and publishes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import polars as pl

from rag.index import IndexState, node_id
from rag.progress import Progress, SyncReport
from rag.table import FeedUnreadable, Rows, Snapshot, content_key
from rag.table.opening import FAILURES

_MOST = 10_000
"""Changes that are always followed, however small the table."""
_LARGEST = 200_000
"""Changes that are followed at most: each is held in memory, at about 1 kB."""

Held = Callable[[str, list[str] | None], pl.DataFrame]
"""Returns what the index holds (`row_key`, `row_hash`, `n_nodes`), as `Index.hashes` does:
`held("row_key", None)` is everything."""


@dataclass(frozen=True)
class Plan:
    """What a sync has to do."""

    wanted: pl.DataFrame
    """Rows to stage: `row_key`, `row_hash` (String) and `row_version` (Int64)."""
    leaving: pl.DataFrame
    """Rows of the index that are replaced or go: `row_key` (String) and `n_nodes` (UInt32)."""
    n_added: int
    n_updated: int
    n_deleted: int
    n_unchanged: int
    n_nodes_kept: int
    n_blank: int
    n_left_out: int
    read: Literal["feed", "table"]
    batches: Callable[[], Iterator[Rows]]
    """Reads the rows of `wanted`, each once."""

    @property
    def n_rows(self) -> int:
        """Rows of the index afterwards."""
        return self.n_added + self.n_updated + self.n_unchanged

    def rows(self) -> Iterator[tuple[Rows, pl.Series]]:
        """Yield the rows of `wanted`, each batch with the `row_version` of its rows."""
        # looked up in order: a join would go over all wanted rows, for each batch
        ordered = self.wanted.sort("row_key")
        for rows in self.batches():
            at = ordered["row_key"].search_sorted(rows.keys)
            yield rows, ordered["row_version"].gather(at)

    def report(self, table_version: int, *, n_embedded: int) -> SyncReport:
        """Return what a sync tells that follows this plan."""
        return SyncReport(
            table_version=table_version,
            n_added=self.n_added,
            n_updated=self.n_updated,
            n_deleted=self.n_deleted,
            n_unchanged=self.n_unchanged,
            n_embedded=n_embedded,
            seconds=0.0,
            n_blank=self.n_blank,
            n_left_out=self.n_left_out,
            read=self.read,
        )

    def gone(self, staged: pl.DataFrame) -> Iterator[list[str]]:
        """Yield the ids of nodes that go, in portions.

        Args:
            staged: What was staged: `row_key` and `n_nodes`.
        """
        now = pl.col("n_nodes_right").fill_null(0)
        left = self.leaving.join(staged, on="row_key", how="left").filter(pl.col("n_nodes") > now)
        for part in left.with_columns(now).iter_slices(10_000):
            columns = zip(part["row_key"], part["n_nodes_right"], part["n_nodes"], strict=True)
            yield [node_id(key, i) for key, start, stop in columns for i in range(start, stop)]


def by_rows(
    snapshot: Snapshot, held: Held, *, keeps_equal: bool, since: int | None, progress: Progress
) -> Plan:
    """Compare every row of the table with the index.

    Args:
        snapshot: The version to mirror.
        held: What the index holds.
        keeps_equal: Whether a row of equal content stays as it is; else all are staged.
        since: The mirrored version, where it is older than the one to mirror.
        progress: Told about rows.
    """
    n_total = snapshot.n_rows()
    contents = snapshot.contents(
        lambda n: progress("reading the table", n, max(n, n_total) if n_total else 0)
    )
    old = held("row_key", None)
    both = contents.frame.join(old, on="row_key", how="left", suffix="_old")
    is_new = pl.col("row_hash_old").is_null()
    is_same = (pl.col("row_hash_old") == pl.col("row_hash")) if keeps_equal else pl.lit(False)
    is_same = is_same.fill_null(False)
    counted = both.select(
        new=is_new.sum(),
        same=is_same.sum(),
        nodes=pl.col("n_nodes").filter(is_same).sum(),
    ).row(0, named=True)
    changed = both.filter(~is_same)
    deleted = old.join(contents.frame, on="row_key", how="anti")
    replaced = changed.filter(~is_new)
    wanted = _dated(snapshot, changed.select("row_key", "row_hash"), since)
    # without a key, or with keys to pick from, the reader has to be told which rows are meant
    is_all = len(changed) == len(contents.frame) and snapshot.key and not contents.n_left_out
    return Plan(
        wanted=wanted,
        leaving=pl.concat([deleted.select(_LEAVING), replaced.select(_LEAVING)]),
        n_added=counted["new"],
        n_updated=len(replaced),
        n_deleted=len(deleted),
        n_unchanged=counted["same"],
        n_nodes_kept=counted["nodes"],
        n_blank=contents.n_blank,
        n_left_out=contents.n_left_out,
        read="table",
        batches=lambda: snapshot.rows(None if is_all else wanted) if len(wanted) else iter(()),
    )


def _dated(snapshot: Snapshot, changed: pl.DataFrame, since: int | None) -> pl.DataFrame:
    """Add the version at which each row last changed, as far as the log tells."""
    versions = snapshot.row_versions(since) if len(changed) else None
    if versions is None:  # no later than this one
        return changed.with_columns(row_version=pl.lit(snapshot.version, pl.Int64))
    dated = changed.join(versions.drop("row_key"), on="row_hash", how="left")
    return dated.with_columns(pl.col("row_version").fill_null(snapshot.version))


def by_feed(snapshot: Snapshot, state: IndexState, held: Held, *, progress: Progress) -> Plan:
    """Follow the change data feed from the mirrored version on.

    Args:
        snapshot: The version to mirror, newer than the mirrored one.
        state: What the index mirrors.
        held: What the index holds.
        progress: Told about rows.

    Raises:
        FeedUnreadable: the feed cannot be read, or does not explain what the index holds.
    """
    _refuse_what_it_cannot_tell(snapshot, state)
    feed = _Feed()
    n_total = snapshot.n_rows()
    most = min(max(_MOST, n_total), _LARGEST)
    for change in snapshot.changes(state.table_version):
        feed.count(change.rows, change.signs, change.versions)
        feed.n_blank += change.n_blank
        if feed.n_read > most:  # an overwrite a night tells every row, every night
            raise FeedUnreadable("it tells more rows than the table holds, or than memory should")
        progress("changes read", feed.n_read, 0)
    touched = held("row_key" if snapshot.key else "row_hash", feed.keys())
    old = dict(zip(touched["row_key"], touched["row_hash"], strict=True))
    after = feed.after(old) if snapshot.key else feed.after_keyless(old)
    leaving = {k for k, new in after.items() if k in old and old[k] != new}
    if snapshot.key:  # a row that went and came back has another `row_version`
        leaving |= {k for k, new in after.items() if k in old and new and feed.came(k, new)}
    staged = {k: new for k, new in after.items() if new and (k not in old or k in leaving)}
    left = touched.filter(pl.col("row_key").is_in(list(leaving)))
    n_added = sum(k not in old for k in staged)
    n_updated = len(staged) - n_added
    n_now = state.n_rows - len(leaving) + len(staged) + state.n_blank + feed.n_blank
    if n_total and n_now != n_total and not _has_vectors(snapshot):
        raise FeedUnreadable(f"it comes to {n_now:,} rows where the table holds {n_total:,}")
    return Plan(
        wanted=feed.dated(staged, otherwise=snapshot.version),
        leaving=left.select(_LEAVING),
        n_added=n_added,
        n_updated=n_updated,
        n_deleted=len(leaving) - n_updated,
        n_unchanged=state.n_rows - len(leaving),
        n_nodes_kept=state.n_nodes - int(left["n_nodes"].sum()),
        n_blank=state.n_blank + feed.n_blank,
        n_left_out=0,
        read="feed",
        batches=lambda: iter([feed.rows(staged)] if staged else []),
    )


def _refuse_what_it_cannot_tell(snapshot: Snapshot, state: IndexState) -> None:
    if state.n_left_out:
        raise FeedUnreadable("rows with bad keys are left out, and it cannot tell which return")
    if not snapshot.key and _is_updated(snapshot, state.table_version):
        raise FeedUnreadable("of equal rows, it tells an update wrong")


def _is_updated(snapshot: Snapshot, since: int) -> bool:
    """Whether an UPDATE is among the commits, where deltalake takes equal rows for one."""
    try:
        commits = snapshot.delta.history(snapshot.version - since)
    except FAILURES as e:
        raise FeedUnreadable(f"the log cannot be read: {e}") from e
    updates = [c for c in commits if c.get("operation") == "UPDATE"]
    return any("Spark" not in str(c.get("engineInfo")) for c in updates)


def _has_vectors(snapshot: Snapshot) -> bool:
    # the log then counts the rows of the files, deleted ones too
    return "deletionVectors" in (snapshot.delta.protocol().reader_features or ())


class _Feed:
    """The change feed, counted: what each content of each key comes to in the end."""

    def __init__(self) -> None:
        self.n_blank = self.n_read = 0
        self._net: dict[str, Counter[str]] = {}
        self._at: dict[tuple[str, str], Counter[int]] = {}
        self._came: list[Rows] = []
        self._place: dict[str, tuple[int, int]] = {}

    def count(self, rows: Rows, signs: pl.Series, versions: pl.Series) -> None:
        """Count a batch in."""
        self.n_read += len(signs)
        for key, content, sign, at in zip(rows.keys, rows.hashes, signs, versions, strict=True):
            self._net.setdefault(key, Counter())[content] += sign
            self._at.setdefault((key, content), Counter())[at] += sign
        came = rows.filter(signs > 0)
        for i, content in enumerate(came.hashes):
            self._place[content] = (len(self._came), i)
        self._came.append(came)

    def keys(self) -> list[str]:
        """Return the row keys (without a key: the contents) that changed on the way."""
        return list(self._net)

    def after(self, old: dict[str, str]) -> dict[str, str | None]:
        """Return the content that each touched key has in the end; None where the row is gone.

        Raises:
            FeedUnreadable: the feed takes out what the index does not hold, or a key has two rows.
        """
        found: dict[str, str | None] = {}
        for key, net in self._net.items():
            contents = Counter(net)
            if key in old:
                contents[old[key]] += 1
            left = {content: n for content, n in contents.items() if n}
            if any(n != 1 for n in left.values()) or len(left) > 1:
                raise FeedUnreadable(f"it does not explain the row of key {key!r}")
            found[key] = next(iter(left), None)
        return found

    def after_keyless(self, old: dict[str, str]) -> dict[str, str | None]:
        """Do as `after` for rows known by their content: the last of equal rows come and go."""
        n_old = Counter(old.values())
        found: dict[str, str | None] = {}
        for content, net in self._net.items():
            n_new = n_old[content] + net[content]
            if n_new < 0:
                raise FeedUnreadable("it takes out rows that the index does not hold")
            for n in range(1, max(n_old[content], n_new) + 1):
                found[content_key(content, n)] = content if n <= n_new else None
        return found

    def came(self, key: str, content: str) -> bool:
        """Whether this row came in on the way, and not only as an overwrite says it again."""
        return bool(self._came_at(key, content))

    def _came_at(self, key: str, content: str) -> list[int]:
        # without a key the feed counts by content
        at = self._at.get((key, content)) or self._at.get((content, content)) or Counter()
        return [version for version, n in at.items() if n > 0]

    def dated(self, wanted: dict[str, str], *, otherwise: int) -> pl.DataFrame:
        """Return the rows with the version at which each came in and stayed."""
        versions = [max(self._came_at(*row), default=otherwise) for row in wanted.items()]
        return pl.DataFrame(
            {
                "row_key": list(wanted),
                "row_hash": list(wanted.values()),
                "row_version": versions,
            },
            schema={"row_key": pl.String, "row_hash": pl.String, "row_version": pl.Int64},
        )

    def rows(self, wanted: dict[str, str]) -> Rows:
        """Return the rows of these contents, under these keys."""
        by_batch: dict[int, list[tuple[str, int]]] = {}
        for key, content in wanted.items():
            batch, i = self._place[content]
            by_batch.setdefault(batch, []).append((key, i))
        frames: list[Rows] = []
        for batch, places in by_batch.items():
            taken = self._came[batch].take([i for _, i in places])
            frames.append(taken.with_keys([key for key, _ in places]))
        return together(frames)


def together(parts: Iterable[Rows]) -> Rows:
    """Return batches of rows as one."""
    parts = list(parts)
    return Rows(
        pl.concat([p.keys for p in parts]),
        pl.concat([p.hashes for p in parts]),
        pl.concat([p.texts for p in parts]),
        pl.concat([p.columns for p in parts]),
        n_blank=0,
    )


_LEAVING = ["row_key", "n_nodes"]
