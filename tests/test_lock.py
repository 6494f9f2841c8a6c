"""Who syncs: in a folder, and on object storage."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store
from processes import elsewhere, eventually
from s3 import S3, s3_server  # noqa: F401 - a fixture

from rag.errors import IndexWriteError
from rag.mirror import lease
from rag.mirror.lock import Holder, alone, holder
from rag.progress import silent


@dataclass
class Place:
    """Where an index is, and how it is reached."""

    uri: str
    options: dict[str, str] | None = None
    said: list[str] = field(default_factory=list)

    def alone(self):
        return alone(self.uri, self.options, lambda what, *_: self.said.append(what))

    def holder(self) -> Holder | None:
        return holder(self.uri, self.options)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are broken after two seconds."""
    for name, seconds in QUICK.items():
        monkeypatch.setattr(lease, name, seconds)


QUICK = {"RENEW_S": 0.3, "BREAK_S": 2.0, "POLL_S": 0.1}


@pytest.fixture
def bucket(s3: S3, quick: None) -> Place:
    return Place(f"{s3.bucket()}/some/index", s3.options)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return Place(str(tmp_path / "an index"))


def sync(pipe: Connection, uri: str, options: dict[str, str] | None) -> None:
    """What the other process does: it syncs until it is told to end."""
    for name, seconds in QUICK.items():
        setattr(lease, name, seconds)
    said = lambda what, *_: pipe.send(what)  # noqa: E731
    try:
        with alone(uri, options, said) as told:
            told("rows", 3, 12)
            pipe.recv()
        pipe.send("out")
    except KeyboardInterrupt:
        pipe.send("interrupted")


# -- both ------------------------------------------------------------------------------------------


def test_who_syncs_is_told_by_name_and_progress(place: Place) -> None:
    assert place.holder() is None
    with place.alone() as told:
        told("rows", 1, 12)
        eventually(lambda: place.holder() and place.holder().what == "rows")
        found = place.holder()
        assert (found.host, found.pid) == (socket.gethostname(), os.getpid())
        assert (found.n_done, found.n_total) == (1, 12)
        age = datetime.now().astimezone() - datetime.fromisoformat(found.since)
        assert abs(age.total_seconds()) < 60
        told("publishing", 0, 0)
        eventually(lambda: place.holder().what == "publishing")
    assert place.holder() is None
    assert place.said == ["rows", "publishing"]


def test_a_failed_sync_is_over(place: Place) -> None:
    with pytest.raises(RuntimeError, match="no model"), place.alone():
        raise RuntimeError("no model")
    assert place.holder() is None
    with place.alone():
        pass
    assert place.said == []


def test_asking_does_not_keep_anybody_from_syncing(place: Place) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            place.holder()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(5):
            with place.alone():
                pass
    finally:
        stop.set()
        asking.join()
    assert place.said == []


def test_a_second_sync_waits_and_is_told_for_whom(place: Place) -> None:
    with elsewhere(sync, place.uri, place.options) as first:
        assert first.says() == "rows"
        eventually(lambda: place.holder() and place.holder().what == "rows")
        held = place.holder()
        assert (held.pid, held.n_done, held.n_total) == (first.pid, 3, 12)
        order: list[str] = []

        def leave() -> None:
            eventually(lambda: place.said)
            time.sleep(0.5)  # for a second message, if it were to be repeated
            order.append("first ends")
            first.pipe.send("end")

        leaving = threading.Thread(target=leave)
        leaving.start()
        with place.alone():
            order.append("second begins")
        leaving.join()
        assert first.says() == "out"
    assert order == ["first ends", "second begins"]
    since = datetime.fromisoformat(held.since).astimezone()
    assert place.said == [
        f"waiting for the sync of process {first.pid} on {socket.gethostname()} since {since:%H:%M}"
    ]


def test_a_killed_holder_is_nobody(place: Place) -> None:
    with elsewhere(sync, place.uri, place.options) as first:
        assert first.says() == "rows"
        assert place.holder().pid == first.pid
        first.kill()
    with place.alone():
        assert place.holder().pid == os.getpid()
    assert place.holder() is None


def test_the_dead_are_not_shown(place: Place) -> None:
    with elsewhere(sync, place.uri, place.options) as first:
        assert first.says() == "rows"
        first.kill()
    eventually(lambda: place.holder() is None)


