from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import lancedb
import polars as pl
import pyarrow as pa
import pytest
from conftest import World
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.lancedb import LanceDBVectorStore

from rag.errors import (
    FilterError,
    IndexingError,
    IndexMismatch,
    IndexNotBuilt,
    IndexWriteError,
    OtherTable,
    TableEmpty,
    VersionNotMirrored,
)
from rag.index import Index
from rag.mirror import n_staged, pending, publishing, run, staging
from rag.store import NodeStore


def frame(**texts: str | None) -> pl.DataFrame:
    return pl.DataFrame({"row_id": list(texts), "text": list(texts.values())}).with_columns(
        size=pl.col("text").str.len_chars()
    )


def mirrored(world: World) -> dict[str, str]:
    """Row key → text of the whole index, and a check that nothing is there twice."""
    nodes = world.store.get_nodes()
    assert len({n.node_id for n in nodes}) == len(nodes)
    texts: dict[str, str] = {}
    for node in sorted(nodes, key=lambda n: n.start_char_idx or 0):
        texts[node.metadata["row_key"]] = texts.get(node.metadata["row_key"], "") + node.text
    return texts


def counts(report: object) -> tuple[int, ...]:
    names = ("n_added", "n_updated", "n_deleted", "n_unchanged", "n_embedded")
    return tuple(getattr(report, n) for n in names)


def test_a_sync_mirrors_exactly_what_changed(world: World) -> None:
    world.write(frame(a="red apple", b="blue sky", c="green grass"))
    assert counts(world.sync()) == (3, 0, 0, 0, 3)
    assert counts(world.sync()) == (0, 0, 0, 3, 0)
    world.write(frame(a="red apple", b="blue sea", d="grey mouse"))
    assert counts(world.sync()) == (1, 1, 1, 1, 2)
    assert mirrored(world) == {"a": "red apple", "b": "blue sea", "d": "grey mouse"}


def test_only_new_text_is_embedded(world: World) -> None:
    world.write(frame(a="red apple", b="blue sky").with_columns(price=pl.lit(1)))
    world.sync()
    world.write(frame(a="red apple", b="blue sky").with_columns(price=pl.lit(2)))
    report = world.sync()
    assert counts(report) == (0, 2, 0, 0, 0)
    assert {n.metadata["price"] for n in world.store.get_nodes()} == {2}
    # a text that moves to another key keeps its vector
    world.write(frame(a="blue sky", z="red apple").with_columns(price=pl.lit(2)))
    assert counts(world.sync()) == (1, 1, 1, 0, 0)


def test_a_new_column_is_mirrored_without_embedding(world: World) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    world.write(frame(a="red apple").with_columns(new=pl.lit("n")))
    assert counts(world.sync()) == (0, 1, 0, 0, 0)
    assert world.store.get_nodes()[0].metadata["new"] == "n"


def test_long_rows_become_nodes_and_shrink_again(world: World) -> None:
    world.splitter.size = 4
    world.write(frame(a="123456789", b="12"))
    assert counts(world.sync()) == (2, 0, 0, 0, 4)
    spans = {n.node_id: (n.start_char_idx, n.end_char_idx) for n in world.store.get_nodes()}
    assert spans == {"0:a": (0, 4), "1:a": (4, 8), "2:a": (8, 9), "0:b": (0, 2)}
    world.write(frame(a="12345", b="12"))
    world.sync()
    assert mirrored(world) == {"a": "12345", "b": "12"}
    world.write(frame(b="12"))
    world.sync()
    assert mirrored(world) == {"b": "12"}


def test_an_older_version_is_mirrored_beside_the_one_that_answers(world: World) -> None:
    world.write(frame(a="old", b="same"))
    world.write(frame(a="new", b="same", c="more"))
    world.sync()
    report = world.sync(version=0)
    assert counts(report) == (0, 1, 1, 1, 1)  # against what answers: only that is embedded
    assert (report.table_version, report.answering_version) == (0, 1)
    assert mirrored(world) == {"a": "new", "b": "same", "c": "more"}
    world.store.expect(version=0)
    assert mirrored(world) == {"a": "old", "b": "same"}
    state = world.store.state()
    assert state is not None
    assert (state.table_version, state.n_rows) == (0, 2)
    assert counts(world.sync(version=0)) == (0, 0, 0, 2, 0)


