"""Chainlit's chats in a real database: in process, and in a real server over sockets and HTTP."""

# ruff: noqa: ASYNC110 – a test may wait until a retry is through

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import chainlit as cl
import httpx
import pytest
import socketio
from chainlit.context import ChainlitContext, context_var
from chainlit.session import HTTPSession
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import PersistedUser
from chat_server import serving
from postgres import database, postgres  # noqa: F401 – fixtures
from starlette.exceptions import HTTPException

from rag.accounts import Accounts, AccountsUnavailable
from rag.errors import AccountsError
from rag.web.history import History, person

APP = """
import asyncio, os
import chainlit as cl
from rag.accounts import Accounts
from rag.web.history import History

os.environ["CHAINLIT_AUTH_SECRET"] = "x" * 40
history = History(Accounts("chats.db", patience_s=0.2), retry_s=0.2)
cl.data_layer(lambda: history)

@cl.header_auth_callback
async def who(headers):
    name = headers.get("x-user")
    return cl.User(identifier=name) if name else None

@cl.on_chat_resume
async def resume(thread):
    pass

@cl.on_message
async def answer(message):
    async with cl.Step(name="library search", type="tool") as step:
        step.output = "found"
    reply = cl.Message(content="", metadata={"state": "writing"})
    await reply.stream_token("Half an answer")
    if message.content == "die":
        await reply.update()
        async with cl.Step(name="unended", type="tool"):
            await history.settled()
            os._exit(9)
    await reply.stream_token(", and the rest")
    reply.metadata = {"state": "done", "text": reply.content}
    await reply.send()
    props = {"message_id": reply.id, "sources": [{"row": "fs-001", "segments": []}]}
    await cl.CustomElement(name="Sources", props=props).send(for_id=reply.id)
    await history.settled()
    await cl.context.emitter.send_toast(str(history.problem()))
"""


# -- in process -------------------------------------------------------------------------------------


@pytest.fixture
async def history(database: str) -> AsyncIterator[History]:  # noqa: F811
    made = History(Accounts(database), retry_s=0.05)
    for name in ("ann", "bob"):
        await made.create_user(cl.User(identifier=name, metadata={"is_admin": name == "ann"}))
    yield made
    await made.close()


async def become(history: History, name: str) -> PersistedUser:
    """Be the user of a Chainlit session from now on."""
    user = await history.get_user(name)
    assert user is not None
    session = HTTPSession(
        id=str(uuid.uuid4()),
        client_type="webapp",
        thread_id="t",
        user=user,
        token=None,
        user_env={},
    )
    context_var.set(ChainlitContext(session))
    return user


def step(name: str = "q", kind: str = "user_message", **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "threadId": "t",
        "type": kind,
        "name": "x",
        "output": "",
        "streaming": False,
        **more,
    }


async def test_users_are_known_with_what_their_login_said(history: History) -> None:
    ann = await history.get_user("ann")
    assert ann is not None
    assert (ann.identifier, ann.metadata) == ("ann", {"is_admin": True})
    again = await history.create_user(cl.User(identifier="ann", metadata={"is_admin": False}))
    assert again is not None
    assert (again.id, again.metadata) == (ann.id, {"is_admin": False})
    assert await history.get_user("eve") is None


async def test_create_and_update_of_a_step_do_not_overtake_each_other(history: History) -> None:
    await become(history, "ann")
    tasks = []
    for i in range(150):
        tasks.append(asyncio.create_task(history.create_step(step(str(i)))))
        tasks.append(asyncio.create_task(history.update_step(step(str(i), output="final"))))
    await asyncio.gather(*tasks)
    found = await history.get_thread("t")
    assert found is not None
    assert len(found["steps"]) == 150
    assert {s["output"] for s in found["steps"]} == {"final"}


async def test_a_thread_has_the_first_question_as_its_name(history: History) -> None:
    ann = await become(history, "ann")
    question = "What helps\nagainst " + "a werewolf " * 20
    await history.create_step(step(output=question))
    await history.update_thread("t", name=question, user_id=ann.id)
    await history.update_thread("t", metadata={"chat_settings": {"top_k": 5}, "gone": None})
    listed = await history.list_threads(Pagination(first=5), ThreadFilter(userId=ann.id))
    assert [t["name"] for t in listed.data] == [" ".join(question.split())[:79] + "…"]
    assert listed.pageInfo.endCursor
    assert not listed.pageInfo.hasNextPage
    found = await history.get_thread("t")
    assert found is not None
    assert found["metadata"] == {"chat_settings": {"top_k": 5}}
    assert await history.get_thread_author("t") == "ann"
    assert await history.get_thread_author("none") == ""
    assert await history.get_thread("none") is None


