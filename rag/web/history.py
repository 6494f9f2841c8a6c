"""Chats kept in the accounts' database, for Chainlit.

Knows Chainlit's data layer and `Accounts`; does not know routes. Whoever asks is the user of
Chainlit's session, or, on an HTTP route, the user of its cookie: Chainlit calls `get_user` with the
name of the cookie in the task of the request before the route runs. Where neither is known nothing
is read and nothing is written.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from chainlit.context import context_var
from chainlit.data.base import BaseDataLayer
from chainlit.data.utils import queue_until_user_message
from chainlit.element import Element, ElementDict
from chainlit.step import StepDict
from chainlit.types import (
    Feedback,
    PageInfo,
    PaginatedResponse,
    Pagination,
    ThreadDict,
    ThreadFilter,
)
from chainlit.user import PersistedUser, User
from starlette.exceptions import HTTPException

from rag.accounts import Accounts
from rag.accounts.outbox import Outbox
from rag.accounts.reading import Page, cursor_after
from rag.errors import AccountsError

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

INTERRUPTED = "(interrupted)"
_MOST_BYTES = 1_000_000
"""Of an element's content: it is kept in the row and sent again whenever the chat is opened."""

_log = logging.getLogger(__name__)
_queued: Callable[[Method], Method] = queue_until_user_message()
_asking: ContextVar[str | None] = ContextVar("asking", default=None)


def person() -> str | None:
    """Return the name of whoever asks; None where that is not known."""
    context = context_var.get(None)
    user = context.session.user if context is not None else None
    return user.identifier if user is not None else _asking.get()


