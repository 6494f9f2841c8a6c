"""Threads as they are read: one with all that is in it, or a page of their names.

Knows the tables; every statement runs on the connection it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from rag.accounts.schema import elements, feedbacks, steps, threads, users

_LONGEST_SEARCH = 200
_MOST = 100
"""Threads of a page, whatever the browser asks for."""
_FOREIGN = "|"


@dataclass(frozen=True)
class Page:
    """Which of a user's threads are wanted."""

    first: int = 20
    """How many."""
    cursor: str | None = None
    """Where the page before ended, as `cursor_after` says it."""
    search: str | None = None
    """Part of a name or of a message, in any case."""
    rating: int | None = None
    """Only threads with an answer rated so: 1 good, 0 bad."""


def cursor_after(thread: dict[str, Any]) -> str:
    """Return the cursor of what comes after a thread in the list."""
    # the time goes with it: the thread may move up while somebody scrolls
    return f"{thread['createdAt']}{_FOREIGN}{thread['id']}"


async def threads_of(
    connection: AsyncConnection, user_id: str, page: Page
) -> tuple[list[dict[str, Any]], bool]:
    """Return a page of threads, without steps, and whether there are more."""
    first = max(1, min(page.first, _MOST))
    statement = (
        select(threads, users.c.name.label("owner"))
        .join(users, users.c.id == threads.c.user_id)
        .where(threads.c.user_id == user_id, *_wanted(page))
        # keyset: a page costs the same wherever it is
        .order_by(threads.c.updated_at.desc(), threads.c.id.desc())
        .limit(first + 1)
    )
    found = (await connection.execute(statement)).all()
    # Chainlit groups by creation what is listed by activity: "Today" must hold what was said today
    listed = [_thread(row) | {"createdAt": row.updated_at} for row in found[:first]]
    return listed, len(found) > first


def _wanted(page: Page) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if page.cursor and _FOREIGN in page.cursor:
        at, _, thread_id = page.cursor.partition(_FOREIGN)
        conditions.append(
            or_(
                threads.c.updated_at < at,
                and_(threads.c.updated_at == at, threads.c.id < thread_id),
            )
        )
    if page.search and (term := page.search.strip()[:_LONGEST_SEARCH].lower()):
        said = exists().where(
            steps.c.thread_id == threads.c.id,
            steps.c.text.is_not(None),
            func.lower(steps.c.text).contains(term, autoescape=True),
        )
        conditions.append(or_(func.lower(threads.c.name).contains(term, autoescape=True), said))
    if page.rating is not None:
        conditions.append(
            exists().where(feedbacks.c.thread_id == threads.c.id, feedbacks.c.value == page.rating)
        )
    return conditions


async def thread(connection: AsyncConnection, thread_id: str) -> dict[str, Any] | None:
    """Return a thread with its steps in order, their ratings, and its elements."""
    statement = (
        select(threads, users.c.name.label("owner"))
        .join(users, users.c.id == threads.c.user_id)
        .where(threads.c.id == thread_id)
    )
    found = (await connection.execute(statement)).one_or_none()
    if found is None:
        return None
    said = (
        select(steps, feedbacks.c.id.label("rating_id"), feedbacks.c.value, feedbacks.c.comment)
        .join(feedbacks, feedbacks.c.for_id == steps.c.id, isouter=True)
        .where(steps.c.thread_id == thread_id)
        .order_by(steps.c.created_at, steps.c.n)
    )
    shown = select(elements).where(elements.c.thread_id == thread_id).order_by(elements.c.n)
    return _thread(found) | {
        "steps": [step(row) for row in (await connection.execute(said)).all()],
        "elements": [element(row) for row in (await connection.execute(shown)).all()],
    }


async def favourites(connection: AsyncConnection, user_id: str) -> list[dict[str, Any]]:
    """Return a user's messages marked as favourites, latest first."""
    statement = (
        select(steps)
        .join(threads, threads.c.id == steps.c.thread_id)
        .where(threads.c.user_id == user_id, steps.c.metadata["favorite"].as_boolean())
        .order_by(steps.c.created_at.desc())
    )
    return [step(row) for row in (await connection.execute(statement)).all()]


async def recent_answers(connection: AsyncConnection, limit: int) -> list[dict[str, Any]]:
    """Return the metadata of the latest answers, newest first."""
    statement = (
        select(steps.c.metadata)
        .where(
            steps.c.type == "assistant_message",
            steps.c.metadata["state"].as_string().is_not(None),
        )
        .order_by(steps.c.n.desc())
        .limit(limit)
    )
    return list((await connection.execute(statement)).scalars())


async def thread_ids(connection: AsyncConnection) -> Sequence[str]:
    """Return the ids of all threads, oldest first."""
    statement = select(threads.c.id).order_by(threads.c.created_at, threads.c.id)
    return (await connection.execute(statement)).scalars().all()


def _thread(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "createdAt": row.created_at,
        "name": row.name,
        "userId": row.user_id,
        "userIdentifier": row.owner,
        "tags": row.tags,
        "metadata": row.metadata,
        "steps": [],
        "elements": [],
    }


def step(row: Any) -> dict[str, Any]:
    """Return a row of `steps` as Chainlit's `StepDict`."""
    found = dict(row.rest) | {
        "id": row.id,
        "threadId": row.thread_id,
        "parentId": row.parent_id,
        "type": row.type,
        "createdAt": row.created_at,
        "output": row.output,
        "metadata": row.metadata,
    }
    if getattr(row, "rating_id", None) is not None:
        found["feedback"] = {
            "id": row.rating_id,
            "forId": row.id,
            "value": row.value,
            "comment": row.comment,
        }
    return found


def element(row: Any) -> dict[str, Any]:
    """Return a row of `elements` as Chainlit's `ElementDict`."""
    return dict(row.rest) | {
        "id": row.id,
        "threadId": row.thread_id,
        "forId": row.for_id,
        "props": row.props,
    }
