"""Signing in: each way, what a cookie is worth, and how often a password may be guessed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from socketio.exceptions import ConnectionError as SocketRefused
from web_server import Server, cookies, serving, tab

from rag.accounts import Accounts
from rag.errors import QuestionError
from rag.settings import WebSettings
from rag.web.auth import install_auth
from rag.web.limits import Limits, Throttle, Window
from rag.web.secret import prepare_cookie
from rag.web.sockets import SIGNED_OUT

PASSWORDS = {"ann": "correct horse", "bob": "battery staple"}


def change(folder: Path, *calls: tuple[object, ...]) -> None:
    """Call methods of the accounts, as `rag user …` does."""

    async def run() -> None:
        accounts = Accounts(str(folder / "data/chats.db"))
        for method, *arguments in calls:
            await getattr(accounts, str(method))(*arguments)
        await accounts.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an admin, ann, and bob."""
    folder = tmp_path_factory.mktemp("passwords")
    add = [("add_user", name, password, name == "ann") for name, password in PASSWORDS.items()]
    change(folder, *add)
    with serving(folder) as found:
        yield found


def sign_in(client: httpx.Client, name: str, password: str, address: str = "") -> httpx.Response:
    """Send the page's form; the address is what a proxy of this machine would say."""
    headers = {"x-forwarded-for": address} if address else {}
    return client.post("/login", data={"username": name, "password": password}, headers=headers)


# --- limits ----------------------------------------------------------------------------------


