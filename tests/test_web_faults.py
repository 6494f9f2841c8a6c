"""What goes wrong around the web chat, against a real server: nothing said is lost or unsaid.

Elsewhere: wrong passwords and forged cookies in `test_auth`; foreign origins, nonsense over the
socket, a megabyte and five hundred messages a minute in `test_safety`; a full disk of the database
itself in `test_accounts`.
"""

# ruff: noqa: ASYNC110 – the server is elsewhere

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_app import ANSWER, LONG
from web_server import Server, Tab, cookies, serving, tab

from rag.web.sockets import TOO_LONG

APP = '''
"""The scripted chat with files that hold it up, fail its database and tell its memory."""
import gc, json, re, threading, time
from pathlib import Path

import scripted_app
from chainlit.chat_context import chat_contexts
from chainlit.session import ws_sessions_id
from chainlit.user_session import user_sessions
from sqlalchemy import event
from sqlalchemy.pool import Pool

from rag.errors import RowNotFound
from rag.web.conversations import Conversation
from rag.web.watching import Watch

def hold(name):
    while Path(name).exists():
        time.sleep(0.02)

def script(prompt):
    hold("hold_model")
    if "broken" in prompt.rsplit("Question:", 1)[-1]:
        raise ZeroDivisionError("a detail of ours")
    return scripted_app.LONG if "long" in prompt.rsplit("Question:", 1)[-1] else scripted_app.ANSWER

class Core(scripted_app.ScriptedCore):
    def row(self, key, version):
        if key.startswith("row-"):
            return super().row(key, version)
        raise RowNotFound("data/shop", version or 3, key, ["id"])

retrieve = scripted_app.FixedRetriever._retrieve

def slowly(self, query):
    Path("searching").touch()
    hold("hold_search")
    return retrieve(self, query)

@event.listens_for(Pool, "checkout")
def fail(connection, *_):
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA query_only={int(Path('read_only').exists())}")
    cursor.close()

def asked_in(conversation):
    held = conversation._engine.chat_history if conversation._engine else conversation._history
    return [message.content for message in held[::2]]

def tell():
    while True:
        if Path("tell").exists():
            gc.collect()
            watches = [o for o in gc.get_objects() if type(o) is Watch]
            counts = {
                "sessions": len(ws_sessions_id),
                "contexts": len(chat_contexts),
                "user sessions": len(user_sessions),
                "conversations": sum(type(o) is Conversation for o in gc.get_objects()),
                "watched": sum(len(v) for w in watches for v in vars(w).values() if hasattr(v, "keys")),
            }
            counts["asked"] = {o._thread_id: asked_in(o) for o in gc.get_objects() if type(o) is Conversation}
            Path("told.part").write_text(json.dumps(counts))
            Path("told.part").rename("told")
            Path("tell").unlink()
        time.sleep(0.05)

scripted_app.script = script
scripted_app.ScriptedCore = Core
scripted_app.FixedRetriever._retrieve = slowly
threading.Thread(target=tell, daemon=True).start()
scripted_app.main()
'''
SECRET = "xyzzy"
"""A word of questions that no log may hold."""
STOPPED, INTERRUPTED = "_(stopped)_", "_(interrupted)_"