def test_ctrl_c_ends_the_wait(place: Place) -> None:
    with place.alone(), elsewhere(sync, place.uri, place.options) as second:
        assert str(second.says()).startswith(f"waiting for the sync of process {os.getpid()} ")
        os.kill(second.pid, signal.SIGINT)
        assert second.says() == "interrupted"
        assert place.holder().pid == os.getpid()


def test_many_syncs_at_once_run_one_by_one(place: Place) -> None:
    inside: list[int] = []
    seen: list[int] = []

    def run(n: int) -> None:
        with place.alone():
            inside.append(n)
            time.sleep(0.05)
            seen.append(len(inside))
            inside.remove(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 5


# -- in a folder -----------------------------------------------------------------------------------


def test_a_foreign_record_is_no_holder(tmp_path: Path) -> None:
    record = tmp_path / ".sync.json"
    for text in ("", "[]", "{}", '"x"', json.dumps({"host": "a", "pid": 1, "since": "yesterday"})):
        with alone(str(tmp_path), None, silent):
            record.write_text(text)
            assert holder(str(tmp_path), None) is None


def try_as_nobody(pipe: Connection, folders: list[str]) -> None:
    if os.getuid() == 0:  # who may write anywhere
        os.setgid(65534)
        os.setuid(65534)
    for folder in folders:
        pipe.send(holder(folder, None))
        try:
            with alone(folder, None, silent):
                pipe.send("in")
        except IndexWriteError as e:
            pipe.send(str(e))


def test_a_folder_of_somebody_else_is_one_sentence(tmp_path: Path) -> None:
    new, used = tmp_path / "new", tmp_path / "used"
    new.mkdir()
    with alone(str(used), None, silent):
        pass
    (used / ".sync.lock").chmod(0o444)
    for folder in (new, used):
        folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):  # pytest makes them for their owner only
        parent.chmod(0o755)
    with elsewhere(try_as_nobody, [str(new), str(used)]) as nobody:
        for folder in (new, used):
            assert nobody.says() is None
            assert nobody.says() == (
                f"The index at {str(folder)!r} could not be written: permission denied. "
                "The previous index still serves; make room or fix the permission, "
                "then run `rag sync` again."
            )
    assert not list(new.iterdir())


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("not a folder")
    place = Place(str(tmp_path / "index"))
    with pytest.raises(IndexWriteError, match="written: file exists"), place.alone():
        raise AssertionError


