"""How a person signs in, and what is believed of them at each request.

One way at a time: nobody but whoever sits here, passwords, a proxy's header, or OAuth. Knows
Chainlit's cookie and callbacks, and `Accounts`. What the cookie says is only a name and a way:
whether that person still exists and is an admin is looked up each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import chainlit as cl
import chainlit.auth
import chainlit.server

# `from chainlit import socket` fails: Chainlit looks it up among its lazy names
import chainlit.socket as chainlit_socket
from chainlit.auth import get_token_from_cookies
from chainlit.config import config
from chainlit.oauth_providers import get_configured_oauth_providers
from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from rag.accounts import Accounts
from rag.errors import AccountsError
from rag.settings import WebSettings
from rag.web import people
from rag.web.gates import is_forwarded, is_loopback
from rag.web.people import LOCAL, Person
from rag.web.secret import prepare_cookie

Way = Literal["local", "password", "header", "oauth"]

_LONGEST_NAME = 200
_WAY = "way"
_LOGIN = "login"
_OPEN = (
    "The chat would listen on {host!r}, for everybody and without a login. Add a user "
    "(`rag user add NAME --admin`), or name the header of a proxy (RAG_WEB__AUTH_HEADER), "
    "or listen on 127.0.0.1."
)
_AWAY = "The users cannot be read at the moment; please try again in a while."
_log = logging.getLogger(__name__)


def install_auth(settings: WebSettings, accounts: Accounts, *, host: str) -> Auth:
    """Make Chainlit ask who somebody is; safe to call again, as `chainlit run -w` does.

    The way that it returns is what `owning` needs for its routes.

    Args:
        settings: Which way, the proxy's header and the admins.
        accounts: The password users.
        host: The address that the server listens on, `chainlit.config.config.run.host`.

    Raises:
        SystemExit: the way cannot be used as it is set, or the chat would be open to everybody;
            its sentence is what the terminal shows.
    """
    auth = Auth(settings, accounts, way=_way(settings, accounts, host))
    prepare_cookie(settings)
    if auth.way == "header" and not is_loopback(host):
        _log.warning("Whoever reaches %s beside the proxy can pass for any user.", host)
    if auth.way == "oauth" and not settings.oauth_users:
        _log.warning(
            "Everybody with an account at the OAuth provider may chat; RAG_WEB__OAUTH_USERS names "
            "who may."
        )
    auth.register()
    return auth


class Auth:
    """The way that people sign in.

    Args:
        settings: The proxy's header and the admins.
        accounts: The password users.
        way: How people sign in.
    """

    def __init__(self, settings: WebSettings, accounts: Accounts, *, way: Way) -> None:
        """Keep what is needed; `register` makes it Chainlit's."""
        self._settings, self._accounts = settings, accounts
        self.way: Way = way

    def register(self) -> None:
        """Make this Chainlit's only way to know who somebody is."""
        self._offer()
        people.identify_by(self.identify)
        chainlit.server.app.state.greet = self.greet
        chainlit.server.app.dependency_overrides[chainlit.auth.get_current_user] = self.signed_in
        vars(chainlit_socket)["_authenticate_connection"] = self._of_socket

    async def identify(self, connection: HTTPConnection) -> Person | None:
        """Return the person of a request, as they are now; None when it has no good cookie.

        Raises:
            AccountsError: the users cannot be read.
        """
        user = self._of_cookie(connection)
        return None if user is None else await self._known(user, connection.headers)

    async def signed_in(self, request: Request) -> Any:
        """Return Chainlit's user of a request.

        Raises:
            HTTPException: 401 without a good cookie; 503 when the users cannot be read.
        """
        try:
            user = await self._user(request)
        except AccountsError as e:
            _log.exception("The person of a request could not be looked up")
            raise HTTPException(503, _AWAY) from e
        if user is None:
            raise HTTPException(401, "Please sign in.")
        return user

    async def greet(self, connection: HTTPConnection) -> cl.User | None:
        """Return Chainlit's user for a request without a good cookie that needs no form.

        Raises:
            AccountsError: the users cannot be read.
        """
        if self.way not in ("local", "header") or await self.identify(connection) is not None:
            return None
        if self.way == "local":
            return await self._local_user(connection.headers)
        return await self._proxy_user(connection.headers)

    def user(self, name: str, **metadata: Any) -> cl.User:
        """Return what Chainlit makes the cookie of."""
        return cl.User(identifier=name, metadata={**metadata, _WAY: self.way})

    async def _of_socket(self, environ: dict[str, Any]) -> tuple[Any, str | None]:
        connection = HTTPConnection(environ["asgi.scope"])
        try:
            user = await self._user(connection)
        except AccountsError:
            _log.exception("The person of a socket could not be looked up")
            return None, None
        return (user, get_token_from_cookies(connection.cookies)) if user else (None, None)

    async def _user(self, connection: HTTPConnection) -> Any:
        person = await self.identify(connection)
        if person is None:
            return None
        user = await chainlit.auth.authenticate_user(get_token_from_cookies(connection.cookies))
        # what was kept of an earlier login says nothing of today
        user.metadata = {
            **(user.metadata or {}),
            "is_admin": person.is_admin,
            _WAY: self.way,
        }
        return user

    def _of_cookie(self, connection: HTTPConnection) -> cl.User | None:
        try:
            user = chainlit.auth.decode_jwt(get_token_from_cookies(connection.cookies))
        except Exception:  # noqa: BLE001 – whatever it is, it is no cookie of ours
            return None
        # a name of another way may be another person
        return user if (user.metadata or {}).get(_WAY) == self.way else None

    async def _known(self, user: cl.User, headers: Headers) -> Person | None:
        name = str(user.identifier)
        if self.way == "local":
            if await self._has_become_password():
                return None
            return Person(LOCAL, is_admin=True) if name == LOCAL else None
        if self.way == "password":
            found = await self._accounts.user(name)
            # a cookie of an earlier password is worth nothing
            is_good = found is not None and user.metadata.get(_LOGIN) == found.login
            return Person(name, found.is_admin) if found is not None and is_good else None
        if self.way == "header" and self._named_by_proxy(headers) != name:
            return None
        if self.way == "oauth" and not self._may_chat(name):
            return None
        return Person(name, name in self._settings.admins)

    async def _has_become_password(self) -> bool:
        """Ask for passwords from now on, when the first user was added meanwhile."""
        try:
            if self._settings.auth == "auto" and await self._accounts.has_users():
                self.way = "password"
                self._offer()
        except AccountsError:
            # there was none at the start, and whoever sits here may chat without a history
            _log.warning("It cannot be seen whether there are users now", exc_info=True)
        return self.way == "password"

    def _offer(self) -> None:
        """Let the page offer this way to sign in, and no other."""
        code = config.code
        code.password_auth_callback = code.header_auth_callback = code.oauth_callback = None
        if self.way == "local":
            cl.header_auth_callback(self._local_user)
        elif self.way == "header":
            cl.header_auth_callback(self._proxy_user)
        elif self.way == "oauth":
            cl.oauth_callback(self._oauth_user)
        else:
            cl.password_auth_callback(_nobody)

    async def _local_user(self, headers: Headers) -> cl.User | None:
        # what a proxy passes on comes from elsewhere, even if the proxy is on this machine
        if is_forwarded(headers) or await self._has_become_password():
            return None
        return self.user(LOCAL)

    async def _proxy_user(self, headers: Headers) -> cl.User | None:
        name = self._named_by_proxy(headers)
        return None if name is None else self.user(name)

    def _named_by_proxy(self, headers: Headers) -> str | None:
        assert self._settings.auth_header is not None, "checked at the start"
        values = headers.getlist(self._settings.auth_header)
        # two of them are the client's and the proxy's, in an order that nobody knows
        return _usable(values[0]) if len(values) == 1 else None

    async def _oauth_user(
        self, provider_id: str, token: str, raw_user_data: dict[str, Any], default_user: cl.User
    ) -> cl.User | None:
        del token
        if False in (raw_user_data.get("email_verified"), raw_user_data.get("verified_email")):
            return None  # anybody can claim an address
        name = _usable(default_user.identifier)
        if name is None:
            return None
        # the same name at two providers is two people
        is_one = len(get_configured_oauth_providers()) == 1
        name = name if is_one else f"{provider_id}:{name}"
        return self.user(name, provider=provider_id) if self._may_chat(name) else None

    def _may_chat(self, name: str) -> bool:
        """Whether a user of a provider is one of those for whom this chat is."""
        allowed = [one.casefold() for one in self._settings.oauth_users]
        name = name.casefold()
        return not allowed or any(
            name.endswith(one) if one.startswith("@") else name == one for one in allowed
        )