def test_older_columns_are_mirrored_beside_newer_ones(world: World) -> None:
    world.write(frame(a="red apple"))
    world.write(frame(a="red apple", b="blue sky").with_columns(new=pl.lit("n")))
    world.sync()
    assert counts(world.sync(version=0)) == (0, 1, 1, 0, 0)
    world.store.expect(version=0)
    (node,) = world.store.get_nodes()
    assert "new" not in node.metadata
    query = VectorStoreQuery(query_str="apple", mode="text_search", similarity_top_k=3)
    assert world.store.query(query).ids == ["0:a"]
    world.store.expect()
    assert len(world.store.get_nodes()) == 2


def test_the_last_mirrored_versions_stay_addressable(world: World) -> None:
    world.keep_versions = 3
    for n in range(6):
        world.write(frame(a=f"text {n}", b="always"))
        world.sync()
    assert sorted(world.index.tags()) == [3, 4, 5]
    for n in (3, 4, 5):
        world.store.expect(version=n)
        assert mirrored(world) == {"a": f"text {n}", "b": "always"}
        assert {node.metadata["table_version"] for node in world.store.get_nodes()} == {n}
    world.store.expect(version=2)
    with pytest.raises(VersionNotMirrored, match="mirrors version 3, 4, 5 .*not 2.*--version 2"):
        world.store.get_nodes()


def test_a_version_of_another_recipe_is_not_addressable(world: World) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    world.write(frame(a="blue sky"))
    world.template = "so: {text}"
    world.sync()
    assert sorted(world.index.tags()) == [1]
    world.store.expect(version=0)
    with pytest.raises(VersionNotMirrored, match="rag sync --version 0"):
        world.store.get_nodes()


def test_rows_without_a_key_follow_their_content(world: World) -> None:
    world.write(pl.DataFrame({"text": ["x", "y", "x"]}))
    assert counts(world.sync()) == (3, 0, 0, 0, 2)
    world.write(pl.DataFrame({"text": ["x", "z"]}))
    assert counts(world.sync()) == (1, 0, 2, 1, 1)
    assert sorted(mirrored(world).values()) == ["x", "z"]


def test_another_model_or_splitter_builds_anew(world: World) -> None:
    world.write(frame(a="red apple", b="blue sky"))
    world.sync()
    world.space = "other words"
    assert counts(world.sync()) == (0, 2, 0, 0, 2)
    world.template = "so: {text}"
    assert counts(world.sync()) == (0, 2, 0, 0, 2)
    assert mirrored(world) == {"a": "so: red apple", "b": "so: blue sky"}


def test_another_table_at_the_same_place_is_refused(world: World, tmp_path: Path) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    (tmp_path / "table").rename(tmp_path / "moved")
    world.write(frame(z="other"))
    with pytest.raises(OtherTable, match="was made anew since .* `rag sync --rebuild`"):
        world.sync()
    other = World(tmp_path)
    other.uri = str(tmp_path / "moved2")
    write_deltalake(other.uri, frame(z="other"))
    with pytest.raises(OtherTable, match="is of the table .*/table', not of .*RAG_INDEX__URI"):
        other.sync()
    assert mirrored(world) == {"a": "red apple"}
    assert counts(world.sync(rebuild=True)) == (1, 0, 0, 0, 1)
    assert mirrored(world) == {"z": "other"}


def test_an_empty_table_leaves_the_index_as_it_is(world: World) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    world.write(frame(a=None, b="  "))
    with pytest.raises(TableEmpty, match="2 rows are blank in the columns"):
        world.sync()
    assert mirrored(world) == {"a": "red apple"}


def test_progress_counts_rows(world: World) -> None:
    world.write(frame(**{f"k{i}": f"text {i}" for i in range(600)}))
    told: list[tuple[str, int, int]] = []
    world.sync(progress=lambda *told_now: told.append(told_now))
    assert [t for t in told if t[0] == "rows"][-1] == ("rows", 600, 600)
    assert len(told) > 3