class Clock:
    """A clock that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_events_in_any_minute() -> None:
    clock = Clock()
    window = Window(2, clock=clock)
    assert [window.allows("ann") for _ in range(3)] == [True, True, False]
    assert window.allows("bob")
    clock.now += 60
    assert window.allows("ann")


def test_a_person_may_wait_with_so_many_questions() -> None:
    limits = Limits(2, 100)
    with limits.question("ann"), limits.question("ann"):
        with pytest.raises(QuestionError, match="You have 2 questions waiting; wait for one"):
            limits.question("ann").__enter__()
        with limits.question("bob"):
            pass
    with limits.question("ann"):
        pass


def test_a_person_may_ask_so_many_questions_in_a_minute() -> None:
    clock = Clock()
    limits = Limits(1, 30, clock=clock)
    told = []
    for _ in range(500):
        try:
            with limits.question("ann"):
                told.append("answered")
        except QuestionError as e:
            told.append(str(e))
    assert told[:30] == ["answered"] * 30
    assert set(told[30:]) == {"That is 30 questions in a minute; wait a moment, then ask again."}
    clock.now += 61
    with limits.question("ann"):
        pass


def test_wrong_passwords_wait_longer_and_longer() -> None:
    clock = Clock()
    throttle = Throttle(clock=clock)
    waits = []
    for _ in range(20):
        while wait := throttle.attempt("ann", "10.0.0.1"):
            clock.now += wait
            waits.append(wait)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, *[300] * 6]


def test_an_attempt_that_is_refused_prolongs_nothing() -> None:
    clock = Clock()
    throttle = Throttle(clock=clock)
    for _ in range(8):
        clock.now += throttle.attempt("ann", "10.0.0.1")
        throttle.attempt("ann", "10.0.0.1")
    wait = throttle.attempt("ann", "10.0.0.1")
    assert [throttle.attempt("ann", "10.0.0.1") for _ in range(100)] == [wait] * 100


def test_others_sign_in_meanwhile() -> None:
    clock = Clock()
    throttle = Throttle(clock=clock)
    throttle.attempt("ann", "10.0.0.2")
    throttle.succeeded("ann", "10.0.0.2")
    for _ in range(5):
        assert throttle.attempt("ann", "10.0.0.1") == 0
    assert throttle.attempt("bob", "10.0.0.1") == 1  # the address
    assert throttle.attempt("ann", "10.0.0.3") == 1  # the name
    assert throttle.attempt("bob", "10.0.0.3") == 0
    assert throttle.attempt("ann", "10.0.0.2") == 0  # known


def test_the_addresses_of_one_ipv6_customer_are_one() -> None:
    throttle = Throttle(clock=Clock())
    for n in range(5):
        assert throttle.attempt(f"user{n}", f"2001:db8::{n}") == 0
    assert throttle.attempt("other", "2001:db8::ffff") == 1
    assert throttle.attempt("other", "2001:db8:0:1::1") == 0


def test_a_flood_of_names_is_forgotten() -> None:
    throttle = Throttle(clock=Clock())
    for n in range(12_000):
        throttle.attempt(f"user{n}", f"10.{n >> 8}.{n & 255}.1")
    assert len(throttle._wrong) == 10_000


# --- passwords -------------------------------------------------------------------------------


def test_a_user_signs_in(server: Server) -> None:
    with server.client() as client:
        assert client.get("/user").status_code == 401
        assert client.get("/rag/me").json() is None
        assert client.get("/auth/config").json()["passwordAuth"]
        assert sign_in(client, "ann", PASSWORDS["ann"], "10.1.0.1").status_code == 200
        assert client.get("/user").json()["identifier"] == "ann"
        assert client.get("/rag/me").json() == ["ann", True]
        client.post("/logout")
        assert client.get("/user").status_code == 401


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("ann", "wrong"),
        ("ann", ""),
        ("", ""),
        ("nobody", PASSWORDS["ann"]),
        ("ann", "x" * 5000),
        ("n" * 5000, "x"),
        ("ann\0", PASSWORDS["ann"]),
        ("' OR 1=1 --", "x"),
        ("local", ""),
    ],
)
def test_nobody_else_does(server: Server, name: str, password: str) -> None:
    with server.client() as client:
        refused = sign_in(client, name, password, f"10.2.0.{len(name) % 250}")
        assert refused.status_code == 401
        assert refused.json() == {"detail": "The user name or the password is wrong."}
        assert "set-cookie" not in refused.headers


def test_fifty_wrong_passwords(server: Server) -> None:
    with server.client() as client:
        told = [sign_in(client, "bob", "wrong", "10.3.0.1") for _ in range(50)]
        refused = [r for r in told if r.status_code == 429]
        assert [r.status_code for r in told[:5]] == [401] * 5
        assert len(refused) >= 35
        assert refused[-1].json()["detail"].startswith("Too many wrong passwords; try again in ")
        assert int(refused[-1].headers["retry-after"]) >= 1
        # neither is the right one looked at, and others are not kept out
        assert sign_in(client, "bob", PASSWORDS["bob"], "10.3.0.1").status_code == 429
        assert sign_in(client, "ann", PASSWORDS["ann"], "10.3.0.2").status_code == 200


def test_the_page_shows_the_sentence_of_each_refusal() -> None:
    # the page looks them up by the name of the status
    path = Path(__file__).parent.parent / ".chainlit/translations/en-US.json"
    login = json.loads(path.read_text(encoding="utf-8"))["auth"]["login"]
    assert {"Unauthorized", "Too Many Requests", "Service Unavailable"} <= set(login["errors"])
    assert login["form"]["email"]["label"] == "User name"


# --- cookies ---------------------------------------------------------------------------------


def login_of(folder: Path, name: str) -> str:
    """Return what a good cookie of a user holds."""

    async def run() -> str:
        accounts = Accounts(str(folder / "data/chats.db"))
        user = await accounts.user(name)
        await accounts.close()
        return user.login if user else ""

    return asyncio.run(run())


def forged(folder: Path, *, key: str | None = None, **changes: object) -> str:
    """Return a token like the server's own, but for the changes."""
    name = changes.get("identifier", "ann")
    claims = {
        "identifier": name,
        "display_name": None,
        "metadata": {"way": "password", "is_admin": True, "login": login_of(folder, str(name))},
        "exp": int(time.time()) + 60,
        "iat": int(time.time()),
    } | changes
    secret = key or (folder / "data/auth_secret").read_text()
    return jwt.encode(claims, secret, algorithm="HS256")


@contextlib.contextmanager
def with_token(server: Server, token: str) -> Iterator[httpx.Client]:
    """Give a browser with this cookie, under the name that the server uses."""
    with server.client() as client:
        sign_in(client, "ann", PASSWORDS["ann"], "10.4.0.1")
        (name,) = list(client.cookies)
        client.cookies = httpx.Cookies({name: token})
        yield client


def test_the_servers_own_token_is_good(server: Server) -> None:
    with with_token(server, forged(server.folder)) as client:
        assert client.get("/rag/me").json() == ["ann", True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "another secret of the same length, or so"},
        {"exp": int(time.time()) - 10},
        {"identifier": "nobody"},
        {"metadata": {"way": "local"}, "identifier": "local"},
        {"metadata": {}},
        {"metadata": {"way": "password"}},
        {"metadata": {"way": "password", "login": "0" * 32}},
    ],
    ids=["another key", "expired", "unknown", "another way", "no way", "no login", "another login"],
)
def test_a_forged_cookie_is_nobodys(server: Server, wrong: dict[str, object]) -> None:
    with with_token(server, forged(server.folder, **wrong)) as client:
        _is_nobody(server, client)