async def test_a_removed_thread_does_not_come_back(history: History) -> None:
    await become(history, "ann")
    await history.create_step(step())
    await history.delete_thread("t")
    await history.update_step(step("a", "assistant_message", output="late"))
    await history.update_thread("t", metadata={"of": "a session that ends"})
    await history.update_thread("never", metadata={"of": "a session without a question"})
    assert await history.get_thread("t") is None
    assert await history.get_thread("never") is None


async def test_another_person_sees_and_changes_nothing(history: History) -> None:
    await become(history, "ann")
    await history.create_step(step(output="private"))
    await history.create_element(element("e", "private"))
    rating = await history.upsert_feedback(Feedback(forId="q", value=1, comment="private"))
    before = await history.get_thread("t")
    bob = await become(history, "bob")
    seen = await history.get_thread("t")
    assert seen is not None
    assert "private" not in str(seen)  # Chainlit refuses by the owner's name
    assert seen["userIdentifier"] == "ann"
    assert await history.get_element("t", "e") is None
    await history.update_thread("t", name="forged", user_id=bob.id, metadata={"x": 1})
    await history.update_step(step(output="forged"))
    await history.create_step(step("new", output="forged"))
    await history.create_element(element("e", "forged"))
    await history.delete_step("q")
    await history.delete_element("e", "t")
    await history.delete_thread("t")
    assert not await history.delete_feedback(rating)
    with pytest.raises(AccountsError, match="not in your chats"):
        await history.upsert_feedback(Feedback(forId="q", value=0))
    assert history.problem() is None
    await become(history, "ann")
    assert await history.get_thread("t") == before
    assert await history.delete_feedback(rating)


async def test_without_a_person_nothing_is_read_or_written(history: History) -> None:
    await become(history, "ann")
    await history.create_step(step(output="private"))
    context_var.set(
        ChainlitContext(
            HTTPSession(
                id="s", client_type="webapp", thread_id="t", user=None, token=None, user_env={}
            )
        )
    )
    await history.get_user("")
    assert not person()
    await history.update_step(step(output="forged"))
    await history.delete_thread("t")
    assert "private" not in str(await history.get_thread("t"))
    await become(history, "ann")
    found = await history.get_thread("t")
    assert found is not None
    assert found["steps"][0]["output"] == "private"


def element(element_id: str, text: str) -> cl.CustomElement:
    return cl.CustomElement(
        id=element_id, for_id="q", thread_id="t", name="Sources", props={"text": text}
    )


async def test_elements_come_back_without_files(history: History, tmp_path: Path) -> None:
    await become(history, "ann")
    await history.create_step(step())
    (tmp_path / "f.txt").write_text("from a file")
    await history.create_element(element("cards", "passage"))
    await history.create_element(
        cl.Text(id="text", for_id="q", thread_id="t", name="n", content="hello", mime="text/plain")
    )
    await history.create_element(
        cl.File(id="file", for_id="q", thread_id="t", name="n", path=str(tmp_path / "f.txt"))
    )
    await history.create_element(
        cl.File(id="big", for_id="q", thread_id="t", name="n", content=b"x" * 2_000_000)
    )
    await history.create_element(
        cl.Image(id="far", for_id="q", thread_id="t", name="n", url="http://127.0.0.1:9/secret")
    )
    found = await history.get_thread("t")
    assert found is not None
    assert found["elements"] is not None
    assert [(e["id"], e.get("url")) for e in found["elements"]] == [
        ("cards", None),
        ("text", "data:text/plain;base64,aGVsbG8="),
        ("file", "data:application/octet-stream;base64,ZnJvbSBhIGZpbGU="),
    ]
    assert found["elements"][0]["props"] == {"text": "passage"}
    one = await history.get_element("t", "cards")
    assert one is not None
    assert one["props"] == {"text": "passage"}
    await history.delete_element("cards", "t")
    assert await history.get_element("t", "cards") is None


async def test_an_answer_being_written_is_not_said_to_be_cut(history: History) -> None:
    await become(history, "ann")
    await history.create_step(
        step("a", "assistant_message", output="Half", metadata={"state": "writing"})
    )
    found = await history.get_thread("t")
    assert found is not None
    assert found["steps"][0]["output"] == "Half"
    later = History(history._accounts)  # the server was killed and started again
    cut = await later.get_thread("t")
    assert cut is not None
    assert cut["steps"][0]["output"] == "Half _(interrupted)_"
    assert cut["steps"][0]["metadata"]["state"] == "interrupted"
    again = await later.get_thread("t")
    assert again is not None
    assert again["steps"][0]["output"] == "Half _(interrupted)_"


