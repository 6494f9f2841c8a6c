"""A real `chainlit run` for tests, people with a browser's cookies, and their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import socketio

ROOT = Path(__file__).parent.parent
APP = ROOT / "tests" / "auth_app.py"


@dataclass
class Server:
    """A server that runs."""

    url: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def client(self, **headers: str) -> httpx.Client:
        """Return a browser without cookies."""
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


@contextlib.contextmanager
def serving(folder: Path, app: Path = APP, **settings: str) -> Iterator[Server]:
    """Run a chat in a working directory; `settings` are environment variables."""
    shutil.copytree(ROOT / ".chainlit", folder / ".chainlit", dirs_exist_ok=True)
    shutil.copy(ROOT / "chainlit.md", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "chainlit", "run", str(app), "--headless"]
    names = ("RAG_", "CHAINLIT_", "OAUTH_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | settings
    host = settings.get("CHAINLIT_HOST", "127.0.0.1")
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", folder)
    try:
        _wait_for(server, process, settings.get("CHAINLIT_ROOT_PATH", ""))
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(server: Server, process: subprocess.Popen[bytes], prefix: str) -> None:
    for _ in range(1200):
        assert process.poll() is None, server.log
        try:
            if httpx.get(f"{server.url}{prefix}/healthz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


@dataclass
class Tab:
    """A socket as the page opens it, and what came over it."""

    client: socketio.AsyncClient
    events: list[tuple[str, Any]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, event: str, data: Any = None) -> None:
        self.events.append((event, data))
        self.arrived.set()

    async def until(self, found: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait for what `found` finds in the events."""
        async with asyncio.timeout(seconds):
            while not (result := found()):
                self.arrived.clear()
                await self.arrived.wait()
        return result

    def named(self, event: str) -> list[Any]:
        return [data for name, data in self.events if name == event]

    @property
    def texts(self) -> list[str]:
        """What the other side said."""
        said = [d for d in self.named("new_message") if d["type"] == "assistant_message"]
        return [str(d["output"]) for d in said]

    async def ask(self, text: str, **more: Any) -> str:
        """Say something and return the id of the message."""
        message = {
            "id": str(uuid.uuid4()),
            "type": "user_message",
            "name": "x",
            "output": text,
            "createdAt": "2026-01-01T00:00:00.000Z",
            **more,
        }
        await self.client.emit("client_message", {"message": message, "fileReferences": []})
        return str(message["id"])

    async def asked(self, text: str) -> str:
        """Say something and return the answer."""
        n = len(self.texts)
        await self.ask(text)
        await self.until(lambda: len(self.texts) > n)
        return self.texts[-1]

    async def thread(self) -> str:
        """Return the id of the conversation, once something was said."""
        told = await self.until(lambda: self.named("first_interaction"))
        return str(told[-1]["thread_id"])


def cookies(client: httpx.Client) -> str:
    """Return a browser's cookies as one header."""
    return "; ".join(f"{c.name}={c.value}" for c in client.cookies.jar)


@contextlib.asynccontextmanager
async def tab(
    server: Server,
    cookie: str,
    *,
    session_id: str | None = None,
    thread_id: str = "",
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Tab]:
    """Open a socket; raises socket.io's ConnectionError when it is refused."""
    client = socketio.AsyncClient(reconnection=False)
    page = Tab(client)
    client.on("*", page.note)
    auth = {
        "sessionId": str(uuid.uuid4()) if session_id is None else session_id,
        "threadId": thread_id,
        "clientType": "webapp",
        "userEnv": "{}",
        "chatProfile": "",
    }
    try:
        await client.connect(
            server.url,
            headers={"Cookie": cookie, **(headers or {})},
            socketio_path="/ws/socket.io",
            transports=["websocket"],
            auth=auth,
        )
        await client.emit("connection_successful")
        yield page
    finally:
        await client.disconnect()
        if client.eio.http is not None:  # the client forgets it when it is refused
            await client.eio.http.close()
