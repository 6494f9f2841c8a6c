"""The demo library: what it says, and how it becomes a Delta table that is safe to write."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake

from rag.demo import STARTERS, DemoReport, DemoRow, rows, write
from rag.demo.library import commits
from rag.errors import TableError

QUESTIONS = Path(__file__).parent / "data" / "demo_questions.yaml"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The written table; tests only read it."""
    uri = str(tmp_path_factory.mktemp("demo") / "fantasy-library")
    assert write(uri) == DemoReport(uri, version=3, n_rows=len(rows()), was_written=True)
    return uri


def frame(uri: str, version: int | None = None) -> pl.DataFrame:
    return pl.DataFrame(DeltaTable(uri, version=version).scan()).sort("row_id")


# --- what the library says --------------------


def every_row() -> list[DemoRow]:
    """Each row as it reads in any version."""
    history = commits()
    return [*history.create, *history.append, *history.update]


def text(row: DemoRow) -> str:
    return f"{row.scenario} | {row.advice}".lower()


def test_library_is_large_enough_and_its_keys_are_unique() -> None:
    keys = [r.row_id for r in rows()]
    assert len(keys) >= 165
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("row", every_row(), ids=lambda r: r.row_id)
def test_row_reads_well_in_the_template(row: DemoRow) -> None:
    assert 12 <= len(row.scenario.split()) <= 22
    assert 28 <= len(row.advice.split()) <= 52
    assert not row.scenario.endswith(".")
    assert not row.advice.endswith(".")
    assert row.scenario[0].islower()
    assert row.creature == row.creature.lower()
    assert 1 <= row.danger <= 5
    assert row.price_gold > 0


@pytest.mark.parametrize("row", every_row(), ids=lambda r: r.row_id)
def test_items_stand_in_the_advice(row: DemoRow) -> None:
    assert len(set(row.items)) == 3
    assert all(item.lower() in row.advice.lower() for item in row.items)
    assert all(2 <= len(item.split()) <= 4 for item in row.items)


def test_no_item_is_named_in_another_row() -> None:
    # in any version: an answer from a stale row must be told from an answer from the right one
    found = [
        (item, row.row_id, other.row_id)
        for row in every_row()
        for item in row.items
        for other in every_row()
        if other.row_id != row.row_id and item.lower() in text(other)
    ]
    assert found == []


def test_creatures_and_biomes_are_varied_enough_for_filters() -> None:
    assert len({r.creature for r in rows()}) == len(rows())
    biomes = Counter(r.biome for r in rows())
    assert 10 <= len(biomes) <= 12
    assert min(biomes.values()) >= 10
    assert {r.danger for r in rows()} == {1, 2, 3, 4, 5}
    assert {r.in_stock for r in rows()} == {True, False}


def test_first_starter_is_answered_by_wolfsbane() -> None:
    assert STARTERS[0] == "What do I need against a werewolf?"
    assert len(set(STARTERS)) == 4
    (werewolf,) = [r for r in rows() if r.creature == "werewolf"]
    assert "wolfsbane tincture" in werewolf.items


# --- the questions --------------------


def words(sentence: str) -> list[str]:
    return re.findall(r"\w+", sentence.lower())


def triples(sentence: str) -> set[tuple[str, ...]]:
    w = words(sentence)
    return set(zip(w, w[1:], w[2:], strict=False))


def test_questions_name_rows_that_are_there_and_do_not_copy_them() -> None:
    questions = yaml.safe_load(QUESTIONS.read_text(encoding="utf-8"))
    by_key = {r.row_id: r for r in rows()}
    answerable = [q for q in questions if q["expected"] is not None]
    assert (len(questions), len(answerable)) == (40, 30)
    assert len({q["question"] for q in questions}) == 40
    assert len({q["expected"] for q in answerable}) == 30
    for q in answerable:
        assert not triples(q["question"]) & triples(text(by_key[q["expected"]])), q


def test_some_questions_need_the_advice_of_the_update() -> None:
    history = commits()
    before = {r.row_id: r for r in (*history.create, *history.append)}
    changed = {r.row_id for r in history.update if r.items != before[r.row_id].items}
    questions = yaml.safe_load(QUESTIONS.read_text(encoding="utf-8"))
    assert len(changed & {q["expected"] for q in questions}) >= 2


# --- the table --------------------


def test_table_has_typed_columns(library: str) -> None:
    assert dict(frame(library).schema) == {
        "row_id": pl.String,
        "Scenario": pl.String,
        "Advice": pl.String,
        "creature": pl.String,
        "biome": pl.String,
        "danger": pl.Int64,
        "price_gold": pl.Decimal(9, 2),
        "in_stock": pl.Boolean,
        "added_on": pl.Date,
    }


def test_table_holds_exactly_the_rows(library: str) -> None:
    columns = frame(library).columns
    expected = [tuple(getattr(r, c.lower()) for c in columns) for r in rows()]
    assert frame(library).rows() == expected


