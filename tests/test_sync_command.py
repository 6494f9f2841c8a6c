"""`rag sync` and `rag status` as a person at the terminal has them, with a tiny real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import tiny_e5
from deltalake import DeltaTable, write_deltalake
from processes import eventually
from test_cli import run

import rag
from rag import wiring
from rag.errors import (
    IndexMismatch,
    IndexNotBuilt,
    OtherTable,
    RagError,
    RowNotFound,
    SettingsError,
    VersionNotMirrored,
)
from rag.weights import e5_pack
from rag.wiring import parts


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table of three rows and the settings that read it."""
    (tmp_path / "e5").mkdir()
    e5_pack.repack(tiny_e5.data_file(), tmp_path / "e5")
    rows = pl.DataFrame({"row_id": ["a", "b", "c"], "text": ["wolf", "red", "blue"]})
    write_deltalake("table", rows, configuration={"delta.enableChangeDataFeed": "true"})
    (tmp_path / "rag.toml").write_text(
        '[table]\nuri = "table"\ntemplate = "{text}"\n'
        '[embedding]\nmodel = "e5"\nchunk_tokens = 40\nchunk_overlap = 5\n'
    )
    return tmp_path


def append(**texts: str) -> None:
    rows = pl.DataFrame({"row_id": list(texts), "text": list(texts.values())})
    write_deltalake("table", rows, mode="append")


def test_a_dry_run_says_what_would_change_and_changes_nothing(here: Path) -> None:
    first = run("sync", "--dry-run", cwd=here)
    assert "To mirror version 0: +3 ~0 −0 rows, 0 unchanged; 3 texts to embed" in first.stdout
    assert not list(Path("data").rglob("*.lance"))
    assert run("sync", cwd=here).returncode == 0
    append(d="green", e="red")
    DeltaTable("table").delete("row_id = 'a'")
    told = json.loads(run("sync", "--dry-run", "--json", cwd=here).stdout)
    assert (told["n_added"], told["n_deleted"], told["n_embedded"]) == (2, 1, 1)
    assert told["answering_version"] is None
    status = run("status", cwd=here)
    assert "version 2: +2 −1 ~0" in status.stdout
    assert "version 0, 3 rows" in status.stdout
    done = json.loads(run("sync", "--json", cwd=here).stdout)
    assert {k: done[k] for k in told if k.startswith("n_")} == {
        k: v for k, v in told.items() if k.startswith("n_")
    }


def test_versions_stay_addressable_until_a_purge(here: Path) -> None:
    append(d="green")
    assert run("sync", cwd=here).returncode == 0
    beside = run("sync", "--version", "0", cwd=here)
    assert "version 0 beside version 1, which still answers: +0 ~0 −1 rows" in beside.stdout
    assert "also mirrored    version 0" in run("status", cwd=here).stdout
    settings = rag.Settings()
    keys = lambda **o: {  # noqa: E731
        h.node.metadata["row_key"] for h in rag.retriever(settings, **o).retrieve("wolf")
    }
    assert keys() == {"a", "b", "c", "d"}
    assert keys(version=0) == {"a", "b", "c"}
    assert {
        h.node.metadata["table_version"]
        for h in rag.retriever(rag.Settings(table={"version": 0})).retrieve("wolf")
    } == {0}
    purged = run("sync", "--purge", cwd=here)
    assert "No longer addressable: version 0." in purged.stdout
    with pytest.raises(VersionNotMirrored, match="rag sync --version 0"):
        rag.retriever(settings, version=0)
    assert keys() == {"a", "b", "c", "d"}


def test_a_new_template_refuses_until_it_is_built(here: Path) -> None:
    old, new = rag.Settings(), rag.Settings(table={"uri": "table", "template": "so: {text}"})
    with pytest.raises(IndexNotBuilt):
        rag.retriever(old)
    rag.sync(old)
    with pytest.raises(IndexMismatch, match="template '{text}', but the settings say 'so: {text}'"):
        rag.retriever(new)
    told: list[str] = []

    def interrupted(what: str, n_done: int, n_total: int) -> None:
        if what == "publishing":
            with pytest.raises(IndexMismatch) as refusal:
                rag.retriever(new)
            told.append(str(refusal.value))
            assert rag.retriever(old).retrieve("wolf")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rag.sync(new, progress=interrupted)
    assert f"`rag sync` is building it: process {os.getpid()}" in told[0]
    with pytest.raises(IndexMismatch, match="interrupted build has 3 nodes; `rag sync` goes on"):
        rag.retriever(new)
    assert rag.sync(new).n_embedded == 0
    assert rag.retriever(new).retrieve("wolf")[0].node.text.startswith("so: ")
    with pytest.raises(IndexMismatch):
        rag.retriever(old)


