"""Table and index on object storage: what differs there, on a real server on loopback."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.connection import Connection

import obstore
import polars as pl
import pytest
from conftest import World
from fakes import WordsEmbedding
from obstore.store import S3Store
from processes import elsewhere, eventually
from s3 import S3, s3_server  # noqa: F401 - a fixture

from rag.errors import IndexingError, IndexWriteError, RagError, TableError, TableNotFound
from rag.mirror import holder, lease
from rag.progress import SyncReport
from rag.store import NodeStore
from rag.table import open_table


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of the dead are broken after two seconds."""
    for name, seconds in QUICK.items():
        monkeypatch.setattr(lease, name, seconds)


QUICK = {"RENEW_S": 0.3, "BREAK_S": 2.0, "POLL_S": 0.1}


@pytest.fixture
def world(s3: S3) -> World:
    return World(f"{s3.bucket()}/some/folder", options=s3.options)


def frame(**texts: str) -> pl.DataFrame:
    return pl.DataFrame({"row_id": list(texts), "text": list(texts.values())})


def rows(n: int, what: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"row_id": [str(i) for i in range(n)], "text": [f"{what} {i}" for i in range(n)]}
    )


def mirrored(world: World) -> dict[str, str]:
    """Key and text of what is served; a row that is there twice is an error."""
    nodes = world.store.get_nodes()
    found = {node.metadata["row_key"]: node.text for node in nodes}
    assert len(found) == len(nodes)
    return found


def wanted(table: pl.DataFrame) -> dict[str, str]:
    return dict(zip(table["row_id"], table["text"], strict=True))


def counts(report: SyncReport) -> tuple[int, int, int, int, int]:
    """Added, updated, deleted, unchanged rows and embedded nodes."""
    return (
        report.n_added,
        report.n_updated,
        report.n_deleted,
        report.n_unchanged,
        report.n_embedded,
    )


def names(world: World) -> list[str]:
    """Objects of the index, by their path in it."""
    return [found["path"] for page in obstore.list(_folder(world)) for found in page]


def _folder(world: World) -> S3Store:
    bucket, _, prefix = world.index.uri.removeprefix("s3://").partition("/")
    config = {k: v for k, v in world.storage_options.items() if k != "AWS_ALLOW_HTTP"}
    return S3Store(bucket, prefix=prefix, config=config, client_options={"allow_http": True})


class FatalEmbedding(WordsEmbedding):
    """Ends its process after so many texts."""

    lives: int = 0

    def _get_text_embedding(self, text: str) -> list[float]:
        if len(self.embedded) == self.lives:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._get_text_embedding(text)


# -- what other processes do -----------------------------------------------------------------------


def read(pipe: Connection, place: str, options: dict[str, str]) -> None:
    pipe.send(mirrored(World(place, options=options)))


def sync(pipe: Connection, place: str, options: dict[str, str], break_s: float) -> None:
    for name, seconds in (QUICK | {"BREAK_S": break_s}).items():
        setattr(lease, name, seconds)
    pipe.send("ready")
    pipe.recv()
    try:
        report = World(place, options=options).sync(progress=lambda *_: time.sleep(0.1))
        pipe.send(counts(report))
    except RagError as e:
        pipe.send(str(e))


def sync_and_die(pipe: Connection, place: str, options: dict[str, str], lives: int) -> None:
    world = World(place, options=options)
    world.embedding = FatalEmbedding(lives=lives)
    world.sync()


def _place(world: World) -> tuple[str, dict[str, str]]:
    return world.uri.removesuffix("/table"), world.storage_options


# -- as in a folder --------------------------------------------------------------------------------