class History(BaseDataLayer):
    """Chainlit's data layer over `Accounts`.

    Writes of a session are applied in the order in which they were made, and never fail there: what
    cannot be written is kept and tried again, and `problem` says why. Routes get a 503 with the
    sentence.

    Args:
        accounts: Where everything is kept; closed with this.
        retry_s: Seconds between two tries to write what could not be written.
    """

    def __init__(self, accounts: Accounts, *, retry_s: float = 2.0) -> None:
        self._accounts, self._chats = accounts, accounts.chats
        self._outbox = Outbox(retry_s=retry_s)
        self._open: set[str] = set()
        """Steps that this server is writing; others that look so were left by a killed one."""
        self._removed: set[str] = set()
        """Threads that were removed while somebody may still write to them."""

    def problem(self) -> str | None:
        """Return one sentence on why chats cannot be kept now; None when all is well."""
        return self._outbox.problem

    async def settled(self) -> None:
        """Wait until what was said so far is written, or known not to be."""
        await asyncio.sleep(0)  # Chainlit writes in tasks of its own: let them begin
        await self._outbox.settled()

    # -- users ------------------------------------------------------------------------------------

    async def get_user(self, identifier: str) -> PersistedUser | None:
        """Return a user who has logged in before."""
        _asking.set(identifier)
        found = await self._told(self._chats.user(identifier))
        return None if found is None else PersistedUser(**found)

    async def create_user(self, user: User) -> PersistedUser | None:
        """Keep a user who logs in."""
        _asking.set(user.identifier)
        await self._told(self._chats.remember_user(user.identifier, user.metadata))
        return await self.get_user(user.identifier)

    # -- threads ----------------------------------------------------------------------------------

    async def get_thread_author(self, thread_id: str) -> str:
        """Return whose thread it is; empty where there is none, which Chainlit makes a 404."""
        return await self._told(self._chats.thread_owner(thread_id)) or ""

    async def list_threads(
        self, pagination: Pagination, filters: ThreadFilter
    ) -> PaginatedResponse[ThreadDict]:
        """Return a page of the user's threads, without what is in them."""
        page = Page(
            first=pagination.first,
            cursor=pagination.cursor,
            search=filters.search,
            rating=filters.feedback,
        )
        found: list[Any] = []
        has_next = False
        if filters.userId:
            found, has_next = await self._told(self._chats.threads(filters.userId, page))
        start, end = (cursor_after(found[i]) for i in (0, -1)) if found else (None, None)
        return PaginatedResponse(
            pageInfo=PageInfo(hasNextPage=has_next, startCursor=start, endCursor=end), data=found
        )

    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        """Return a thread as it was left; what a killed server was writing is said to be cut.

        Of another person's thread only whose it is, by which Chainlit refuses it.
        """
        found = await self._told(self._chats.thread(thread_id))
        if found is None:
            return None
        if found["userIdentifier"] != person():
            bare: dict[str, Any] = {
                "name": None,
                "tags": None,
                "metadata": {},
                "steps": [],
                "elements": [],
            }
            return ThreadDict(**(found | bare))
        for step in found["steps"]:
            await self._close_left(step)
        return ThreadDict(**found)

    async def update_thread(
        self,
        thread_id: str,
        name: str | None = None,
        user_id: str | None = None,  # noqa: ARG002 – whose it is does not come from a caller
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
    ) -> None:
        """Name a thread, or keep what its session holds."""
        owner, is_route = person(), context_var.get(None) is None

        async def write() -> None:
            # a session that ends after its thread was removed would bring it back, empty
            is_new = name is not None
            if owner is None or thread_id in self._removed:
                return
            if is_new or await self._chats.has_thread(thread_id):
                done = await self._chats.save_thread(
                    thread_id, owner, name=name, tags=tags, metadata=metadata
                )
                _log_refused(done, "thread", thread_id)

        if is_route:
            await self._told(self._outbox.now(write))
        else:
            await self._outbox.add(write)

    async def delete_thread(self, thread_id: str) -> None:
        """Remove a thread and all that is in it."""
        owner = person()

        async def write() -> None:
            if owner is not None and await self._chats.remove_thread(thread_id, owner):
                self._removed.add(thread_id)

        await self._told(self._outbox.now(write))

    # -- steps ------------------------------------------------------------------------------------

    @_queued
    async def create_step(self, step_dict: StepDict) -> None:
        """Keep a message, a run or a search."""
        await self._save_step(step_dict)

    @_queued
    async def update_step(self, step_dict: StepDict) -> None:
        """Keep what has become of a step."""
        await self._save_step(step_dict)

    async def _save_step(self, step_dict: StepDict) -> None:
        owner, step = person(), _copied(step_dict)
        if _is_open(step):
            self._open.add(step["id"])

        async def write() -> None:
            if owner is None or step["threadId"] in self._removed:
                return
            done = await self._chats.save_step(step, owner)
            if not _is_open(step):
                self._open.discard(step["id"])
            _log_refused(done, "step", step["id"])

        await self._outbox.add(write)

    @_queued
    async def delete_step(self, step_id: str) -> None:
        """Remove a step and what hangs on it."""
        owner = person()

        async def write() -> None:
            if owner is not None:
                await self._chats.remove_step(step_id, owner)
                self._open.discard(step_id)

        await self._outbox.add(write)

    async def get_favorite_steps(self, user_id: str) -> list[StepDict]:
        """Return a user's favourite messages."""
        return [StepDict(**s) for s in await self._told(self._chats.favourites(user_id))]

    async def _close_left(self, step: dict[str, Any]) -> None:
        """Say of a step that nobody is writing any more that it was cut."""
        if not _is_open(step) or step["id"] in self._open:
            return
        step["streaming"] = False
        step["end"] = step.get("start") or step["createdAt"]
        if step["type"] != "assistant_message":
            return
        note = f"_{INTERRUPTED}_"
        step["output"] = f"{step['output']} {note}" if step["output"] else note
        step["metadata"] = step["metadata"] | {"state": "interrupted"}
        owner, cut = person(), _copied(step)

        async def write() -> None:
            if owner is not None:
                await self._chats.save_step(cut, owner)

        await self._outbox.add(write)

    # -- elements ---------------------------------------------------------------------------------

    @_queued
    async def create_element(self, element: Element) -> None:
        """Keep an element: cards by their props, others with their content in the row."""
        owner, kept = person(), element.to_dict()
        kept["chainlitKey"], kept["objectKey"] = None, None  # a file of this session only
        kept["props"] = _copied(kept["props"]) if kept.get("props") else kept.get("props")
        if kept["type"] != "custom":
            kept["url"] = await _inline(element)
            if kept["url"] is None:
                _log.warning("An element of type %r is too big to be kept", kept["type"])
                return

        async def write() -> None:
            if owner is not None and kept["threadId"] not in self._removed:
                done = await self._chats.save_element(kept, owner)
                _log_refused(done, "element", kept["id"])

        await self._outbox.add(write)

    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None:
        """Return an element of an own thread."""
        owner = await self._told(self._chats.thread_owner(thread_id))
        if owner is None or owner != person():
            return None
        found = await self._told(self._chats.element(thread_id, element_id))
        return None if found is None else ElementDict(**found)

    @_queued
    async def delete_element(
        self,
        element_id: str,
        thread_id: str | None = None,  # noqa: ARG002 – comes from the browser
    ) -> None:
        """Remove an element."""
        owner = person()

        async def write() -> None:
            if owner is not None:
                await self._chats.remove_element(element_id, owner)

        await self._outbox.add(write)

    # -- ratings ----------------------------------------------------------------------------------

    async def upsert_feedback(self, feedback: Feedback) -> str:
        """Rate an answer of one's own.

        Raises:
            AccountsError: it is not there, or another person's; Chainlit shows the sentence.
        """
        owner, found = person(), None
        if owner is not None:
            await self.settled()  # the run that is rated may be on its way
            found = await self._chats.rate(
                feedback.forId, owner, value=feedback.value, comment=feedback.comment
            )
        if found is None:
            raise AccountsError("That answer is not in your chats; it cannot be rated.")
        return found

    async def delete_feedback(self, feedback_id: str) -> bool:
        """Take back a rating of one's own; False where there is none."""
        owner = person()
        return owner is not None and await self._told(self._chats.unrate(feedback_id, owner))

    async def build_debug_url(self) -> str:
        """Return no address: there is no other page that shows a thread."""
        return ""

    async def close(self) -> None:
        """Write what is left, and close the database."""
        await self._outbox.close()
        await self._accounts.close()

    # -- failures ---------------------------------------------------------------------------------

    async def _told(self, work: Awaitable[T]) -> T:
        """Return what comes of it; a database that fails is a 503 with its sentence."""
        try:
            return await work
        except AccountsError as e:
            _log.warning("Told the reader: %s", e, exc_info=e)
            raise HTTPException(503, str(e)) from e


def _copied(value: Any) -> Any:
    """Return a copy that does not change when the message goes on."""
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list | tuple) else value


def _is_open(step: Mapping[str, Any]) -> bool:
    """Return whether a step is being written, by what it says of itself."""
    if step["type"] == "assistant_message":
        return (step.get("metadata") or {}).get("state") == "writing"
    return step["type"] != "user_message" and not step.get("end")


def _log_refused(is_done: bool, what: str, which: str) -> None:
    if not is_done:
        _log.warning("Refused to write the %s %r: it is in another person's chat", what, which)


async def _inline(element: Element) -> str | None:
    """Return the content of an element as a `data:` address; None where it is too big.

    What lies at an address is not fetched: it could be any of this server's network.
    """
    if element.url:
        return element.url if element.url.startswith(("data:", "/")) else None
    content = element.content
    if content is None and element.path:
        content = await asyncio.to_thread(Path(element.path).read_bytes)
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if raw is None or len(raw) > _MOST_BYTES:
        return None
    mime = element.mime or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(raw).decode('ascii')}"