def test_versions_create_append_update_delete(library: str) -> None:
    counts = [len(frame(library, version=v)) for v in range(4)]
    assert counts == [120, 174, 174, 169]
    operations = [h["operation"] for h in reversed(DeltaTable(library).history())]
    assert operations == ["WRITE", "WRITE", "MERGE", "DELETE"]


def test_change_data_feed_tells_each_change(library: str) -> None:
    changes = pl.DataFrame(DeltaTable(library).load_cdf(0, 3))
    counted = Counter(changes.select("_commit_version", "_change_type").rows())
    assert counted == {
        (0, "insert"): 120,
        (1, "insert"): 54,
        (2, "update_preimage"): 10,
        (2, "update_postimage"): 10,
        (3, "delete"): 5,
    }


def test_update_really_changes_some_advice(library: str) -> None:
    before, after = frame(library, version=1), frame(library, version=2)
    joined = before.join(after, on="row_id", suffix="_after")
    changed = joined.filter(
        pl.any_horizontal(pl.col(c) != pl.col(f"{c}_after") for c in before.columns[1:])
    )
    assert len(changed) == 10
    assert 4 <= len(changed.filter(pl.col("Advice") != pl.col("Advice_after"))) < 10


def test_deleted_rows_are_not_the_updated_ones() -> None:
    history = commits()
    assert len(history.delete) == 5
    assert not set(history.delete) & {r.row_id for r in history.update}


# --- writing safely --------------------


def test_second_run_does_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "library")
    first = write(uri)
    identity = DeltaTable(uri).metadata().id
    assert write(uri) == DemoReport(uri, first.version, first.n_rows, was_written=False)
    assert DeltaTable(uri).metadata().id == identity


def test_later_changes_of_the_reader_are_kept(tmp_path: Path) -> None:
    uri = str(tmp_path / "library")
    write(uri)
    DeltaTable(uri).delete("creature = 'werewolf'")
    assert write(uri) == DemoReport(uri, version=4, n_rows=168, was_written=False)


@pytest.mark.parametrize("name", ["empty", "missing/parent/library", "with space é"])
def test_any_free_place_will_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    uri = str(tmp_path / name)
    assert write(uri).was_written
    assert not write(uri).was_written


def test_relative_paths_links_and_file_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("target")
    assert write("link").was_written
    assert not write("target").was_written
    assert not write((tmp_path / "target").as_uri()).was_written
    assert (tmp_path / "link").is_symlink()


@dataclass(frozen=True)
class Foreign:
    """Something at the URI that is not ours."""

    name: str
    make: Callable[[Path], object]
    said: str


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("do not lose me")


FOREIGN = (
    Foreign("folder", _folder, "a folder that holds other files"),
    Foreign("file", lambda p: p.write_text("do not lose me"), "a file"),
    Foreign("table", lambda p: write_deltalake(p, pl.DataFrame({"a": [1]})), "another Delta table"),
    Foreign(
        "table of the same name",
        lambda p: write_deltalake(p, pl.DataFrame({"a": [1]}), name="fantasy-library"),
        "another Delta table",
    ),
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("case", FOREIGN, ids=lambda c: c.name)
def test_what_is_not_ours_is_never_touched(tmp_path: Path, case: Foreign) -> None:
    case.make(tmp_path / "mine")
    before = contents(tmp_path)
    with pytest.raises(TableError, match=case.said) as caught:
        write(str(tmp_path / "mine"))
    assert "RAG_TABLE__URI" in str(caught.value)
    assert contents(tmp_path) == before


def test_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError, match=r"cannot be written to .*: .*File exists"):
        write(str(tmp_path / "file" / "library"))


KILLED = """
import os, signal, sys
def die(event, arguments):
    if event == "os.rename" and ".rag-demo-" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
from rag.demo import write
write(sys.argv[1])
"""


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_killed_run_leaves_no_table_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    uri = str(tmp_path / "library")
    (tmp_path / ".library.keep").mkdir()  # alike, but not ours
    done = subprocess.run([sys.executable, "-c", KILLED, uri], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not Path(uri).exists()
    assert len(hidden(tmp_path)) == 2
    assert write(uri).was_written
    assert hidden(tmp_path) == [".library.keep"]


def _drop_versions(uri: str, versions: Iterable[int]) -> None:
    for version in versions:
        (Path(uri) / "_delta_log" / f"{version:020}.json").unlink()


@pytest.mark.parametrize("n_there", [1, 2, 3])
def test_table_that_lacks_versions_is_completed(tmp_path: Path, library: str, n_there: int) -> None:
    # on object storage there is no rename: this is what a killed run leaves there
    uri = str(tmp_path / "library")
    shutil.copytree(library, uri)
    _drop_versions(uri, range(n_there, 4))
    assert write(uri) == DemoReport(uri, version=3, n_rows=169, was_written=True)
    assert frame(uri).equals(frame(library))


def test_runs_at_the_same_time_write_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "library")
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(write, [uri] * 4))
    assert sorted(r.was_written for r in reports) == [False, False, False, True]
    assert len(DeltaTable(uri).history()) == 4
    assert hidden(tmp_path) == []
