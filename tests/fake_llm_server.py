"""A small OpenAI-compatible server on loopback that answers, or misbehaves, as it is told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass
class Request:
    """What came."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class FakeLlmServer:
    """Serves until the `with` block ends; `answer` is what a completion gets."""

    answer: Callable[[Handler], None] = lambda handler: handler.stream(["Hello", " world"])
    models: Iterable[str] = ("only",)
    answer_other: Callable[[Handler], None] | None = None
    """What any other request gets, in place of a list of models and of 404."""
    key: str | None = None
    requests: list[Request] = field(default_factory=list)
    n_left: int = 0
    """Clients that left while they were waited for."""

    def __enter__(self) -> Self:
        fake = self

        class Bound(Handler):
            server_of = fake

        self._server = _Server(("127.0.0.1", 0), Bound)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def asked(self) -> list[Request]:
        """The completions asked for."""
        return [r for r in self.requests if r.path.endswith("completions")]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # a client that leaves is what many tests are about


class Handler(BaseHTTPRequestHandler):
    server_of: FakeLlmServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._note(None)
        if self.server_of.answer_other:
            return self.server_of.answer_other(self)
        if self.server_of.key and self.headers["Authorization"] != f"Bearer {self.server_of.key}":
            return self.send(
                401, {"error": {"message": f"Bad key {self.headers['Authorization']}"}}
            )
        if self.path == "/v1/models":
            return self.send(200, {"data": [{"id": name} for name in self.server_of.models]})
        return self.send(404, {"error": "not found"})

    def do_POST(self) -> None:
        self._note(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if not self.path.endswith("completions"):
            if self.server_of.answer_other:
                return self.server_of.answer_other(self)
            return self.send(404, {"detail": "Not Found"})
        return self.server_of.answer(self)

    def _note(self, body: Any) -> None:
        request = Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        self.server_of.requests.append(request)

    def send(self, status: int, body: Any, kind: str = "application/json", **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, kind: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def raw(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, event: Any) -> None:
        self.raw(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())

    def delta(self, text: str, reason: str | None = None) -> None:
        choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": reason}
        self.event({"choices": [choice]})

    def stream(self, deltas: Iterable[str], reason: str | None = "stop") -> None:
        """Answer as a well-behaved server."""
        self.begin()
        for delta in deltas:
            self.delta(delta)
        if reason is not None:
            self.delta("", reason)
            self.event("[DONE]")
        self.raw(b"")

    def hang_up(self) -> None:
        """Close the connection in the middle of whatever it is."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def repeat(self, data: bytes, every_s: float = 0.0) -> None:
        """Send the same again and again until the client closes the connection."""
        gone = threading.Event()
        with contextlib.suppress(OSError):
            while not gone.wait(every_s):
                self.raw(data)
        self.server_of.n_left += 1
        self.close_connection = True

    def wait_until_gone(self) -> None:
        """Say nothing until the client closes the connection."""
        self.connection.settimeout(30)
        self.server_of.n_left += self.connection.recv(1) == b""
        self.close_connection = True
