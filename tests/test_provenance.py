from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from conftest import World
from deltalake import DeltaTable, write_deltalake

from rag.errors import RowNotFound, VersionGone
from rag.mirror import publishing
from rag.provenance import ColumnChange, RowView, look


def view(world: World, key: str, version: int | None = None) -> RowView:
    at = world.snapshot(version)
    mirrored = world.index.mirrored(at.version)
    return look(key, at, world.snapshot(), index=world.index, mirrored=mirrored)


def history(world: World) -> None:
    """Versions 0 to 4: made, b changed, c deleted, d appended, b changed back."""
    texts = ["red apple", "blue sky", "green grass"]
    world.create(pl.DataFrame({"row_id": ["a", "b", "c"], "text": texts, "n": [1, 2, 3]}))
    table = DeltaTable(world.uri)
    table.update(updates={"text": "'blue sea'"}, predicate="row_id = 'b'")
    DeltaTable(world.uri).delete("row_id = 'c'")
    more = pl.DataFrame({"row_id": ["d"], "text": ["grey mouse"], "n": [4]})
    write_deltalake(world.uri, more, mode="append")


def test_a_row_says_what_became_of_it(world: World) -> None:
    history(world)
    world.sync(version=0)
    assert view(world, "a", 0).fate == "unchanged"
    changed = view(world, "b", 0)
    assert (changed.fate, changed.latest_version) == ("changed", 3)
    assert changed.columns == {"row_id": "b", "text": "blue sky", "n": 2}
    assert changed.changes == [ColumnChange("text", "blue sky", "blue sea")]
    assert view(world, "c", 0).fate == "deleted"
    with pytest.raises(RowNotFound, match="at version 0 has no row 'd'; the key is 'row_id'"):
        view(world, "d", 0)


@pytest.mark.parametrize("steps", [(0, 1, 2, 3), (0, 3), (3,)], ids=["each", "two", "at once"])
def test_row_version_is_when_the_row_last_changed(world: World, steps: tuple[int, ...]) -> None:
    history(world)
    for version in steps:
        world.sync(version=version)
    found = {n.metadata["row_key"]: n.metadata["row_version"] for n in world.store.get_nodes()}
    assert found == {"a": 0, "b": 1, "d": 3}
    assert {n.metadata["table_version"] for n in world.store.get_nodes()} == {3}
    assert view(world, "b").row_version == 1


def test_a_row_that_went_and_came_back_has_changed_since(world: World) -> None:
    world.create(pl.DataFrame({"row_id": ["a", "b"], "text": ["red", "blue"]}))
    world.sync()
    for text in ("pink", "red"):
        DeltaTable(world.uri).update(updates={"text": f"'{text}'"}, predicate="row_id = 'a'")
    report = world.sync()
    assert (report.read, report.n_updated, report.n_unchanged) == ("feed", 1, 1)
    assert report.n_embedded == 0
    found = {n.metadata["row_key"]: n.metadata["row_version"] for n in world.store.get_nodes()}
    assert found == {"a": 2, "b": 0}


def test_no_row_of_an_older_version_is_newer_than_it(world: World) -> None:
    world.create(pl.DataFrame({"row_id": ["a"], "text": ["red"]}))
    for text in ("pink", "red"):
        DeltaTable(world.uri).update(updates={"text": f"'{text}'"}, predicate="row_id = 'a'")
    world.sync()
    world.sync(version=0)
    assert view(world, "a", 0).row_version == 0
    assert [n.metadata["row_version"] for n in world.store.get_nodes()] == [2]
    world.store.expect(version=0)
    assert [n.metadata["row_version"] for n in world.store.get_nodes()] == [0]


def test_what_an_interrupted_sync_staged_is_dated_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    world.create(pl.DataFrame({"row_id": ["a", "b"], "text": ["red", "blue"]}))
    with monkeypatch.context() as patched:
        patched.setattr(publishing, "replace_all", kill)
        with pytest.raises(Killed):
            world.sync()
    for text in ("pink", "red"):
        DeltaTable(world.uri).update(updates={"text": f"'{text}'"}, predicate="row_id = 'a'")
    assert world.sync().n_embedded == 0
    found = {n.metadata["row_key"]: n.metadata["row_version"] for n in world.store.get_nodes()}
    assert found == {"a": 2, "b": 0}


def test_without_a_feed_row_version_is_the_first_version_seen(world: World) -> None:
    world.write(pl.DataFrame({"row_id": ["a", "b"], "text": ["red", "blue"]}))
    world.sync()
    world.write(pl.DataFrame({"row_id": ["a", "b"], "text": ["red", "pink"]}))
    world.sync()
    found = {n.metadata["row_key"]: n.metadata["row_version"] for n in world.store.get_nodes()}
    assert found == {"a": 0, "b": 1}


def test_a_row_whose_files_are_gone_comes_from_the_index(world: World) -> None:
    world.splitter.size = 4
    history(world)
    world.sync(version=0)
    world.sync()
    DeltaTable(world.uri).vacuum(0, enforce_retention_duration=False, dry_run=False)
    found = view(world, "b", 0)
    assert found.read_from == "index"
    assert (found.text, found.fate) == ("blue sky", "changed")
    assert found.columns["n"] == 2
    with pytest.raises(VersionGone):
        view(world, "b", 1)


def test_a_column_of_our_name_keeps_its_value(world: World) -> None:
    world.write(pl.DataFrame({"row_id": ["a"], "text": ["x"], "row_version": ["mine"]}))
    world.sync()
    (node,) = world.store.get_nodes()
    assert node.metadata["row_version"] == 0
    assert node.metadata["column.row_version"] == "mine"


def test_the_command_shows_the_row_and_its_fate(tmp_path: Path) -> None:
    from test_cli import run

    world = World(tmp_path, "{text}")
    history(world)
    options = {"RAG_TABLE__URI": world.uri, "RAG_TABLE__TEMPLATE": "{text}"}
    shown = run("row", "b", "--version", "0", cwd=tmp_path, **options)
    assert shown.returncode == 0, shown.stderr
    assert "version 0 · row b" in shown.stdout
    assert "Changed since; in version 3:" in shown.stdout
    assert "- text: blue sky" in shown.stdout
    assert "+ text: blue sea" in shown.stdout
    latest = run("row", "b", "--json", cwd=tmp_path, **options)
    assert json.loads(latest.stdout)["fate"] == "unchanged"
    nothing = run("row", "zzz", cwd=tmp_path, **options)
    assert nothing.returncode == 1
    assert "has no row 'zzz'" in " ".join(nothing.stderr.split())