def test_an_index_follows_its_table(world: World) -> None:
    world.create(frame(a="red apple", b="blue sky", c="green sea"))
    assert counts(world.sync()) == (3, 0, 0, 0, 3)
    world.write(frame(a="red apple", b="grey sky", d="white snow"))
    report = world.sync()
    assert counts(report) == (1, 1, 1, 1, 2)
    assert report.read == "feed"
    assert mirrored(world) == {"a": "red apple", "b": "grey sky", "d": "white snow"}
    assert counts(world.sync()) == (0, 0, 0, 3, 0)
    with elsewhere(read, *_place(world)) as reader:
        assert reader.says() == mirrored(world)
    assert not [n for n in names(world) if "rag-stage" in n or ".sync" in n]


def test_without_a_change_feed_too(world: World) -> None:
    world.write(frame(a="red apple", b="blue sky"))
    world.sync()
    world.write(frame(a="red apple", c="green sea"))
    assert counts(world.sync()) == (1, 0, 1, 1, 1)
    assert mirrored(world) == {"a": "red apple", "c": "green sea"}


def test_older_versions_stay_addressable(world: World) -> None:
    world.create(frame(a="red apple"))
    world.sync()
    world.write(frame(a="green apple"))
    world.sync()
    assert sorted(world.index.tags()) == [0, 1]
    old = world.index.mirrored(0)
    assert old is not None
    assert old.table.search().where("row_key = 'a'").to_list()[0]["text"] == "red apple"
    assert mirrored(world) == {"a": "green apple"}


def test_a_purge_leaves_nothing_of_what_is_deleted(world: World) -> None:
    world.create(frame(a="red apple", b="xylophone"))
    world.sync()
    assert b"xylophone" in _everything(world)
    world.write(frame(a="red apple"))
    world.sync(purge=True)
    assert mirrored(world) == {"a": "red apple"}
    assert b"apple" in _everything(world)
    assert b"xylophone" not in _everything(world)


def _everything(world: World) -> bytes:
    store = _folder(world)
    return b"\n".join(bytes(obstore.get(store, name).bytes()) for name in names(world))


# -- kills and races -------------------------------------------------------------------------------


def test_a_killed_sync_leaves_the_old_index_and_is_gone_on_with(world: World) -> None:
    old, new = rows(3, "old"), rows(600, "new")
    world.create(old)
    world.sync()
    world.write(new)
    with elsewhere(sync_and_die, *_place(world), 400) as other:
        other.process.join()
        assert other.process.exitcode == -signal.SIGKILL
    assert mirrored(world) == wanted(old)
    assert ".sync.lock" in names(world)
    said: list[str] = []
    report = world.sync(progress=lambda what, *_: said.append(what))
    assert said[0].startswith(f"waiting for the sync of process {other.pid} on ")
    assert mirrored(world) == wanted(new)
    # a whole portion of 256 rows was staged by the other one
    assert report.n_embedded <= 600 - 256
    assert not [n for n in names(world) if "rag-stage" in n or ".sync" in n]


def test_kills_at_any_moment_leave_one_version_or_the_next(world: World) -> None:
    random.seed(7)
    tables = [rows(40, "version 0")]
    world.create(tables[0])
    world.sync()
    for n in range(1, 6):
        tables.append(rows(40 + n, f"version {n}"))
        world.write(tables[-1])
        with elsewhere(sync, *_place(world), QUICK["BREAK_S"]) as other:
            assert other.says() == "ready"
            other.pipe.send("go")
            time.sleep(random.uniform(0.1, 1.5))
            other.kill()
        assert mirrored(world) in [wanted(table) for table in tables]
    world.sync()
    assert mirrored(world) == wanted(tables[-1])


def test_two_syncs_at_once_do_the_work_once(world: World) -> None:
    table = rows(300, "text")
    world.create(table)
    with (
        elsewhere(sync, *_place(world), QUICK["BREAK_S"]) as one,
        elsewhere(sync, *_place(world), QUICK["BREAK_S"]) as two,
    ):
        for other in (one, two):
            assert other.says() == "ready"
        for other in (one, two):
            other.pipe.send("go")
        said = sorted([one.says(), two.says()])
    assert said == [(0, 0, 0, 300, 0), (300, 0, 0, 0, 300)]
    assert mirrored(world) == wanted(table)


