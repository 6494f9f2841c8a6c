"""The Lance table stays small, indexed and readable, whatever number of syncs it went through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import tiny_e5
from conftest import World
from deltalake import write_deltalake

import rag
from rag import upkeep, wiring
from rag.audit import verify
from rag.mirror import publishing
from rag.weights import e5_pack
from rag.wiring import parts

DIMENSION = 16
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("row_key", pa.string()),
        pa.field("chunk_no", pa.int32()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("row_hash", pa.string()),
        pa.field("text_hash", pa.string()),
        pa.field("text", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), DIMENSION)),
        pa.field("row_version", pa.int64()),
        pa.field("metadata", pa.struct([("Scenario", pa.string()), ("n", pa.int64())])),
        pa.field("state", pa.string()),
    ]
)


class Index:
    """A Lance table as the mirror makes and changes it."""

    def __init__(self, folder: Path, dimension: int = DIMENSION) -> None:
        self.path = folder / "nodes.lance"
        self.rng = np.random.default_rng(0)
        vector = pa.field("vector", pa.list_(pa.float32(), dimension))
        self.schema = SCHEMA.set(SCHEMA.get_field_index("vector"), vector)
        self.dimension = dimension
        self.version = 0
        self.tokenizer: upkeep.Tokenizer = "words"

    def open(self, version: int | str | None = None) -> lance.LanceDataset:
        return lance.dataset(str(self.path), version=version)

    def rows(self, keys: Sequence[int], *, word: str = "") -> pa.Table:
        """Nodes of these keys, the state row last."""
        vectors = self.rng.standard_normal((len(keys), self.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [
            {
                **dict.fromkeys(self.schema.names),
                "id": f"0:{key}",
                "row_key": str(key),
                "row_hash": f"r{self.version}-{key}",
                "text_hash": f"t{self.version}-{key}",
                "text": f"{word} common wörd{key % 7} v{self.version} k{key}".strip(),
                "vector": vector,
                "row_version": self.version,
                "metadata": {"Scenario": word or "none", "n": key},
            }
            for key, vector in zip(keys, vectors.tolist(), strict=True)
        ]
        state = {"id": "state", "state": json.dumps({"table_version": self.version})}
        return pa.Table.from_pylist(
            [*rows, {**dict.fromkeys(self.schema.names), **state}], schema=self.schema
        )

    def build(self, n: int, *, word: str = "") -> lance.LanceDataset:
        lance.write_dataset(self.rows(range(n), word=word), str(self.path), mode="overwrite")
        dataset = self.open()
        upkeep.tend(dataset, self.tokenizer)
        return dataset

    def sync(self, keys: Sequence[int], *, gone: Sequence[int] = (), n_tags: int = 10) -> None:
        """Publish as the mirror does: one merge, tombstones away, upkeep, tag."""
        self.version += 1
        tombstones = [{**dict.fromkeys(self.schema.names), "id": f"0:{key}"} for key in gone]
        rows = pa.concat_tables(
            [pa.Table.from_pylist(tombstones, schema=self.schema), self.rows(keys)]
        )
        dataset = self.open()
        merge = dataset.merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all()
        merge.conflict_retries(0).execute(rows)
        dataset.checkout_latest()
        if gone:
            dataset.delete("row_hash IS NULL AND id <> 'state'")
        upkeep.tend(dataset, self.tokenizer)
        dataset.tags.create(f"delta-{self.version}", dataset.version)
        old = f"delta-{self.version - n_tags}"
        if old in dataset.tags.list():
            dataset.tags.delete(old)

    def size(self) -> int:
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def files(self) -> set[Path]:
        return {f for f in self.path.rglob("*") if f.is_file()}


def by_text(dataset: lance.LanceDataset, query: str, k: int = 10) -> list[str]:
    return dataset.to_table(columns=["id", "_score"], full_text_query=query, limit=k)[
        "id"
    ].to_pylist()


def by_vector(dataset: lance.LanceDataset, vector: list[float], k: int = 10) -> list[str]:
    nearest = {
        "column": "vector",
        "q": np.array(vector, np.float32),
        "k": k,
        "metric": "cosine",
        "nprobes": upkeep.N_PROBES,
        "refine_factor": upkeep.REFINE_FACTOR,
    }
    return dataset.to_table(columns=["id", "_distance"], nearest=nearest)["id"].to_pylist()


def keys(dataset: lance.LanceDataset) -> dict[str, int]:
    """The keys of the nodes, and how often each is there."""
    found: dict[str, int] = {}
    for key in dataset.to_table(columns=["row_key"], filter="row_hash IS NOT NULL")[
        "row_key"
    ].to_pylist():
        found[key] = found.get(key, 0) + 1
    return found


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path)


@pytest.fixture
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds that a test's table reaches."""
    monkeypatch.setattr(upkeep, "KEYS_FROM", 300)
    monkeypatch.setattr(upkeep, "VECTOR_FROM", 500)
    monkeypatch.setattr(upkeep, "_UNINDEXED", 40)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_GRACE", timedelta(0))
    monkeypatch.setattr(upkeep, "_HURRY", timedelta(0))


