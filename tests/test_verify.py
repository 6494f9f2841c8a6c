from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lance
import polars as pl
import pyarrow as pa
import pytest
from conftest import World
from deltalake import DeltaTable, write_deltalake
from test_cli import run

from rag import upkeep
from rag.audit import Verdict, mend, state_of, verify
from rag.errors import IndexNotBuilt, OtherTable, VersionNotMirrored
from rag.index import IndexState
from rag.mirror import Options, sync
from rag.template import text_hash

TEXTS = {
    "a": "red apple pie",
    "b": "blue sky",
    "c": "green grass",
    "d": "a long way from here to there",
}


def frame(texts: dict[str, str | None]) -> pl.DataFrame:
    return pl.DataFrame({"row_id": list(texts), "text": list(texts.values())}).with_columns(
        size=pl.col("text").str.len_chars(), tags=pl.lit(["x", "y"])
    )


@pytest.fixture
def built(world: World) -> World:
    """Four rows; `d` has three nodes."""
    world.splitter.size = 13
    world.write(frame(TEXTS))
    world.sync()
    assert check(world).is_ok
    return world


def check(world: World, **options: Any) -> Verdict:
    state = state_of(world.index, None)
    return verify(world.index, world.snapshot(state and state.table_version), **options)


def repair(world: World, verdict: Verdict) -> None:
    options = mend(world.index, verdict, Options(is_pinned=True))
    snapshot = world.snapshot(verdict.table_version)
    sync(world.index, snapshot, world.recipe, options=options)


def kinds(verdict: Verdict) -> list[str]:
    return [p.kind for p in verdict.problems]


def rows(world: World) -> list[dict[str, Any]]:
    dataset = lance.dataset(world.index.nodes_uri)
    found = dataset.to_table(filter="row_hash IS NOT NULL").drop_columns(["state"]).to_pylist()
    return sorted(found, key=lambda r: (r["id"], r["text"]))


def fresh(world: World, folder: Path) -> list[dict[str, Any]]:
    """What a build from nothing makes of the same table."""
    other = World(folder / "fresh")
    other.uri, other.splitter = world.uri, world.splitter
    other.sync()
    return rows(other)


def change(world: World, where: str, **values: Any) -> None:
    """Write values into nodes, as a bug or another program might."""
    add(world, where, remove=True, **values)


def add(world: World, where: str, *, remove: bool = False, **values: Any) -> None:
    """Append copies of nodes with other values."""
    dataset = lance.dataset(world.index.nodes_uri)
    found = dataset.to_table(filter=where)
    assert len(found)
    changed = [
        {**r, **{k: v(r[k]) if callable(v) else v for k, v in values.items()}}
        for r in found.to_pylist()
    ]
    if remove:
        dataset.delete(where)
    lance.write_dataset(
        pa.Table.from_pylist(changed, schema=found.schema), dataset.uri, mode="append"
    )


def remove(world: World, where: str) -> None:
    lance.dataset(world.index.nodes_uri).delete(where)


def restate(world: World, **values: Any) -> None:
    change(
        world, "id = 'state'", state=lambda s: replace(IndexState.from_json(s), **values).to_json()
    )


@dataclass(frozen=True)
class Case:
    name: str
    damage: Callable[[World], None]
    kinds: list[str]
    keys: Sequence[str] = ()
    """Of the rows that a repair writes anew."""
    n_embedded: int | None = None
    """Texts; None: all of those rows."""


