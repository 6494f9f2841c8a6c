"""What every request passes before Chainlit sees it: its host, its origin, its size.

ASGI middleware over plain values; knows neither Chainlit nor who is asking. A refusal is one calm
sentence, and carries the security headers as every response does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # 'unsafe-eval' is what Chainlit's custom elements run by; images, fonts, media and sockets
    # from elsewhere are what an injected row would call home with
    "content-security-policy": "; ".join(
        (
            "default-src 'self'",
            "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "media-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "frame-ancestors 'none'",
            "form-action 'self'",
        )
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
MAX_BODY = 1_000_000
"""Bytes of a request's body."""
MAX_PACKET = 4_400_000
"""Bytes of one packet of a socket: a million characters, so that a long question is told so.

A larger one closes the socket, as engine.io does with all that is above its limit.
"""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_FORM_POSTS = ("/auth/oauth/azure-ad-hybrid/callback",)
"""Where a provider's own page posts to."""
_PRIVATE = ("/project/", "/user", "/feedback", "/rag/", "/row", "/auth/", "/login")
"""What no cache may keep."""
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def is_loopback(host: str) -> bool:
    """Whether a host, without its port, is this machine to itself."""
    address = _ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def is_forwarded(headers: Headers) -> bool:
    """Whether a proxy says that it passes the request on; its peer is not who asks then."""
    return any(name in headers for name in _FORWARDED)


def hostname(netloc: str) -> str:
    """Return the host of `host:port`, in lower case and without brackets; empty for nonsense."""
    try:
        parts = urlsplit(f"//{netloc}")
        _ = parts.port  # raises when it is no number
    except ValueError:
        return ""
    is_bare = parts.netloc == netloc and parts.username is None
    return (parts.hostname or "") if is_bare else ""


@dataclass(frozen=True)
class Hosts:
    """The names that this server answers to.

    Args:
        listed: Names of the settings; `*` is any.
        bound: The address that the server listens on.
    """

    listed: tuple[str, ...]
    bound: str

    def has(self, host: str) -> bool:
        """Whether a host, without its port, is one of ours.

        A page that rebinds its name to this machine's address (DNS rebinding) sends its own name.
        """
        if not host:
            return False
        if "*" in self.listed or host in self._names or is_loopback(host):
            return True
        # listening everywhere, it has addresses that it does not know; an address is no name
        bound = _ip(self.bound)
        is_everywhere = self.bound == "" or (bound is not None and bound.is_unspecified)
        return is_everywhere and _ip(host) is not None

    def is_own(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is ours.

        Args:
            origin: The header of that name.
            host: The header of that name, with its port.
        """
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https"):
            return False
        # a proxy that ends TLS may change the host; its name is then listed, without a port
        return parts.netloc.lower() == host.lower() or parts.netloc.lower() in self._listed

    @property
    def _listed(self) -> frozenset[str]:
        return frozenset(name.lower() for name in self.listed)

    @property
    def _names(self) -> frozenset[str]:
        return self._listed | {self.bound.strip("[]").lower()}


class SecurityHeaders:
    """ASGI middleware: every response carries `HEADERS`, and a private one is kept by no cache.

    Args:
        app: What is wrapped.
        root_path: What all paths begin with.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        """Wrap `app`."""
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, adding the headers where a response starts."""

        async def send_with_headers(message: Message) -> None:
            # the second is a socket that is refused
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if scope["path"].removeprefix(self._root_path).startswith(_PRIVATE):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send if scope["type"] == "lifespan" else send_with_headers)


class Gate:
    """ASGI middleware: only our own host names, and no writing by the pages of others."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        """Wrap `app`."""
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is ours, refuse the rest."""
        refused = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(*refused, scope=scope, receive=receive, send=send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        named = headers.getlist("host")
        host = hostname(named[0]) if len(named) == 1 else ""
        if not self._hosts.has(host):
            return 421, (
                f"This chat does not answer to the host name {host[:100]!r}. "
                "Whoever runs it can add the name to RAG_WEB__HOSTS."
            )
        # a socket begins with a GET; engine.io is told the same rule for it
        if scope["type"] == "websocket" or scope["method"] in _READING:
            return None
        origins = headers.getlist("origin")
        is_foreign = any(not self._hosts.is_own(origin, named[0]) for origin in origins)
        if is_foreign and not scope["path"].endswith(_FORM_POSTS):
            return 403, (
                "This request came from a page of another site and was refused. "
                "Whoever runs the chat can add its host name to RAG_WEB__HOSTS."
            )
        return None


class BodyLimit:
    """ASGI middleware: a body is refused before the application reads it.

    Args:
        app: What is wrapped.
        socket_path: Where the socket's packets are posted, which may be larger.
    """

    def __init__(self, app: ASGIApp, socket_path: str) -> None:
        """Wrap `app`."""
        self._app, self._socket_path = app, socket_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = MAX_PACKET if scope["path"].startswith(self._socket_path) else MAX_BODY
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            body = None
        elif "transfer-encoding" in headers:
            body = await _read(receive, limit)
            receive = _replayed(body or [], receive)
        else:
            body = []  # the server reads no more of it than the length says
        if body is None:
            sentence = f"The request is larger than {limit:,} bytes, which is the most it may be."
            await _refuse(413, sentence, scope=scope, receive=receive, send=send)
        else:
            await self._app(scope, receive, send)


async def _read(receive: Receive, limit: int) -> list[Message] | None:
    """Read a body whose length nobody told; return None once it is above the limit."""
    messages: list[Message] = []
    n_bytes = 0
    while True:
        message = await receive()
        messages.append(message)
        n_bytes += len(message.get("body", b""))
        if n_bytes > limit:
            return None
        if not message.get("more_body", False):
            return messages


def _replayed(messages: Iterable[Message], receive: Receive) -> Receive:
    read = iter(messages)

    async def next_message() -> Message:
        message = next(read, None)
        return await receive() if message is None else message

    return next_message


async def _refuse(
    status: int, sentence: str, *, scope: Scope, receive: Receive, send: Send
) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get(
        "extensions", {}
    ):
        await send({"type": "websocket.close", "code": 1008})
        return
    # the rest of the body is not read: the connection ends with the response
    headers = {"connection": "close"}
    await PlainTextResponse(sentence, status, headers)(scope, receive, send)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