# -- indexes -----------------------------------------------------------------------------------


def test_three_rows_are_found_by_their_words(index: Index) -> None:
    dataset = index.build(3)
    assert [(c.column, c.kind) for c in upkeep.coverage(dataset)] == [("text", "Inverted")]
    assert sorted(by_text(dataset, "common")) == ["0:0", "0:1", "0:2"]


def test_an_empty_table_can_be_searched(index: Index) -> None:
    dataset = index.build(0)
    assert by_text(dataset, "common") == []
    index.sync([1])
    assert by_text(index.open(), "common") == ["0:1"]
    index.sync([], gone=[1])
    assert by_text(index.open(), "common") == []
    assert upkeep.recall(index.open()) == 1.0


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("蒸汽机的效率取决于锅炉压力。", "锅炉"),
        ("Die Straßenbahnen fahren nachts nicht", "straßenbahnen"),
        ("CAFÉ crème", "cafe"),
        ("part AB-1234 of the boiler", "ab-1234"),
        ("the boilers were cleaned", "boiler"),
        ("The Who", "who"),
        ("снег идёт", "снег"),
        ("หม้อไอน้ำแรงดันสูง", "แรงดัน"),
    ],
    ids=["chinese", "german", "accent", "code", "plural", "stop words", "russian", "thai"],
)
def test_words_of_any_language_are_found(index: Index, text: str, query: str) -> None:
    rows = index.rows(range(3)).to_pylist()
    rows[1]["text"] = text
    lance.write_dataset(pa.Table.from_pylist(rows, schema=index.schema), str(index.path))
    dataset = index.open()
    upkeep.tend(dataset)
    assert by_text(dataset, query) == ["0:1"]


def test_indexes_come_with_the_rows(index: Index, small_numbers: None) -> None:
    columns = lambda: [c.column for c in upkeep.coverage(index.open())]  # noqa: E731
    index.build(250)
    assert columns() == ["text"]
    index.sync(range(250, 320))
    assert columns() == ["id", "row_hash", "row_key", "text", "text_hash"]
    index.sync(range(320, 600))
    assert columns() == ["id", "row_hash", "row_key", "text", "text_hash", "vector"]
    assert {c.kind for c in upkeep.coverage(index.open())} == {"BTree", "Inverted", "IVF_RQ"}


def test_a_build_over_an_index_is_indexed_again(index: Index, small_numbers: None) -> None:
    index.build(600)
    dataset = index.build(700)
    assert len(upkeep.coverage(dataset)) == 6
    assert {(c.n_indexed, c.n_unindexed) for c in upkeep.coverage(dataset)} == {(701, 0)}


def test_new_rows_are_indexed_once_they_are_many(index: Index, small_numbers: None) -> None:
    index.build(600)
    index.sync(range(600, 620))
    assert {c.n_unindexed for c in upkeep.coverage(index.open())} == {21}  # with the state row
    index.sync(range(620, 660))
    assert {c.n_unindexed for c in upkeep.coverage(index.open())} == {0}
    assert {c.n_indexed for c in upkeep.coverage(index.open())} == {661}


def test_indexing_new_rows_leaves_the_large_segment_alone(
    index: Index, small_numbers: None
) -> None:
    def segments() -> dict[str, list[str]]:
        return {i.name: [s.uuid for s in i.segments] for i in index.open().describe_indices()}

    index.build(2_000)
    first = segments()
    for i in range(12):
        index.sync(range(2_000 + 50 * i, 2_050 + 50 * i))
    last = segments()
    assert set(last) == set(first)
    for name, uuids in last.items():
        assert uuids[0] == first[name][0], f"{name} was written anew"
        assert 2 <= len(uuids) <= 5, "segments of one size are merged"


