"""What is asked besides the question: filters, the version, commands; and the charts."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import chainlit as cl
import chainlit.socket as chainlit_socket
import polars as pl
import pytest
from asking_app import ANSWERS, FACTS, HOSTILE, VERSIONS, offer, on_message
from chainlit.chat_context import chat_contexts
from chainlit.config import config
from chainlit.context import init_ws_context
from chainlit.session import WebsocketSession
from chainlit.user_session import user_sessions
from chat_server import serving
from conftest import World
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.sync_api import Page, Request, expect, sync_playwright
from scripted_app import HITS

from rag.errors import FilterError, QuestionError, RagError
from rag.provenance import RowView
from rag.search import Search, by_vector
from rag.table import ColumnFacts
from rag.web import asking, commands, filters, stats
from rag.web.asking import Asking
from rag.web.commands import Command
from rag.web.filters import field

ROOT = Path(__file__).parent.parent
LONG_NAME = "long " * 40


def ids(widgets: list[Any]) -> list[str]:
    return [w.id for w in widgets]


def widget(column: ColumnFacts, values: dict[str, Any] | None = None, n: int = 0) -> dict[str, Any]:
    return filters.widgets([column], values)[n].to_dict()


BIOME, IN_STOCK, PRICE, ADDED, NAMED, _ = FACTS
SEEN = ColumnFacts(
    "seen_at", "date", least=dt.datetime(2026, 1, 1, 5), most=dt.datetime(2026, 1, 9, 5)
)


# --- fields ----------------------------------------------------------------------------------


def test_each_column_has_its_fields_in_order() -> None:
    found = filters.widgets(FACTS)
    assert [w.type for w in found] == ["multiselect", "select", *["textinput"] * 6]
    assert all(w.id.startswith(filters.PREFIX) for w in found)
    assert [w.label for w in found[2:6]] == [
        "price_gold, from",
        "price_gold, to",
        "added_on, from",
        "added_on, to",
    ]
    assert [w.placeholder for w in found[2:6]] == ["6", "900", "2025-02-03", "2026-10-30"]
    assert filters.chosen(FACTS, {w.id: w.initial for w in found}) is None
    assert filters.told(FACTS, {w.id: w.initial for w in found}) == []


def test_no_field_offers_an_empty_value() -> None:
    """Chainlit's page turns white at one."""
    for one in filters.widgets(FACTS):
        assert all(item["value"] for item in one.to_dict().get("items", []))


def test_an_id_is_no_path_in_a_form_and_unique() -> None:
    names = [HOSTILE, "a.b", "a[b]", "a", "a:from", "a%2Eb", "it's", 'say "x"', "a|b", "試" * 200]
    columns = [ColumnFacts(n, "number", least=1, most=2) for n in names]
    found = ids(filters.widgets(columns))
    assert len(set(found)) == 2 * len(names)
    # what react-hook-form takes for a path
    assert not [i for i in found if set(i) & set(".[]|\"'")]


def test_a_long_name_is_cut_and_told_in_full_beside_it() -> None:
    found = widget(FACTS[-1])
    assert len(found["label"]) <= 60
    assert found["tooltip"] == LONG_NAME


def test_a_table_of_many_columns_gets_the_first_ones() -> None:
    columns = [ColumnFacts(f"c{n}", "boolean") for n in range(500)]
    assert len(filters.widgets(columns)) == filters.MOST_COLUMNS
    assert filters.chosen(columns, {field("c499"): "yes"}) is None


def test_what_was_put_in_stands_there_again() -> None:
    values = {
        field("biome"): ["forest", "gone"],
        field("in_stock"): "no",
        field("price_gold", "to"): "4 0",
        field(HOSTILE): "x",
    }
    found = {w.id: w.initial for w in filters.widgets(FACTS, values)}
    assert found[field("biome")] == ["forest"]
    assert found[field("in_stock")] == "no"
    assert found[field("price_gold", "to")] == "4 0"  # wrong, to be mended by who wrote it
    assert found[field(HOSTILE)] == "x"
    assert found[field("price_gold", "from")] == ""