def prepared(folder: Path, *, pace: float = 0.005) -> Path:
    """Write the app into a working directory and return its path."""
    (folder / "go").touch()
    (folder / "pace").write_text(str(pace))
    app = folder / "faults_app.py"
    app.write_text(APP)
    return app


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The scripted chat of one person, whose answers are stopped a second after they left."""
    folder = tmp_path_factory.mktemp("faults")
    with serving(folder, prepared(folder), RAG_WEB__GRACE_S="1") as found:
        yield found


@pytest.fixture
def cookie(server: Server) -> str:
    """The cookie of whoever sits at this machine."""
    return signed_in(server)


def signed_in(server: Server) -> str:
    with server.client() as client:
        assert client.post("/auth/header").status_code == 200
        return cookies(client)


@contextlib.contextmanager
def held(server: Server, what: str) -> Iterator[None]:
    """Hold up the model or the search meanwhile."""
    (server.folder / "searching").unlink(missing_ok=True)
    hold = server.folder / f"hold_{what}"
    hold.touch()
    try:
        yield
    finally:
        hold.unlink(missing_ok=True)


async def until(is_so: Callable[[], Any]) -> Any:
    async with asyncio.timeout(40):
        while not (found := is_so()):
            await asyncio.sleep(0.02)
    return found


def pid_of(server: Server) -> int:
    port = server.url.rpartition(":")[2]
    children = psutil.Process().children(recursive=True)
    (found,) = (c.pid for c in children if c.status() != "zombie" and port in c.cmdline())
    return found


# --- what a page shows -----------------------------------------------------------------------


def shown(page: Tab) -> list[dict[str, Any]]:
    """Return the steps as a page shows them after what came over its socket."""
    found: dict[str, dict[str, Any]] = {}
    for event, data in page.events:
        if event == "resume_thread":
            found = {step["id"]: dict(step) for step in data["steps"]}
        elif event in ("new_message", "update_message", "stream_start"):
            found[data["id"]] = dict(data)
        elif event == "stream_token" and data["id"] in found:
            found[data["id"]]["output"] += data["token"]
        elif event == "delete_message":
            found.pop(data["id"], None)
    return list(found.values())


def answers(page: Tab) -> list[str]:
    return [s["output"] for s in shown(page) if s["type"] == "assistant_message"]


def searches(page: Tab) -> list[dict[str, Any]]:
    return [s for s in shown(page) if s["type"] == "tool"]


def is_idle(page: Tab) -> bool:
    """Whether the page offers to ask, not to stop."""
    marks = [event for event, _ in page.events if event in ("task_start", "task_end")]
    return not marks or marks[-1] == "task_end"


def has_followed(page: Tab) -> bool:
    """Whether a page that was resumed followed an answer to its end; Chainlit's own marks precede."""
    names = [event for event, _ in page.events]
    since = names[names.index("resume_thread") :] if "resume_thread" in names else []
    return "task_start" in since and is_idle(page)


def toasts(page: Tab) -> list[str]:
    return [data["message"] for data in page.named("toast") if data["type"] == "warning"]


async def asked(page: Tab, question: str) -> str:
    """Ask, and return the answer once the page is idle again."""
    await page.until(lambda: page.named("task_end"))  # of the connection itself
    n = len(answers(page))
    await page.ask(question)
    await page.until(lambda: len(answers(page)) > n and is_idle(page))
    return answers(page)[-1]


def kept(server: Server, thread: str) -> list[dict[str, Any]]:
    """Return the messages of a conversation as they are kept, oldest first."""
    with contextlib.closing(sqlite3.connect(server.folder / "data/chats.db")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(
            "SELECT type, output, metadata FROM chat_steps WHERE thread_id = ? "
            "AND type LIKE '%_message' ORDER BY created_at, n",
            [thread],
        ).fetchall()
    return [{**row, "metadata": json.loads(row["metadata"])} for row in rows]


def said(server: Server, thread: str, kind: str = "assistant_message") -> list[str]:
    return [m["output"] for m in kept(server, thread) if m["type"] == kind]


def has_state(server: Server, thread: str, state: str) -> bool:
    found = [m["metadata"].get("state") for m in kept(server, thread)]
    return state in found


# --- what is said ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x" * 1_000_000, TOO_LONG.replace(",", r"\,")),
        ("", "question"),
        (" \n\t\u200b ", "question"),
        ("\0" * 50, "question"),
        ("\ud800", ""),
    ],
    ids=["megabyte", "empty", "blank", "nul", "half a character"],
)
async def test_what_is_no_question_gets_a_sentence(
    server: Server, cookie: str, text: str, sentence: str
) -> None:
    async with tab(server, cookie) as page:
        assert (
            sentence in await asked(page, text) or sentence.replace("\\", "") in answers(page)[-1]
        )
        assert "silver dagger" in await asked(page, "What helps?")
        assert page.client.connected