def test_a_table_that_outgrew_its_index_gets_a_new_one(index: Index, small_numbers: None) -> None:
    index.build(600)
    for i in range(10):
        index.sync(range(600 + 100 * i, 700 + 100 * i))
    dataset = index.open()
    assert all(len(i.segments) <= 4 for i in dataset.describe_indices())
    assert upkeep.recall(dataset, n_queries=50) >= 0.95
    assert sorted(by_text(dataset, "k1577")) == ["0:1577"]


@pytest.mark.usefixtures("small_numbers", "no_grace")
def test_every_row_is_found_once_after_many_changes(index: Index) -> None:
    index.build(700)
    rng = np.random.default_rng(1)
    living = set(range(700))
    for i in range(60):
        changed = {int(k) for k in rng.choice(sorted(living), 12, replace=False)}
        gone = sorted(changed)[:5]
        new = range(700 + 6 * i, 706 + 6 * i)
        index.sync([*sorted(changed - set(gone)), *new], gone=gone)
        living = (living - set(gone)) | set(new)
    dataset = index.open()
    assert keys(dataset) == {str(k): 1 for k in living}
    assert dataset.count_rows() == len(living) + 1
    rows = dataset.take(
        rng.choice(len(living), 40, replace=False), columns=["id", "text", "vector"]
    )
    for row in rows.to_pylist():
        if row["text"] is None:  # the state
            continue
        word = row["text"].split()[-1]
        assert by_text(dataset, word) == [row["id"]]
        assert by_vector(dataset, row["vector"], 1) == [row["id"]]
        assert dataset.count_rows(f"id = '{row['id']}'") == 1
    assert len(by_text(dataset, "common", 5_000)) == len(living)


# -- how texts are cut -------------------------------------------------------------------------

NGRAM_CASES = {
    "part of a code": ("mattress XKCD9920Z", "kcd99"),
    "end of a compound": ("die Straßenbahnen", "bahnen"),
    "chinese": ("蒸汽机的效率取决于锅炉压力。", "锅炉"),
    "two letters": ("area Q7", "q7"),
    "accent": ("CAFÉ crème", "afe"),
}


@pytest.mark.parametrize(("text", "query"), NGRAM_CASES.values(), ids=NGRAM_CASES)
def test_ngrams_find_parts(index: Index, text: str, query: str) -> None:
    rows = index.rows(range(3)).to_pylist()
    rows[1]["text"] = text
    lance.write_dataset(pa.Table.from_pylist(rows, schema=index.schema), str(index.path))
    dataset = index.open()
    upkeep.tend(dataset, "ngrams")
    assert by_text(dataset, query) == ["0:1"]


def test_another_tokenizer_builds_the_text_index_alone(index: Index, small_numbers: None) -> None:
    def segments() -> dict[str, list[str]]:
        return {i.name: [s.uuid for s in i.segments] for i in index.open().describe_indices()}

    dataset = index.build(600)
    before, n_versions = segments(), dataset.version
    assert upkeep.tokenizer_of(dataset) == "words"
    upkeep.tend(dataset, "words")
    assert dataset.version == n_versions, "nothing was due"
    upkeep.tend(dataset, "ngrams")
    assert upkeep.tokenizer_of(index.open()) == "ngrams"
    after = segments()
    assert {name for name in after if after[name] != before[name]} == {"text_idx"}
    assert {(c.n_indexed, c.n_unindexed) for c in upkeep.coverage(index.open())} == {(601, 0)}


def test_an_index_of_another_release_is_built_anew(index: Index) -> None:
    dataset = index.build(3)
    dataset.create_scalar_index("text", "INVERTED", replace=True, base_tokenizer="whitespace")
    assert upkeep.tokenizer_of(dataset) is None
    upkeep.tend(dataset)
    assert upkeep.tokenizer_of(dataset) == "words"


def test_appended_segments_are_cut_alike_and_replaced_together(
    index: Index, small_numbers: None
) -> None:
    index.tokenizer = "ngrams"
    index.build(2_000)
    for i in range(4):
        index.sync(range(2_000 + 50 * i, 2_050 + 50 * i))
    dataset = index.open()
    (text,) = (i for i in dataset.describe_indices() if i.name == "text_idx")
    assert len(text.segments) >= 2
    assert upkeep.tokenizer_of(dataset) == "ngrams"
    for key in (7, 1_999, 2_003, 2_199):  # of the old segment and of those behind it
        assert f"0:{key}" in by_text(dataset, f"k{key}", 5_000)
    assert len(by_text(dataset, "örd3", 5_000)) >= 2_200 // 7

    index.tokenizer = "words"
    index.sync(range(2_200, 2_250))
    dataset = index.open()
    assert upkeep.tokenizer_of(dataset) == "words"
    assert by_text(dataset, "örd3", 5_000) == []
    assert by_text(dataset, "k2003") == ["0:2003"]
    assert by_text(dataset, "k2249") == ["0:2249"]