# --- what they say ---------------------------------------------------------------------------

SAID: list[tuple[dict[str, Any], list[str]]] = [
    ({field("price_gold", "to"): "40"}, ["price_gold ≤ 40"]),
    ({field("price_gold", "from"): " 1e1 "}, ["price_gold ≥ 10"]),
    ({field("price_gold", "from"): 10, field("price_gold", "to"): 40}, ["price_gold 10 – 40"]),
    ({field("price_gold", "from"): "7", field("price_gold", "to"): "7"}, ["price_gold = 7"]),
    ({field("in_stock"): "yes"}, ["in_stock: yes"]),
    ({field("in_stock"): "any"}, []),
    ({field("biome"): ["forest"]}, ["biome: forest"]),
    ({field("biome"): ["forest", "sea"]}, ["biome: sea or forest"]),
    ({field("biome"): list(BIOME.choices)}, ["biome: sea, forest, Any and 1 more"]),
    ({field("biome"): []}, []),
    ({field("added_on", "from"): "2026-01-05"}, ["added_on ≥ 2026-01-05"]),
    ({field(HOSTILE): " a\n b "}, [f"{HOSTILE} contains “a b”"]),
    ({field("price_gold", "to"): None, field("added_on", "to"): ""}, []),
    ({"model": "small", "filter:other": "yes", "filter:": ["x"]}, []),
]


@pytest.mark.parametrize(("values", "told"), SAID, ids=[str(t) for _, t in SAID])
def test_filters_are_told_in_a_few_words(values: dict[str, Any], told: list[str]) -> None:
    assert filters.told(FACTS, values) == told
    assert (filters.chosen(FACTS, values) is None) == (not told)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({field("price_gold", "to"): "cheap"}, "'price_gold' takes a number such as 900|'cheap'"),
        ({field("price_gold", "to"): "1,5"}, "'1,5'.*point"),
        ({field("price_gold", "to"): "NaN"}, "'NaN'"),
        ({field("price_gold", "to"): "inf"}, "'inf'"),
        ({field("price_gold", "to"): "1e999999"}, "'1e999999'"),
        ({field("price_gold", "to"): True}, "'True'"),
        ({field("price_gold", "from"): "50", field("price_gold", "to"): "40"}, "50 to 40"),
        ({field("added_on", "from"): "5.1.2026"}, "'added_on' takes a date such as 2025-02-03"),
        (
            {field("added_on", "from"): "2026-02-01", field("added_on", "to"): "2026-01-01"},
            "'added_on' goes from 2026-02-01 to 2026-01-01",
        ),
        ({field("price_gold", "to"): "9" * 5000}, "'999.*…'"),
    ],
)
def test_what_a_column_cannot_be_compared_with_is_one_sentence(
    values: dict[str, Any], says: str
) -> None:
    for ask in (filters.chosen, filters.told):
        with pytest.raises(FilterError, match=says) as failure:
            ask(FACTS, values)
        assert "\n" not in str(failure.value)
        assert len(str(failure.value)) < 300


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.fixed_dictionaries(dict.fromkeys(ids(filters.widgets([*FACTS, SEEN])), ANYTHING)), ANYTHING
)
def test_whatever_the_browser_sends_is_a_filter_or_a_sentence(
    values: dict[str, Any], modes: Any
) -> None:
    filters.widgets(FACTS, values)
    with contextlib.suppress(FilterError, QuestionError):
        found = asking.asked([*FACTS, SEEN], values, modes)
        assert bool(found.told) == (found.filters is not None)
        json.dumps(found.for_page()).encode()


# --- and which rows that leaves --------------------------------------------------------------

