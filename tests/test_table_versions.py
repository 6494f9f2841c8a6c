"""When a row changed, as the change data feed tells it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.table import open_table

FEED = {"delta.enableChangeDataFeed": "true"}
pairs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["red", "blue", " "])), max_size=4
)
changes = st.one_of(
    st.tuples(st.sampled_from(["append", "overwrite", "merge"]), pairs),
    st.tuples(st.just("delete"), st.sampled_from("abcd")),
    st.tuples(st.just("update"), st.sampled_from("abcd"), st.sampled_from(["red", "blue"])),
    st.tuples(st.just("optimize")),
    st.tuples(st.just("restore"), st.integers(0, 3)),
)


def pairs_frame(rows: list[tuple[str, str]], *, is_keyed: bool) -> pl.DataFrame:
    made = pl.DataFrame(rows, schema={"k": pl.String, "t": pl.String}, orient="row")
    return made.unique("k", maintain_order=True) if is_keyed else made


def change(uri: str, step: tuple[Any, ...], *, is_keyed: bool) -> None:
    table = DeltaTable(uri)
    match step:
        case ("append", rows) if not is_keyed:
            write_deltalake(uri, pairs_frame(rows, is_keyed=False), mode="append")
        case ("overwrite", rows):
            rows = pairs_frame([*rows, ("z", "stays")], is_keyed=is_keyed)
            write_deltalake(uri, rows, mode="overwrite")
        case ("append" | "merge", rows):
            rows = pairs_frame(rows, is_keyed=True)
            merge = table.merge(rows, "s.k = t.k", source_alias="s", target_alias="t")
            merge.when_matched_update_all().when_not_matched_insert_all().execute()
        case ("delete", key):
            table.delete(f"k = '{key}'")
        case ("update", key, text):
            table.update(updates={"t": f"'{text}'"}, predicate=f"k = '{key}'")
        case ("optimize",):
            table.optimize.compact()
        case ("restore", version) if version < table.version():
            table.restore(version)


def recomputed(uri: str, key: list[str], since: int) -> dict[str, int]:
    """The last version at which there came to be more rows of a content, version by version."""
    found: dict[str, int] = {}
    before: Counter[str] = Counter()
    for version in range(DeltaTable(uri).version() + 1):
        snapshot = open_table(uri, template="{t}", key=key, version=version)
        now = Counter(snapshot.contents().frame["row_hash"])
        if version > since:
            found |= {h: version for h in now if now[h] > before[h]}
        before = now
    return {h: v for h, v in found.items() if h in before}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(changes, min_size=1, max_size=6), is_keyed=st.booleans())
def test_a_row_has_the_version_at_which_it_came_in(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[Any, ...]], is_keyed: bool
) -> None:
    uri = str(tmp_path_factory.mktemp("history"))
    start = [("a", "red"), ("b", "blue"), ("b", "blue"), ("z", "stays")]
    write_deltalake(uri, pairs_frame(start, is_keyed=is_keyed), configuration=FEED)
    for step in history:
        change(uri, step, is_keyed=is_keyed)
    key = ["k"] if is_keyed else []
    snapshot = open_table(uri, template="{t}", key=key)
    contents = snapshot.contents().frame
    for since in (None, 0, snapshot.version - 1, snapshot.version):
        versions = snapshot.row_versions(since)
        assert versions is not None
        there = versions.join(contents, on="row_hash", how="semi")
        assert dict(there.select("row_hash", "row_version").iter_rows()) == recomputed(
            uri, key, -1 if since is None else since
        )
        named = versions.join(contents, on=["row_key", "row_hash"], how="semi")
        assert len(named) == len(there)


def test_a_row_keeps_its_version_while_its_file_is_rewritten(tmp_path: Path) -> None:
    uri = str(tmp_path)
    rows = pl.DataFrame({"row_id": ["a", "b", "c"], "t": ["1", "2", "3"]})
    write_deltalake(uri, rows, configuration=FEED)
    DeltaTable(uri).update(updates={"t": "'new'"}, predicate="row_id = 'b'")
    write_deltalake(uri, rows.head(1).with_columns(row_id=pl.lit("d")), mode="append")
    DeltaTable(uri).optimize.compact()
    DeltaTable(uri).delete("row_id = 'c'")
    again = open_table(uri, template="{t}").contents().frame.height
    assert again == 3
    write_deltalake(uri, pl.DataFrame(DeltaTable(uri).scan()), mode="overwrite")
    snapshot = open_table(uri, template="{t}")
    versions = snapshot.row_versions(None)
    assert versions is not None
    there = versions.join(snapshot.contents().frame, on="row_hash", how="semi")
    assert dict(there.select("row_key", "row_version").iter_rows()) == {"a": 0, "b": 1, "d": 2}


def test_no_versions_without_a_whole_feed(tmp_path: Path) -> None:
    rows = pl.DataFrame({"row_id": ["a", "b"], "t": ["1", "2"]})
    for name in ("off", "late"):
        uri = str(tmp_path / name)
        write_deltalake(uri, rows)
        write_deltalake(uri, rows.with_columns(t=pl.lit("x")), mode="overwrite")
        if name != "off":
            DeltaTable(uri).alter.set_table_properties(FEED)
        assert open_table(uri, template="{t}").row_versions(None) is None
    assert open_table(str(tmp_path / "late"), template="{t}").row_versions(2) is not None


def test_a_feed_longer_than_the_table_is_not_read_to_its_end(tmp_path: Path) -> None:
    rows = pl.DataFrame({"row_id": range(4000), "t": ["x"] * 4000})
    write_deltalake(str(tmp_path), rows, configuration=FEED)
    for _ in range(3):
        write_deltalake(str(tmp_path), rows, mode="overwrite")
    snapshot = open_table(str(tmp_path), template="{t}")
    assert snapshot.row_versions(None) is None  # 28,000 lines; 2 x 4,000 + 10,000 are read
    versions = snapshot.row_versions(1)
    assert versions is not None
    assert len(versions) == 0


def test_changes_tell_their_versions(tmp_path: Path) -> None:
    uri = str(tmp_path)
    write_deltalake(uri, pl.DataFrame({"row_id": ["a"], "t": ["1"]}), configuration=FEED)
    DeltaTable(uri).update(updates={"t": "'2'"})
    DeltaTable(uri).delete("row_id = 'a'")
    told = [
        line
        for c in open_table(uri, template="{t}").changes(0)
        for line in zip(c.versions, c.signs, c.rows.texts, strict=True)
    ]
    assert sorted(told) == [(1, -1, "1"), (1, 1, "2"), (2, -1, "2")]
