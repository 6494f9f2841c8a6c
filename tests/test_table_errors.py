"""Tables that cannot be read as asked: each says so in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from rag.errors import FeatureUnsupported, TableError, TableNotFound, VersionGone
from rag.table import FeedUnreadable, open_table

Write = Callable[..., str]
FEED = {"delta.enableChangeDataFeed": "true"}


def keys(uri: str, version: int | None = None) -> list[str]:
    return open_table(uri, template="{t}", version=version).contents().frame["row_key"].to_list()


def texts(uri: str) -> list[str]:
    return [t for rows in open_table(uri, template="{t}").rows() for t in rows.texts]


def test_what_is_not_a_delta_table(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("nothing", "folder", "file"):
        with pytest.raises(TableNotFound, match="RAG_TABLE__URI"):
            open_table(str(tmp_path / name), template="{t}")


def test_a_damaged_log_is_one_sentence(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"t": ["a"]}))
    (Path(uri) / "_delta_log" / "00000000000000000001.json").write_text("garbage")
    with pytest.raises(TableError) as failure:
        open_table(uri, template="{t}")
    assert "\n" not in str(failure.value)


def test_a_missing_data_file_is_one_sentence(write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"t": ["a"]}))
    for path in Path(uri).glob("*.parquet"):
        path.unlink()
    with pytest.raises(TableError, match="cannot be read"):
        keys(uri)


def one_sentence(failure: pytest.ExceptionInfo[TableError]) -> str:
    said = str(failure.value)
    assert "\n" not in said
    assert "\x1b" not in said
    return said


def test_a_vacuumed_version_is_named(write_table: Write) -> None:
    write_table(pl.DataFrame({"t": ["old"]}))
    uri = write_table(pl.DataFrame({"t": ["new"]}))
    DeltaTable(uri).vacuum(0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(VersionGone, match="at version 0 .*gone.*RAG_TABLE__VERSION") as failure:
        open_table(uri, template="{t}", version=0).contents()
    one_sentence(failure)
    assert len(keys(uri)) == 1


@pytest.mark.parametrize(
    ("protocol", "named"),
    [
        (
            (3, 7, ["typeWidening", "vacuumProtocolCheck"]),
            "'typeWidening'.*'vacuumProtocolCheck'|'vacuumProtocolCheck'.*'typeWidening'",
        ),
        ((3, 7, ["typeWidening-preview"]), "'typeWidening-preview'"),
        ((3, 7, ["notYetKnown"]), "'notYetKnown'"),
        ((3, 7, ["geospatial"]), "'geospatial'"),
        ((3, 7, ["catalogManaged"]), "'catalogManaged'"),
        ((4, 9, None), "'reader version 4'"),
    ],
)
def test_a_feature_that_the_reader_lacks_is_named(
    write_table: Write, protocol: tuple[int, int, list[str] | None], named: str
) -> None:
    uri = write_table(pl.DataFrame({"t": ["a"]}))
    reader, writer, features = protocol
    action = {"minReaderVersion": reader, "minWriterVersion": writer}
    if features is not None:
        action |= {"readerFeatures": features, "writerFeatures": features}
    log = Path(uri) / "_delta_log" / "00000000000000000001.json"
    log.write_text(json.dumps({"protocol": action}))
    with pytest.raises(FeatureUnsupported, match=named) as failure:
        open_table(uri, template="{t}").contents()
    assert "RAG_TABLE__URI" in one_sentence(failure)
    # the version before it needs nothing
    assert len(keys(uri, version=0)) == 1


@pytest.mark.parametrize("name", ["a[b", "a]b", "a^b", "a|b", "a%b", "100 % sure", "a#b", "ä b"])
def test_a_table_with_an_odd_path_is_read(tmp_path: Path, name: str) -> None:
    # deltalake can write none of the first four, nor read their change feed
    rows = pl.DataFrame({"row_id": ["a"], "t": ["1"]})
    write_deltalake(str(tmp_path / "plain"), rows, configuration=FEED)
    DeltaTable(str(tmp_path / "plain")).update(updates={"t": "'2'"})
    uri = str(shutil.copytree(tmp_path / "plain", tmp_path / name))
    snapshot = open_table(uri, template="{t}")
    assert texts(uri) == ["2"]
    row = snapshot.row("a")
    assert row is not None
    assert row.text == "2"
    if set(name) & set("[]^|"):
        with pytest.raises(FeedUnreadable, match="in the path"):
            list(snapshot.changes(0))
        assert snapshot.row_versions(None) is None
    else:
        assert len(list(snapshot.changes(0))) > 0


@pytest.mark.parametrize("name", ["a%20b", "a%5Bb", "a\\b"])
def test_a_path_that_means_another_to_the_reader_is_refused(tmp_path: Path, name: str) -> None:
    write_deltalake(str(tmp_path / "plain"), pl.DataFrame({"t": ["1"]}))
    uri = str(shutil.copytree(tmp_path / "plain", tmp_path / name))
    with pytest.raises(TableError, match="for another character. Rename") as failure:
        open_table(uri, template="{t}")
    one_sentence(failure)
    with pytest.raises(TableNotFound):
        open_table(uri + "not", template="{t}")


def test_permission_denied_is_one_sentence() -> None:
    # root may read everything: another user tries, in a process of its own
    script = (
        "import os, sys; from rag.errors import TableError; from rag.table import open_table\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "for uri in sys.argv[1:]:\n"
        "    try: open_table(uri, template='{t}').contents()\n"
        "    except TableError as e: print(e)"
    )
    hidden = ["_delta_log", "_delta_log/*.json", "*.parquet", "."]
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tables = [Path(folder) / str(i) for i in range(len(hidden))]
        for table, pattern in zip(tables, hidden, strict=True):
            write_deltalake(str(table), pl.DataFrame({"t": ["a"]}))
            for path in [table] if pattern == "." else list(table.glob(pattern)):
                path.chmod(0)
        run = subprocess.run(
            [sys.executable, "-c", script, *map(str, tables)],
            capture_output=True,
            text=True,
            check=False,
        )
        for path in [*tables, *(t / "_delta_log" for t in tables)]:
            path.chmod(0o755)  # so that it can be removed
    assert run.stderr == ""
    said = run.stdout.splitlines()
    assert len(said) == len(hidden)
    assert all(f"{t}' " in line for t, line in zip(tables, said, strict=True))
    assert all("permission is denied for" in line for line in said)