ROWS = pl.DataFrame(
    {
        "row_id": list("abcd"),
        "text": ["red", "blue", "green", "grey"],
        "biome": ["sea", "forest", "sea", None],
        "in_stock": [True, False, None, True],
        "price_gold": [Decimal("6.00"), Decimal("40.00"), Decimal("40.01"), None],
        "danger": [1, 2, 3, None],
        "weight": [0.1, 2.0, -3.5, None],
        "added_on": [dt.date(2026, 1, d) for d in (1, 2, 3)] + [None],
        "seen_at": pl.Series(
            [
                dt.datetime(2026, 1, 1),
                dt.datetime(2026, 1, 2, 23, 59, 59),
                dt.datetime(2026, 1, 3),
                None,
            ],
            dtype=pl.Datetime("us", "UTC"),
        ),
        HOSTILE: ["it's", 'say "X" $1', "`tick`", None],
        "kind of `thing`": [f"k{n}" for n in range(4)],
    }
)
# 30 more kinds, so that the columns of text are no choices
MORE = pl.DataFrame(
    {"row_id": [f"more-{n}" for n in range(30)], "text": ["more"] * 30}
).with_columns(pl.col("row_id").alias(HOSTILE))
LEFT: list[tuple[dict[str, Any], str]] = [
    ({field("biome"): ["sea"]}, "ac"),
    ({field("biome"): ["sea", "forest"], field("in_stock"): "no"}, "b"),
    ({field("in_stock"): "yes"}, "ad"),
    ({field("price_gold", "to"): "40"}, "ab"),
    ({field("price_gold", "from"): "6.005", field("price_gold", "to"): "1e2"}, "bc"),
    ({field("danger", "from"): "1.5"}, "bc"),
    ({field("danger", "from"): "2", field("danger", "to"): "2"}, "b"),
    ({field("weight", "to"): "0.1"}, "ac"),
    ({field("added_on", "from"): "2026-01-02", field("added_on", "to"): "2026-01-02"}, "b"),
    ({field("seen_at", "from"): "2026-01-02", field("seen_at", "to"): "2026-01-02"}, "b"),
    ({field("seen_at", "to"): "9999-12-31"}, "abc"),
    ({field(HOSTILE): "IT'S"}, "a"),
    ({field(HOSTILE): '"x" $'}, "b"),
    ({field(HOSTILE): "\ud800"}, ""),
]


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    world.create(pl.concat([ROWS, MORE], how="diagonal"))
    world.sync()
    return world


@pytest.mark.parametrize(("values", "left"), LEFT, ids=[str(v) for v, _ in LEFT])
def test_filters_leave_the_rows_that_they_name(
    mirrored: World, values: dict[str, Any], left: str
) -> None:
    facts = mirrored.snapshot().facts()
    assert {f.name for f in facts} == set(ROWS.columns) - {"row_id", "kind of `thing`"} | {
        "kind of `thing`"
    }
    found = filters.chosen(facts, values)
    assert found is not None
    opened = mirrored.index.answering()
    asked = Search(embedding=mirrored.embedding.get_query_embedding("red"), n=99, filters=found)
    rows = {f.node.metadata["row_key"] for f in by_vector(opened, asked)}
    assert rows & set("abcd") == set(left)
    assert not {r for r in rows if r.startswith("more")}


# --- the version -----------------------------------------------------------------------------


def test_the_picker_names_the_versions_newest_first() -> None:
    (picker,) = asking.modes(VERSIONS, 12)
    assert [o.name for o in picker.options] == ["Latest (v12)", "v11 · 2026-11-20", "v3"]
    assert [o.default for o in picker.options] == [True, False, False]
    assert asking.modes(VERSIONS, None) == [picker]
    pinned = asking.modes(VERSIONS, 11)[0]
    assert [o.name for o in pinned.options] == ["Latest (v11)", "v12 · 2026-11-22", "v3"]


def test_the_picker_keeps_what_was_picked_as_long_as_it_is_there() -> None:
    for picked, default in ((3, "v3"), (2, "latest"), (12, "latest"), (None, "latest")):
        (picker,) = asking.modes(VERSIONS, 12, picked=picked)
        assert [o.id for o in picker.options if o.default] == [default]


def test_where_there_is_nothing_to_pick_there_is_no_picker() -> None:
    assert asking.modes([(12, None)], 12) == []
    assert asking.modes([], None) == []