async def test_two_tabs_are_one_conversation(server: Server, cookie: str) -> None:
    questions = ["What helps one?", "What helps two?", "What helps three?", "And what else?"]
    async with tab(server, cookie) as first:
        await asked(first, questions[0])
        thread = await first.thread()
        await until(lambda: has_state(server, thread, "done"))
        async with tab(server, cookie, thread_id=thread) as second:
            await second.until(lambda: second.named("resume_thread"))
            assert len(answers(second)) == 1
            await asyncio.gather(asked(first, questions[1]), asked(second, questions[2]))
            await asked(second, questions[3])
            remembered = (await told(server))["asked"][thread]
            assert len(answers(first)) == 2
            assert len(answers(second)) == 3
    whole = ANSWER.split(".")[0]
    await until(lambda: len([t for t in said(server, thread) if whole in t]) == 4)
    assert len(said(server, thread)) == 4
    assert sorted(said(server, thread, "user_message")) == sorted(questions)
    assert sorted(remembered) == sorted(questions)


# --- Stop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["search", "model"])
async def test_stop_before_the_first_word(server: Server, cookie: str, what: str) -> None:
    async with tab(server, cookie) as page:
        with held(server, what):
            await page.ask("What helps?")
            await until((server.folder / "searching").exists)
            if what == "model":
                await page.until(lambda: page.named("element"))
            await page.client.call("stop")  # until it has cancelled
        await page.until(lambda: is_idle(page) and answers(page) == [STOPPED])
        assert all(step["end"] for step in searches(page))
        assert "silver dagger" in await asked(page, "What helps?")
        thread = await page.thread()
    await until(lambda: len(said(server, thread)) == 2)
    assert said(server, thread)[0] == STOPPED


# --- who looks -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def left_while(
    server: Server,
    cookie: str,
    question: str,
    *,
    is_far: Callable[[Tab], Any],
    session_id: str | None = None,
) -> AsyncIterator[str]:
    """Ask, and close the page once it is so far; give the conversation."""
    async with tab(server, cookie, session_id=session_id) as page:
        await page.ask(question)
        thread = await page.thread()
        await page.until(lambda: is_far(page))
    yield thread


def has_words(page: Tab) -> bool:
    return len(page.named("stream_token")) > 3


async def test_a_reloaded_page_follows_to_the_end(server: Server, cookie: str) -> None:
    async with (
        left_while(server, cookie, "A long one", is_far=has_words) as thread,
        tab(server, cookie, thread_id=thread) as page,
    ):
        await page.until(lambda: answers(page))
        assert answers(page)[0].count("word") < LONG.count("word")
        await page.until(lambda: has_followed(page))
        (answer,) = answers(page)
        assert answer.count("word") == LONG.count("word")
        assert STOPPED not in answer
        assert all(step["end"] for step in searches(page))
        assert page.named("element")[-1]["props"]["is_done"]


@pytest.mark.parametrize("what", ["search", "model"])
async def test_a_page_reloaded_before_the_first_word_follows(
    server: Server, cookie: str, what: str
) -> None:
    with held(server, what):
        async with left_while(
            server, cookie, "What helps?", is_far=lambda p: searches(p)
        ) as thread:
            await until((server.folder / "searching").exists)
            async with tab(server, cookie, thread_id=thread) as page:
                await page.until(lambda: page.named("resume_thread") and not is_idle(page))
                (server.folder / f"hold_{what}").unlink()
                await page.until(lambda: is_idle(page))
                assert "silver dagger" in answers(page)[0]
                assert [bool(s["end"]) for s in searches(page)] == [True]
                assert "2 rows in" in searches(page)[0]["output"]


async def test_a_reloaded_page_is_told_of_a_failure(server: Server, cookie: str) -> None:
    with held(server, "model"):
        async with (
            left_while(
                server, cookie, "A broken one", is_far=lambda p: p.named("element")
            ) as thread,
            tab(server, cookie, thread_id=thread) as page,
        ):
            await page.until(lambda: page.named("resume_thread") and not is_idle(page))
            (server.folder / "hold_model").unlink()
            await page.until(lambda: is_idle(page))
            assert "Something went wrong" in answers(page)[-1]
            assert "a detail of ours" not in json.dumps(page.events)


