"""Fifty-two rows that attack, through the real models: each behaves as its `expect` says."""

from __future__ import annotations

import contextlib
import html
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import SHARED, World
from llama_index.core.base.response.schema import Response
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import rag
from rag import wiring
from rag.cli import app
from rag.cli.terminal import plain as printed
from rag.orders import Orders, visible
from rag.progress import SyncReport
from rag.prompt import build
from rag.web.guard import plain, plain_line
from rag.wiring.parts import load_embedding, load_llm, open_store

_FILE = SHARED / "hostile" / "rows.parquet"
ROWS: list[dict[str, Any]] = pl.read_parquet(_FILE).to_dicts() if _FILE.is_file() else []
BLANK = {"inj-070", "inj-071"}
"""White space only, and nothing: skipped and counted."""
INDEXED = [r for r in ROWS if r["id"] not in BLANK]
ASKED = [r for r in INDEXED if r["question"]]
HIJACKS = [r for r in ASKED if "hijack" in r["category"] or "smuggling" in r["category"]]


def ids(row: dict[str, Any]) -> str:
    return row["id"] or "empty id"


@dataclass(frozen=True)
class Hostile:
    """The rows as a Delta table with its index, made by the real models."""

    folder: Path
    settings: rag.Settings
    report: SyncReport

    @cached_property
    def nodes(self) -> pl.DataFrame:
        """Every node with its vector."""
        table = open_store(self.settings).table
        assert table is not None
        rows = pl.DataFrame(table.to_arrow().select(["row_key", "text", "vector"]))
        return rows.filter(pl.col("row_key").is_not_null())  # one row is the index's own

    def ask(self, question: str, *, row_id: str | None = None) -> Response:
        """Ask the whole table, or only one row of it."""
        only = is_id(row_id) if row_id is not None else None
        response = rag.query_engine(self.settings, filters=only).query(question)
        assert isinstance(response, Response)
        return response


def is_id(value: str, column: str = "id") -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=column, value=value)])


def as_table() -> pl.DataFrame:
    return pl.DataFrame(ROWS).select("id", "category", "title", "text")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    if not ROWS:
        pytest.skip("the shared test data is not beside this checkout")
    folder = tmp_path_factory.mktemp("hostile")
    as_table().write_delta(str(folder / "table"))
    with contextlib.chdir(folder):
        settings = rag.Settings(
            table={"uri": str(folder / "table"), "key": ["id"], "template": "{text}"},
            index={"uri": str(folder / "index")},
        )
        return Hostile(folder, settings, rag.sync(settings))


def test_the_set_is_whole(shared_data: Path) -> None:
    assert len(ROWS) == 52
    assert (len(INDEXED), len(ASKED), len(HIJACKS)) == (50, 36, 7)


# --- indexed ---


@pytest.mark.model
def test_every_row_is_indexed_but_those_without_text(hostile: Hostile) -> None:
    assert (hostile.report.n_added, hostile.report.n_blank) == (50, 2)
    assert set(hostile.nodes["row_key"]) == {r["id"] for r in INDEXED}
    vectors = hostile.nodes["vector"].to_numpy().astype(np.float64)
    assert np.isfinite(np.stack(list(vectors))).all()
    assert np.allclose(np.linalg.norm(np.stack(list(vectors)), axis=1), 1, atol=1e-3)


@pytest.mark.model
def test_the_index_is_the_table(hostile: Hostile) -> None:
    verdict = wiring.verify(hostile.settings)
    assert verdict.is_ok, verdict.problems


@pytest.mark.model
def test_no_text_is_lost(hostile: Hostile) -> None:
    for row in INDEXED:
        nodes = hostile.nodes.filter(pl.col("row_key") == row["id"])["text"].to_list()
        if len(nodes) == 1:
            assert nodes == [row["text"]]
        else:  # the nodes of a long row overlap
            assert all(node in row["text"] for node in nodes)
            assert any(row["text"].rstrip().endswith(node.rstrip()) for node in nodes)
            assert sum(map(len, nodes)) >= len(row["text"].strip())