def test_every_option_is_read_back() -> None:
    (picker,) = asking.modes(VERSIONS, 12)
    sent = [asking.version_of({picker.id: o.id}) for o in picker.options]
    assert sent == [None, 11, 3]
    assert asking.version_of(None) is asking.version_of({"other": "x"}) is None


@pytest.mark.parametrize(
    "value", ["v", "v-1", "v1.5", "11", 11, None, ["v1"], "v" + "9" * 99, "v١"]
)
def test_no_version_is_a_sentence(value: Any) -> None:
    with pytest.raises(QuestionError, match="is none; pick one") as failure:
        asking.version_of({asking.PICKER: value})
    assert len(str(failure.value)) < 200


def test_what_is_asked_is_a_key() -> None:
    values = {field("price_gold", "to"): "40"}
    one, same = (asking.asked(FACTS, values, {"asof": "v3"}) for _ in range(2))
    other = asking.asked(FACTS, {field("price_gold", "to"): "41"}, {"asof": "v3"})
    assert {one: "engine"}[same] == "engine"
    assert len({one, same, other, Asking(3), Asking()}) == 4
    assert one.plain() == {"version": 3, "filters": ["price_gold ≤ 40"]}
    assert one.for_page() == {"rag": "asking", **one.plain()}


# --- commands --------------------------------------------------------------------------------

PARSED: list[tuple[str, str | None, Command | None]] = [
    ("What helps?", None, None),
    ("", None, None),
    ("/dev/null is what?", None, None),
    ("a /search b", None, None),
    ("/ search", None, None),
    ("/search silver  dagger\nor so ", None, Command("search", "silver  dagger\nor so")),
    ("  /Search wolf", None, Command("search", "wolf")),
    ("wolf", "search", Command("search", "wolf")),
    ("/row 7", "search", Command("search", "/row 7")),
    ("/search wolf", "search", Command("search", "wolf")),
    ('/row [1, "a b"]', None, Command("row", '[1, "a b"]')),
    ("", "help", Command("help")),
    ("/help me", None, Command("help")),
    ("/sources", None, Command("sources")),
    ("/export", None, Command("export")),
]


@pytest.mark.parametrize(("text", "picked", "found"), PARSED, ids=[repr(p[:2]) for p in PARSED])
def test_commands_are_typed_or_picked(text: str, picked: str | None, found: Command | None) -> None:
    assert commands.parse(text, picked) == found


@pytest.mark.parametrize(
    ("text", "picked", "says"),
    [
        ("/serch wolf", None, "no command /serch. Did you mean /search\\? There are /search, /row"),
        ("/" + "x" * 9000, None, "no command /x{40}…"),
        ("wolf", "rm -rf", "no command /rm -rf"),
        ("/search", None, "/search takes TEXT behind it, as in /search silver dagger"),
        ("  ", "row", "/row takes KEY"),
        ("/stats", None, "/stats is for admins. There are"),
        ("/search " + "x" * 2001, None, "Behind /search stand 2,001 characters; at most 2,000"),
    ],
)
def test_what_is_no_command_is_one_sentence(text: str, picked: str | None, says: str) -> None:
    with pytest.raises(QuestionError, match=says) as failure:
        commands.parse(text, picked)
    assert len(str(failure.value)) < 300
    assert "stats" not in str(failure.value).removeprefix("/stats")


def test_admins_have_one_more() -> None:
    assert commands.parse("/stats", is_admin=True) == Command("stats")
    of_admin, of_others = (
        [c["id"] for c in commands.offered(is_admin=is_admin)] for is_admin in (True, False)
    )
    assert [c for c in of_admin if c not in of_others] == ["stats"]
    for is_admin, listed in ((True, of_admin), (False, of_others)):
        told = commands.help_text(title="A <b>shop</b>", is_admin=is_admin).markdown
        assert [f"`/{name}" in told for name in listed] == [True] * len(listed)
        assert ("/stats" in told) == is_admin