async def test_a_reloaded_page_can_stop_the_answer(server: Server, cookie: str) -> None:
    async with (
        left_while(server, cookie, "A long one", is_far=has_words) as thread,
        tab(server, cookie, thread_id=thread) as page,
    ):
        await page.until(lambda: answers(page) and not is_idle(page))
        await page.client.emit("stop")
        await page.until(lambda: is_idle(page) and answers(page)[0].endswith(STOPPED))
        await until(lambda: has_state(server, thread, "stopped"))


async def test_a_page_that_lost_the_network_has_all_of_it_again(
    server: Server, cookie: str
) -> None:
    session = str(uuid.uuid4())
    async with (
        left_while(server, cookie, "A long one", is_far=has_words, session_id=session) as thread,
        tab(server, cookie, session_id=session) as page,
    ):
        await page.until(lambda: not is_idle(page))
        await page.until(lambda: is_idle(page))
        assert answers(page)[-1].count("word") == LONG.count("word")
        assert "silver dagger" in await asked(page, "What helps?")
    assert len(said(server, thread)) >= 1


async def test_what_ended_while_the_network_was_away_is_shown(server: Server, cookie: str) -> None:
    session = str(uuid.uuid4())
    with held(server, "model"):
        async with tab(server, cookie, session_id=session) as page:
            await page.ask("What helps?")
            thread = await page.thread()
            await page.until(lambda: page.named("element"))
    await until(lambda: has_state(server, thread, "done"))
    async with tab(server, cookie, session_id=session) as page:
        await page.until(lambda: answers(page))
        assert "silver dagger" in answers(page)[0]


@pytest.mark.parametrize("what", ["words", "search", "turn"])
async def test_an_answer_that_nobody_looks_at_is_stopped(
    server: Server, cookie: str, what: str
) -> None:
    (server.folder / "pace").write_text("0.05")
    try:
        async with left_while(
            server, cookie, "A long one", is_far=has_words if what == "words" else searches
        ) as thread:
            if what == "turn":  # a second question waits for the first
                async with tab(server, cookie, thread_id=thread) as page:
                    await page.until(lambda: page.named("resume_thread"))
                    await page.ask("Another long one")
                    await until(lambda: len(said(server, thread, "user_message")) == 2)
    finally:
        (server.folder / "pace").write_text("0.005")
    n = 2 if what == "turn" else 1
    await until(lambda: sum(text.endswith(STOPPED) for text in said(server, thread)) == n)
    assert all(text.count("word") < LONG.count("word") for text in said(server, thread))


async def test_a_page_that_came_back_is_still_looking_when_another_leaves(
    server: Server, cookie: str
) -> None:
    (server.folder / "pace").write_text("0.015")
    session = str(uuid.uuid4())
    async with (
        left_while(server, cookie, "A long one", is_far=has_words, session_id=session) as thread,
        tab(server, cookie, session_id=session) as page,
    ):
        async with tab(server, cookie, thread_id=thread) as other:
            await other.until(lambda: other.named("resume_thread"))
        (server.folder / "pace").write_text("0.005")
        await until(
            lambda: has_state(server, thread, "done") or has_state(server, thread, "stopped")
        )
        assert has_state(server, thread, "done")
        assert page.client.connected


# --- the database ----------------------------------------------------------------------------


