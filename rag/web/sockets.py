"""What comes over a socket, checked before Chainlit acts on it.

Knows Chainlit's socket events. Chainlit trusts what the page sends: it makes a folder of the id of
a session (and later removes it), keeps a message as whatever the page says it is, and closes the
socket when a message is long.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import chainlit as cl
import chainlit.server

# `from chainlit import socket` fails: Chainlit looks it up among its lazy names
import chainlit.socket as chainlit_socket
from chainlit.auth import require_login
from chainlit.config import config
from chainlit.context import init_ws_context
from chainlit.session import WebsocketSession
from socketio.exceptions import ConnectionRefusedError as Refused
from starlette.requests import HTTPConnection

from rag.errors import AccountsError
from rag.web import people
from rag.web.gates import MAX_PACKET, Hosts
from rag.web.guard import plain
from rag.web.limits import Window

MAX_CHARS = 100_000
"""Characters of one event; a longer one is told so and kept nowhere."""
TOO_LONG = f"That message is longer than {MAX_CHARS:,} characters; please ask in fewer words."
TOO_MANY = "Those are too many messages at once; wait a minute, then ask again."
SIGNED_OUT = "You are no longer signed in; reload the page to sign in again. Nothing was sent."

_BURST = 4
"""Events of one person in a minute, in questions a minute: settings and edits are events too."""
_log = logging.getLogger(__name__)

Handler = Callable[[str, Any], Awaitable[None]]


def guard(hosts: Hosts, *, per_minute: int) -> None:
    """Put these checks in front of Chainlit's socket events; safe to call again.

    Args:
        hosts: What pages are ours.
        per_minute: Questions of one person in a minute.
    """
    sio = chainlit.server.sio
    # an empty list, Chainlit's own setting, means "no check" to engine.io
    sio.eio.cors_allowed_origins = lambda origin, environ: hosts.is_own(
        origin or "", environ.get("HTTP_HOST", "")
    )
    sio.eio.max_http_buffer_size = MAX_PACKET
    window = Window(_BURST * per_minute)
    sio.on("connect", _connect)
    sio.on("client_message", _checked(_say, window))
    sio.on("edit_message", _checked(_edit, window))
    sio.on("chat_settings_change", _checked(_change, window))
    sio.on("chat_settings_edit", _checked(_change_live, window))


async def _connect(sid: str, environ: dict[str, Any], auth: Any = None) -> Any:
    auth = auth if isinstance(auth, dict) else {}
    session_id, thread_id = auth.get("sessionId"), auth.get("threadId") or ""
    # Chainlit makes the path of a folder of it, and removes that folder with all that is in it
    if not _is_uuid(session_id) or not (thread_id == "" or _is_uuid(thread_id)):
        raise Refused("the session or the conversation has no proper id")
    known = {
        "sessionId": session_id,
        "threadId": thread_id,
        "clientType": "webapp",
        "userEnv": "{}",
        "chatProfile": "",
    }
    try:
        return await chainlit_socket.connect(sid, environ, known)
    except ConnectionRefusedError as e:  # Python's own, which socket.io takes for a crash
        raise Refused(str(e)) from e


def _checked(handle: Handler, window: Window) -> Handler:
    """Return the handler of an event that is not too long, not one too many, and of somebody."""

    async def checked(sid: str, payload: Any = None) -> None:
        session = WebsocketSession.get(sid)
        if session is None or not isinstance(payload, dict):
            return
        sentence = await _refusal(session, payload, window)
        if sentence is None:
            await handle(sid, payload)
        else:
            await _tell(session, sentence)

    return checked


async def _refusal(session: Any, payload: dict[str, Any], window: Window) -> str | None:
    if not window.allows(session.user.identifier if session.user else session.id):
        return TOO_MANY
    if len(json.dumps(payload, ensure_ascii=False)) > MAX_CHARS:
        return TOO_LONG
    if not require_login():
        return None
    try:
        # the cookie may have expired since the socket was opened, or the user be removed
        person = await people.person_of(HTTPConnection(session.environ["asgi.scope"]))
    except AccountsError:
        # the socket was opened with a good cookie: an answer that cannot be kept is still one
        _log.warning("The person of a session could not be looked up", exc_info=True)
        return None
    return SIGNED_OUT if person is None else None


async def _tell(session: Any, sentence: str) -> None:
    """Show a sentence in the chat; it is not kept, and neither is what it answers."""
    context = init_ws_context(session)
    told = cl.ErrorMessage(content=plain(sentence), author=config.ui.name)
    await context.emitter.send_step(told.to_dict())
    await context.emitter.task_end()


async def _say(sid: str, payload: dict[str, Any]) -> None:
    message = _message(payload)
    if message is not None:
        user = WebsocketSession.require(sid).user
        named = {**message, "name": user.identifier if user else "You"}
        await chainlit_socket.message(sid, {"message": named, "fileReferences": None})


async def _edit(sid: str, payload: dict[str, Any]) -> None:
    message = _message(payload)
    if message is not None:
        await chainlit_socket.edit_message(sid, {"message": message})


async def _change(sid: str, payload: dict[str, Any]) -> None:
    await chainlit_socket.change_settings(sid, payload)


async def _change_live(sid: str, payload: dict[str, Any]) -> None:
    await chainlit_socket.edit_settings(sid, payload)


def _message(payload: dict[str, Any]) -> dict[str, Any] | None:
    """Return of a message what a reader may say; None when it is none.

    What kind of step it is, whose it is and what is noted with it is not the page's to say.
    """
    sent = payload.get("message")
    if not isinstance(sent, dict) or not isinstance(sent.get("output"), str):
        return None
    if not _is_uuid(sent.get("id"), version=4):
        return None
    command, modes = sent.get("command"), sent.get("modes")
    return {
        "id": sent["id"],
        "type": "user_message",
        "output": sent["output"],
        "createdAt": str(sent.get("createdAt") or ""),
        "command": command if isinstance(command, str) else None,
        "modes": {str(k): str(v) for k, v in modes.items()} if isinstance(modes, dict) else None,
        "metadata": {},
    }


def _is_uuid(value: Any, *, version: int | None = None) -> bool:
    """Whether a value is an id as a page makes it, in no other spelling."""
    if not isinstance(value, str):
        return False
    try:
        found = uuid.UUID(value)
    except ValueError:
        return False
    return str(found) == value.lower() and version in (None, found.version)