async def test_what_a_locked_database_did_not_take_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    history = History(Accounts(str(path), patience_s=0.05), retry_s=0.05)
    await history.create_user(cl.User(identifier="ann"))
    await become(history, "ann")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for i in range(20):
        await history.create_step(step(str(i), output=f"step {i}"))
    assert "locked by another program" in (history.problem() or "")
    context_var.set(None)  # type: ignore[arg-type]
    with pytest.raises(HTTPException) as told:
        await history.delete_thread("t")
    assert told.value.status_code == 503
    assert "locked" in told.value.detail
    with pytest.raises(AccountsUnavailable):
        await history.upsert_feedback(Feedback(forId="0", value=1))
    other.execute("ROLLBACK")
    other.close()
    while history.problem():
        await asyncio.sleep(0.02)
    found = await history.get_thread("t")
    assert found is not None
    assert [s["output"] for s in found["steps"]] == [f"step {i}" for i in range(20)]
    await history.close()


async def test_one_write_that_cannot_be_stored_keeps_no_other_from_it(history: History) -> None:
    await become(history, "ann")
    nested: Any = []
    for _ in range(5_000):
        nested = [nested]
    hostile = {"id": "deep", "threadId": "t", "type": "user_message", "rest": nested}
    await history._outbox.add(lambda: history._chats.save_step(hostile, "ann"))
    assert "could not be kept" in (history.problem() or "")
    await history.create_step(step("after"))
    assert history.problem() is None
    found = await history.get_thread("t")
    assert found is not None
    assert [s["id"] for s in found["steps"]] == ["after"]


