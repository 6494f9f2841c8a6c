"""Users and chats in a real SQLite file and a real PostgreSQL."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240, F811 – a test may wait for a program; fixtures are arguments

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import World
from deltalake import DeltaTable, write_deltalake
from markdown_it import MarkdownIt
from postgres import Postgres, database, postgres  # noqa: F401 – fixtures

from rag import wiring
from rag.accounts import Accounts, AccountsUnavailable, User, markdown, passwords
from rag.accounts.export import Wanted, collect, write
from rag.accounts.reading import Page, cursor_after
from rag.accounts.removing import REMOVED
from rag.accounts.turns import turns
from rag.errors import AccountsError
from rag.settings import Settings
from rag.wiring.chats import forget_purged

HOSTILE = "a\0b \ud800 ' \" %_\\ <script>alert(1)</script>"


@pytest.fixture
async def accounts(database: str) -> AsyncIterator[Accounts]:
    made = Accounts(database)
    yield made
    await made.close()


def step(thread: str, name: str, kind: str = "user_message", **more: Any) -> dict[str, Any]:
    return {
        "id": f"{thread}-{name}",
        "threadId": thread,
        "type": kind,
        "name": "x",
        "output": "",
        "streaming": False,
        **more,
    }


def card(key: str, text: str, n: int = 1) -> dict[str, Any]:
    return {
        "n": n,
        "title": f"Title of {key}",
        "row": key,
        "table": "shop",
        "version": 3,
        "segments": [{"text": text, "is_cited": True}],
        "columns": [["Advice", text]],
    }


async def ask(
    accounts: Accounts,
    thread: str,
    owner: str = "ann",
    *,
    question: str = "Who sells rope?",
    answer: str = "Use a rope.",
    key: str = "fs-001",
    n: int = 1,
    **metadata: Any,
) -> str:
    """Keep a question with its answer as the chat does; return the id of the run."""
    chats, at = accounts.chats, f"2026-11-25T10:{n:02}:0"
    facts = {
        "state": "done",
        "text": answer,
        "marked": f"{answer} [1]",
        "refused": False,
        "table_version": 3,
        "citations": [{"n": 1, "row_key": key, "start": 0, "end": 3}],
        "sources": [{"n": 1, "title": f"Title of {key}", "row_key": key, "table_version": 3}],
        **metadata,
    }
    run = f"{thread}-r{n}"
    for one in (
        step(thread, f"q{n}", output=question, createdAt=at + "0Z"),
        step(thread, f"r{n}", "run", parentId=f"{thread}-q{n}", createdAt=at + "1Z", end="e"),
        step(
            thread,
            f"s{n}",
            "tool",
            parentId=run,
            output=f"| Title of {key} |",
            createdAt=at + "2Z",
            end="e",
        ),
        step(
            thread,
            f"a{n}",
            "assistant_message",
            parentId=run,
            output=f"{answer} [1](#cite-1)",
            metadata=facts,
            createdAt=at + "3Z",
        ),
    ):
        assert await chats.save_step(one, owner)
    element = {
        "id": f"{thread}-e{n}",
        "threadId": thread,
        "forId": f"{thread}-a{n}",
        "type": "custom",
        "name": "Sources",
        "props": {"sources": [card(key, f"passage of {key}")]},
    }
    assert await chats.save_element(element, owner)
    return run


@pytest.fixture
async def people(accounts: Accounts) -> Accounts:
    for name in ("ann", "bob"):
        await accounts.chats.remember_user(name, {})
    return accounts


# -- users ------------------------------------------------------------------------------------------


async def test_a_user_logs_in_by_name_and_password(accounts: Accounts, blockbuster: object) -> None:
    assert not await accounts.has_users()
    await accounts.add_user(" ann ", "correct horse", is_admin=True)
    await accounts.add_user("Bob", "battery staple")
    assert set(await accounts.users()) == {User("Bob", False), User("ann", True)}
    assert await accounts.has_users()
    assert await accounts.check("ann", "correct horse") == User("ann", True)
    for name, password in (
        ("ann", "wrong horse"),
        ("ann", ""),
        ("bob", "battery staple"),
        ("eve", "x" * 9),
        (HOSTILE, HOSTILE),
        ("ann", "x" * 1_000_000),
    ):
        assert await accounts.check(name, password) is None
    assert await accounts.user("ann") == User("ann", True)
    assert await accounts.user("eve") is None


async def test_a_new_password_replaces_the_old_one_and_keeps_chats(people: Accounts) -> None:
    await ask(people, "t")
    await people.add_user("ann", "the first one")
    await people.add_user("ann", "the second one")
    assert await people.check("ann", "the first one") is None
    assert await people.check("ann", "the second one") == User("ann", False)
    assert await people.thread_owner("t") == "ann"


async def test_whoever_comes_by_a_proxy_has_no_password(people: Accounts) -> None:
    assert await people.users() == []
    assert not await people.has_users()
    assert await people.check("ann", "") is None


async def test_a_removed_user_leaves_nothing(people: Accounts) -> None:
    await people.add_user("ann", "correct horse")
    run = await ask(people, "t")
    rating = await people.chats.rate(run, "ann", value=1)
    assert rating
    assert await people.feedback_owner(rating) == "ann"
    assert await people.remove_user("ann") == 1
    assert await people.thread("t") is None
    assert await people.feedback_owner(rating) is None
    assert await people.step_owner(run) is None
    with pytest.raises(AccountsError, match="no user 'ann'.*rag user list"):
        await people.remove_user("ann")


@pytest.mark.parametrize(
    ("name", "password", "told"),
    [
        ("", "long enough", "user name ''"),
        ("a\nb", "long enough", "can be seen"),
        ("x" * 129, "long enough", "1 to 128"),
        ("ann", "short", "5 characters; expected 8"),
        ("ann", "x" * 1025, "1,025 characters"),
    ],
)
async def test_what_cannot_be_a_user_is_refused(
    accounts: Accounts, name: str, password: str, told: str
) -> None:
    with pytest.raises(AccountsError, match=told):
        await accounts.add_user(name, password)
    assert not await accounts.has_users()


def test_passwords_are_salted_and_their_parameters_kept() -> None:
    one, other = passwords.hashed("correct horse"), passwords.hashed("correct horse")
    assert one != other
    assert "correct" not in one
    assert one.startswith("scrypt$32768$8$1$")
    assert passwords.is_right("correct horse", one)
    # an older program's parameters still count
    import base64
    import hashlib

    old = hashlib.scrypt(b"correct horse", salt=b"salt", n=1024, r=8, p=1, dklen=32)
    stored = (
        f"scrypt$1024$8$1${base64.b64encode(b'salt').decode()}${base64.b64encode(old).decode()}"
    )
    assert passwords.is_right("correct horse", stored)
    assert not passwords.is_right("correct horse ", stored)
    assert not passwords.is_right("", None)


# -- chats ------------------------------------------------------------------------------------------


async def test_a_thread_comes_back_as_it_was(people: Accounts) -> None:
    run = await ask(people, "t")
    odd = step(
        "t",
        "odd",
        "tool",
        parentId=run,
        createdAt="2026-11-25T11",
        autoCollapse=True,
        tags=["a"],
        modes={"asof": "12"},
        somethingNew={"x": [1, None]},
    )
    assert await people.chats.save_step(odd, "ann")
    await people.chats.rate(run, "ann", value=0, comment="no")
    await people.chats.save_thread(
        "t", "ann", name="  A\nname " + "x" * 100, tags=["t"], metadata={"a": 1, "b": 2}
    )
    await people.chats.save_thread("t", "ann", metadata={"a": None, "c": 3})
    found = await people.thread("t")
    assert found is not None
    assert [s["id"] for s in found["steps"]] == ["t-q1", "t-r1", "t-s1", "t-a1", "t-odd"]
    assert found["steps"][-1] == odd | {"metadata": {}}
    assert found["steps"][1]["feedback"]["value"] == 0
    assert found["elements"][0]["props"]["sources"][0]["row"] == "fs-001"
    assert found["userIdentifier"] == "ann"
    assert found["tags"] == ["t"]
    assert found["metadata"] == {"b": 2, "c": 3}
    assert len(found["name"]) == 80
    assert found["name"].startswith("A name x")
    json.dumps(found)


async def test_text_that_no_database_takes_is_kept_as_far_as_it_can_be(people: Accounts) -> None:
    hostile = step(
        "t", "q", output=HOSTILE, metadata={"text": HOSTILE, "x": float("nan"), HOSTILE: [HOSTILE]}
    )
    assert await people.chats.save_step(hostile, "ann")
    await people.chats.save_thread("t", "ann", name=HOSTILE, metadata={HOSTILE: HOSTILE})
    found = await people.thread("t")
    assert found is not None
    assert found["steps"][0]["output"] == "a\ufffdb ? ' \" %_\\ <script>alert(1)</script>"
    assert found["steps"][0]["metadata"]["x"] is None
    listed, _ = await people.chats.threads(found["userId"], Page(search="%_\\"))
    assert [t["id"] for t in listed] == ["t"]
    assert await people.thread_owner(HOSTILE) is None
    assert await people.chats.thread(HOSTILE) is None


async def test_nobody_can_touch_what_is_another_persons(people: Accounts) -> None:
    run = await ask(people, "t")
    rating = await people.chats.rate(run, "ann", value=1, comment="good")
    before = await people.thread("t")
    chats = people.chats
    for stranger in ("bob", "eve", "", "Ann"):
        assert not await chats.save_step(step("t", "q1", output="forged"), stranger)
        assert not await chats.save_step(step("t", "new", output="forged"), stranger)
        assert not await chats.remove_step("t-a1", stranger)
        assert not await chats.save_element({"id": "t-e1", "threadId": "t", "props": {}}, stranger)
        assert not await chats.remove_element("t-e1", stranger)
        assert not await chats.save_thread("t", stranger, name="forged")
        assert not await chats.remove_thread("t", stranger)
        assert await chats.rate(run, stranger, value=0) is None
        assert not await chats.unrate(rating or "", stranger)
    # nor by way of a thread of one's own: ids come from the browser
    assert await chats.save_step(step("b", "q1", output="mine"), "bob")
    assert not await chats.save_step(step("t", "q1", output="forged") | {"threadId": "b"}, "bob")
    assert not await chats.save_element({"id": "t-e1", "threadId": "b", "props": {}}, "bob")
    assert await people.thread("t") == before


async def test_a_rating_replaces_the_one_before(people: Accounts) -> None:
    run = await ask(people, "t")
    first = await people.chats.rate(run, "ann", value=1, comment="good")
    assert await people.chats.rate(run, "ann", value=0) == first
    found = await people.thread("t")
    assert found is not None
    assert [s.get("feedback") for s in found["steps"] if s.get("feedback")] == [
        {"id": first, "forId": run, "value": 0, "comment": None}
    ]
    assert await people.chats.unrate(first or "", "ann")
    assert not await people.chats.unrate(first or "", "ann")
    assert await people.chats.rate("no such step", "ann", value=1) is None


async def test_an_edit_leaves_no_search_of_the_old_answer(people: Accounts) -> None:
    await ask(people, "t", n=1)
    await ask(people, "t", n=2)
    assert await people.chats.remove_step("t-a2", "ann")  # Chainlit removes messages only
    assert await people.chats.save_step(
        step("t", "q2", output="edited", createdAt="2026-11-25T10:02:00Z"), "ann"
    )
    found = await people.thread("t")
    assert found is not None
    assert [s["id"] for s in found["steps"]] == ["t-q1", "t-r1", "t-s1", "t-a1", "t-q2"]
    assert [e["id"] for e in found["elements"]] == ["t-e1"]
    # a note that goes while its run is on takes nothing with it
    await people.chats.save_step(step("t", "r3", "run", parentId="t-q2"), "ann")
    await people.chats.save_step(step("t", "note", "assistant_message", parentId="t-r3"), "ann")
    assert await people.chats.remove_step("t-note", "ann")
    assert await people.step_owner("t-r3") == "ann"
    # a question goes with all below it
    assert await people.chats.remove_step("t-q1", "ann")
    assert await people.step_owner("t-s1") is None


async def test_threads_are_listed_by_activity_page_by_page(people: Accounts) -> None:
    for i in range(7):
        await people.chats.save_step(step(f"t{i}", "q", output=f"question {i}"), "ann")
        await people.chats.save_thread(f"t{i}", "ann", name=f"Name {i}")
    await people.chats.save_step(step("foreign", "q", output="question 1"), "bob")
    await people.chats.save_step(step("t2", "later", output="ÄRGER in Übersee"), "ann")
    ann = await people.chats.user("ann")
    assert ann is not None
    seen: list[str] = []
    cursor, has_more = None, True
    while has_more:
        listed, has_more = await people.chats.threads(ann["id"], Page(first=3, cursor=cursor))
        seen += [t["id"] for t in listed]
        cursor = cursor_after(listed[-1])
    assert seen == ["t2", "t6", "t5", "t4", "t3", "t1", "t0"]

    async def found(**wanted: Any) -> list[str]:
        return [t["id"] for t in (await people.chats.threads(ann["id"], Page(**wanted)))[0]]

    assert await found(search="ärger IN über") == ["t2"]
    assert await found(search="name 3") == ["t3"]
    assert await found(search="question 1") == ["t1"]
    assert await found(search="%") == []
    assert await found(search="x" * 100_000) == []
    assert await found(cursor=HOSTILE.replace("\0", "").replace("\ud800", "")) == seen
    await people.chats.rate("t4-q", "ann", value=1)
    assert await found(rating=1) == ["t4"]
    assert await found(rating=0) == []


async def test_recent_answers_are_the_newest_without_texts(people: Accounts) -> None:
    await ask(people, "t", n=1, relevance=0.5)
    await ask(people, "b", "bob", n=2, relevance=0.9, answer="secret")
    await people.chats.save_step(step("t", "note", "assistant_message", output="Warming up"), "ann")
    found = await people.recent_answers(10)
    assert [a["relevance"] for a in found] == [0.9, 0.5]
    assert "secret" not in json.dumps(found)
    assert len(await people.recent_answers(1)) == 1


async def test_favourites_are_a_users_own(people: Accounts) -> None:
    for thread, owner in (("t", "ann"), ("b", "bob")):
        await people.chats.save_step(step(thread, "q", metadata={"favorite": True}), owner)
        await people.chats.save_step(step(thread, "p", metadata={"favorite": False}), owner)
        await people.chats.save_step(step(thread, "o", metadata={}), owner)
    ann = await people.chats.user("ann")
    assert ann is not None
    assert [s["id"] for s in await people.chats.favourites(ann["id"])] == ["t-q"]


async def test_many_writes_at_once_are_all_there(people: Accounts) -> None:
    await asyncio.gather(
        *(people.chats.save_step(step(f"t{i % 10}", str(i)), "ann") for i in range(100))
    )
    threads = [t async for t in people.threads()]
    assert sum(len(t["steps"]) for t in threads) == 100


# -- purged rows ------------------------------------------------------------------------------------


async def test_a_purged_row_leaves_chats(people: Accounts, database: str) -> None:
    await ask(people, "t", n=1, key="gone", answer="gone says XYZZY")
    await ask(people, "t", n=2, key="kept", answer="kept says hello")
    await ask(people, "b", "bob", n=3, key="gone", answer="once more XYZZY")
    await ask(
        people,
        "t",
        n=4,
        key="near",
        answer="not of it",
        sources=[{"n": 1, "title": "Title of gone", "row_key": "gone", "table_version": 3}],
    )
    assert await people.forget_rows(["gone", "never there"]) == 4
    text = json.dumps([t async for t in people.threads()])
    for trace in ("XYZZY", "passage of gone", "Title of gone"):
        assert trace not in text
    for other in (
        "kept says hello",
        "passage of kept",
        "Title of kept",
        "not of it",
        "Who sells rope?",
    ):
        assert other in text
    found = await people.thread("t")
    assert found is not None
    assert found["steps"][3]["output"] == REMOVED
    assert await people.forget_rows(["gone"]) == 0
    assert await people.forget_rows([]) == 0
    await people.close()
    if "://" not in database:  # nor are its bytes left in the file
        raw = b"".join(p.read_bytes() for p in Path(database).parent.iterdir())
        assert b"hello" in raw
        assert b"XYZZY" not in raw
        assert b"passage of gone" not in raw


async def test_a_purge_of_the_index_reaches_the_chats_of_its_table(
    people: Accounts,
    database: str,
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.key = ("id",)
    world.create(pl.DataFrame({"id": ["gone", "kept"], "text": ["oars", "ropes"]}))
    await asyncio.to_thread(world.sync)
    await ask(people, "t", n=1, key="gone", answer="gone says XYZZY")
    await ask(people, "t", n=2, key="kept", answer="kept says hello")
    settings = Settings(web={"database": database}, table={"uri": "data/shop"})
    assert forget_purged(settings, world.index) == 0
    world.write(pl.DataFrame({"id": ["kept"], "text": ["ropes"]}))
    await asyncio.to_thread(world.sync)
    other = Settings(web={"database": database}, table={"uri": "data/other"})
    assert forget_purged(other, world.index) == 0, "cards of another table"
    assert forget_purged(settings, world.index) > 0
    text = json.dumps([t async for t in people.threads()])
    assert "XYZZY" not in text
    assert "kept says hello" in text


async def test_a_purge_makes_no_database(tmp_path: Path) -> None:
    settings = Settings(web={"database": str(tmp_path / "none.db")})
    assert forget_purged(settings, World(tmp_path).index) == 0
    assert not (tmp_path / "none.db").exists()


# -- a thread as Markdown ---------------------------------------------------------------------------


def tags(document: str) -> set[str]:
    md = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    found = set()
    for token in md.parse(document):
        for one in [token, *(token.children or [])]:
            found.add(one.tag or one.type)
    return found


async def test_a_thread_as_markdown(people: Accounts) -> None:
    run = await ask(people, "t")
    await ask(people, "t", n=2, question="And an axe?", answer="An", state="writing")
    await people.chats.rate(run, "ann", value=1, comment="Thanks *a lot*")
    await people.chats.save_thread("t", "ann", name="Who sells rope?")
    found = await people.thread("t")
    assert found is not None
    text = markdown.exported(found)
    assert text.startswith("# Who sells rope?\n")
    assert "> Who sells rope?" in text
    assert "Use a rope. \\[1\\]" in text
    assert "- \\[1\\] Title of fs-001 – shop, version 3, row fs-001" in text
    assert "Rated good: “Thanks \\*a lot\\*”" in text
    assert "An \\[1\\]\n\n_(interrupted)_" in text
    assert text.index("Use a rope.") < text.index("And an axe?")


@pytest.mark.parametrize(
    "hostile",
    [
        "# Heading",
        "<script>alert(1)</script>",
        "![x](http://evil.example/p.png)",
        "[a](javascript:alert(1))",
        "- item",
        "1. item",
        "    code",
        "\tcode",
        "```\ncode\n```",
        "~~~\ncode",
        "---",
        "Title\n===",
        "Title\n---",
        "| a | b |\n| - | - |\n| 1 | 2 |",
        "> quote",
        "<https://evil.example>",
        "&lt;b&gt;",
        "**bold** _em_ `code` ~~gone~~",
        "[a]: http://evil.example\n\n[a]",
        "a\n\n# b",
        "a\r# b",
        "a\u2028# b",
        "a\x0b# b",
        "a  \nb\\",
    ],
)
async def test_hostile_text_stays_text_in_markdown(people: Accounts, hostile: str) -> None:
    await people.chats.save_thread("plain", "ann", name="x")
    await ask(people, "plain", question="plain", answer="plain", marked="plain")
    await people.chats.save_thread("t", "ann", name=hostile)
    run = await ask(
        people, "t", question=f"x {hostile}\n{hostile}", answer=hostile, marked=hostile, key=hostile
    )
    for thread_id, r in (("plain", "plain-r1"), ("t", run)):
        await people.chats.rate(
            r, "ann", value=0, comment="plain" if thread_id == "plain" else hostile
        )
    plain, found = await people.thread("plain"), await people.thread("t")
    assert plain is not None
    assert found is not None
    assert tags(markdown.exported(found)) - {"br", "softbreak"} <= tags(markdown.exported(plain))


@pytest.mark.parametrize(
    "text",
    [
        "a * b_c <d> & [e] #f | g",
        "1. x\n- y\n# z",
        "two\nlines",
        "http://a.example www.b.example c@d.example",
    ],
)
def test_escaped_markdown_shows_the_very_text(text: str) -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown.escaped(text))
    shown = "".join(
        {"hardbreak": "\n", "softbreak": "\n"}.get(c.type, c.content)
        for t in tokens
        for c in t.children or []
    )
    assert shown.replace("\u2060", "") == text


# -- export -----------------------------------------------------------------------------------------


async def judged(people: Accounts) -> None:
    good = await ask(people, "t", n=1, question="Who sells rope?", key="fs-001")
    await ask(people, "t", n=2, question="And an axe?", key="fs-002")
    bad = await ask(people, "t", n=3, question="And a boat?", key="fs-003")
    refused = await ask(
        people, "b", "bob", n=4, question="Who won the cup?", refused=True, citations=[], sources=[]
    )
    again = await ask(people, "t", n=5, question="And a lamp?", key="fs-005")
    for run, owner, value in (
        (good, "ann", 1),
        (bad, "ann", 0),
        (refused, "bob", 1),
        (again, "ann", 1),
    ):
        assert await people.chats.rate(run, owner, value=value, comment="because")


async def test_what_was_judged_is_exported_for_rag_eval(people: Accounts, tmp_path: Path) -> None:
    await judged(people)
    uri = str(tmp_path / "feedback")
    wanted = Wanted()
    done = write(uri, await collect(people, wanted), wanted)
    assert (done.n_rows, done.version) == (3, 0)
    found = wiring.read_questions(Settings(), uri)
    assert {(q.question, q.expected, q.previous) for q in found} == {
        ("Who sells rope?", ("fs-001",), ()),
        ("And a lamp?", ("fs-005",), ("Who sells rope?", "And an axe?", "And a boat?")),
        ("Who won the cup?", (), ()),
    }
    assert {q.answer for q in found} == {None}
    frame = pl.read_delta(uri)
    assert "user" not in frame.columns
    assert "ann" not in frame.write_json()
    assert frame.filter(question="Who sells rope?").select(
        "given_answer",
        "marked_answer",
        "rating",
        "comment",
        "table_version",
        "refused",
        "thread_id",
        "state",
    ).row(0) == ("Use a rope.", "Use a rope. [1]", 1, "because", 3, False, "t", "done")
    # a second export renews: nothing twice, a rating taken back is not judged any more
    await ask(people, "t", n=6, question="And a bell?", key="fs-006")
    await people.chats.rate("t-r6", "ann", value=1)
    assert write(uri, await collect(people, wanted), wanted).version == 1
    assert sorted(q.question for q in wiring.read_questions(Settings(), uri)) == [
        "And a bell?",
        "And a lamp?",
        "Who sells rope?",
        "Who won the cup?",
    ]


async def test_everything_is_exported_to_read_but_not_for_rag_eval(
    people: Accounts, tmp_path: Path
) -> None:
    await judged(people)
    uri = str(tmp_path / "all")
    wanted = Wanted(is_all=True, with_users=True)
    write(uri, await collect(people, wanted), wanted)
    frame = pl.read_delta(uri).sort("asked_at")
    assert frame["rating"].to_list() == [1, None, -1, 1, 1]
    assert frame["user"].to_list() == ["ann", "ann", "ann", "bob", "ann"]
    with pytest.raises(Exception, match="no field 'expected'"):
        wiring.read_questions(Settings(), uri)
    with pytest.raises(AccountsError, match="other options.*--overwrite"):
        write(uri, await collect(people, Wanted()), Wanted())
    renewed = Wanted(overwrite=True)
    write(uri, await collect(people, renewed), renewed)
    assert len(wiring.read_questions(Settings(), uri)) == 3


async def test_an_export_touches_no_other_table(people: Accounts, tmp_path: Path) -> None:
    uri = str(tmp_path / "precious")
    frame = await collect(people, Wanted())
    with pytest.raises(AccountsError, match="nothing to export"):
        write(uri, frame, Wanted())
    assert not Path(uri).exists()
    await judged(people)
    write_deltalake(uri, pl.DataFrame({"a": [1]}))
    for overwrite in (False, True):
        wanted = Wanted(overwrite=overwrite)
        with pytest.raises(AccountsError, match="did not write; nothing was changed"):
            write(uri, await collect(people, wanted), wanted)
    assert DeltaTable(uri).version() == 0


# -- the database -----------------------------------------------------------------------------------


async def test_the_file_is_made_at_first_use_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chats.db"
    accounts = Accounts(str(path))
    assert not path.parent.exists()
    assert await accounts.users() == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in path.parent.iterdir())
    await accounts.close()
    again = Accounts(f"sqlite:///{path}")
    await again.add_user("ann", "correct horse")
    await again.close()
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_two_programs_may_make_it_at_once(database: str) -> None:
    code = "import asyncio,sys\nfrom rag.accounts import Accounts\nasync def m():\n    a=Accounts(sys.argv[1])\n    await a.chats.remember_user(sys.argv[2],{})\n    await a.close()\nasyncio.run(m())"
    started = [subprocess.Popen([sys.executable, "-c", code, database, str(i)]) for i in range(3)]
    assert [p.wait() for p in started] == [0, 0, 0]
    accounts = Accounts(database)
    assert [bool(await accounts.chats.user(str(i))) for i in range(4)] == [True, True, True, False]
    await accounts.close()


async def test_a_layout_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    accounts = Accounts(str(path))
    await accounts.users()
    await accounts.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE chat_schema SET version = 99")
    with pytest.raises(AccountsError, match="layout 99.*this one knows 1"):
        await accounts.users()
    await accounts.close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://u:hunter2@h",
        "nonsense://hunter2",
        "http://[hunter2",
    ],
)
def test_an_address_of_neither_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(AccountsError, match="expected the path of a SQLite file") as told:
        Accounts(url)
    assert "hunter2" not in str(told.value)


async def failure(accounts: Accounts, *, is_writing: bool = True) -> str:
    with pytest.raises(AccountsUnavailable) as told:
        await (accounts.chats.remember_user("eve", {}) if is_writing else accounts.users())
    assert "\n" not in str(told.value)
    await accounts.close()
    return str(told.value)


async def test_a_locked_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    accounts = Accounts(str(path), patience_s=0.1)
    await accounts.users()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(AccountsUnavailable, match="'chats.db' is locked by another program"):
        await accounts.chats.remember_user("eve", {})
    other.execute("ROLLBACK")
    other.close()
    await accounts.chats.remember_user("eve", {})
    assert await accounts.chats.user("eve")
    await accounts.close()


async def test_a_read_only_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    made = Accounts(str(path))
    await made.add_user("ann", "correct horse")
    await made.close()
    # root may write every file: another user of the system sees what is really read-only
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    for above in (tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o755)
    code = "import asyncio,sys\nfrom rag.accounts import Accounts\nfrom rag.errors import AccountsError\nasync def m():\n    a=Accounts(sys.argv[1])\n    try:\n        await a.add_user('eve','correct horse')\n    except AccountsError as e:\n        print(type(e).__name__, e)\n    await a.close()\nasyncio.run(m())"
    prefix = [] if os.getuid() else ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    tmp_path.chmod(0o700)
    assert done.stdout.startswith("AccountsUnavailable The database of chats 'chats.db' "), done
    assert "read-only" in done.stdout or "cannot be opened" in done.stdout


async def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        accounts = Accounts(str(small / "chats.db"))
        await accounts.chats.remember_user("ann", {})
        n_kept = 0

        async def fill() -> None:
            nonlocal n_kept
            while await accounts.chats.save_step(
                step("t", str(n_kept), output="x" * 50_000), "ann"
            ):
                n_kept += 1

        with pytest.raises(AccountsUnavailable, match="no room: its disk is full"):
            await fill()
        found = await accounts.thread("t")
        assert found is not None
        assert len(found["steps"]) == n_kept > 0
        assert all(s["output"] == "x" * 50_000 for s in found["steps"])
        await accounts.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all " * 100)
    assert "is no SQLite database or is damaged" in await failure(
        Accounts(str(tmp_path / "text.db"))
    )
    (tmp_path / "file").write_text("")
    assert "cannot be opened" in await failure(Accounts(str(tmp_path / "file" / "chats.db")))
    assert "cannot be opened" in await failure(Accounts(str(tmp_path)), is_writing=False)


async def test_a_killed_program_leaves_what_it_had_written(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    code = "import asyncio,sys\nfrom rag.accounts import Accounts\nasync def m():\n    a=Accounts(sys.argv[1])\n    await a.chats.remember_user('ann',{})\n    i=0\n    while True:\n        await a.chats.save_step({'id':str(i),'threadId':'t','type':'user_message','output':'x'*1000},'ann')\n        print(i,flush=True)\n        i+=1\nasyncio.run(m())"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "50":
                break
        process.kill()
        last = max([50, *(int(rest) for rest in process.stdout if rest.strip())])
    accounts = Accounts(str(path))
    found = await accounts.thread("t")
    assert found is not None
    assert len(found["steps"]) in (last + 1, last + 2)
    assert all(s["output"] == "x" * 1000 for s in found["steps"])
    await accounts.close()


async def test_a_server_that_is_away_is_told_and_comes_back(postgres: Postgres) -> None:
    accounts = Accounts(postgres.url(), patience_s=2)
    await accounts.chats.remember_user("ann", {})
    postgres.stop()
    try:
        with pytest.raises(AccountsUnavailable, match="cannot be reached") as told:
            await accounts.chats.remember_user("bob", {})
        assert "hunter2" not in str(told.value)
    finally:
        postgres.start()
    await accounts.chats.remember_user("bob", {})
    assert await accounts.chats.user("bob")
    await accounts.close()


async def test_a_database_or_user_that_postgresql_lacks_is_told(postgres: Postgres) -> None:
    url = postgres.url()
    assert "does not exist on the server" in await failure(
        Accounts(url.replace("/chats_", "/none_"))
    )
    assert "refuses the user" in await failure(Accounts(url.replace("rag:", "nobody:")))


# -- commands ---------------------------------------------------------------------------------------


def rag(
    *arguments: str, cwd: Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rag", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


async def test_users_are_managed_from_the_command_line(tmp_path: Path) -> None:
    done = rag("user", "add", "ann", "--admin", "--stdin", cwd=tmp_path, stdin="correct horse\n")
    assert (done.returncode, done.stdout) == (0, "ann can log in, as an admin.\n"), done.stderr
    assert stat.S_IMODE((tmp_path / "data" / "chats.db").stat().st_mode) == 0o600
    assert json.loads(rag("user", "list", "--json", cwd=tmp_path).stdout) == [
        {"name": "ann", "is_admin": True}
    ]
    accounts = Accounts(str(tmp_path / "data" / "chats.db"))
    assert await accounts.check("ann", "correct horse") == User("ann", True)
    await accounts.close()
    refused = rag("user", "add", "bob", "--stdin", cwd=tmp_path, stdin="short\n")
    assert refused.returncode == 1
    assert "5 characters; expected 8" in refused.stderr
    assert "--stdin" in rag("user", "add", "bob", cwd=tmp_path).stderr
    assert rag("user", "remove", "ann", cwd=tmp_path).stdout == "Removed ann and 0 chats.\n"
    assert rag("user", "remove", "ann", cwd=tmp_path).returncode == 1


async def test_feedback_is_exported_from_the_command_line(tmp_path: Path) -> None:
    accounts = Accounts(str(tmp_path / "own.db"))
    for name in ("ann", "bob"):
        await accounts.chats.remember_user(name, {})
    await judged(accounts)
    await accounts.close()
    done = rag("feedback", "export", "out", cwd=tmp_path, RAG_WEB__DATABASE="own.db")
    assert (done.returncode, done.stdout) == (0, "Wrote 3 rows to out, version 0.\n"), done.stderr
    assert len(wiring.read_questions(Settings(), str(tmp_path / "out"))) == 3
    again = rag(
        "feedback",
        "export",
        "out",
        "--overwrite",
        "--json",
        cwd=tmp_path,
        RAG_WEB__DATABASE="own.db",
    )
    assert json.loads(again.stdout) == {"uri": "out", "n_rows": 3, "version": 1}


def test_turns_end_where_ids_go_in_a_circle() -> None:
    looped = [
        step("t", "a", "assistant_message", parentId="t-b", metadata={"state": "done"}),
        step("t", "b", "run", parentId="t-a"),
    ]
    assert list(turns({"steps": looped, "elements": []})) == []
