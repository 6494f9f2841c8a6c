"""Who is asking: the person of a request or of a Chainlit session.

Knows Chainlit's cookie and session; how a person signs in and what is believed is `auth`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import chainlit as cl
import chainlit.server
from starlette.requests import HTTPConnection

LOCAL = "local"
"""The name of whoever sits at this machine and needs no login."""

Identify = Callable[[HTTPConnection], Awaitable["Person | None"]]


@dataclass(frozen=True)
class Person:
    """Somebody who may chat."""

    name: str
    is_admin: bool
    """Whether they may sync, switch the model and see `/stats`."""


def identify_by(identify: Identify) -> None:
    """Make this the way to know the person of a request, until the next call."""
    chainlit.server.app.state.identify = identify


async def person_of(request: HTTPConnection) -> Person | None:
    """Return the person of a request; None when its cookie is missing, expired, forged or foreign.

    What is told of them is looked up now, not read from the cookie.

    Raises:
        AccountsError: the users cannot be read.
    """
    identify: Identify = chainlit.server.app.state.identify
    return await identify(request)


def person_here() -> Person:
    """Return the person of the Chainlit session at hand, as they were when it was opened."""
    user: Any = cl.user_session.get("user")
    return Person(user.identifier, (user.metadata or {}).get("is_admin") is True)


async def person_now() -> Person | None:
    """Return the person of the Chainlit session at hand, looked up now; for what only admins may.

    Returns:
        None when they may no longer chat.

    Raises:
        AccountsError: the users cannot be read.
    """
    scope = cl.context.session.environ.get("asgi.scope")
    return None if scope is None else await person_of(HTTPConnection(scope))