def test_rows_found_are_cards_and_say_what_they_were_found_among() -> None:
    asked = Asking(3, told=("price_gold ≤ 40", HOSTILE))
    shown = commands.search(HITS, "wolf <b>", asked)
    assert shown.kind == "hits"
    assert [c["row"] for c in shown.cards] == ["row-1", "row-2"]
    assert not any(c["is_cited"] for c in shown.cards)
    html = MarkdownIt("commonmark").render(shown.markdown)
    assert "2 rows for “wolf &lt;b&gt;”, among v3, price" in html
    assert "<b>" not in html
    assert "<code>" not in html
    assert commands.search(HITS[:1], "w", Asking()).markdown == "1 row for “w”."
    none = commands.search([], "w", asked)
    assert none.cards == []
    assert "or fewer filters" in none.markdown
    assert "filters" not in commands.search([], "w", Asking()).markdown


def test_a_row_is_a_card_and_its_fate() -> None:
    view = RowView("t/shop", 3, "k<b>", None, "the text", {"a": 1}, "table", 5, "deleted", [])
    shown = commands.row(view)
    assert shown.kind == "row"
    assert shown.cards[0]["row"] == "k<b>"
    assert "Deleted since v3" in shown.markdown


def test_the_last_sources_are_found_again() -> None:
    def element(kind: str, row: str) -> dict[str, Any]:
        return {"name": "Sources", "props": {"kind": kind, "sources": [{"n": 1, "row": row}]}}

    elements = [
        element("sources", "old"),
        element("sources", "last"),
        element("hits", "found"),
        {"name": "Sources", "props": None},
        {"name": "Sources", "props": {"kind": "sources", "sources": []}},
        {"name": "chart", "type": "plotly"},
    ]
    cards = commands.last_sources(elements)
    assert [c["row"] for c in cards] == ["last"]
    assert commands.sources(cards).cards == cards
    assert commands.last_sources(None) == []
    assert commands.sources(None).cards == []
    assert "ask a question first" in commands.sources([]).markdown


def test_the_link_of_an_export_stays_on_this_server() -> None:
    shown = commands.export("../../evil) [x](http://evil.example")
    html = MarkdownIt("commonmark").render(shown.markdown)
    assert html.count("href=") == 1
    assert 'href="/rag/export/..%2F..%2Fevil%29' in html


# --- in a session of Chainlit ----------------------------------------------------------------


class Tab:
    """One tab: sends what the browser sends, keeps what is emitted."""

    def __init__(self) -> None:
        self.emitted: list[tuple[str, Any]] = []
        self.session = WebsocketSession(
            id=str(uuid.uuid4()),
            socket_id=str(uuid.uuid4()),
            emit=self._emit,
            emit_call=self._emit,
            user_env={},
            client_type="webapp",
        )

    async def _emit(self, event: str, data: Any, *_: Any) -> None:
        self.emitted.append((event, json.loads(json.dumps(data))))

    def last(self, event: str) -> Any:
        return [data for name, data in self.emitted if name == event][-1]

    async def ask(self, text: str, **sent: Any) -> dict[str, Any]:
        """Send a message and return what the app says arrived."""
        message = {
            "id": str(uuid.uuid4()),
            "type": "user_message",
            "output": text,
            "name": "User",
            "createdAt": "2026-01-01T00:00:00Z",
            **sent,
        }
        await asyncio.create_task(
            chainlit_socket.process_message(self.session, {"message": message})
        )
        answer = [m for e, m in self.emitted if e == "new_message"][-1]
        if answer["isError"]:
            raise RagError(answer["output"])
        return json.loads(answer["output"].strip("`").removeprefix("json\n"))


@pytest.fixture
def tab() -> Iterator[Tab]:
    before = config.code.on_message
    cl.on_message(on_message)
    found = Tab()
    yield found
    config.code.on_message = before
    user_sessions.pop(found.session.id, None)
    chat_contexts.pop(found.session.id, None)