def test_following_mirrors_each_new_version(here: Path) -> None:
    told = Path("told")
    with told.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "rag", "sync", "--follow", "--every", "0.2s", "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None

    def report() -> dict[str, int]:
        return json.loads(next(iter(process.stdout or ())))

    assert report()["n_added"] == 3
    append(d="green")
    assert report()["n_added"] == 1
    Path("table").rename("away")
    eventually(lambda: "no Delta table at 'table'" in " ".join(told.read_text().split()))
    Path("away").rename("table")
    append(e="grey")
    assert report()["table_version"] == 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped. The index answers as it is." in told.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--follow", "--every", "soon"), "--every is 'soon'; write a duration such as 30s"),
        (("--follow", "--version", "0"), "--follow goes with --every and --json only"),
        (("--every", "5s"), "--every says how often --follow looks at the table"),
        (("--purge", "--dry-run"), "--dry-run changes nothing, --purge does"),
        (("--version", "9"), "no readable version 9; its latest is 0"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    here: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run("sync", *arguments, cwd=here)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_bad_keys_are_refused_or_picked(here: Path) -> None:
    append(a="second a")
    refused = run("sync", cwd=here)
    assert refused.returncode == 1
    assert "RAG_TABLE__ON_BAD_KEY=pick" in " ".join(refused.stderr.split())
    picked = run("sync", cwd=here, RAG_TABLE__ON_BAD_KEY="pick")
    assert "+3 ~0 −0 rows, 0 unchanged, 1 left out for their key" in picked.stdout
    again = run("sync", cwd=here, RAG_TABLE__ON_BAD_KEY="pick")
    assert "+0 ~0 −0 rows, 3 unchanged, 1 left out" in again.stdout


def _replaced(here: Path) -> None:
    Path("table").rename("away")
    write_deltalake("table", pl.DataFrame({"row_id": ["z"], "text": ["other"]}))


def _key_renamed(here: Path) -> None:
    rows = pl.DataFrame({"id": ["a"], "text": ["wolf"]})
    write_deltalake("table", rows, mode="overwrite", schema_mode="overwrite")
    (here / "rag.toml").write_text(
        (here / "rag.toml").read_text().replace("[table]", '[table]\nkey = "row_id"')
    )


def _column_dropped(here: Path) -> None:
    rows = pl.DataFrame({"row_id": ["a"], "words": ["wolf"]})
    write_deltalake("table", rows, mode="overwrite", schema_mode="overwrite")


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        (lambda here: Path("table").rename("away"), "There is no Delta table at 'table'"),
        (_replaced, "The table at 'table' was made anew since the index"),
        (_key_renamed, "has no column 'row_id'; it has 'id', 'text'"),
        (_column_dropped, "has no column 'text'; it has 'row_id', 'words'"),
    ],
    ids=["deleted", "replaced", "key renamed", "column dropped"],
)
def test_whatever_happens_to_the_table_the_old_index_answers(
    here: Path, happens: Callable[[Path], object], message: str
) -> None:
    rag.sync(rag.Settings())
    happens(here)
    with pytest.raises(RagError) as failure:
        rag.sync(rag.Settings())
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)
    found = parts.open_store(rag.Settings()).get_nodes()
    assert {n.text for n in found} == {"wolf", "red", "blue"}


def test_status_says_what_keeps_it_from_answering(here: Path) -> None:
    rag.sync(rag.Settings())
    assert wiring.status(rag.Settings()).problem is None
    append(a="second a")
    assert "repeats in 2 rows" in str(wiring.status(rag.Settings()).problem)
    told = run("status", cwd=here, RAG_TABLE__TEMPLATE="so: {text}")
    assert "template '{text}', but the settings say 'so: {text}'" in " ".join(told.stderr.split())


def test_one_table_has_one_index_however_its_place_is_written(here: Path) -> None:
    rag.sync(rag.Settings())
    for uri in ("./table", "table/", str(here / "table"), f"file://{here}/table"):
        settings = rag.Settings(table={"uri": uri, "template": "{text}"})
        assert wiring.index_uri(settings) == wiring.index_uri(rag.Settings()), uri
        assert rag.retriever(settings).retrieve("wolf")


def test_a_deleted_row_is_shown_as_it_last_was(here: Path) -> None:
    rag.sync(rag.Settings())
    DeltaTable("table").delete("row_id = 'a'")
    rag.sync(rag.Settings())
    found = wiring.row(rag.Settings(), "a")
    assert (found.table_version, found.fate, found.columns["text"]) == (0, "deleted", "wolf")
    with pytest.raises(RowNotFound):
        wiring.row(rag.Settings(), "a", version=1)


def test_a_row_of_another_table_is_not_shown(here: Path) -> None:
    rag.sync(rag.Settings())
    _replaced(here)
    with pytest.raises(OtherTable, match="made anew"):
        wiring.row(rag.Settings(), "z")


def test_a_version_is_not_negative(here: Path) -> None:
    rag.sync(rag.Settings())
    with pytest.raises(SettingsError, match="The version is -3; a table's versions begin at 0"):
        rag.retriever(rag.Settings(), version=-3)
    done = run("sync", "--version=-1", cwd=here)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_whole_node_cannot_be_shared() -> None:
    with pytest.raises(SettingsError, match="chunk_overlap 60 is not less than chunk_tokens 60"):
        rag.Settings(embedding={"chunk_tokens": 60, "chunk_overlap": 60})