@pytest.mark.parametrize("kind", ["unsigned", "nonsense", "cut"])
def test_a_cookie_that_is_no_token_is_nobodys(server: Server, kind: str) -> None:
    good = forged(server.folder)
    unsigned = jwt.encode(jwt.decode(good, options={"verify_signature": False}), "", "none")
    token = {"unsigned": unsigned, "nonsense": "a.b.c", "cut": good[:-3]}[kind]
    with with_token(server, token) as client:
        _is_nobody(server, client)


def _is_nobody(server: Server, client: httpx.Client) -> None:
    assert client.get("/user").status_code == 401
    assert client.get("/rag/me").json() is None
    assert client.post("/project/threads", json={"pagination": {"first": 1}, "filter": {}}).status_code == 401  # fmt: skip
    assert client.get("/").status_code == 200  # the page, which shows the login
    assert asyncio.run(_is_refused(server, cookies(client)))


async def _is_refused(server: Server, cookie: str, **headers: str) -> bool:
    try:
        async with tab(server, cookie, headers=headers):
            return False
    except SocketRefused:
        return True


def test_a_cookie_cannot_make_an_admin(server: Server) -> None:
    token = forged(server.folder, identifier="bob")
    with with_token(server, token) as client:
        assert client.get("/rag/me").json() == ["bob", False]
        assert client.get("/user").json()["metadata"]["is_admin"] is False


async def test_a_new_password_ends_every_login_and_a_removed_admin_has_no_rights(
    server: Server,
) -> None:
    await asyncio.to_thread(change, server.folder, ("add_user", "eve", "password of eve", True))
    with server.client() as client:
        sign_in(client, "eve", "password of eve", "10.5.0.1")
        async with tab(server, cookies(client)) as page:
            assert (await page.asked("who")).count("is_admin=True") == 2
            await asyncio.to_thread(
                change, server.folder, ("add_user", "eve", "another of eve", False)
            )
            assert client.get("/rag/me").json() is None
            assert await page.asked("who") == SIGNED_OUT
        assert await _is_refused(server, cookies(client))
        sign_in(client, "eve", "another of eve", "10.5.0.1")
        async with tab(server, cookies(client)) as page:
            assert client.get("/rag/me").json() == ["eve", False]
            assert "is_admin=True" not in await page.asked("who")
            await asyncio.to_thread(change, server.folder, ("remove_user", "eve"))
            assert client.get("/user").status_code == 401
            assert await page.asked("who") == SIGNED_OUT
            # another person of the same name is another person
            await asyncio.to_thread(
                change, server.folder, ("add_user", "eve", "another of eve", False)
            )
            assert client.get("/user").status_code == 401


def test_the_secret_is_made_once_and_only_ours(server: Server) -> None:
    path = server.folder / "data/auth_secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text()) >= 32
    assert [p.name for p in path.parent.glob("auth_secret*")] == ["auth_secret"]


def test_a_short_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINLIT_AUTH_SECRET", "short")
    with pytest.raises(SystemExit, match="has 5 characters, at least 32"):
        prepare_cookie(WebSettings())


# --- which way -------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "chat.example.org", ""])
@pytest.mark.parametrize("way", ["auto", "local"])
def test_nobody_listens_to_the_world_without_a_login(
    host: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith("OAUTH_")]:
        monkeypatch.delenv(name)
    accounts = Accounts(str(tmp_path / "chats.db"))
    with pytest.raises(SystemExit, match="rag user add NAME --admin.*AUTH_HEADER.*127.0.0.1"):
        install_auth(WebSettings(auth=way), accounts, host=host)


@pytest.mark.parametrize(
    ("way", "environment", "told"),
    [
        ("header", {}, "Set RAG_WEB__AUTH_HEADER"),
        ("oauth", {}, "no provider has all of its OAUTH_"),
        ("auto", {"OAUTH_GITHUB_CLIENT_ID": "x"}, "no provider has all of its OAUTH_"),
    ],
)
def test_a_way_that_lacks_something_says_what(
    way: str, environment: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=told):
        install_auth(WebSettings(auth=way), Accounts(str(tmp_path / "x.db")), host="127.0.0.1")


