"""Chainlit's routes that need more than Chainlit does: signing in, and what is somebody's own.

Knows Chainlit's routes and `Accounts`. Ours stand before Chainlit's of the same path. What this
chat does not need of them (sharing, editing cards from the page, MCP, uploads) is refused.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import Annotated, Any

import chainlit.server
from chainlit.auth import get_current_user
from chainlit.config import config
from chainlit.session import WebsocketSession
from chainlit.types import DeleteFeedbackRequest, UpdateFeedbackRequest
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from rag.accounts import Accounts
from rag.errors import AccountsError
from rag.web.auth import Auth
from rag.web.limits import Throttle

SWITCHED_OFF = (
    ("POST", "/project/file"),  # Chainlit reads the whole body before it says so
    ("PUT", "/project/element"),  # of any conversation whose id is known
    ("DELETE", "/project/element"),
    ("PUT", "/project/thread/share"),  # also where sharing is off
    ("GET", "/project/share/{thread_id}"),
    ("POST", "/auth/jwt"),  # makes a cookie last for ever
    ("POST", "/mcp"),
    ("DELETE", "/mcp"),
)
"""Routes of Chainlit that are refused, and why."""

_LONGEST = 1024
"""Characters of a name or a password; a longer one is wrong without being hashed."""
_WRONG = "The user name or the password is wrong."
_AWAY = "The users cannot be read at the moment; please try again in a while."
_NOT_YOURS = "There is no such conversation, or it is not yours."
_NO_RATING = "There is no such answer or rating, or it is not yours."
_NOT_KEPT = "The rating cannot be kept at the moment; please try again in a while."
_log = logging.getLogger(__name__)

CurrentUser = Annotated[Any, Depends(get_current_user)]


def install(auth: Auth, accounts: Accounts) -> None:
    """Put these routes before Chainlit's; safe to call again.

    Args:
        auth: How people sign in.
        accounts: Whose conversations and ratings are whose, and the passwords.
    """
    app = chainlit.server.app
    vars(chainlit.server)["is_thread_author"] = Owners(accounts).is_thread_author
    doors = APIRouter(prefix=config.run.root_path)
    doors.add_api_route("/login", Login(auth, accounts).login, methods=["POST"])
    owners = Owners(accounts)
    doors.add_api_route("/feedback", owners.rate, methods=["PUT"])
    doors.add_api_route("/feedback", owners.unrate, methods=["DELETE"])
    for method, path in SWITCHED_OFF:
        doors.add_api_route(path, _refused, methods=[method])
    routes = app.router.routes
    routes[:] = [r for r in routes if r is not getattr(app.state, "doors", None)]
    app.include_router(doors)
    app.state.doors = routes.pop()
    routes.insert(0, app.state.doors)


class Login:
    """Signing in with a password, a few guesses at a time."""

    def __init__(self, auth: Auth, accounts: Accounts, throttle: Throttle | None = None) -> None:
        """Keep what is needed; `throttle` counts the guesses."""
        self._auth, self._accounts = auth, accounts
        self._throttle = throttle or Throttle()

    async def login(self, request: Request) -> Response:
        """Answer the page's form."""
        if self._auth.way != "password":
            return _sentence(400, "This chat asks for no password.")
        form = await request.form(max_files=0, max_fields=8)
        name = unicodedata.normalize("NFC", str(form.get("username", "")).strip())
        password = str(form.get("password", ""))
        address = request.client.host if request.client else ""
        if wait := self._throttle.attempt(name[:_LONGEST], address):
            # the address, for whoever blocks them; the name may be somebody's password
            _log.warning("Passwords from %s are not looked at for %d s", address, wait)
            told = f"Too many wrong passwords; try again in {wait} s."
            return _sentence(429, told, {"retry-after": str(wait)})
        try:
            is_short = max(len(name), len(password)) <= _LONGEST
            user = await self._accounts.check(name, password) if is_short else None
        except AccountsError:
            _log.exception("A password could not be checked")
            return _sentence(503, _AWAY)
        if user is None:
            return _sentence(401, _WRONG)
        self._throttle.succeeded(name, address)
        made: Response = await chainlit.server._authenticate_user(
            request, self._auth.user(user.name, login=user.login)
        )
        return made


class Owners:
    """What a person may touch: their own conversations and ratings."""

    def __init__(self, accounts: Accounts) -> None:
        """Keep who knows whose they are."""
        self._accounts = accounts

    async def is_thread_author(self, name: str, thread_id: str) -> bool:
        """Return True; Chainlit asks this before a thread is read, renamed or deleted.

        Raises:
            HTTPException: 404, also where it is another's: that it exists is theirs to know.
        """
        try:
            owner = await self._accounts.thread_owner(thread_id)
        except AccountsError as e:
            raise _unavailable(_AWAY) from e
        if owner != name:
            raise HTTPException(404, _NOT_YOURS)
        return True

    async def rate(
        self, request: Request, update: UpdateFeedbackRequest, user: CurrentUser
    ) -> Response:
        """Keep a rating of an own answer, by Chainlit's own route."""
        feedback, name = update.feedback, user.identifier
        session = WebsocketSession.get_by_id(update.sessionId)
        is_own_session = session is None or (session.user and session.user.identifier == name)
        try:
            is_own = (
                is_own_session
                and await self._accounts.step_owner(feedback.forId) == name
                and await self._accounts.thread_owner(feedback.threadId or "") in (None, name)
                and (not feedback.id or await self._owner(feedback.id) in (None, name))
            )
        except AccountsError as e:
            raise _unavailable(_NOT_KEPT) from e
        if not is_own:
            raise HTTPException(404, _NO_RATING)
        try:
            kept: Response = await chainlit.server.update_feedback(request, update, user)
        except HTTPException as e:  # its detail is whatever the database said
            raise _unavailable(_NOT_KEPT) from e
        return kept

    async def unrate(
        self, request: Request, payload: DeleteFeedbackRequest, user: CurrentUser
    ) -> Response:
        """Take back an own rating, by Chainlit's own route."""
        try:
            owner = await self._owner(payload.feedbackId)
            if owner is None or owner != user.identifier:
                raise HTTPException(404, _NO_RATING)
            gone: Response = await chainlit.server.delete_feedback(request, payload, user)
        except AccountsError as e:
            raise _unavailable(_NOT_KEPT) from e
        return gone

    async def _owner(self, feedback_id: str) -> str | None:
        return await self._accounts.feedback_owner(feedback_id)


def _unavailable(sentence: str) -> HTTPException:
    _log.error("Told the reader: %s", sentence, exc_info=True)
    return HTTPException(503, sentence)


async def _refused() -> Response:
    return _sentence(403, "This is switched off in this chat.")


def _sentence(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": sentence}, status, headers)