@pytest.mark.usefixtures("small_numbers")
def test_a_purge_keeps_the_tokenizer(index: Index) -> None:
    index.tokenizer = "ngrams"
    index.build(600)
    index.sync([], gone=[5])
    dataset = index.open()
    dataset.tags.delete("delta-1")
    upkeep.purge(dataset)
    assert upkeep.tokenizer_of(index.open()) == "ngrams"
    assert len(by_text(index.open(), "ommo", 1_000)) == 599


def found(world: World, query: str) -> list[str]:
    answering = world.index.answering()
    assert answering is not None
    return by_text(answering.table.to_lance(), query)


def test_a_sync_with_another_tokenizer_embeds_and_rewrites_nothing(world: World) -> None:
    world.write(pl.DataFrame({"row_id": ["a", "b"], "text": ["mattress XKCD9920Z", "wool"]}))
    first = world.sync()
    assert (first.n_embedded, found(world, "kcd99")) == (2, [])
    files = set(Path(world.index.nodes_uri, "data").iterdir())

    report = world.sync(tokenizer="ngrams")
    assert (report.n_embedded, report.n_unchanged, report.read) == (0, 2, "nothing")
    assert found(world, "kcd99") == ["0:a"]
    assert files == set(Path(world.index.nodes_uri, "data").iterdir())
    assert len(world.embedding.embedded) == 2
    assert verify(world.index, world.snapshot()).is_ok
    number = world.index.dataset().version
    assert world.sync(tokenizer="ngrams").n_unchanged == 2
    assert world.index.dataset().version == number, "nothing was left to do"

    world.write(pl.DataFrame({"row_id": ["a", "c"], "text": ["mattress XKCD9920Z", "XKCD99"]}))
    assert world.sync(tokenizer="ngrams").n_embedded == 1
    assert sorted(found(world, "kcd99")) == ["0:a", "0:c"]
    assert verify(world.index, world.snapshot()).is_ok

    assert world.sync().n_embedded == 0
    assert found(world, "kcd99") == []
    assert found(world, "mattress") == ["0:a"]
    assert len(world.embedding.embedded) == 3


def test_the_tokenizer_stays_through_builds_purges_and_older_versions(world: World) -> None:
    rows = pl.DataFrame({"row_id": ["a", "b"], "text": ["mattress XKCD9920Z", "wool"]})
    world.write(rows)
    world.write(rows.with_columns(price=pl.lit(1)))  # other columns, so another build
    world.sync(tokenizer="ngrams")
    assert found(world, "kcd99") == ["0:a"]
    world.sync(version=0, tokenizer="ngrams")
    older = world.index.mirrored(0)
    assert older is not None
    assert by_text(older.table.to_lance(), "kcd99") == ["0:a"]
    world.template = "so: {text}"
    assert world.sync(tokenizer="ngrams").n_embedded == 2
    assert found(world, "kcd99") == ["0:a"]
    world.sync(tokenizer="ngrams", purge=True)
    assert found(world, "kcd99") == ["0:a"]
    assert verify(world.index, world.snapshot()).is_ok


def test_a_sync_killed_before_its_tag_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(pl.DataFrame({"row_id": ["a"], "text": ["mattress XKCD9920Z"]}))
    world.sync()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "retire", killed)
        with pytest.raises(KeyboardInterrupt):
            world.sync(tokenizer="ngrams")
    assert found(world, "kcd99") == ["0:a"]
    assert world.sync(tokenizer="ngrams").n_embedded == 0
    answering = world.index.answering()
    assert answering is not None
    assert world.index.tags() == {0: answering.number}