async def test_writes_are_lost_to_nobody_when_the_server_ends(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    history = History(Accounts(str(path), patience_s=0.05), retry_s=1_000)
    await history.create_user(cl.User(identifier="ann"))
    await become(history, "ann")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    await history.create_step(step(output="late"))
    other.execute("ROLLBACK")
    other.close()
    await history.close()
    assert sqlite3.connect(path).execute("SELECT output FROM chat_steps").fetchall() == [("late",)]


# -- a real server ----------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "own_app.py"
    path.write_text(APP)
    return path


class Browser:
    """A person's cookie, socket and requests."""

    def __init__(self, url: str) -> None:
        self.url, self.http = url, httpx.AsyncClient(base_url=url, timeout=30)
        self.socket = socketio.AsyncClient(reconnection=False)
        self.toasts: asyncio.Queue[str] = asyncio.Queue()
        self.texts: list[str] = []
        self.session, self.thread, self.resumed = str(uuid.uuid4()), "", asyncio.Queue()
        self.socket.on("toast", lambda data: self.toasts.put_nowait(data["message"]))
        self.socket.on("new_message", lambda data: self.texts.append(data["output"]))
        self.socket.on("resume_thread", self.resumed.put_nowait)

    async def login(self, name: str) -> Browser:
        done = await self.http.post("/auth/header", headers={"x-user": name})
        assert done.status_code == 200
        return self

    async def connect(self, thread: str = "") -> None:
        cookie = "; ".join(f"{k}={v}" for k, v in self.http.cookies.items())
        auth = {
            "clientType": "webapp",
            "sessionId": self.session,
            "threadId": thread,
            "userEnv": "{}",
            "chatProfile": "",
        }
        await self.socket.connect(
            self.url,
            socketio_path="/ws/socket.io",
            auth=auth,
            headers={"Cookie": cookie},
            transports=["websocket"],
        )
        await self.socket.emit("connection_successful")

    async def say(self, text: str) -> str:
        message = {
            "id": str(uuid.uuid4()),
            "type": "user_message",
            "name": "x",
            "output": text,
            "createdAt": "2026-11-25T10:00:00Z",
        }
        await self.socket.emit("client_message", {"message": message, "fileReferences": []})
        return await asyncio.wait_for(self.toasts.get(), 30)

    async def threads(self, search: str | None = None) -> list[dict[str, Any]]:
        payload = {"pagination": {"first": 10}, "filter": {"search": search}}
        return (await self.http.post("/project/threads", json=payload)).json()["data"]

    async def close(self) -> None:
        await self.socket.disconnect()
        if self.socket.eio.http is not None:  # the client forgets it when it is refused
            await self.socket.eio.http.close()
        await self.http.aclose()


async def test_a_second_person_cannot_reach_the_first_ones_chat(app: Path) -> None:
    with serving(app, app.parent) as url:
        ann, bob = await Browser(url).login("ann"), await Browser(url).login("bob")
        await ann.connect()
        assert await ann.say("Who sells rope?") == "None"
        (mine,) = await ann.threads()
        assert mine["name"] == "Who sells rope?"
        assert [t["id"] for t in await ann.threads("HALF AN")] == [mine["id"]]
        thread = (await ann.http.get(f"/project/thread/{mine['id']}")).json()
        kinds = [s["type"] for s in thread["steps"]]
        assert sorted(kinds) == ["assistant_message", "run", "tool", "user_message"]
        run = next(s["id"] for s in thread["steps"] if s["type"] == "run")
        element = thread["elements"][0]
        rate = {
            "feedback": {"forId": run, "value": 1, "threadId": mine["id"]},
            "sessionId": ann.session,
        }
        rating = (await ann.http.put("/feedback", json=rate)).json()["feedbackId"]

        await bob.connect()
        assert await bob.say("Hello") == "None"
        assert [t["name"] for t in await bob.threads()] == ["Hello"]
        assert await bob.threads("rope") == []
        assert (await bob.http.get(f"/project/thread/{mine['id']}")).status_code == 401
        assert (await bob.http.get("/project/thread/none")).status_code == 404
        assert (await bob.http.get(f"/project/share/{mine['id']}")).status_code == 404
        async with httpx.AsyncClient(base_url=url) as nobody:
            assert (await nobody.get(f"/project/share/{mine['id']}")).status_code in (401, 404)
        assert (
            await bob.http.put("/project/thread", json={"threadId": mine["id"], "name": "forged"})
        ).status_code == 401
        assert (
            await bob.http.request("DELETE", "/project/thread", json={"threadId": mine["id"]})
        ).status_code == 401
        forged = rate | {"feedback": {"forId": run, "value": 0}, "sessionId": bob.session}
        assert (await bob.http.put("/feedback", json=forged)).status_code >= 400
        await bob.http.request("DELETE", "/feedback", json={"feedbackId": rating})
        for method in ("PUT", "DELETE"):
            body = {"element": element | {"props": {"forged": 1}}, "sessionId": bob.session}
            await bob.http.request(method, "/project/element", json=body)
        intruder = await Browser(url).login("bob")
        with pytest.raises(socketio.exceptions.ConnectionError):
            await intruder.connect(mine["id"])
        assert await bob.say("And now?") == "None"  # all of the above is settled
        found = (await ann.http.get(f"/project/thread/{mine['id']}")).json()
        assert found["name"] == "Who sells rope?"
        assert found["elements"] == thread["elements"]
        assert [s["feedback"]["value"] for s in found["steps"] if s.get("feedback")] == [1]
        assert (
            await ann.http.request("DELETE", "/project/thread", json={"threadId": mine["id"]})
        ).status_code == 200
        assert await ann.threads() == []
        for browser in (ann, bob, intruder):
            await browser.close()
        log = (app.parent / "server.log").read_text()
    assert "rope" not in log


async def test_a_killed_server_leaves_the_answer_marked_and_a_lock_loses_nothing(app: Path) -> None:
    folder = app.parent
    with serving(app, folder) as url:
        ann = await Browser(url).login("ann")
        await ann.connect()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ann.say("die"), 5)
        await ann.close()
    with serving(app, folder) as url:
        ann = await Browser(url).login("ann")
        (mine,) = await ann.threads()
        await ann.connect(mine["id"])
        thread = await asyncio.wait_for(ann.resumed.get(), 30)
        answer = next(s for s in thread["steps"] if s["type"] == "assistant_message")
        assert answer["output"] == "Half an answer _(interrupted)_"
        assert answer["metadata"]["state"] == "interrupted"
        assert all(s.get("end") for s in thread["steps"])
        other = sqlite3.connect(folder / "chats.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        ann.texts.clear()
        assert "'chats.db' is locked by another program" in await ann.say("While it is locked?")
        assert ann.texts[-1] == "Half an answer, and the rest"
        listed = await ann.http.post(
            "/project/threads", json={"pagination": {"first": 10}, "filter": {}}
        )
        other.execute("ROLLBACK")
        other.close()
        await ann.say("And after?")
        await ann.close()
        while "And after?" not in outputs(folder):
            await asyncio.sleep(0.05)
        assert listed.status_code == 200  # who reads need not wait
    found = outputs(folder)
    assert found.count("Half an answer, and the rest") == 2
    assert "While it is locked?" in found


def outputs(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "chats.db") as connection:
        return [row[0] for row in connection.execute("SELECT output FROM chat_steps ORDER BY n")]
