"""What strangers, other people and other sites cannot do, against a real server."""

# ruff: noqa: ASYNC212 – the browser beside the socket may as well block: the server is elsewhere

from __future__ import annotations

import asyncio
import http.client
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from socketio.exceptions import ConnectionError as SocketRefused
from test_auth import PASSWORDS, change, sign_in
from web_server import Server, cookies, serving, tab

from rag.web.gates import HEADERS, MAX_BODY, Hosts, hostname, is_loopback
from rag.web.owning import SWITCHED_OFF
from rag.web.sockets import TOO_LONG, TOO_MANY

TOKEN = "a token for the metrics"
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers to one more name, with an admin, ann, and bob."""
    folder = tmp_path_factory.mktemp("safety")
    add = [("add_user", name, password, name == "ann") for name, password in PASSWORDS.items()]
    change(folder, *add)
    settings = {
        "RAG_WEB__HOSTS": '["chat.example.org"]',
        "RAG_WEB__METRICS_TOKEN": TOKEN,
        "RAG_WEB__MAX_QUESTIONS_PER_MINUTE": "30",
    }
    with serving(folder, **settings) as found:
        yield found


@pytest.fixture
def ann(server: Server) -> Iterator[httpx.Client]:
    """Her browser."""
    with server.client() as client:
        assert sign_in(client, "ann", PASSWORDS["ann"], "10.9.0.1").status_code == 200
        yield client


@pytest.fixture
def bob(server: Server) -> Iterator[httpx.Client]:
    """His browser."""
    with server.client() as client:
        assert sign_in(client, "bob", PASSWORDS["bob"], "10.9.0.2").status_code == 200
        yield client


# --- hosts and origins -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("netloc", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:8000", "localhost"),
        ("127.0.0.1:8000", "127.0.0.1"),
        ("[::1]:8000", "::1"),
        ("", ""),
        ("a:b", ""),
        ("user@localhost", ""),
        ("localhost/x", ""),
        ("localhost?x", ""),
        ("[::1", ""),
    ],
)
def test_the_host_of_a_header(netloc: str, name: str) -> None:
    assert hostname(netloc) == name


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("chat.example.org", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.5", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_the_names_that_a_server_of_this_machine_answers_to(host: str, is_ours: bool) -> None:
    assert Hosts(("chat.example.org",), "127.0.0.1").has(host) == is_ours


def test_a_server_that_listens_everywhere_answers_to_addresses() -> None:
    hosts = Hosts((), "0.0.0.0")
    assert hosts.has("192.168.1.5")
    assert hosts.has("fd00::1")
    assert not hosts.has("evil.example")
    assert Hosts(("*",), "0.0.0.0").has("evil.example")
    assert Hosts((), "chat.local").has("chat.local")


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        ("http://127.0.0.1:8000", True),
        ("https://127.0.0.1:8000", True),
        ("https://chat.example.org", True),
        ("http://127.0.0.1:9000", False),
        ("https://chat.example.org:444", False),
        ("https://evil.example", False),
        ("https://chat.example.org.evil.example", False),
        ("null", False),
        ("", False),
        ("file://", False),
    ],
)
def test_the_pages_that_are_ours(origin: str, is_own: bool) -> None:
    assert Hosts(("chat.example.org",), "127.0.0.1").is_own(origin, "127.0.0.1:8000") == is_own


@pytest.mark.parametrize("host", ["0.0.0.0", "", "10.0.0.1", "evil.example", "::"])
def test_what_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.1:80", "x@y"])  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/healthz", "/user", "/auth/config", "/public/app.css"])
def test_a_name_that_is_rebound_to_this_machine_is_refused(
    server: Server, host: str, path: str
) -> None:
    with server.client(host=host) as client:
        refused = client.get(path)
    assert refused.status_code == 421
    assert "RAG_WEB__HOSTS" in refused.text
    assert HEADERS.items() <= dict(refused.headers).items()


def test_a_listed_name_is_answered(server: Server) -> None:
    with server.client(host="chat.example.org") as client:
        assert client.get("/auth/config").status_code == 200


@pytest.mark.parametrize("headers", [[], [b"Host: 127.0.0.1", b"Host: evil.example"]])
async def test_no_host_and_two_hosts_are_refused(server: Server, headers: list[bytes]) -> None:
    port = int(server.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\r\n".join([b"GET /healthz HTTP/1.1", *headers, b"Connection: close", b"", b""]))
    status = await reader.readline()
    assert int(status.split()[1]) in (400, 421)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:1"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/login"),
        ("POST", "/logout"),
        ("POST", "/auth/header"),
        ("POST", "/rag/read"),
        ("PUT", "/feedback"),
        ("DELETE", "/project/thread"),
    ],
)
def test_pages_of_other_sites_write_nothing(
    ann: httpx.Client, method: str, path: str, origin: str
) -> None:
    refused = ann.request(method, path, headers={"origin": origin})
    assert refused.status_code == 403
    assert "another site" in refused.text
    assert "access-control-allow-origin" not in refused.headers


def test_the_own_page_writes(server: Server, ann: httpx.Client) -> None:
    for origin in (server.url, "https://chat.example.org"):
        assert ann.post("/rag/read", content=b"abc", headers={"origin": origin}).json() == 3


@pytest.mark.parametrize("origin", [EVIL, "null"])
async def test_pages_of_other_sites_open_no_socket(
    server: Server, ann: httpx.Client, origin: str
) -> None:
    with pytest.raises(SocketRefused):
        async with tab(server, cookies(ann), headers={"Origin": origin}):
            pass
    polling = "/ws/socket.io/?EIO=4&transport=polling"
    assert ann.get(polling, headers={"origin": origin}).status_code == 400
    assert ann.post(polling, headers={"origin": origin}).status_code == 403
    with pytest.raises(SocketRefused):
        async with tab(server, cookies(ann), headers={"Host": "evil.example"}):
            pass
    async with tab(server, cookies(ann), headers={"Origin": server.url}) as page:
        assert await page.asked("who")


# --- bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rag/read", "/login", "/project/file", "/feedback", "/nowhere"])
def test_a_large_body_is_refused_before_it_is_read(server: Server, path: str) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", path)
    connection.putheader("content-length", str(MAX_BODY + 1))
    connection.endheaders()  # and nothing of the body
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_without_a_length_is_counted(server: Server) -> None:
    def pieces(n: int) -> Iterator[bytes]:
        for _ in range(n):
            yield b"x" * 1000

    with server.client() as client:
        assert client.post("/rag/read", content=pieces(MAX_BODY // 1000)).json() == MAX_BODY
        refused = client.post("/rag/read", content=pieces(MAX_BODY // 1000 + 1))
    assert refused.status_code == 413
    assert "1,000,000 bytes" in refused.text


# --- headers, metrics, what is told ----------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/login", "/public/app.css", "/healthz", "/metrics", "/user", "/rag/crash", "/public/no"],
)
def test_every_response_carries_the_security_headers(server: Server, path: str) -> None:
    with server.client() as client:
        headers = dict(client.get(path).headers)
    assert HEADERS.items() <= headers.items()


def test_a_crash_tells_nothing(ann: httpx.Client) -> None:
    crashed = ann.get("/rag/crash")
    assert (crashed.status_code, crashed.text) == (500, "Internal Server Error")


def test_what_is_private_is_kept_by_no_cache(ann: httpx.Client) -> None:
    for path in ("/user", "/project/settings", "/rag/me"):
        assert ann.get(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"authorization": f"Bearer {TOKEN}", "host": "chat.example.org"}, 200),
        ({"authorization": "Bearer wrong", "host": "chat.example.org"}, 403),
        ({"authorization": TOKEN, "host": "chat.example.org"}, 403),
        ({"host": "chat.example.org"}, 403),
        ({"x-forwarded-for": "127.0.0.1"}, 403),
        ({"x-forwarded-for": "10.0.0.1"}, 403),
        ({"forwarded": "for=127.0.0.1"}, 403),
        ({"authorization": "Bearer ä".encode("latin-1"), "host": "chat.example.org"}, 403),
    ],
)
def test_the_metrics_are_for_this_machine_or_a_token(
    server: Server, headers: dict[str, Any], status: int
) -> None:
    with server.client() as client:
        assert client.get("/metrics", headers=headers).status_code == status


def test_readiness_tells_strangers_no_path(server: Server) -> None:
    with server.client() as client:
        assert "/srv/secret" in client.get("/readyz").text
        far = client.get("/readyz", headers={"host": "chat.example.org"})
    assert (far.status_code, far.json()) == (503, {"is_ready": False, "state": "not ready"})


@pytest.mark.parametrize(
    "path", ["/project/settings", "/project/translations", "/auth/config", "/user", "/nowhere"]
)
def test_no_page_tells_a_path_of_the_server(server: Server, ann: httpx.Client, path: str) -> None:
    text = ann.get(path).text
    for secret in (str(server.folder), str(Path.home()), "site-packages", "chats.db", TOKEN):
        assert secret not in text


@pytest.mark.parametrize(("method", "path"), SWITCHED_OFF)
def test_what_the_chat_does_not_need_is_off(ann: httpx.Client, method: str, path: str) -> None:
    refused = ann.request(method, path.format(thread_id=uuid.uuid4()), json={})
    assert refused.status_code == 403
    assert refused.json() == {"detail": "This is switched off in this chat."}


def test_the_log_tells_no_question_and_no_name(server: Server) -> None:
    assert not re.search(r"You said|a secret question|battery staple|correct horse", server.log)


# --- one user and another --------------------------------------------------------------------


async def conversation(server: Server, client: httpx.Client, text: str) -> dict[str, Any]:
    """Say something; return the thread as its owner reads it, once all of it is kept."""
    async with tab(server, cookies(client)) as page:
        await page.asked(text)
        thread_id = await page.thread()
    for _ in range(600):
        found = client.get(f"/project/thread/{thread_id}")
        kinds = [s["type"] for s in found.json().get("steps", [])]
        if "assistant_message" in kinds and "run" in kinds:
            return dict(found.json())
        await asyncio.sleep(0.05)
    raise AssertionError("the conversation was not kept")


def page_of(client: httpx.Client) -> list[str]:
    """Return the conversations that the sidebar lists."""
    body = {"pagination": {"first": 100}, "filter": {}}
    return [t["id"] for t in client.post("/project/threads", json=body).json()["data"]]


async def test_one_user_cannot_touch_what_is_anothers(
    server: Server, ann: httpx.Client, bob: httpx.Client
) -> None:
    hers = await conversation(server, ann, "a secret question")
    thread, run = hers["id"], next(s for s in hers["steps"] if s["type"] == "run")
    name = {"threadId": thread, "name": "taken"}
    element = f"/project/thread/{thread}/element/{uuid.uuid4()}"

    assert thread in page_of(ann)
    assert thread not in page_of(bob)
    body = {"pagination": {"first": 100}, "filter": {"userId": hers["userId"]}}
    assert bob.post("/project/threads", json=body).json()["data"] == []
    # the same answer as for a conversation that is not there
    unknown = bob.get(f"/project/thread/{uuid.uuid4()}")
    assert unknown.status_code == 404
    for refused in (
        bob.get(f"/project/thread/{thread}"),
        bob.put("/project/thread", json=name),
        bob.request("DELETE", "/project/thread", json={"threadId": thread}),
        bob.get(element),
    ):
        assert (refused.status_code, refused.json()) == (404, unknown.json())
    assert bob.put("/project/thread/share", json={"threadId": thread, "isShared": True}).status_code == 403  # fmt: skip
    assert bob.get(f"/project/share/{thread}").status_code == 403
    with pytest.raises(SocketRefused):
        async with tab(server, cookies(bob), thread_id=thread):
            pass
    # she can
    assert ann.put("/project/thread", json={**name, "name": "kept"}).status_code == 200
    async with tab(server, cookies(ann), thread_id=thread) as page:
        resumed = await page.until(lambda: page.named("resume_thread"))
    assert (resumed[0]["id"], resumed[0]["name"]) == (thread, "kept")
    assert [s["id"] for s in resumed[0]["steps"] if s["id"] == run["id"]]
    assert ann.request("DELETE", "/project/thread", json={"threadId": thread}).status_code == 200
    assert ann.get(f"/project/thread/{thread}").status_code == 404


async def test_one_user_cannot_rate_anothers_answers(
    server: Server, ann: httpx.Client, bob: httpx.Client
) -> None:
    hers = await conversation(server, ann, "rate me")
    his = await conversation(server, bob, "rate me too")
    run, own_run = (next(s["id"] for s in t["steps"] if s["type"] == "run") for t in (hers, his))

    def rating(thread: str, step: str, value: int, **more: str) -> dict[str, Any]:
        feedback = {"forId": step, "threadId": thread, "value": value, **more}
        return {"feedback": feedback, "sessionId": str(uuid.uuid4())}

    kept = ann.put("/feedback", json=rating(hers["id"], run, 1, comment="good"))
    assert kept.status_code == 200
    feedback = kept.json()["feedbackId"]
    for stolen in (
        rating(hers["id"], run, 0),
        rating(hers["id"], run, 0, id=feedback),
        rating(his["id"], run, 0),
        rating(his["id"], own_run, 0, id=feedback),
        rating(hers["id"], own_run, 0),
        rating(his["id"], str(uuid.uuid4()), 0),
    ):
        assert bob.put("/feedback", json=stolen).status_code == 404
    assert bob.request("DELETE", "/feedback", json={"feedbackId": feedback}).status_code == 404
    async with tab(server, cookies(ann), session_id=(session := str(uuid.uuid4()))):
        in_hers = {**rating(his["id"], own_run, 1), "sessionId": session}
        assert bob.put("/feedback", json=in_hers).status_code == 404
    steps = ann.get(f"/project/thread/{hers['id']}").json()["steps"]
    kept_now = [s["feedback"] for s in steps if s.get("feedback")]
    assert [(f["value"], f["comment"]) for f in kept_now] == [(1, "good")]
    assert bob.put("/feedback", json=rating(his["id"], own_run, 0)).status_code == 200
    assert ann.request("DELETE", "/feedback", json={"feedbackId": feedback}).status_code == 200


async def test_one_user_cannot_take_over_anothers_session(
    server: Server, ann: httpx.Client, bob: httpx.Client
) -> None:
    session = str(uuid.uuid4())
    async with tab(server, cookies(ann), session_id=session) as hers:
        with pytest.raises(SocketRefused):
            async with tab(server, cookies(bob), session_id=session):
                pass
        action = {"name": "x", "payload": {}, "id": "1", "label": "", "forId": "1"}
        refused = bob.post("/project/action", json={"sessionId": session, "action": action})
        assert refused.status_code == 401
        assert "ann" in await hers.asked("who")


# --- sockets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "session_id", ["../precious", "/tmp/precious", "", "..", f"{{{uuid.uuid4()}}}", "x" * 36]
)
async def test_a_session_is_no_path(server: Server, ann: httpx.Client, session_id: str) -> None:
    # Chainlit joins it to a folder, and removes what is there when the session ends
    precious = server.folder / "precious"
    precious.mkdir(exist_ok=True)
    (precious / "file").write_text("x")
    with pytest.raises(SocketRefused):
        async with tab(server, cookies(ann), session_id=session_id) as page:
            await page.client.emit("clear_session")
    assert (precious / "file").exists()


async def test_a_conversation_to_resume_is_an_id(server: Server, ann: httpx.Client) -> None:
    with pytest.raises(SocketRefused):
        async with tab(server, cookies(ann), thread_id="../x"):
            pass


async def test_a_stranger_opens_no_socket(server: Server) -> None:
    with pytest.raises(SocketRefused):
        async with tab(server, ""):
            pass


async def test_a_message_of_a_megabyte_is_told_so(server: Server, ann: httpx.Client) -> None:
    async with tab(server, cookies(ann)) as page:
        for text in ("x" * 1_000_000, "🧙" * 350_000, "\\" * 1_000_000):
            assert TOO_LONG.replace(",", "") in (await page.asked(text)).replace(",", "")
        # the socket is still open, and nothing of it was kept
        assert await page.asked("hello") == "You said hello"
        thread = await page.thread()
        assert page.client.connected
    assert "xxxx" not in ann.get(f"/project/thread/{thread}").text


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        "text",
        {},
        {"message": None},
        {"message": {"id": "x", "output": "y"}},
        {"message": {"id": str(uuid.uuid4()), "output": 7}},
        {"message": {"id": str(uuid.uuid1()), "output": "version 1"}},
    ],
)
@pytest.mark.parametrize("event", ["client_message", "edit_message"])
async def test_nonsense_over_the_socket_is_let_be(
    server: Server, ann: httpx.Client, event: str, payload: object
) -> None:
    async with tab(server, cookies(ann)) as page:
        await page.client.emit(event, payload)
        assert await page.asked("") == "You said "
        assert len(page.texts) == 1


async def test_a_page_cannot_speak_for_the_chat(server: Server, ann: httpx.Client) -> None:
    async with tab(server, cookies(ann)) as page:
        metadata = {"state": "done", "citations": []}
        asked = await page.ask(
            "hello", type="assistant_message", name="Shopkeeper", metadata=metadata, parentId="x"
        )
        await page.until(lambda: page.texts)
        thread = await page.thread()
    steps: list[dict[str, Any]] = []
    for _ in range(600):
        steps = ann.get(f"/project/thread/{thread}").json()["steps"]
        if any(s["id"] == asked for s in steps):
            break
        await asyncio.sleep(0.05)
    (kept,) = (s for s in steps if s["id"] == asked)
    assert (kept["type"], kept["name"]) == ("user_message", "ann")
    assert not (kept["metadata"] or {}).get("state")


async def test_five_hundred_messages_in_a_minute(server: Server, bob: httpx.Client) -> None:
    async with tab(server, cookies(bob)) as page:
        for n in range(500):
            await page.ask(f"{n}")
        await page.until(lambda: len(page.texts) >= 500, 120)
        told = page.texts
        answered = [t for t in told if t.startswith("You said")]
        assert 20 <= len(answered) <= 30
        limited = [t for t in told if "wait" in t]
        assert len(answered) + len(limited) == len(told)
        assert TOO_MANY in limited
        assert "That is 30 questions in a minute; wait a moment, then ask again." in limited


async def test_a_person_waits_with_three_questions_at_most(
    server: Server, ann: httpx.Client
) -> None:
    async with tab(server, cookies(ann)) as page:
        for _ in range(3):
            assert await page.asked("wait") == "Waiting"
        assert await page.asked("again") == (
            "You have 3 questions waiting; wait for one to end, then ask again."
        )


def test_below_a_path_the_same_doors_stand_in_front(tmp_path: Path) -> None:
    change(tmp_path, ("add_user", "ann", PASSWORDS["ann"], True))
    with serving(tmp_path, CHAINLIT_ROOT_PATH="/chat") as server, server.client() as client:
        wrong = {"username": "ann", "password": "wrong"}
        told = [client.post("/chat/login", data=wrong).status_code for _ in range(8)]
        assert told[-1] == 429
        assert client.post("/login", data=wrong).status_code == 404
        for method, path in SWITCHED_OFF:
            path = path.format(thread_id=uuid.uuid4())
            assert client.request(method, f"/chat{path}", json={}).status_code == 403
        assert client.get("/chat/rag/me").json() is None
        asked = client.get("/chat/user")
        assert (asked.status_code, asked.headers["cache-control"]) == (401, "no-store")
        assert client.get("/chat/metrics").status_code == 200