async def test_what_the_composer_sends_arrives(tab: Tab) -> None:
    init_ws_context(tab.session)
    await offer()
    (picker,) = tab.last("set_modes")
    assert [o["default"] for o in picker["options"]] == [True, False, False]
    assert [c["id"] for c in tab.last("set_commands")][-1] == "help"
    modes = {picker["id"]: picker["options"][1]["id"]}
    found = await tab.ask("silver", command="search", modes=modes)
    assert found == {"version": 11, "filters": [], "command": ["search", "silver"]}
    assert (await tab.ask("What?"))["version"] is None
    with pytest.raises(RagError, match="no command"):
        await tab.ask("/nothing")


async def test_settings_arrive_and_stay(tab: Tab) -> None:
    init_ws_context(tab.session)
    await offer()
    sent = {i["id"]: i["initial"] for i in tab.last("chat_settings")}
    assert tab.session.chat_settings == sent
    # as the page sends them: all fields, null for an empty one
    chosen = {**sent, field("biome"): ["sea"], field(HOSTILE): "x"}
    form = {k: None if v == "" else v for k, v in chosen.items()}
    await chainlit_socket.change_settings(tab.session.socket_id, form)
    found = await tab.ask("What?")
    assert found["filters"] == ["biome: sea", f"{HOSTILE} contains “x”"]
    again = {w.id: w.initial for w in filters.widgets(FACTS, tab.session.chat_settings)}
    assert again[field("biome")] == ["sea"]
    await chainlit_socket.change_settings(
        tab.session.socket_id, {**form, field("price_gold", "to"): "cheap"}
    )
    with pytest.raises(RagError, match="takes a number"):
        await tab.ask("What?")


# --- charts ----------------------------------------------------------------------------------


def drawn(answers: list[Any], facts: Any = ()) -> list[dict[str, Any]]:
    return [json.loads(figure.to_json()) for figure in stats.figures(answers, facts)]


def test_charts_show_rows_relevance_and_time() -> None:
    rows, relevance, latency = drawn(ANSWERS, FACTS)
    assert rows["layout"]["title"]["text"] == "Rows per biome"
    assert rows["data"][0]["x"] == [1, 3, 10, 20]
    assert rows["layout"]["yaxis"]["ticktext"] == ["&lt;i&gt;x&lt;/i&gt;", "Any", "forest", "sea"]
    assert [(t["name"], len(t["x"])) for t in relevance["data"]] == [
        ("answered (7)", 7),
        ("refused (3)", 3),
    ]
    assert [t["name"] for t in latency["data"]] == ["first word", "whole answer"]
    assert latency["data"][1]["x"] == pytest.approx([2 + n / 5 for n in range(10)])


def test_charts_are_in_what_the_pages_plotly_reads() -> None:
    """It is of 2.30, which does not know how Python's Plotly packs arrays."""
    for figure in drawn(ANSWERS, FACTS):
        assert "bdata" not in json.dumps(figure)
        assert figure["layout"]["paper_bgcolor"] == "rgba(0, 0, 0, 0)"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"relevance": None, "timings": None},
        {"relevance": "0.5", "timings": {"total_s": "1"}},
        {"relevance": float("nan"), "timings": {"first_token_s": float("inf"), "total_s": -1}},
        {"relevance": True, "timings": [1]},
    ],
)
def test_what_is_not_known_is_not_drawn(answer: dict[str, Any]) -> None:
    assert drawn([answer]) == []
    titles = [f["layout"]["title"]["text"] for f in drawn([answer, *ANSWERS[:1]])]
    assert titles == ["Relevance of the best row (1 question)", "Time to the answer (1 question)"]