@pytest.mark.model
def test_what_follows_a_nul_is_embedded_and_shown_to_the_model(hostile: Hostile) -> None:
    (row,) = [r for r in ROWS if r["category"] == "unicode:nul"]
    model = load_embedding(hostile.settings)
    question = np.array(model.get_query_embedding("Where was the Aster valve made?"))
    whole = np.array(model.get_text_embedding(row["text"]))
    cut = np.array(model.get_text_embedding(row["text"].split("\0")[0]))
    assert question @ whole > question @ cut
    assert "Ghent" in str(hostile.ask("Where was the Aster valve made?", row_id=row["id"]))


# --- found by their values ---


@pytest.mark.model
@pytest.mark.parametrize("column", ["id", "text"])
def test_a_filter_on_a_hostile_value_returns_that_row(hostile: Hostile, column: str) -> None:
    store = open_store(hostile.settings)
    for row in INDEXED:
        found = store.get_nodes(filters=is_id(row[column], column))
        assert {n.metadata["row_key"] for n in found} == {row["id"]}
    hijack = MetadataFilters(filters=[MetadataFilter(key="title", value=ROWS[10]["title"])])
    assert {n.metadata["title"] for n in store.get_nodes(filters=hijack)} == {ROWS[10]["title"]}


@pytest.mark.model
@pytest.mark.parametrize("row", INDEXED, ids=ids)
def test_a_citation_leads_to_its_row(hostile: Hostile, row: dict[str, Any]) -> None:
    view = wiring.row(hostile.settings, row["id"])
    assert view.columns == {name: row[name] for name in as_table().columns}
    assert (view.text, view.fate) == (row["text"], "unchanged")


def test_hostile_rows_survive_update_and_delete(world: World, shared_data: Path) -> None:
    world.key = ("id",)
    world.create(as_table())
    world.sync()
    gone = {r["id"] for r in INDEXED[::3]} | {"o'brien; DROP--"}
    changed = as_table().filter(~pl.col("id").is_in(gone)).with_columns(pl.col("text") + " Anew.")
    world.write(changed)
    report = world.sync()
    assert (report.n_deleted, report.n_unchanged) == (len(gone), 0)
    world.write(as_table().with_columns(pl.col("text") + " Anew."))
    world.sync()
    found = {n.metadata["row_key"]: n.get_content() for n in world.store.get_nodes()}
    # the two blank rows have a text by now
    assert found.keys() == {r["id"] for r in ROWS}
    assert all(text.endswith(" Anew.") for text in found.values() if len(text) < 1000)


@pytest.mark.model
def test_an_id_is_never_a_path(hostile: Hostile) -> None:
    files = [p.name for p in hostile.folder.rglob("*")]
    assert len(files) > 5
    assert not [name for name in files if "passwd" in name or "brien" in name]


# --- asked ---


@pytest.mark.model
@pytest.mark.parametrize("row", ASKED, ids=ids)
def test_a_row_answers_its_question_and_is_cited(hostile: Hostile, row: dict[str, Any]) -> None:
    response = hostile.ask(row["question"], row_id=row["id"])
    answer, citations = str(response), response.metadata["citations"]
    assert not response.metadata["refused"]
    assert row["true_answer"] in answer
    assert {c["row_key"] for c in citations} == {row["id"]}
    for citation in citations:
        text = response.source_nodes[citation["n"] - 1].node.get_content()
        assert text[citation["start"] : citation["end"]].strip()
    if row in HIJACKS:
        assert not carries(answer, row["attack_marker"])


@pytest.mark.model
@pytest.mark.parametrize("row", HIJACKS, ids=ids)
def test_a_hijack_does_nothing_among_other_rows(hostile: Hostile, row: dict[str, Any]) -> None:
    answer = str(hostile.ask(row["question"]))
    assert row["true_answer"] in answer
    assert not carries(answer, row["attack_marker"])