def test_syncs_that_break_into_each_other_write_nothing_twice(world: World) -> None:
    """The lease is a courtesy: what is right does not hang on it."""
    world.create(rows(20, "old"))
    world.sync()
    table = rows(300, "new")
    world.write(table)
    with (
        elsewhere(sync, *_place(world), 0.0) as one,
        elsewhere(sync, *_place(world), 0.0) as two,
        elsewhere(sync, *_place(world), 0.0) as three,
    ):
        for other in (one, two, three):
            assert other.says() == "ready"
        for other in (one, two, three):
            other.pipe.send("go")
        said = [other.says() for other in (one, two, three)]
    refused = [what for what in said if isinstance(what, str)]
    assert all("could not be written" in what and "\n" not in what for what in refused), refused
    assert mirrored(world) in (wanted(rows(20, "old")), wanted(table))
    world.sync()
    assert mirrored(world) == wanted(table)


def test_who_syncs_is_seen_from_another_machine(world: World) -> None:
    world.create(rows(300, "text"))
    with elsewhere(sync, *_place(world), QUICK["BREAK_S"]) as other:
        assert other.says() == "ready"
        other.pipe.send("go")
        eventually(lambda: (found := _holder(world)) and found.n_total == 300)
        assert _holder(world).pid == other.pid
        assert other.says() == (300, 0, 0, 0, 300)
    assert _holder(world) is None


def _holder(world: World):
    return holder(world.index.uri, world.storage_options)


# -- one sentence each -----------------------------------------------------------------------------


def is_one_sentence(error: BaseException) -> bool:
    """One line without a secret, a trace or a place in somebody's source code."""
    text = str(error)
    hidden = ("\n", "wonderland", ".rs:", "Debug", "\x1b", "<?xml")
    return not [part for part in hidden if part in text]


def test_a_missing_table_is_one_sentence(world: World) -> None:
    with pytest.raises(TableNotFound) as found:
        world.sync()
    assert is_one_sentence(found.value), str(found.value)


def test_a_missing_bucket_is_one_sentence(world: World, s3: S3) -> None:
    with pytest.raises(TableError) as table:
        open_table("s3://no-such-bucket/table", template="{text}", storage_options=s3.options)
    with pytest.raises(IndexingError, match="bucket does not exist") as index:
        NodeStore("s3://no-such-bucket/index", s3.options)
    for error in (table.value, index.value):
        assert is_one_sentence(error), str(error)


def test_wrong_credentials_are_one_sentence_and_the_index_stays(world: World, s3: S3) -> None:
    world.create(frame(a="red apple"))
    world.sync()
    world.write(frame(a="green apple"))
    snapshot = world.snapshot()
    stranger = World(_place(world)[0], options=world.storage_options)
    with s3.refusing():
        with pytest.raises(TableError) as table:
            stranger.sync()
        with pytest.raises(IndexingError, match="refuses the credentials") as opening:
            NodeStore(world.index.uri, world.storage_options)
        with pytest.raises(IndexingError, match="refuses the credentials") as reading:
            stranger.store.get_nodes()
        stranger.snapshot = lambda version=None: snapshot
        with pytest.raises(IndexWriteError, match="refuses the credentials") as writing:
            stranger.sync()
    for error in (table.value, opening.value, reading.value, writing.value):
        assert is_one_sentence(error), str(error)
    assert mirrored(world) == {"a": "red apple"}
    world.sync()
    assert mirrored(world) == {"a": "green apple"}


def test_a_commit_has_one_identity_whichever_version_is_open(world: World) -> None:
    for text in ("red", "blue", "green"):
        world.write(frame(a=text))
    world.sync()
    seen = [[world.snapshot(v).commit_of(n) for n in range(3)] for v in (0, 1, None)]
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == 3
    # so an older version, once mirrored, is known again when the table has moved on
    assert world.sync(version=0).read == "table"
    world.write(frame(a="grey"))
    assert world.sync(version=0).read == "nothing"