def sync_without_room(pipe: Connection, folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as on a full disk, no byte can be written
    with alone(folder, None, silent) as told:
        told("purging", 0, 0)
        pipe.send(sorted(p.name for p in Path(folder).iterdir() if p.stat().st_size))
        pipe.send(holder(folder, None))


def test_a_full_disk_does_not_keep_a_sync_from_making_room(tmp_path: Path) -> None:
    with elsewhere(sync_without_room, str(tmp_path)) as other:
        assert other.says() == []
        assert other.says() is None


# -- on object storage -----------------------------------------------------------------------------


def folder_of(place: Place) -> S3Store:
    name, _, prefix = place.uri.removeprefix("s3://").partition("/")
    config = {k: v for k, v in place.options.items() if k != "AWS_ALLOW_HTTP"}
    return S3Store(name, prefix=prefix, config=config, client_options={"allow_http": True})


def test_a_lease_that_is_renewed_is_not_broken(bucket: Place) -> None:
    entered: list[bool] = []

    def wait() -> None:
        with bucket.alone():
            entered.append(True)

    waiting = threading.Thread(target=wait)
    with bucket.alone() as told:
        told("rows", 0, 0)
        waiting.start()
        time.sleep(2 * QUICK["BREAK_S"])
        assert entered == []
        told("rows", 1, 0)
    waiting.join()
    assert entered == [True]


def test_a_sync_that_lost_its_lease_is_told(bucket: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 4.0)  # asleep for longer than others wait
    with bucket.alone() as first:
        first("rows", 1, 2)
        monkeypatch.setattr(lease, "RENEW_S", 0.3)
        with bucket.alone() as second:
            second("rows", 1, 2)
            with pytest.raises(IndexWriteError, match="another sync took its place"):
                eventually(lambda: first("rows", 2, 2))
            second("rows", 2, 2)
            eventually(lambda: bucket.holder().n_done == 2)
    # the first one, which ends last, has not removed what was no longer its own
    assert bucket.holder() is None


def test_the_end_of_a_lost_sync_leaves_the_lease_to_the_other(bucket: Place) -> None:
    first = bucket.alone()
    told = first.__enter__()
    obstore.delete(folder_of(bucket), ".sync.lock")
    with bucket.alone():
        with pytest.raises(IndexWriteError, match="another sync took its place"):
            eventually(lambda: told("rows", 2, 2))
        first.__exit__(None, None, None)
        assert bucket.holder() is not None
    assert bucket.holder() is None


def test_wrong_clocks_do_not_break_a_lease(bucket: Place) -> None:
    """A record that says it is a day old, or of tomorrow, is judged by what happens to it."""
    ended = threading.Event()

    def wait() -> None:
        with bucket.alone():
            ended.set()

    waiting = threading.Thread(target=wait)
    record = {"host": "mars", "pid": 7, "what": "", "n_done": 0, "n_total": 0}
    for n in range(12):
        since = "2020-01-01T00:00:00+00:00" if n % 2 else "2100-01-01T00:00:00+00:00"
        obstore.put(
            folder_of(bucket), ".sync.lock", json.dumps({**record, "since": since, "n": n}).encode()
        )
        if n == 0:
            waiting.start()
        time.sleep(QUICK["BREAK_S"] / 4)
        assert not ended.is_set()
    waiting.join()
    assert "waiting for the sync of process 7 on mars since 2020-01-01" in " ".join(bucket.said)


def test_a_record_that_says_nothing_is_still_a_lease(bucket: Place) -> None:
    obstore.put(folder_of(bucket), ".sync.lock", b"\xff not json")
    assert bucket.holder() is None
    with bucket.alone():
        assert bucket.holder() is not None
    assert bucket.said == ["waiting for another sync"]


def test_only_the_lease_is_left_behind_by_a_kill(bucket: Place) -> None:
    with bucket.alone():
        names = [o["path"] for page in obstore.list(folder_of(bucket)) for o in page]
        assert names == [".sync.lock"]
    assert not [o for page in obstore.list(folder_of(bucket)) for o in page]


def test_a_missing_bucket_is_one_sentence(s3: S3, quick: None) -> None:
    place = Place("s3://no-such-bucket/index", s3.options)
    expected = "index' could not be written: its bucket does not exist .NoSuchBucket.. The previous"
    with pytest.raises(IndexWriteError, match=expected), place.alone():
        raise AssertionError
    with pytest.raises(IndexWriteError, match=expected):
        place.holder()


def test_wrong_credentials_are_one_sentence_without_the_secret(s3: S3, quick: None) -> None:
    place = Place(f"{s3.bucket()}/index", s3.options)
    with s3.refusing():
        with pytest.raises(IndexWriteError, match="refuses the credentials") as refused:
            place.alone().__enter__()
        with pytest.raises(IndexWriteError, match="refuses the credentials"):
            place.holder()
    assert str(refused.value).count(". ") == 1
    for secret in ("alice", "wonderland"):
        assert secret not in str(refused.value)


def test_a_server_that_is_not_there_is_one_sentence(quick: None, s3: S3) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        place = Place("s3://bucket/index", s3.options | {"AWS_ENDPOINT_URL": url})
        with pytest.raises(IndexWriteError) as unreachable:
            place.holder()
    assert "\n" not in str(unreachable.value)
    assert "the storage cannot be reached" in str(unreachable.value)
    assert "wonderland" not in str(unreachable.value)


OPTIONS = {
    "lower case": str.lower,
    "without a prefix": lambda name: name.lower().removeprefix("aws_"),
    "upper case": str,
}


@pytest.mark.parametrize("spelt", OPTIONS.values(), ids=OPTIONS)
def test_options_are_understood_in_every_spelling(s3: S3, quick: None, spelt) -> None:
    options = {spelt(name): value for name, value in s3.options.items()}
    # what LanceDB and deltalake understand alone is nothing to fail on
    options |= {"timeout": "5s", "new_table_data_storage_version": "stable"}
    place = Place(f"{s3.bucket()}/index", options)
    with place.alone():
        assert place.holder() is not None


def test_a_storage_without_leases_is_synced_all_the_same() -> None:
    place = Place("hdfs://somewhere/index")
    with place.alone() as told:
        told("rows", 1, 1)
        assert place.holder() is None
    assert place.said == ["rows"]