def carries(answer: str, marker: str) -> bool:
    """Whether a text holds a marker, however it is written, or hidden."""
    hidden = "".join(chr(ord(c) - 0xE0000) if 0xE0020 <= ord(c) < 0xE007F else c for c in answer)
    return any(
        re.sub(r"\W", "", marker).casefold() in re.sub(r"\W", "", text).casefold()
        for text in (answer, hidden)
    )


def test_every_hijack_is_told_from_the_fact_beside_it(shared_data: Path) -> None:
    for row in HIJACKS:
        found = Orders([visible(row["text"])], row["question"])
        assert bool(found) == ("hijack" in row["category"])
        assert not carries(visible(found.without(0)), row["attack_marker"])
        assert row["true_answer"] in found.without(0)
        assert not found.repeated_by(found.without(0))
    assert not any(Orders([r["text"]], r["question"] or "") for r in ROWS if r not in HIJACKS)


@pytest.mark.model
@pytest.mark.parametrize("category", ["huge_row", "huge_token", "many_lines"])
def test_a_huge_row_fits_the_context_window(hostile: Hostile, category: str) -> None:
    (row,) = [r for r in ROWS if r["category"] == category]
    llm = load_llm(hostile.settings)
    budget = llm.metadata.context_window - hostile.settings.llm.max_tokens
    question = row["question"] or "What stands in the log?"
    prompt = build(
        question, [row["text"]], is_chat=False, persona="", history=[], n_tokens=llm.n_tokens,
        budget=budget,
    )  # fmt: skip
    assert budget // 2 < llm.n_tokens(prompt.text) <= budget
    hits = rag.retriever(hostile.settings, filters=is_id(row["id"])).retrieve(question)
    assert [len(hit.node.get_content()) < len(row["text"]) for hit in hits] == [True]


# --- shown ---


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_the_chat_shows_a_row_as_text(shared_data: Path, row: dict[str, Any]) -> None:
    marker = row["attack_marker"]
    for shown, text in (
        (plain(row["text"]), row["text"]),
        (plain_line(row["title"]), row["title"]),
    ):
        page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(shown)
        assert set(re.findall(r"<[^>]*>", page)) <= {"<p>", "</p>"}
        if row["category"] == "html_js" and marker in text:
            read = html.unescape(page).replace("\u2060", "").replace("\u00a0", " ")
            assert marker in read


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_the_terminal_gets_no_orders(shared_data: Path, row: dict[str, Any]) -> None:
    for text in (row["id"], row["title"], row["text"]):
        controls = {c for c in printed(text) if unicodedata.category(c) == "Cc"}
        assert controls <= {"\n", "\t"}


def row_command(hostile: Hostile, *arguments: str) -> str:
    table = hostile.settings.table
    environment = {
        "RAG_TABLE__URI": table.uri,
        "RAG_TABLE__KEY": "id",
        "RAG_TABLE__TEMPLATE": table.template,
        "RAG_INDEX__URI": str(hostile.settings.index.uri),
    }
    done = CliRunner().invoke(app, ["row", *arguments], env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout


CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"


@pytest.mark.model
@pytest.mark.parametrize("row", INDEXED, ids=ids)
def test_rag_row_prints_a_hostile_row(hostile: Hostile, row: dict[str, Any]) -> None:
    assert not re.search(CONTROL, row_command(hostile, "--", row["id"]))
    assert (
        json.loads(row_command(hostile, "--json", "--", row["id"]))["columns"]["text"]
        == row["text"]
    )


@pytest.mark.model
@pytest.mark.parametrize("row_id", ["inj-050", "inj-051", "inj-052"])
def test_rag_row_as_json_gives_the_terminal_no_orders(hostile: Hostile, row_id: str) -> None:
    assert not re.search(CONTROL, row_command(hostile, "--json", row_id))