texts = st.one_of(st.none(), st.sampled_from(["red", "green", "blue", "  "]), st.text(max_size=12))
tables = st.dictionaries(st.sampled_from("abcdefgh"), texts, min_size=1, max_size=8)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(tables, min_size=1, max_size=5), size=st.integers(2, 6))
def test_any_history_ends_as_a_fresh_build(
    tmp_path_factory: pytest.TempPathFactory, history: list[dict[str, str | None]], size: int
) -> None:
    world = World(tmp_path_factory.mktemp("history"))
    world.splitter.size = size
    for step in history:
        rows = {k: v for k, v in step.items() if v and v.strip()}
        world.write(frame(**step, always="here"))
        report = world.sync()
        assert mirrored(world) == {**rows, "always": "here"}
        assert report.n_added + report.n_updated + report.n_unchanged == len(rows) + 1
        assert report.n_blank == len(step) - len(rows)


def test_a_reader_sees_one_version_at_a_time(world: World) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    before = world.index.answering()
    world.write(frame(b="blue sky"))
    world.sync()
    after = world.index.answering()
    assert before is not None
    assert after is not None
    assert (before.state.table_version, after.state.table_version) == (0, 1)
    assert world.index.hashes(before.table)["row_key"].to_list() == ["a"]
    assert world.index.hashes(after.table)["row_key"].to_list() == ["b"]


def test_the_stock_store_reads_the_index(world: World, tmp_path: Path) -> None:
    world.write(frame(a="red apple", b="blue sky"))
    world.sync()
    stock = LanceDBVectorStore(
        uri=str(tmp_path / "index"), table_name="nodes", doc_id_key="row_key"
    )
    for store in (stock, world.store):
        index = VectorStoreIndex.from_vector_store(store, embed_model=world.embedding)
        (found,) = index.as_retriever(similarity_top_k=1).retrieve("sky")
        assert found.text == "blue sky"


def test_ids_narrow_a_query_and_other_modes_are_refused(world: World) -> None:
    world.write(frame(a="red apple", b="blue sky"))
    world.sync()
    index = VectorStoreIndex.from_vector_store(world.store, embed_model=world.embedding)
    retriever = index.as_retriever(similarity_top_k=2, doc_ids=["b"])
    assert [n.node.metadata["row_key"] for n in retriever.retrieve("apple")] == ["b"]
    both = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=2)
    assert [n.node.metadata["row_key"] for n in both.retrieve("apple")] == ["a", "b"]
    with pytest.raises(FilterError, match="'mmr' is not available"):
        index.as_retriever(vector_store_query_mode="mmr").retrieve("apple")


async def test_the_store_is_read_only_and_async(world: World) -> None:
    query = VectorStoreQuery(query_embedding=[1.0] * 64, similarity_top_k=3)
    with pytest.raises(IndexNotBuilt, match="rag sync"):
        await world.store.aquery(query)
    world.write(frame(a="red apple"))
    world.sync()
    assert (await world.store.aquery(query)).ids == ["0:a"]
    for refuse in (
        lambda: world.store.add([]),
        lambda: world.store.delete("a"),
        lambda: world.store.delete_nodes(["a"]),
        world.store.clear,
    ):
        with pytest.raises(IndexingError, match="mirrors a Delta table"):
            refuse()


def test_a_full_disk_leaves_the_old_index(tmp_path: Path) -> None:
    """On a real file system of 4 MB, in a mount namespace of its own."""
    code = f"""
        import subprocess, sys
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", {str(tmp_path)!r}], check=True)
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        import polars as pl
        from conftest import World
        from rag.errors import IndexWriteError, VersionNotMirrored
        world = World(Path({str(tmp_path)!r}))
        world.write(pl.DataFrame({{"row_id": [1], "text": ["red apple"]}}))
        world.sync()
        rows = [f"text {{i}}" for i in range(20_000)]
        world.write(pl.DataFrame({{"row_id": range(20_000), "text": rows}}))
        try:
            world.sync()
        except IndexWriteError as e:
            print(e)
        print([n.text for n in world.store.get_nodes()])
    """
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr and not os.environ.get("CI"):
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert "could not be written" in lines[0]
    assert "previous index still serves" in lines[0]
    assert lines[1] == "['red apple']"