def test_the_setting_reaches_the_index(tmp_path: Path) -> None:
    (tmp_path / "e5").mkdir()
    e5_pack.repack(tiny_e5.data_file(), tmp_path / "e5")
    rows = pl.DataFrame({"row_id": ["a", "b"], "text": ["mattress XKCD9920Z", "wool"]})
    write_deltalake("table", rows)
    base = {"table": {"uri": "table", "template": "{text}"}, "embedding": {"model": "e5"}}
    words, ngrams = rag.Settings(**base), rag.Settings(**base, index={"tokenizer": "ngrams"})

    def tokenizer() -> str | None:
        return upkeep.tokenizer_of(parts.open_index(words).dataset())

    assert (rag.sync(words).n_embedded, tokenizer()) == (2, "words")
    status = wiring.status(ngrams)
    assert (status.problem, status.changed) == (None, None)
    assert (rag.sync(ngrams).n_embedded, tokenizer()) == (0, "ngrams")
    for settings in (words, ngrams):
        assert wiring.status(settings).problem is None
        assert wiring.verify(settings).is_ok
    assert (rag.sync(ngrams, purge=True).n_embedded, tokenizer()) == (0, "ngrams")
    assert (rag.sync(words).n_embedded, tokenizer()) == (0, "words")


# -- fragments, versions, disk -----------------------------------------------------------------


def soak(index: Index, n_rows: int, n_syncs: int) -> float:
    """Sync one changed, new or deleted row at a time; return the disk against a fresh build."""
    index.build(n_rows)
    rng = np.random.default_rng(0)
    living, new = list(range(n_rows)), n_rows
    for _ in range(n_syncs):
        kind = rng.random()
        if kind < 0.6:
            index.sync([int(rng.choice(living))])
        elif kind < 0.8:
            index.sync([new])
            living.append(new)
            new += 1
        else:
            index.sync([], gone=[living.pop(int(rng.integers(len(living))))])
    assert keys(index.open()) == {str(k): 1 for k in living}
    fresh = Index(index.path.parent / "fresh", index.dimension)
    lance.write_dataset(index.open().to_table(), str(fresh.path))
    upkeep.tend(fresh.open())
    return index.size() / fresh.size()


@pytest.mark.usefixtures("no_grace")
def test_many_small_syncs_leave_little_behind(index: Index) -> None:
    assert soak(Index(index.path.parent, 384), 600, 150) < 2
    dataset = index.open()
    assert len(dataset.get_fragments()) <= 30
    assert len(dataset.version_refs()) <= 10 + 3 * upkeep._OLD


@pytest.mark.proof
@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("n_rows", [300, 2_000])
def test_a_thousand_small_syncs_leave_less_than_twice_a_fresh_build(
    index: Index, n_rows: int
) -> None:
    assert soak(Index(index.path.parent, 384), n_rows, 1_000) < 2


def test_a_small_sync_does_not_rewrite_the_large_fragment(index: Index) -> None:
    index.build(3_000)
    large = index.open().get_fragments()[0].data_files()[0].path
    for i in range(40):
        index.sync([i])
    dataset = index.open()
    assert dataset.get_fragments()[0].data_files()[0].path == large
    assert 2 <= len(dataset.get_fragments()) <= 16


def test_a_worn_fragment_is_rewritten(index: Index) -> None:
    index.build(200)
    index.sync([], gone=range(100))
    assert [f.metadata.num_deletions for f in index.open().get_fragments()] == [0, 0]


@pytest.mark.usefixtures("small_numbers", "no_grace")
def test_a_tagged_version_stays_whole(index: Index) -> None:
    index.build(600)
    index.sync([1], n_tags=1_000)
    before = index.open("delta-1")
    query = before.to_table(columns=["vector"], filter="id = '0:5'")["vector"][0].as_py()
    expected = (
        before.to_table().sort_by("id"),
        by_text(before, "wörd3", 700),
        by_vector(before, query),
    )
    for i in range(60):
        index.sync(range(8 * i, 8 * i + 8), gone=[599 - i], n_tags=58)
        if i == 0:  # outlives the others
            index.open().tags.create("kept", index.open("delta-1").version)
    assert "delta-1" not in index.open().tags.list()
    kept = index.open("kept")
    assert kept.to_table().sort_by("id") == expected[0]
    assert (by_text(kept, "wörd3", 700), by_vector(kept, query)) == expected[1:]
    with pytest.raises(ValueError, match="not found"):  # so there was a clean-up
        index.open(2)


def test_a_version_that_a_reader_has_open_stays_for_its_grace(index: Index) -> None:
    index.build(2_000)
    version = index.open().version
    for i in range(30):
        index.sync([i], n_tags=1)
    assert index.open(version).count_rows() == 2_001


