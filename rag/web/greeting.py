"""Whoever needs no form is signed in by the page itself.

Chainlit's page asks who one is, is refused, writes an error to the browser's console, and only then
asks to be signed in. Knows requests and cookies; who somebody is, it is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import chainlit.auth
from chainlit.auth.cookie import set_auth_cookie
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.errors import AccountsError

Greet = Callable[[Request], Awaitable[Any]]
"""Returns Chainlit's user for a request that has no good cookie; None where there is none."""


class Greeting:
    """ASGI middleware: a page that is opened brings the cookie of whoever needs no form."""

    def __init__(self, app: ASGIApp, greet: Greet) -> None:
        """Wrap `app`."""
        self._app, self._greet = app, greet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, adding the cookie where a page starts."""
        cookies = await self._cookies(scope)

        async def send_with_cookies(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                message = {**message, "headers": [*message["headers"], *cookies]}
            await send(message)

        await self._app(scope, receive, send_with_cookies if cookies else send)

    async def _cookies(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        if scope["type"] != "http" or scope["method"] != "GET":
            return []
        request = Request(scope)
        if "text/html" not in request.headers.get("accept", ""):
            return []
        try:
            user = await self._greet(request)
        except AccountsError:  # the page comes without, and says so when it asks
            return []
        if user is None:
            return []
        response = Response()
        set_auth_cookie(request, response, chainlit.auth.create_jwt(user))
        return [(name, value) for name, value in response.raw_headers if name == b"set-cookie"]