def test_a_damaged_index_is_one_sentence(world: World, tmp_path: Path) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    versions = tmp_path / "index" / "nodes.lance" / "_versions"
    versions.rename(tmp_path / "kept")
    with pytest.raises(IndexingError, match="cannot be read.*rag verify --repair"):
        world.store.get_nodes()
    (tmp_path / "kept").rename(versions)
    assert mirrored(world) == {"a": "red apple"}
    for manifest in versions.iterdir():
        manifest.write_text("garbage")
    reopened = World(tmp_path)
    with pytest.raises(IndexingError, match="cannot be read.*rag verify --repair"):
        reopened.sync()
    assert counts(reopened.sync(rebuild=True)) == (1, 0, 0, 0, 1)
    assert mirrored(reopened) == {"a": "red apple"}


def test_other_tables_of_the_database_stay(world: World) -> None:
    lancedb.connect(str(world.store.uri)).create_table("customers", [{"a": 1}])
    world.write(frame(a="red apple"))
    world.sync()
    assert "customers" in lancedb.connect(str(world.store.uri)).list_tables().tables


def test_lists_that_read_alike_differ(world: World) -> None:
    rows = pl.DataFrame({"row_id": ["a", "b"], "text": ["x", "y"], "tags": [["p, q"], ["r", None]]})
    world.write(rows)
    world.sync()
    world.write(rows.with_columns(tags=pl.Series([["p", "q"], ["r"]])))
    assert counts(world.sync()) == (0, 2, 0, 0, 0)
    tags = {n.metadata["row_key"]: n.metadata["tags"] for n in world.store.get_nodes()}
    assert tags == {"a": ["p", "q"], "b": ["r"]}


def test_a_table_restored_from_a_backup_is_noticed(world: World, tmp_path: Path) -> None:
    world.create(frame(a="red apple"))
    shutil.copytree(world.uri, tmp_path / "backup")
    write_deltalake(world.uri, frame(b="old"), mode="append")
    world.sync()
    shutil.rmtree(world.uri)
    (tmp_path / "backup").rename(world.uri)
    write_deltalake(world.uri, frame(c="new"), mode="append")
    world.sync()
    assert mirrored(world) == {"a": "red apple", "c": "new"}
    write_deltalake(world.uri, frame(d="newer"), mode="append")
    assert world.sync().read == "feed"
    assert mirrored(world) == {"a": "red apple", "c": "new", "d": "newer"}


