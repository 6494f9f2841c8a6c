"""What a reader can choose from: columns to filter by, questions to begin with, versions."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import SHARED, World
from deltalake import DeltaTable, write_deltalake

from rag import wiring
from rag.errors import TableNotFound, VersionGone
from rag.settings import Settings
from rag.table import ColumnFacts, open_table
from rag.table.opening import commit_times

Write = Callable[..., str]

N = 60
FRAME = pl.DataFrame(
    {
        "row_id": [f"r{i}" for i in range(N)],
        "text": [f"row {i} {'is told at length ' * 6}" for i in range(N)],
        "biome": ["sea", "sea", "forest", None, " ", ""] * (N // 6),
        "name": [f"name {i}" for i in range(N)],
        "danger": [None, 1, 5] * (N // 3),
        "weight": [float("nan"), float("inf"), -0.5, 7.25, None, float("-inf")] * (N // 6),
        "price_gold": [Decimal("13.70"), Decimal("212.05"), None] * (N // 3),
        "in_stock": [True, False, None] * (N // 3),
        "added_on": [dt.date(2025, 2, 3), dt.date(2026, 10, 30)] * (N // 2),
        "seen_at": pl.Series(
            [dt.datetime(2026, 1, 1, 23, 30), dt.datetime(2026, 1, 9)] * (N // 2),
            dtype=pl.Datetime("us", "UTC"),
        ),
        "same": ["x"] * N,
        "same_n": [3, None, 3] * (N // 3),
        "always": [True, None] * (N // 2),
        "tags": [["a"], ["b"]] * (N // 2),
        "nested": [{"z": 1}, {"z": 2}] * (N // 2),
        "raw": [b"1", b"2"] * (N // 2),
        "nothing": pl.Series([None] * N, dtype=pl.String),
        'o\'clock "a.b" `c` $d [1] 試': ["day", "night"] * (N // 2),
    }
)


def facts(uri: str, **options: Any) -> dict[str, ColumnFacts]:
    return {f.name: f for f in open_table(uri, template="{text}", **options).facts()}


def test_columns_are_told_by_what_they_hold(write_table: Write) -> None:
    found = facts(write_table(FRAME))
    assert list(found) == [
        "biome",
        "name",
        "danger",
        "weight",
        "price_gold",
        "in_stock",
        "added_on",
        "seen_at",
        FRAME.columns[-1],
    ]
    assert found["biome"] == ColumnFacts("biome", "choice", ("sea", "forest"), counts=(20, 10))
    assert found["name"] == ColumnFacts("name", "text")
    assert found["danger"] == ColumnFacts("danger", "number", least=1, most=5)
    assert found["weight"] == ColumnFacts("weight", "number", least=-0.5, most=7.25)
    assert (found["price_gold"].least, found["price_gold"].most) == (
        Decimal("13.70"),
        Decimal("212.05"),
    )
    assert found["in_stock"] == ColumnFacts("in_stock", "boolean")
    assert found["added_on"].least == dt.date(2025, 2, 3)
    assert found["seen_at"].most == dt.datetime(2026, 1, 9, tzinfo=dt.UTC)
    assert found[FRAME.columns[-1]].choices == ("day", "night")


@pytest.mark.parametrize(("n", "kind"), [(25, "choice"), (26, "text")])
def test_more_than_25_texts_are_no_choice(write_table: Write, n: int, kind: str) -> None:
    frame = pl.DataFrame({"text": "t", "c": [f"c{i:02}" for i in range(n)] * 3})
    found = facts(write_table(frame))["c"]
    assert found.kind == kind
    assert found.choices == (tuple(f"c{i:02}" for i in range(n)) if kind == "choice" else ())


def test_what_only_a_late_row_shows_counts(write_table: Write) -> None:
    n = 30_000  # more than one batch
    late = pl.DataFrame(
        {
            "text": "t",
            "prose": ["short"] * (n - 1) + ["x" * 81],
            "choice": ["a"] * (n - 1) + ["b"],
            "n": [1] * (n - 1) + [2],
        }
    )
    found = facts(write_table(late))
    assert list(found) == ["choice", "n"]
    assert found["choice"].counts == (n - 1, 1)


def test_a_key_of_one_column_is_left_out_and_one_of_several_is_not(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"a": [1, 2], "b": ["x", "y"], "text": ["t", "t"]}))
    assert list(facts(uri, key=["a"])) == ["b"]
    assert list(facts(uri, key=["a", "b"])) == ["a", "b"]


def test_a_table_without_rows_has_nothing_to_filter_by(write_table: Write) -> None:
    snapshot = open_table(write_table(FRAME.clear()), template="{text}")
    assert snapshot.facts() == []
    assert snapshot.titles(4, max_chars=40) == []


def test_deleted_rows_and_partitions_are_read_as_they_are(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    frame = pl.DataFrame({"text": "t", "part": ["a", "b", "c"], "n": [1, 2, 99]})
    write_deltalake(uri, frame, partition_by=["part"])
    DeltaTable(uri).delete("n = 99")
    found = facts(uri)
    assert found["part"].choices == ("a", "b")
    assert found["n"].most == 2


LISTED = SHARED / "delta_tables.json"
TABLES = json.loads(LISTED.read_text()) if LISTED.is_file() else []


def test_tables_of_other_writers_are_told(shared_data: Path) -> None:
    n_told = 0
    for entry in TABLES:
        is_readable = str(entry["query_builder"]).startswith("ok")
        if not is_readable or entry["table"] in ("COVID-19_NYT", "parquet-decimal-type"):
            continue  # the two are large
        uri = str(shared_data / entry["path"])
        columns = [f.name for f in DeltaTable(uri).schema().fields]
        found = open_table(uri, template=f"{{{columns[0]}}}", key=[]).facts()
        assert {f.name for f in found} <= set(columns)
        n_told += bool(found)
    assert n_told > 40


# --- titles and examples ---------------------------------------------------------------------


def test_titles_are_the_same_however_the_rows_lie(write_table: Write) -> None:
    names = [f"thing number {i}" for i in range(20_000)]
    frame = pl.DataFrame({"text": names})
    one = open_table(write_table(frame), template="{text}").titles(5, max_chars=40)
    shuffled = write_table(frame.sample(fraction=1, shuffle=True, seed=1), name="other")
    assert open_table(shuffled, template="{text}").titles(5, max_chars=40) == one
    assert len(set(one)) == 5
    assert set(one) < set(names)
    numbers = sorted(int(t.split()[-1]) for t in one)
    assert numbers[-1] - numbers[0] > 5000


def test_titles_are_one_line_and_short_ones_come_first(write_table: Write) -> None:
    frame = pl.DataFrame(
        {"title": ["a\n very\t wide  one", "", "x", None, "word " * 30, "a very wide one"]}
    )
    found = open_table(write_table(frame), template="{title}").titles(9, max_chars=40)
    assert found == ["a very wide one", "word word word word word word word…"]
    assert len(found[1]) <= 40


def test_a_table_of_numbers_has_its_whole_text_for_a_title(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"n": [1], "what": ["bell"]}))
    assert open_table(uri, template="{n} times {what}").titles(1, max_chars=40) == ["1 times bell"]


def test_examples_are_questions_of_at_most_80_characters(write_table: Write) -> None:
    names = ["Who came first?", "a bell", "a very long name " * 9, "“quoted” `x` <b>"]
    uri = write_table(pl.DataFrame({"name": names}))
    settings = Settings(table={"uri": uri, "template": "{name}"})
    found = wiring.examples(settings, 4)
    assert "Who came first?" in found
    assert all(len(q) <= 80 for q in found)
    assert len(found) == 4
    assert any("“a bell”" in q for q in found)
    assert wiring.examples(settings, 4) == found
    assert len(wiring.examples(settings, 2)) == 2


# --- wiring ----------------------------------------------------------------------------------


@pytest.fixture
def moved_on(world: World) -> Settings:
    """A table at version 2 whose index mirrors 0 and 1, 1 answers."""
    world.create(pl.DataFrame({"row_id": [1, 2], "text": ["a", "a"], "size": ["small", "large"]}))
    world.sync()
    world.write(pl.DataFrame({"row_id": [1, 2], "text": ["a", "a"], "color": ["red", "blue"]}))
    world.sync()
    world.write(pl.DataFrame({"row_id": [1, 2], "text": ["a", "a"], "price": [1, 2]}))
    return Settings(
        table={"uri": world.uri, "template": world.template}, index={"uri": world.index.uri}
    )


def test_columns_are_those_of_the_version_that_answers(moved_on: Settings) -> None:
    assert [c.name for c in wiring.columns(moved_on)] == ["color"]
    assert [c.name for c in wiring.columns(moved_on, version=0)] == ["size"]
    assert [c.name for c in wiring.columns(moved_on, version=2)] == ["price"]


def test_columns_of_a_version_whose_files_are_gone_are_the_latest(moved_on: Settings) -> None:
    table = DeltaTable(moved_on.table.uri)
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(VersionGone):
        open_table(moved_on.table.uri, template="{text}", version=1).facts()
    assert [c.name for c in wiring.columns(moved_on)] == ["price"]
    assert wiring.examples(moved_on, 1) == []  # no text of a single letter is a title


def test_versions_that_can_be_asked_come_with_their_dates(moved_on: Settings) -> None:
    found = wiring.versions(moved_on)
    assert [v for v, _ in found] == [1, 0]
    history = {c["version"]: c["timestamp"] for c in DeltaTable(moved_on.table.uri).history()}
    assert [t and t.timestamp() * 1000 for _, t in found] == [history[1], history[0]]


def test_versions_without_a_log_have_no_date(moved_on: Settings) -> None:
    latest = open_table(moved_on.table.uri, template="{text}")
    assert sorted(commit_times(latest.delta, 2)) == [1, 2]
    Path(moved_on.table.uri).rename(f"{moved_on.table.uri}-elsewhere")
    assert wiring.versions(moved_on) == [(1, None), (0, None)]


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    settings = Settings(table={"uri": str(tmp_path / "none"), "template": "{text}"})
    with pytest.raises(TableNotFound):
        wiring.columns(settings)
    assert wiring.versions(settings) == []