@contextlib.contextmanager
def failing(server: Server, how: str) -> Iterator[None]:
    """Let the database of the running server fail meanwhile."""
    database = server.folder / "data/chats.db"
    pid = pid_of(server)
    match how:
        case "is locked":
            other = sqlite3.connect(database, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("ROLLBACK")
            other.close()
        case "is read-only":
            (server.folder / "read_only").touch()
            yield
            (server.folder / "read_only").unlink()
        case "has no room":
            # no file may be written beyond its first byte, as on a full disk
            limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, limits[1]))
            yield
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("how", ["is locked", "is read-only", "has no room"])
async def test_a_database_that_fails_is_told_once_and_nothing_is_lost(
    server: Server, cookie: str, how: str
) -> None:
    questions = [f"What helps {n}?" for n in range(4)]
    async with tab(server, cookie) as page:
        await asked(page, questions[0])
        thread = await page.thread()
        await until(lambda: has_state(server, thread, "done"))
        with failing(server, how):
            assert "silver dagger" in await asked(page, questions[1])
            await page.until(lambda: toasts(page))
            assert "silver dagger" in await asked(page, questions[2])
            assert len(answers(page)) == 3
        assert "silver dagger" in await asked(page, questions[3])
        (told,) = toasts(page)
        assert how in told
        await until(lambda: len(said(server, thread)) == 4)
    assert said(server, thread, "user_message") == questions
    assert [m["type"] for m in kept(server, thread)] == ["user_message", "assistant_message"] * 4
    assert SECRET not in server.log


# --- memory and log --------------------------------------------------------------------------


async def told(server: Server) -> dict[str, Any]:
    """Return what the server holds of sessions, and what was asked in each conversation."""
    (server.folder / "told").unlink(missing_ok=True)
    (server.folder / "tell").touch()
    await until((server.folder / "told").exists)
    return dict(json.loads((server.folder / "told").read_text()))


async def test_sessions_that_ended_leave_nothing(server: Server, cookie: str) -> None:
    async def come_and_go() -> None:
        async with tab(server, cookie) as page:
            assert "silver dagger" in await asked(page, f"What helps {SECRET}?")
            await page.client.call("clear_session")

    await come_and_go()
    before = await told(server)
    for _ in range(12):
        await come_and_go()
    while (await told(server))["sessions"] > before["sessions"]:  # a moment after their sockets
        await asyncio.sleep(0.2)
    await come_and_go()  # what Chainlit leaves is forgotten when the next page goes
    after = await told(server)
    grown = {
        name: after[name] - n for name, n in before.items() if name not in ("asked", "watched")
    }
    assert all(n < 3 for n in grown.values()), grown


async def test_the_log_holds_no_question_and_no_row(server: Server, cookie: str) -> None:
    async with tab(server, cookie) as page:
        for text in (
            f"What helps {SECRET}?",
            f"/row {SECRET}",
            f"/search {SECRET}",
            f"/{SECRET}",
            f"{SECRET} " * 500,
            "/row row-1",
            f"A broken {SECRET}",
        ):
            await asked(page, text)
        await page.client.emit("chat_settings_change", {"in_stock": SECRET})
        await asked(page, f"What helps {SECRET}?")
    with server.client(cookie=cookie) as client:
        client.get(f"/rag/row?key={SECRET}&version=3")
        client.get(f"/row?key={SECRET}")
    assert "Something could not be done" in server.log
    assert SECRET not in server.log
    assert "wolfsbane" not in server.log


# --- a killed server -------------------------------------------------------------------------


async def test_a_killed_server_leaves_the_answer_marked(tmp_path: Path) -> None:
    app = prepared(tmp_path, pace=0.02)
    with serving(tmp_path, app) as server:
        cookie = signed_in(server)
        async with tab(server, cookie) as page:
            await page.ask("A long one")
            thread = await page.thread()
            await until(lambda: said(server, thread) and "word" in said(server, thread)[0])
            psutil.Process(pid_of(server)).kill()
            await until(lambda: not page.client.connected)
    (tmp_path / "pace").write_text("0")
    with serving(tmp_path, app) as server:
        async with tab(server, cookie, thread_id=thread) as page:
            await page.until(lambda: page.named("resume_thread"))
            (cut,) = answers(page)
            assert cut.startswith("word")
            assert cut.endswith(INTERRUPTED)
            assert all(step["end"] for step in searches(page))
            assert is_idle(page)
            assert "silver dagger" in await asked(page, "What helps?")
            assert (await told(server))["asked"][thread] == ["A long one", "What helps?"]
        await until(lambda: len(said(server, thread)) == 2)
    assert said(server, thread)[0].endswith(INTERRUPTED)