def test_a_failed_clean_up_is_no_failed_sync(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.write(frame(a="red apple", b="blue sky"))
    world.sync()
    world.write(frame(a="red apple"))

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(publishing.upkeep, "tend", full)
        assert counts(world.sync()) == (0, 0, 1, 1, 0)
    assert "could not be tidied: disk full" in caplog.text
    assert mirrored(world) == {"a": "red apple"}
    assert sorted(world.index.tags()) == [0]
    world.sync()
    assert sorted(world.index.tags()) == [0, 1]


def test_keys_of_blank_rows_do_not_matter(world: World) -> None:
    world.create(frame(a="red apple"))
    world.sync()
    write_deltalake(world.uri, frame(a="  "), mode="append")
    assert world.sync().n_blank == 1
    assert world.sync(rebuild=True).n_blank == 1
    assert mirrored(world) == {"a": "red apple"}


def test_a_file_in_the_place_of_the_index_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("x")
    with pytest.raises(IndexWriteError, match="could not be written"):
        World(tmp_path).store.state()


def test_a_reader_keeps_to_what_it_was_made_for(world: World) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    world.store.expect(embedding="words", version=0)
    world.write(frame(a="blue sky"))
    world.sync()
    assert mirrored(world) == {"a": "red apple"}
    world.store.expect(embedding="other words")
    with pytest.raises(IndexMismatch, match="embedding model 'words'"):
        world.store.get_nodes()


def test_a_purge_leaves_no_trace_of_a_deleted_row(world: World, tmp_path: Path) -> None:
    secret = "zanzibarquartz"
    world.create(frame(a="red apple", b=f"the {secret} row"))
    world.sync()
    write_deltalake(world.uri, frame(c="grey mouse"), mode="append")
    DeltaTable(world.uri).delete("row_id = 'b'")
    world.sync()
    files = lambda: [p for p in (tmp_path / "index").rglob("*") if p.is_file()]  # noqa: E731
    assert any(secret.encode() in p.read_bytes() for p in files())
    search = VectorStoreQuery(query_str=secret, mode="text_search", similarity_top_k=3)
    assert world.store.query(search).ids == []
    report = world.sync(purge=True)
    assert report.purged == (0,)
    assert not [p for p in files() if secret.encode() in p.read_bytes()]
    assert mirrored(world) == {"a": "red apple", "c": "grey mouse"}
    search.query_str = "mouse"
    assert world.store.query(search).ids == ["0:c"]
    assert world.sync().read == "nothing"


def test_an_index_of_an_older_release_is_built_anew_from_its_vectors(world: World) -> None:
    world.write(frame(a="red apple", b="blue sky"))
    world.sync()
    opened = world.index.answering()
    assert opened is not None
    old = opened.table.to_arrow().drop_columns(["row_version"])
    state = {
        k: v
        for k, v in json.loads(opened.state.to_json()).items()
        if k not in ("on_bad_key", "n_left_out", "answers", "is_beside", "oldest")
    } | {"format": 1}
    states = [json.dumps(state) if s else None for s in old["state"].to_pylist()]
    old = old.set_column(old.schema.get_field_index("state"), "state", pa.array(states))
    shutil.rmtree(str(world.store.uri))
    lance.write_dataset(old, f"{world.store.uri}/nodes.lance")
    with pytest.raises(IndexingError, match="another release .format 1, .*Run `rag sync`"):
        world.store.get_nodes()
    assert counts(world.sync()) == (0, 2, 0, 0, 0)
    assert mirrored(world) == {"a": "red apple", "b": "blue sky"}


def test_what_is_pending_is_what_a_sync_then_does(world: World) -> None:
    world.splitter.size = 5
    world.create(frame(a="red apple", b="blue sky", c="green grass"))
    assert counts(world.pending()) == (3, 0, 0, 0, 7)
    assert world.store.table is None
    world.sync()
    DeltaTable(world.uri).update(updates={"text": "'blue sea'"}, predicate="row_id = 'b'")
    DeltaTable(world.uri).delete("row_id = 'a'")
    before = world.index.answering()
    told = world.pending()
    assert counts(told) == (0, 1, 1, 1, 1)
    after = world.index.answering()
    assert before is not None
    assert after is not None
    assert after.number == before.number
    assert counts(world.sync()) == counts(told)
    assert counts(world.pending()) == (0, 0, 0, 2, 0)


def test_a_reader_whose_version_was_cleaned_up_reads_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    answering = world.index.answering
    held = answering()
    world.write(frame(a="blue sky"))
    world.sync(purge=True)
    given = iter([held])
    with monkeypatch.context() as patched:
        patched.setattr(world.index, "answering", lambda: next(given, None) or answering())
        assert mirrored(world) == {"a": "blue sky"}
    assert next(given, None) is None


class Killed(BaseException):
    """Raised where a kill -9 would strike."""


def kill(*_: object, **__: object) -> None:
    raise Killed


@contextlib.contextmanager
def killed_at(owner: object, name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, kill)
        with pytest.raises(Killed):
            yield


def test_a_first_build_killed_before_its_first_commit_begins_again(
    world: World, tmp_path: Path
) -> None:
    world.write(frame(a="red apple"))
    torn = tmp_path / "index" / "nodes.lance" / "data"
    torn.mkdir(parents=True)
    (torn / "x.lance").write_bytes(b"half a file")
    with pytest.raises(IndexNotBuilt, match="Run `rag sync`"):
        world.store.get_nodes()
    assert counts(world.sync()) == (1, 0, 0, 0, 1)
    assert mirrored(world) == {"a": "red apple"}


def test_a_stage_killed_before_its_first_commit_begins_again(world: World, tmp_path: Path) -> None:
    world.write(frame(a="red apple"))
    with killed_at(run.Staging, "fill"):
        world.sync()
    (stage,) = (tmp_path / "index").glob("rag-stage-*.lance")
    shutil.rmtree(stage / "_versions")
    assert n_staged(world.index) == 0
    assert counts(world.sync()) == (1, 0, 0, 0, 1)
    assert not list((tmp_path / "index").glob("rag-stage-*.lance"))


def test_a_stage_that_was_published_goes_with_the_next_sync(world: World) -> None:
    world.write(frame(a="red apple"))
    with killed_at(run, "drop_stages"):
        world.sync()
    assert n_staged(world.index) == 1
    assert world.sync().read == "nothing"
    assert n_staged(world.index) == 0


def test_old_tags_go_though_a_sync_was_killed_before_it_set_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.keep_versions = 2
    for n in range(3):
        world.write(frame(a=f"text {n}"))
        with monkeypatch.context() as patched:
            if n == 2:
                patched.setattr(publishing, "retire", kill)
            try:
                world.sync()
            except Killed:
                assert n == 2
    assert mirrored(world) == {"a": "text 2"}
    assert world.sync().read == "nothing"
    assert sorted(world.index.tags()) == [1, 2]


def test_versions_of_another_history_are_not_addressable(world: World, tmp_path: Path) -> None:
    world.create(frame(a="red apple"))
    shutil.copytree(world.uri, tmp_path / "backup")
    world.sync()
    for text in ("blue sky", "green grass"):
        world.write(frame(a=text))
        world.sync()
    shutil.rmtree(world.uri)
    (tmp_path / "backup").rename(world.uri)
    for text in ("grey mouse", "black cat", "white hen"):
        world.write(frame(a=text))
    world.sync()
    assert world.index.versions() == [3]
    world.store.expect(version=1)  # "blue sky" there, "grey mouse" now
    with pytest.raises(VersionNotMirrored, match="mirrors version 3 .*not 1.*--version 1"):
        world.store.get_nodes()
    world.sync(version=1)
    assert mirrored(world) == {"a": "grey mouse"}


def test_a_version_beside_can_be_asked_though_one_is_kept(world: World) -> None:
    world.keep_versions = 1
    world.write(frame(a="red apple"))
    world.write(frame(a="blue sky"))
    world.sync()
    world.sync(version=0)
    world.store.expect(version=0)
    assert mirrored(world) == {"a": "red apple"}
    world.write(frame(a="green grass"))
    world.sync()
    assert world.index.versions() == [2]


def test_only_versions_that_can_be_asked_are_named(world: World) -> None:
    for text in ("red apple", "blue sky"):
        world.write(frame(a=text))
        world.sync()
    world.template = "so: {text}"
    with killed_at(publishing, "settle"):
        world.sync()
    assert sorted(world.index.tags()) == [0, 1]
    world.store.expect(version=0)
    with pytest.raises(VersionNotMirrored, match="mirrors version 1 of the table, not 0"):
        world.store.get_nodes()
    with killed_at(publishing.upkeep, "purge"):
        world.sync(purge=True)
    with pytest.raises(VersionNotMirrored, match="mirrors version 1 of the table, not 0"):
        world.store.get_nodes()


@pytest.mark.parametrize("version", [None, 1], ids=["newer", "beside"])
def test_a_change_too_large_for_one_commit_is_not_seen_in_parts(
    world: World, monkeypatch: pytest.MonkeyPatch, version: int | None
) -> None:
    monkeypatch.setattr(publishing, "_PORTION", 1)
    monkeypatch.setattr(run.Staging, "batches", in_batches_of(7))
    old = frame(**{f"k{i}": f"text {i}" for i in range(30)})
    new = frame(**{f"k{i}": f"new text {i}" for i in range(20, 60)})
    for rows in (old, new, old):
        world.write(rows)
    world.sync(version=0 if version is None else 2)
    before = mirrored(world)
    upsert = publishing._upsert
    n_parts = 0

    def watched(*arguments: Any) -> None:
        nonlocal n_parts
        if n_parts == 3:
            n_parts = 0
            raise Killed
        upsert(*arguments)
        n_parts += 1
        assert mirrored(world) == before

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(publishing, "_upsert", watched)
        world.sync(version=1)
    assert n_parts == 0
    assert mirrored(world) == before
    report = world.sync(version=1)
    assert counts(report)[-1] == 0
    world.store.expect(version=1)
    assert mirrored(world) == dict(zip(new["row_id"], new["text"], strict=True))


def in_batches_of(n_rows: int) -> Any:
    def batches(staging: run.Staging) -> Iterator[pa.RecordBatch]:
        yield from staging.table.to_lance().to_batches(batch_size=n_rows)

    return batches


def test_what_should_answer_is_gone_and_a_rebuild_mends_it(world: World) -> None:
    world.write(frame(a="red apple"))
    world.sync()
    world.template = "so: {text}"
    with killed_at(publishing, "switch"):
        world.sync()
    world.index.dataset().tags.delete("delta-0")
    world.index.dataset().cleanup_old_versions(timedelta(0), delete_unverified=True)
    world.template = "{text}"
    with pytest.raises(IndexingError, match="cannot be read"):
        world.sync()
    world.sync(rebuild=True)
    assert mirrored(world) == {"a": "red apple"}


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_a_thousand_syncs_leave_less_than_twice_a_fresh_index(tmp_path: Path) -> None:
    world = World(tmp_path)
    rows = {f"k{i}": f"text {i} about some thing or other" for i in range(2_000)}
    world.create(frame(**rows))
    world.sync()
    for n in range(1_000):
        table = DeltaTable(world.uri)
        if n % 3 == 0:
            table.delete(f"row_id = 'k{n}'")
        elif n % 3 == 1:
            write_deltalake(world.uri, frame(**{f"new{n}": f"new text {n}"}), mode="append")
        else:
            table.update(updates={"text": f"'changed {n}'"}, predicate=f"row_id = 'k{n}'")
        assert world.sync().n_embedded <= 1
    fresh = World(tmp_path)
    fresh.store = NodeStore(str(tmp_path / "fresh"))
    fresh.sync()
    assert mirrored(world) == mirrored(fresh)
    size = lambda name: sum(  # noqa: E731
        p.stat().st_size for p in (tmp_path / name).rglob("*") if p.is_file()
    )
    assert size("index") < 2 * size("fresh"), (size("index"), size("fresh"))


def test_a_text_that_repeats_is_embedded_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "Pace", lambda least, most, seconds: Fixed())
    texts = {f"k{i}": ("red apple", "blue sky", "green grass")[i % 3] for i in range(30)}
    world.write(frame(**texts))
    assert world.pending().n_embedded == 3
    assert world.sync().n_embedded == 3


class Fixed:
    """Two rows at a time."""

    n = 2

    def took(self, n: int, seconds: float) -> None:
        """Learn nothing."""


def test_a_restored_version_takes_its_vectors_from_the_index(world: World) -> None:
    world.create(frame(a="red apple", b="blue sky"))
    world.sync()
    world.write(frame(a="grey mouse", b="green grass"))
    assert world.sync().n_embedded == 2
    DeltaTable(world.uri).restore(0)
    assert world.pending().n_embedded == 0
    assert counts(world.sync()) == (0, 2, 0, 0, 0)
    assert mirrored(world) == {"a": "red apple", "b": "blue sky"}


def test_looking_makes_no_folder(world: World, tmp_path: Path) -> None:
    world.write(frame(a="red apple"))
    (tmp_path / "index").rmdir()
    fresh = Index(str(tmp_path / "index"))
    assert fresh.answering() is None
    assert fresh.versions() == []
    assert counts(pending(fresh, world.snapshot(), world.recipe)) == (1, 0, 0, 0, 1)
    assert not (tmp_path / "index").exists()