CASES = [
    Case("a row is gone", lambda w: remove(w, "row_key = 'a'"), ["missing"], "a"),
    Case(
        "a row too many", lambda w: add(w, "row_key = 'a'", id="0:z", row_key="z"), ["extra"], "z"
    ),
    Case(
        "old content",
        lambda w: change(w, "row_key = 'a'", row_hash="0" * 32),
        ["changed", "columns"],
        "a",
    ),
    Case(
        "other columns",
        lambda w: change(w, "row_key = 'a'", metadata=lambda m: m | {"size": 7}),
        ["columns"],
        "a",
    ),
    Case(
        "another list",
        lambda w: change(w, "row_key = 'a'", metadata=lambda m: m | {"tags": ["x"]}),
        ["columns"],
        "a",
    ),
    Case("the first node is gone", lambda w: remove(w, "id = '0:d'"), ["numbers"], "d"),
    Case("a middle node is gone", lambda w: remove(w, "id = '1:d'"), ["numbers"], "d"),
    Case("the last node is gone", lambda w: remove(w, "id = '2:d'"), ["span"], "d"),
    Case("a node too many", lambda w: add(w, "id = '2:d'", id="3:d", chunk_no=3), ["counts"], "d"),
    Case("a node far off", lambda w: add(w, "id = '0:a'", id="7:a", chunk_no=7), ["numbers"], "a"),
    Case("a node twice", lambda w: add(w, "id = '1:d'"), ["numbers"], "d"),
    Case("a single node twice", lambda w: add(w, "id = '0:a'"), ["numbers"], "a"),
    Case("a foreign id", lambda w: change(w, "id = '0:a'", id="0:b"), ["id"], "a", 2),
    Case(
        "a node without a key",
        lambda w: change(w, "id = '0:a'", row_key=None),
        ["missing", "id"],
        ("a", "0:a"),
    ),
    Case("a text", lambda w: change(w, "id = '0:a'", text="red herring!!"), ["text", "span"], "a"),
    Case(
        "a text and its hash",
        lambda w: change(w, "id = '0:a'", text="green", text_hash=text_hash("green")),
        ["span"],
        "a",
    ),
    Case("no text", lambda w: change(w, "id = '0:a'", text=None), ["text", "span"], "a"),
    Case("a span", lambda w: change(w, "id = '1:d'", start=12), ["span"], "d"),
    Case("a negative span", lambda w: change(w, "id = '0:a'", start=-13), ["span"], "a"),
    Case("no vector", lambda w: change(w, "id = '0:a'", vector=None), ["vector"], "a"),
    Case(
        "a long vector",
        lambda w: change(w, "id = '1:d'", vector=lambda v: [x * 1.01 for x in v]),
        ["vector"],
        "d",
    ),
    Case(
        "NaN",
        lambda w: change(w, "row_key IN ('a', 'b')", vector=lambda v: [float("nan"), *v[1:]]),
        ["vector"],
        "ab",
    ),
    Case("rows counted wrong", lambda w: restate(w, n_rows=5), ["counts"]),
    Case("nodes counted wrong", lambda w: restate(w, n_nodes=5), ["counts"], "d"),
    Case("blank rows counted wrong", lambda w: restate(w, n_blank=1), ["counts"]),
    Case("another commit", lambda w: restate(w, commit="x"), ["commit"]),
    Case("two states", lambda w: add(w, "id = 'state'"), ["state"]),
    Case("another release", lambda w: restate(w, format=1), ["format"]),
    Case(
        "no text index",
        lambda w: lance.dataset(w.index.nodes_uri).drop_index("text_idx"),
        ["no text index"],
    ),
    Case(
        "a tag astray",
        lambda w: lance.dataset(w.index.nodes_uri).tags.create("delta-7", w.index.newest().number),
        ["tag"],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_damage_is_named_and_mended(built: World, tmp_path: Path, case: Case) -> None:
    case.damage(built)
    found = check(built)
    assert sorted(kinds(found)) == sorted(case.kinds)
    assert not found.is_unreadable
    for problem in found.problems:
        assert problem.n >= 1
        assert problem.sentence.endswith(".")
        assert all(repr(e) in problem.sentence for e in problem.examples)
    assert found.bad_keys == set(case.keys)
    n_before = len(built.embedding.embedded)
    repair(built, found)
    after = check(built)
    assert after.is_ok, after.problems
    assert rows(built) == fresh(built, tmp_path)
    # the rest is not embedded again
    n_of_rows = sum({"a": 1, "b": 1, "d": 3}.get(key, 0) for key in case.keys)
    n_embedded = n_of_rows if case.n_embedded is None else case.n_embedded
    assert len(built.embedding.embedded) - n_before == n_embedded


def test_a_good_index_is_ok(built: World) -> None:
    found = check(built, recall=True)
    assert found.is_ok
    assert (found.table_version, found.n_rows, found.n_nodes, found.recall) == (0, 4, 6, 1.0)
    assert [c.column for c in found.coverage] == ["text"]
    assert found.notes == ()


def test_examples_are_three_at_most(world: World) -> None:
    world.write(frame({f"k{i}": f"text {i}" for i in range(9)}))
    world.sync()
    remove(world, "row_key <> 'k5' AND id <> 'state'")
    (problem, *rest) = check(world).problems
    assert (problem.n, problem.examples, rest) == (8, ("k0", "k1", "k2"), [])
    assert problem.sentence.startswith(
        "8 rows in the table, but not in the index, for example 'k0'"
    )


def files(world: World, folder: str) -> list[Path]:
    found = Path(world.index.nodes_uri, folder).rglob("*")
    return sorted(p for p in found if p.is_file() and p.suffix != ".json")


def garble(path: Path) -> None:
    """Write zeros over the middle and the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))


UNREADABLE: dict[str, Callable[[World], None]] = {
    "a data file is gone": lambda w: files(w, "data")[0].unlink(),
    "all data files are gone": lambda w: shutil.rmtree(Path(w.index.nodes_uri, "data")),
    "a data file is cut off": lambda w: files(w, "data")[0].write_bytes(
        files(w, "data")[0].read_bytes()[:900]
    ),
    "a data file is garbage": lambda w: garble(files(w, "data")[0]),
    "the manifests are garbage": lambda w: (
        [p.write_bytes(b"garbage") for p in files(w, "_versions")] and None
    ),
    "the manifests are gone": lambda w: shutil.rmtree(Path(w.index.nodes_uri, "_versions")),
    "no state": lambda w: remove(w, "id = 'state'"),
    "a state of another program": lambda w: change(w, "id = 'state'", state="?"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_index_is_one_sentence_and_built_anew(
    built: World, tmp_path: Path, name: str
) -> None:
    UNREADABLE[name](built)
    found = check(World(tmp_path))
    (problem,) = found.problems
    assert found.is_unreadable
    assert problem.kind == "unreadable"
    assert "\n" not in problem.sentence
    assert "rag sync --rebuild" in problem.sentence or "rag verify --repair" in problem.sentence
    again = World(tmp_path)
    again.splitter = built.splitter
    repair(again, found)
    assert check(again).is_ok
    assert rows(again) == fresh(again, tmp_path)


def panics(path: Path) -> None:
    """Make Lance panic instead of raising: the manifest's length reaches beyond its end."""
    content = bytearray(path.read_bytes())
    content[-16:-8] = (1).to_bytes(8, "little")
    path.write_bytes(content)


def test_a_panic_of_the_reader_is_one_sentence_too(built: World, tmp_path: Path) -> None:
    for path in files(built, "_versions"):
        panics(path)
    again = World(tmp_path)
    again.splitter = built.splitter
    found = check(again)
    assert found.is_unreadable, found
    repair(again, found)
    assert check(again).is_ok


@pytest.fixture
def large(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """With search indexes of the keys and the vectors."""
    monkeypatch.setattr(upkeep, "KEYS_FROM", 1_000)
    monkeypatch.setattr(upkeep, "VECTOR_FROM", 1_000)
    world.write(frame({f"k{i}": f"text {i} of word{chr(97 + i % 26)}" for i in range(1_500)}))
    world.sync()
    return world


def garble_indexes(world: World, *columns: str) -> None:
    for index in lance.dataset(world.index.nodes_uri).describe_indices():
        for segment in index.segments if index.field_names[0] in columns else []:
            for path in Path(world.index.nodes_uri, "_indices", str(segment.uuid)).iterdir():
                garble(path)


def test_damaged_search_indexes_are_named_and_built_anew(large: World, tmp_path: Path) -> None:
    before = rows(large)
    columns = {"row_key", "row_hash", "text_hash", "text", "vector"}
    assert {c.column for c in check(large).coverage} == columns | {"id"}
    garble_indexes(large, *columns)
    again = World(tmp_path)
    found = check(again)
    assert kinds(found) == ["search index"] * 5
    assert not found.is_unreadable
    assert all("is damaged: " in p.sentence for p in found.problems)
    repair(again, found)
    after = check(World(tmp_path))
    assert after.is_ok, after.problems
    assert {c.column for c in after.coverage} == columns | {"id"}
    assert rows(again) == before
    assert again.embedding.embedded == []


def test_a_damaged_index_of_ids_hides_the_state_and_costs_no_text(
    large: World, tmp_path: Path
) -> None:
    before = rows(large)
    garble_indexes(large, "id")
    again = World(tmp_path)
    found = check(again)
    assert found.is_unreadable
    repair(again, found)
    assert check(World(tmp_path)).is_ok
    assert rows(again) == before
    assert again.embedding.embedded == []


def test_a_search_index_that_misses_nodes_is_damaged(world: World, tmp_path: Path) -> None:
    """The files of an index of other texts, of the same length: readable, and wrong."""
    other = World(tmp_path / "other")
    for one, word in ((other, "tent"), (world, "text")):
        one.write(frame({f"k{i}": f"{word} {i}" for i in range(200)}))
        one.sync()
    old = {p.name: p for p in files(other, "_indices")}
    new = {p.name: p for p in files(world, "_indices")}
    assert [p.stat().st_size for p in old.values()] == [p.stat().st_size for p in new.values()]
    for name, path in new.items():
        path.write_bytes(old[name].read_bytes())
    found = check(World(tmp_path))
    assert kinds(found) == ["search index"]
    assert "'text_idx' is damaged: it does not find" in found.problems[0].sentence
    repair(world, found)
    assert check(World(tmp_path)).is_ok


@pytest.mark.parametrize("damage", ["gone", "garbage", "unreadable"])
def test_a_damaged_tag_goes_and_the_others_stay(built: World, tmp_path: Path, damage: str) -> None:
    built.write(frame({**TEXTS, "a": "red car"}))
    built.sync()
    built.write(frame({**TEXTS, "a": "red bus"}))
    built.sync()
    tag = Path(built.index.nodes_uri, "_refs", "tags", "delta-0.json")
    number = json.loads(tag.read_text())["version"]
    if damage == "garbage":
        tag.write_text("")
    elif damage == "gone":
        Path(built.index.nodes_uri, "_versions", f"{2**64 - 1 - number}.manifest").unlink()
    else:
        shared = {
            p
            for f in lance.dataset(built.index.nodes_uri).get_fragments()
            for p in [f.data_files()[0].path]
        }
        old = lance.dataset(built.index.nodes_uri, version=number)
        own = [
            f.data_files()[0].path
            for f in old.get_fragments()
            if f.data_files()[0].path not in shared
        ]
        assert own
        Path(built.index.nodes_uri, "data", own[0]).unlink()
    found = check(World(tmp_path))
    assert kinds(found) == ["tag"]
    assert "delta-0" in found.problems[0].sentence
    repair(built, found)
    assert check(World(tmp_path)).is_ok
    assert sorted(built.index.tags()) == [1, 2]


def test_an_older_version_is_verified_and_mended_beside(built: World, tmp_path: Path) -> None:
    built.write(frame({**TEXTS, "a": "red car", "e": "more"}))
    built.sync()
    old = verify(built.index, built.snapshot(0))
    assert (old.is_ok, old.table_version, old.n_rows) == (True, 0, 4)
    dataset = lance.dataset(built.index.nodes_uri)
    dataset.tags.update("delta-0", built.index.tags()[1])
    found = verify(built.index, built.snapshot(0))
    assert set(kinds(found)) == {"changed", "extra", "counts", "commit", "tag"}
    repair(built, found)
    assert verify(built.index, built.snapshot(0)).is_ok
    now = check(built)
    assert (now.is_ok, now.table_version) == (True, 1)


def test_another_table_is_not_compared(built: World, tmp_path: Path) -> None:
    (tmp_path / "table").rename(tmp_path / "moved")
    built.write(frame({"z": "other"}))
    found = check(built)
    assert kinds(found) == ["table"]
    with pytest.raises(OtherTable, match="--rebuild"):
        repair(built, found)


def test_what_is_not_there_cannot_be_verified(world: World) -> None:
    world.write(frame(TEXTS))
    with pytest.raises(IndexNotBuilt, match="rag sync"):
        state_of(world.index, None)
    with pytest.raises(IndexNotBuilt, match="rag sync"):
        verify(world.index, world.snapshot())
    world.sync()
    with pytest.raises(VersionNotMirrored, match="rag sync --version 7"):
        state_of(world.index, 7)


def test_an_interrupted_build_is_a_note(built: World) -> None:
    built.index.connection.create_table("rag-stage-0", [{"a": 1}])
    found = check(built)
    assert found.is_ok
    assert "unfinished" in found.notes[0]


def test_keyless_blank_and_picked_rows_are_as_they_should_be(tmp_path: Path) -> None:
    keyless = World(tmp_path / "keyless")
    keyless.write(pl.DataFrame({"text": ["x", "y", "x", None, " "]}))
    keyless.sync()
    assert (check(keyless).is_ok, check(keyless).n_rows) == (True, 3)
    picked = World(tmp_path / "picked")
    picked.on_bad_key = "pick"
    picked.write(pl.DataFrame({"row_id": ["a", "a", None], "text": ["x", "y", "z"]}))
    picked.sync()
    assert (check(picked).is_ok, check(picked).n_rows) == (True, 1)
    remove(picked, "row_key = 'a'")
    found = check(picked)
    assert kinds(found) == ["missing"]
    repair(picked, found)
    assert check(picked).is_ok


@pytest.fixture
def shop(in_shop: Path, tmp_path: Path) -> Path:
    """A shop of its own, to be damaged."""
    return shutil.copytree(in_shop, tmp_path / "shop")


@pytest.mark.model
def test_from_the_terminal(shop: Path) -> None:
    good = run("verify", "--recall", cwd=shop)
    assert good.returncode == 0, good.stderr
    first, *_, last = good.stdout.splitlines()
    assert first.startswith("Compared the index with version 3 of data/fantasy-library: ")
    assert first.endswith("recall@10 1.000.")
    assert last == "ok"
    (uri,) = (shop / "data" / "index").glob("fantasy-library-*/nodes.lance")
    lance.dataset(str(uri)).delete("row_key IN ('fs-001', 'fs-002')")
    bad = run("verify", cwd=shop)
    assert bad.returncode == 1
    told = "bad 2 rows in the table, but not in the index, for example 'fs-001', 'fs-002'."
    assert bad.stdout.splitlines()[1:] == [told]
    mended = run("verify", "--repair", "--json", cwd=shop)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    found = json.loads(mended.stdout)
    assert (found["is_ok"], found["problems"], found["bad_keys"]) == (True, [], [])
    assert found["notes"][0].startswith("Mended by mirroring version 3: 2 rows")


@pytest.mark.model
def test_a_version_that_is_gone_is_one_sentence(shop: Path) -> None:
    table = DeltaTable(str(shop / "data" / "fantasy-library"))
    write_deltalake(table, pl.read_delta(str(table.table_uri)).head(160), mode="overwrite")
    table.update_incremental()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    gone = run("verify", cwd=shop)
    assert gone.returncode == 1
    told = " ".join(gone.stderr.split())
    assert "The index mirrors version 3 of Delta table 'data/fantasy-library'" in told
    assert re.search("Run `rag sync` to mirror the latest version, [456]", told)
    mended = run("verify", "--repair", cwd=shop)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "can no longer be read; now" in mended.stdout
    assert mended.stdout.splitlines()[-1] == "ok"
