"""A stand-in for the model hub on loopback: what its client asks for, from a dictionary."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """A hub that serves files by repository and path, until the `with` block ends."""

    repositories: Mapping[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    corrupt: frozenset[str] = frozenset()
    """Paths whose content arrives with one bit turned over."""
    status: int | None = None
    """Answer every request with this status."""
    breaks_after: int | None = None
    """Close the connection after so many bytes of a body, however many were promised."""
    stalls_after: int | None = None
    """Send nothing more after so many bytes of a body, but keep the connection open."""
    has_ranges: bool = True
    """Whether a part of a file can be asked for; else the whole is sent."""
    told_sizes: Mapping[str, int] = field(default_factory=dict)
    """Paths whose size is told as another than it is."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request so far, and the range it asks for."""
    stalled: threading.Event = field(default_factory=threading.Event)
    """Set once a body has stalled."""
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.answer(hub, has_body=True)

            def do_HEAD(self) -> None:
                self.answer(hub, has_body=False)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where the hub listens."""
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, hub: FakeHub, *, has_body: bool) -> None:
        asked = self.headers["Range"]
        hub.requests.append(f"{self.command} {self.path}" + (f" {asked}" if asked else ""))
        path = self.path.partition("?")[0].strip("/")
        if hub.status is not None:
            return self.send(hub.status, b"{}", has_body=has_body)
        api = path.removeprefix("api/models/")
        repository = "/".join(api.split("/")[:2])
        if repository not in hub.repositories:
            headers = {"X-Error-Code": "RepoNotFound"}
            return self.send(404, b"{}", headers, has_body=has_body)
        if repository in hub.gated:
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, has_body=has_body)
        files = hub.repositories[repository]
        rest = api.removeprefix(repository).strip("/")
        if path.startswith("api/"):
            tree = _tree(files, hub.told_sizes)
            found = tree if rest.startswith("tree/") else _model(repository, tree)
            return self.send(200, json.dumps(found).encode(), has_body=has_body)
        name = rest.removeprefix("resolve/").partition("/")[2]
        if name not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, has_body=has_body)
        body, etag = files[name], _etag(name, files[name])
        if name in hub.corrupt:
            body = bytes([body[0] ^ 1]) + body[1:]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        if _is_large(name):
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(body))}
        if not (has_body and _is_large(name)):
            return self.send(200, body, headers, has_body=has_body)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.has_ranges else 0
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        return self.send_large(hub, 206 if begin else 200, body[begin:], headers)

    def send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        has_body: bool,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def send_large(
        self, hub: FakeHub, status: int, body: bytes, headers: Mapping[str, str]
    ) -> None:
        self.send(status, body, headers, has_body=False)
        n_sent = hub.breaks_after or hub.stalls_after or len(body)
        self.wfile.write(body[:n_sent])
        if n_sent < len(body):
            self.close_connection = True
            if hub.stalls_after:
                hub.stalled.set()
                hub._over.wait(60)


def _is_large(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors", ".bin"))


def _etag(name: str, content: bytes) -> str:
    """Return what the hub names a file by: SHA-256 of large files, git's SHA-1 of small ones."""
    if _is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _model(repository: str, tree: list[dict[str, Any]]) -> dict[str, Any]:
    siblings = []
    for entry in tree:
        sibling = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
        if "lfs" in entry:
            lfs = entry["lfs"]
            sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 130}
        siblings.append(sibling)
    return {"id": repository, "sha": COMMIT, "siblings": siblings}


def _tree(files: Mapping[str, bytes], told_sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    tree: list[dict[str, Any]] = []
    for name, content in files.items():
        size = told_sizes.get(name, len(content))
        entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": "0" * 40}
        if _is_large(name):
            entry["lfs"] = {"oid": _etag(name, content), "size": size, "pointerSize": 130}
        tree.append(entry)
    return tree