def _way(settings: WebSettings, accounts: Accounts, host: str) -> Way:
    """Return the way to sign in.

    Raises:
        SystemExit: it cannot be used as it is set.
    """
    way: Way = _found(settings, accounts) if settings.auth == "auto" else settings.auth
    if way == "local" and not is_loopback(host):
        raise SystemExit(_OPEN.format(host=host))
    if way == "header" and settings.auth_header is None:
        raise SystemExit(
            "RAG_WEB__AUTH is 'header', but no header is named. Set RAG_WEB__AUTH_HEADER to the "
            "one in which the proxy names the user."
        )
    if way == "oauth" and not get_configured_oauth_providers():
        raise SystemExit(
            "OAuth is asked for, but no provider has all of its OAUTH_… variables. Set its client "
            "id, its secret and what else Chainlit's documentation names, or set RAG_WEB__AUTH."
        )
    if way == "password" and settings.auth == "password" and not _has_users(accounts):
        _log.warning("There is no user yet, so nobody can sign in: `rag user add NAME --admin`.")
    return way


def _found(settings: WebSettings, accounts: Accounts) -> Way:
    is_oauth = any(
        name.startswith("OAUTH_") and name.endswith("_CLIENT_ID") and value
        for name, value in os.environ.items()
    )
    if is_oauth:
        return "oauth"
    if settings.auth_header is not None:
        return "header"
    return "password" if _has_users(accounts) else "local"


def _has_users(accounts: Accounts) -> bool:
    async def asked() -> bool:
        try:
            return await accounts.has_users()
        finally:
            await accounts.close()  # its connections belong to the loop that ends here

    try:
        # a thread of its own, because Chainlit's reloader has a running loop in this one
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, asked()).result()
    except AccountsError as e:
        raise SystemExit(str(e)) from e


def _usable(name: object) -> str | None:
    """Return a name from outside, or None when it cannot be one."""
    if not isinstance(name, str):
        return None
    with contextlib.suppress(UnicodeError):
        name = name.encode("latin-1").decode()  # how a header carries UTF-8
    name = name.strip()
    # the local user is whoever sat at this machine, not whoever is called so elsewhere
    is_good = 0 < len(name) <= _LONGEST_NAME and name.isprintable() and name != LOCAL
    return name if is_good else None


async def _nobody(username: str, password: str) -> None:
    """Let nobody in: the page shows its form when this is set, and posts to our own route."""