def test_a_choice_of_many_shows_the_most_frequent_of_the_first_columns() -> None:
    many = tuple(f"c{n}" for n in range(25))
    columns = [
        ColumnFacts(f"k{n}", "choice", many, counts=tuple(range(25, 0, -1))) for n in range(9)
    ]
    found = drawn([], columns)
    assert len(found) == stats.MOST_COLUMNS
    assert found[0]["layout"]["yaxis"]["ticktext"] == [f"c{n}" for n in range(9, -1, -1)]
    assert "without 15 more" in found[0]["layout"]["title"]["text"]


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys; import rag.web.asking, rag.web.filters, rag.web.commands, rag.web.stats\n"
        "heavy = {'torch', 'llama_index', 'lancedb', 'polars', 'plotly', 'deltalake'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- in a real browser -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The app in Chromium; no request may leave the machine, nothing may break."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if path is None:
        pytest.skip("no Chromium: install Debian's `chromium`")
    elsewhere: list[str] = []
    broken: list[str] = []
    with (
        serving(ROOT / "tests" / "asking_app.py", tmp_path_factory.mktemp("asking")) as url,
        sync_playwright() as playwright,
    ):

        def see(request: Request) -> None:
            if not request.url.startswith((url, "data:", "blob:")):
                elsewhere.append(request.url)

        chromium = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        opened = chromium.new_page(viewport={"width": 1280, "height": 1000}, base_url=url)
        opened.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        opened.on("request", see)
        opened.on("pageerror", lambda e: broken.append(str(e)))
        opened.on("console", lambda m: broken.append(m.text) if m.type == "error" else None)
        opened.goto("/")
        yield opened
        chromium.close()
    assert not elsewhere
    assert not broken


def answer(page: Page, n: int) -> dict[str, Any]:
    """What the app says arrived, as the n-th answer."""
    told = page.locator('[data-step-type="assistant_message"] code').nth(n)
    expect(told).to_contain_text("version")
    return json.loads(told.inner_text())


@pytest.mark.browser
def test_a_reader_picks_filters_a_version_and_a_command(page: Page) -> None:
    page.locator("#mode-picker-trigger-asof").click()
    page.get_by_text("v11 · 2026-11-20").click()
    page.locator("#chat-settings-open-modal").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("price_gold, to")).to_be_visible()
    dialog.locator(f"[id='{field('price_gold', 'to')}']").fill("40")
    dialog.locator(f"[id='{field(HOSTILE)}']").fill("it's")
    dialog.locator(f"[id='{field('in_stock')}']").click()
    page.get_by_role("option", name="Yes").click()
    dialog.get_by_placeholder("Select").first.click()
    dialog.get_by_text("<i>x</i>", exact=True).click()
    page.locator("#confirm").click()
    page.locator("#chat-input").fill("/sea")
    page.keyboard.press("Enter")  # picks /search
    page.locator("#chat-input").fill("silver dagger")
    page.keyboard.press("Enter")
    assert answer(page, 0) == {
        "version": 11,
        "filters": [
            "biome: <i>x</i>",
            "in_stock: yes",
            "price_gold ≤ 40",
            f"{HOSTILE} contains “it's”",
        ],
        "command": ["search", "silver dagger"],
    }
    page.locator("#chat-settings-open-modal").click()
    expect(dialog.locator(f"[id='{field(HOSTILE)}']")).to_have_value("it's")
    dialog.locator(f"[id='{field(HOSTILE)}']").fill("")
    page.locator("#confirm").click()
    expect(dialog).to_have_count(0)
    page.locator("#chat-input").fill("/row 7")
    page.keyboard.press("Enter")
    found = answer(page, 1)
    assert found["command"] == ["row", "7"]
    assert len(found["filters"]) == 3


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_charts_are_drawn_without_the_network(page: Page, theme: str) -> None:
    page.evaluate(f"localStorage.setItem('vite-ui-theme', '{theme}')")
    page.goto("/")
    expect(page.locator("#mode-picker-trigger-asof")).to_be_visible()
    page.locator("#chat-input").fill("/stats ")
    page.keyboard.press("Enter")
    charts = page.locator(".js-plotly-plot")
    expect(charts).to_have_count(3)
    expect(charts.first.locator(".bars path")).to_have_count(4)
    expect(charts.first).to_contain_text("<i>x</i>")
    expect(charts.nth(1)).to_contain_text("refused (3)")
    expect(charts.nth(2)).to_contain_text("whole answer")
    pictures = ROOT / "artefacts"
    pictures.mkdir(exist_ok=True)
    page.screenshot(path=pictures / f"stats-{theme}.png")