# -- purge -------------------------------------------------------------------------------------


def holding(index: Index, marker: bytes) -> set[str]:
    """The kinds of files that contain these bytes in any case."""
    return {
        f.relative_to(index.path).parts[0]
        for f in index.files()
        if marker.lower() in f.read_bytes().lower()
    }


@pytest.mark.usefixtures("small_numbers")
def test_a_purge_leaves_no_byte_of_a_deleted_row(index: Index) -> None:
    secret = index.rows([7_001, 7_002], word="qxzvkwjpt").to_pylist()[:2]
    for row in secret:
        row["row_key"] = row["row_hash"] = f"Qxzvkwjpt-{row['id']}"
    rows = [pa.Table.from_pylist(secret, schema=index.schema), index.rows(range(600))]
    lance.write_dataset(pa.concat_tables(rows), str(index.path))
    dataset = index.open()
    upkeep.tend(dataset)
    assert by_text(dataset, "qxzvkwjpt") == ["0:7001", "0:7002"]
    assert holding(index, b"qxzvkwjpt") >= {"data", "_indices"}
    index.sync([], gone=[7_001, 7_002])
    assert holding(index, b"qxzvkwjpt") >= {"data", "_indices"}, "deleted is not yet gone"

    dataset = index.open()
    dataset.tags.delete("delta-1")
    upkeep.purge(dataset)

    assert holding(index, b"qxzvkwjpt") == set()
    assert by_text(dataset, "qxzvkwjpt") == []
    assert keys(dataset) == {str(k): 1 for k in range(600)}
    assert len(by_text(dataset, "common", 1_000)) == 600
    assert upkeep.recall(dataset, n_queries=30) >= 0.95
    assert {(c.n_indexed, c.n_unindexed) for c in upkeep.coverage(dataset)} == {(601, 0)}


@pytest.mark.usefixtures("small_numbers")
def test_a_purge_keeps_only_files_of_the_latest_version(index: Index) -> None:
    index.build(600)
    for i in range(20):
        index.sync([i], gone=[500 + i], n_tags=1)
    dataset = index.open()
    dataset.tags.delete("delta-20")
    before = index.files()

    upkeep.purge(dataset)

    data = {f.data_files()[0].path for f in dataset.get_fragments()}
    assert {f.name for f in index.files() if f.parent.name == "data"} == data
    segments = {s.uuid for i in dataset.describe_indices() for s in i.segments}
    assert {f.name for f in (index.path / "_indices").iterdir()} == segments
    # postings are compressed, so no search for bytes could prove this: every index file is new
    assert not any("_indices" in f.parts for f in index.files() & before)
    assert [v["version"] for v in dataset.version_refs()] == [dataset.version]
    assert not list((index.path / "_deletions").glob("*"))


# -- recall ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_numbers")
def test_recall_sees_an_index_that_misses_neighbours(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = index.build(2_000)
    assert upkeep.recall(dataset, n_queries=50) >= 0.95
    dataset.create_index(
        "vector", "IVF_RQ", metric="cosine", num_partitions=40, num_bits=1, replace=True
    )
    monkeypatch.setattr(upkeep, "N_PROBES", 1)
    monkeypatch.setattr(upkeep, "REFINE_FACTOR", 1)
    assert upkeep.recall(dataset, n_queries=50) < 0.8


def test_recall_without_an_index_is_one(index: Index) -> None:
    assert upkeep.recall(index.build(50), n_queries=20) == 1.0


def test_similarity_of_an_indexed_search_is_the_cosine(index: Index, small_numbers: None) -> None:
    dataset = index.build(1_000)
    rows = dataset.to_table(columns=["id", "vector"], filter="vector IS NOT NULL")
    vectors = dict(zip(rows["id"].to_pylist(), rows["vector"].to_pylist(), strict=True))
    query = vectors["0:3"]
    nearest = {
        "column": "vector",
        "q": np.array(query, np.float32),
        "k": 10,
        "metric": "cosine",
        "nprobes": upkeep.N_PROBES,
        "refine_factor": upkeep.REFINE_FACTOR,
    }
    scan = dataset.scanner(columns=["id", "_distance"], nearest=nearest)
    assert "ANN" in scan.explain_plan(verbose=True)
    for row in scan.to_table().to_pylist():
        assert 1 - row["_distance"] == pytest.approx(np.dot(query, vectors[row["id"]]), abs=1e-5)
