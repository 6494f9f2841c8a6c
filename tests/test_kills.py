"""A sync killed at any moment leaves an index that answers, and the next sync completes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import World
from fakes import _vector
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from processes import eventually

from rag.mirror import n_staged

SYNC = """
import json, sys, time
from pathlib import Path
arguments = json.loads(sys.argv[1])
sys.path[:0] = arguments["path"]
from conftest import World
world = World(Path(arguments["folder"]), arguments["template"])
embed = world.embedding._get_text_embedding
def slowly(text):
    print("embedded", flush=True)
    time.sleep(arguments["seconds"])
    return embed(text)
object.__setattr__(world.embedding, "_get_text_embedding", slowly)
def tell(what, n_done, n_total):
    print(what, flush=True)
print("ready", flush=True)
world.sync(arguments["version"], progress=tell, **arguments["options"])
print("done", flush=True)
"""


class Killed:
    """A sync in a process of its own."""

    def __init__(
        self, world: World, *, version: int | None = None, seconds: float = 0.002, **options: bool
    ) -> None:
        arguments = {
            "path": sys.path,
            "folder": str(Path(world.uri).parent),
            "template": world.template,
            "version": version,
            "seconds": seconds,
            "options": options,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", SYNC, json.dumps(arguments)], stdout=subprocess.PIPE, text=True
        )

    def wait_for(self, line: str, n: int = 1) -> bool:
        """Read what it says until it has said this `n` times; False when it ends before."""
        assert self.process.stdout is not None
        for said in self.process.stdout:
            n -= said.strip() == line
            if n == 0:
                return True
        return False

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()


def frame(rows: dict[str, str]) -> pl.DataFrame:
    return pl.DataFrame({"row_id": list(rows), "text": list(rows.values())})


def texts(world: World) -> dict[str, str]:
    nodes = world.store.get_nodes()
    assert len({n.node_id for n in nodes}) == len(nodes)
    return {n.metadata["row_key"]: n.text for n in nodes}


@pytest.mark.parametrize("n_lines", [1, 200, 300, 550])
def test_a_killed_sync_leaves_the_old_index_and_goes_on(world: World, n_lines: int) -> None:
    world.write(frame({"a": "red apple"}))
    world.sync()
    rows = {f"k{i}": f"text {i}" for i in range(600)}
    world.write(frame(rows))
    killed = Killed(world)
    assert killed.wait_for("embedded", n_lines)
    killed.kill()
    assert texts(world) == {"a": "red apple"}
    n_kept = n_staged(world.index)
    assert n_kept % 256 == 0  # whole portions
    assert (n_kept >= 256) == (n_lines > 256)
    # what was staged is not embedded again, also when the table has moved on meanwhile
    del rows["k0"]
    rows["new"] = "one more"
    world.write(frame(rows))
    assert 600 - n_kept <= world.sync().n_embedded <= 601 - n_kept
    assert texts(world) == rows
    assert n_staged(world.index) == 0


def test_an_interrupted_switch_of_the_template_resumes(world: World) -> None:
    rows = {f"k{i}": f"text {i}" for i in range(600)}
    world.write(frame(rows))
    world.sync()
    world.template = "so: {text}"
    killed = Killed(world)
    assert killed.wait_for("embedded", 300)
    killed.kill()
    assert texts(world) == rows
    # a sync with the old settings in between does not throw the new build away
    world.template = "{text}"
    rows["new"] = "one more"
    world.write(frame(rows))
    assert world.sync().n_embedded == 1
    world.template = "so: {text}"
    assert world.sync().n_embedded == 601 - 256
    assert texts(world) == {k: f"so: {v}" for k, v in rows.items()}


@pytest.mark.parametrize("moment", ["publishing", "building the search indexes"])
def test_a_switch_killed_while_it_publishes_answers_all_the_time(world: World, moment: str) -> None:
    rows = {f"k{i}": f"text {i}" for i in range(300)}
    world.write(frame(rows))
    world.sync()
    world.template = "so: {text}"
    killed = Killed(world, seconds=0)
    assert killed.wait_for(moment)
    killed.kill()
    found = texts(world)
    assert found in (rows, {k: f"so: {v}" for k, v in rows.items()})
    assert world.sync().n_embedded == 0
    assert texts(world) == {k: f"so: {v}" for k, v in rows.items()}


def test_the_old_index_answers_until_the_new_one_is_complete(world: World) -> None:
    rows = {f"k{i}": f"text {i}" for i in range(300)}
    world.write(frame(rows))
    world.sync()
    new = {k: f"so: {v}" for k, v in rows.items()}
    seen: list[str] = []
    stop = threading.Event()

    def read() -> None:
        reader = World(Path(world.uri).parent)
        while not stop.is_set():
            found = texts(reader)
            seen.append("old" if found == rows else "new" if found == new else repr(found)[:200])

    reading = threading.Thread(target=read)
    reading.start()
    world.template = "so: {text}"
    switching = Killed(world, seconds=0.001)
    assert switching.wait_for("done")
    switching.process.wait()
    assert switching.process.stdout is not None
    switching.process.stdout.close()
    n_seen = len(seen)
    eventually(lambda: len(seen) > n_seen + 1)  # a reading that began after the switch
    stop.set()
    reading.join()
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert seen == sorted(seen, reverse=True)  # never back, never anything else


def test_two_syncs_at_once_both_end_right(world: World) -> None:
    rows = {f"k{i}": f"text {i}" for i in range(300)}
    world.write(frame(rows))
    both = [Killed(world) for _ in range(2)]
    outputs = [k.process.communicate()[0] for k in both]
    assert [k.process.returncode for k in both] == [0, 0]
    assert sum(o.count("embedded") for o in outputs) == 300
    assert texts(world) == rows


def test_a_second_sync_waits_for_the_first(world: World) -> None:
    rows = {f"k{i}": f"text {i}" for i in range(300)}
    world.write(frame(rows))
    first = Killed(world)
    assert first.wait_for("embedded")
    os.kill(first.process.pid, signal.SIGSTOP)  # or it might end before the second has begun
    try:
        second = Killed(world)
        assert second.process.stdout is not None
        for said in second.process.stdout:
            if said.startswith(f"waiting for the sync of process {first.process.pid} on "):
                break
        else:
            pytest.fail("the second sync did not wait for the first")
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    outputs = [k.process.communicate()[0] for k in (first, second)]
    assert [k.process.returncode for k in (first, second)] == [0, 0]
    assert [o.count("embedded") for o in outputs] == [299, 0]
    assert texts(world) == rows


class Kills:
    """Syncs of a changing table, each killed at a random moment; what must hold afterwards."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance, self.folder = random.Random(seed), folder
        self.world = World(folder / "0")
        self.n_worlds = 0
        self.versions: list[dict[str, str]] = []
        self.started = False

    def step(self) -> None:
        """Change something, sync, kill, check."""
        what = self.chance.choice(["full", "incremental", "incremental", "switch", "beside"])
        if what == "full" or not self.versions:
            self._begin()
        world = self.world
        version = None
        if what == "incremental" or not self.started:
            self._change()
        elif what == "switch":
            world.template = "{text}" if world.template != "{text}" else "so: {text}"
        elif what == "beside" and len(self.versions) > 1:
            version = self.chance.randrange(len(self.versions) - 1)
        killed = Killed(world, version=version, seconds=self.chance.choice([0.0, 0.002]))
        line = self.chance.choice(["ready", "embedded", "publishing", "publishing", "done"])
        if killed.wait_for(line):
            time.sleep(self.chance.uniform(0, 0.25))
        killed.kill()
        self.check()

    def check(self) -> None:
        """Whatever answers mirrors one version exactly, and so does every tagged one."""
        index = self.world.index
        answering = index.answering()
        if answering is None:
            assert not self.started
            return
        self.started = True
        reader = World(self.folder / str(self.n_worlds), answering.state.template)
        expected = [answering.state.table_version]
        expected += [v for v, n in index.tags().items() if n >= answering.state.oldest][:2]
        for version in expected:
            reader.store.expect(version=version)
            rows = self.versions[version]
            wanted = {k: reader.template.replace("{text}", v) for k, v in rows.items()}
            assert texts(reader) == wanted, version
            key = min(rows)
            query = VectorStoreQuery(
                query_embedding=_vector(wanted[key]),
                query_str=wanted[key],
                similarity_top_k=3,
                doc_ids=[key],
            )
            for mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.TEXT_SEARCH):
                query.mode = mode
                assert reader.store.query(query).ids == [f"0:{key}"]
        nodes = index.answering().table.search().where("row_hash IS NOT NULL").limit(None)
        for node in nodes.to_list():
            assert np.allclose(node["vector"], _vector(node["text"]), atol=1e-6)

    def end(self) -> None:
        """Let a last sync complete."""
        self.world.sync()
        self.check()
        if n_staged(self.world.index):  # of an interrupted switch: kept for whoever goes on with it
            self.world.template = "{text}" if self.world.template != "{text}" else "so: {text}"
            self.world.sync()
            self.check()
        assert n_staged(self.world.index) == 0
        state = self.world.store.state()
        assert state is not None
        assert state.table_version == len(self.versions) - 1
        assert state.template == self.world.template

    def _begin(self) -> None:
        if self.versions:
            self.end()
        self.n_worlds += 1
        self.world, self.versions, self.started = World(self.folder / str(self.n_worlds)), [], False

    def _change(self) -> None:
        rows = dict(self.versions[-1]) if self.versions else {}
        for key in self.chance.sample(sorted(rows), len(rows) // 5):
            del rows[key]
        for i in self.chance.sample(range(300), 80 if rows else 300):
            rows[f"k{i}"] = f"text {i} of {len(self.versions)}"
        if self.versions:
            self.world.write(frame(rows))
        else:
            self.world.create(frame(rows))
        self.versions.append(rows)


def test_fifteen_kills(tmp_path: Path) -> None:
    kills = Kills(tmp_path, seed=15)
    for _ in range(15):
        kills.step()
    kills.end()


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    kills = Kills(tmp_path, seed=int.from_bytes(os.urandom(4)))
    for _ in range(100):
        kills.step()
    kills.end()