async def test_alone_at_this_machine_there_is_no_login(tmp_path: Path) -> None:
    with serving(tmp_path) as server, server.client() as client:
        config = client.get("/auth/config").json()
        assert (config["headerAuth"], config["passwordAuth"]) == (True, False)
        assert client.post("/login", data={"username": "local"}).status_code == 400
        # what a proxy passes on comes from elsewhere
        assert client.post("/auth/header", headers={"x-forwarded-for": "10.0.0.9"}).status_code == 401  # fmt: skip
        assert client.get("/rag/me").json() is None
        assert client.post("/auth/header").status_code == 200
        assert client.get("/rag/me").json() == ["local", True]
        async with tab(server, cookies(client)) as page:
            assert "Person(name='local', is_admin=True)" in await page.asked("who")
        # the first user ends that, without a restart
        await asyncio.to_thread(change, tmp_path, ("add_user", "ann", "correct horse", True))
        assert client.get("/rag/me").json() is None
        assert client.post("/auth/header").status_code == 400
        assert client.get("/auth/config").json()["passwordAuth"]
        assert sign_in(client, "ann", "correct horse").status_code == 200
        assert client.get("/rag/me").json() == ["ann", True]


async def test_a_proxy_names_the_user(tmp_path: Path) -> None:
    settings = {"RAG_WEB__AUTH_HEADER": "X-User", "RAG_WEB__ADMINS": '["ann"]'}
    with serving(tmp_path, **settings) as server, server.client() as client:
        assert client.post("/auth/header").status_code == 401
        twice = [("x-user", "ann"), ("x-user", "bob")]
        assert client.post("/auth/header", headers=twice).status_code == 401
        for nobody in ("", "local", "a" * 300):
            assert client.post("/auth/header", headers={"x-user": nobody}).status_code == 401
        assert client.post("/auth/header", headers={"x-user": "ann"}).status_code == 200
        assert client.get("/rag/me", headers={"x-user": "ann"}).json() == ["ann", True]
        # the cookie alone is worth nothing, nor beside another name
        assert client.get("/rag/me").json() is None
        assert client.get("/rag/me", headers={"x-user": "bob"}).json() is None
        async with tab(server, cookies(client), headers={"X-User": "ann"}) as page:
            assert "'ann'" in await page.asked("who")
        assert await _is_refused(server, cookies(client), **{"X-User": "bob"})
        client.cookies.clear()
        name = "Zoë".encode()
        assert client.post("/auth/header", headers={"x-user": name}).status_code == 200
        assert client.get("/rag/me", headers={"x-user": name}).json() == ["Zoë", False]


# --- OAuth -----------------------------------------------------------------------------------


class Provider(BaseHTTPRequestHandler):
    """The smallest OAuth provider; whoever comes is who `person` says."""

    person: ClassVar[dict[str, object]] = {}

    def do_POST(self) -> None:
        self._answer({"access_token": "token"})

    def do_GET(self) -> None:
        self._answer(self.person)

    def _answer(self, value: object) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[str]:
    """The address of a provider that runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_provider_names_the_user(tmp_path: Path, provider: str) -> None:
    settings = {
        "OAUTH_GENERIC_CLIENT_ID": "id",
        "OAUTH_GENERIC_CLIENT_SECRET": "secret",
        "OAUTH_GENERIC_AUTH_URL": f"{provider}/authorize",
        "OAUTH_GENERIC_TOKEN_URL": f"{provider}/token",
        "OAUTH_GENERIC_USER_INFO_URL": f"{provider}/user",
        "OAUTH_GENERIC_SCOPES": "email",
        "RAG_WEB__ADMINS": '["ann@example.org"]',
        "RAG_WEB__OAUTH_USERS": '["@example.org", "carl@elsewhere.org"]',
    }
    with serving(tmp_path, **settings) as server:
        for person, known in [
            ({"email": "ann@example.org"}, ["ann@example.org", True]),
            ({"email": "bob@example.org", "email_verified": True}, ["bob@example.org", False]),
            ({"email": "ann@example.org", "email_verified": False}, None),
            ({"email": "Carl@elsewhere.org"}, ["Carl@elsewhere.org", False]),
            ({"email": "bob@elsewhere.org"}, None),
            ({"email": "ann@example.org.elsewhere.org"}, None),
            ({"email": "ann@notexample.org"}, None),
            ({"email": "local"}, None),
            ({}, None),
        ]:
            Provider.person = person
            with server.client() as client:
                sent = client.get("/auth/oauth/generic")
                state = parse_qs(urlsplit(sent.headers["location"]).query)["state"][0]
                callback = "/auth/oauth/generic/callback"
                client.get(callback, params={"code": "c", "state": "another"})
                assert client.get("/rag/me").json() is None
                client.get(callback, params={"code": "c", "state": state})
                assert client.get("/rag/me").json() == known
