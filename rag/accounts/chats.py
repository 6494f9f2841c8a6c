"""Threads, steps, elements and ratings: written and read, each for its owner only.

Knows the tables and the shape of Chainlit's dictionaries (`StepDict`, `ElementDict`, `ThreadDict`);
does not know who asks: every caller names the person.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rag.accounts import reading
from rag.accounts.database import Database, storable
from rag.accounts.schema import elements, feedbacks, steps, threads, users

LONGEST_NAME = 80
_MESSAGES = ("user_message", "assistant_message")
_OWN_COLUMNS = {"id", "threadId", "parentId", "type", "createdAt", "output", "metadata", "feedback"}


def now() -> str:
    """Return the time as Chainlit writes it, always of the same length so that texts sort."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


class Chats:
    """The conversations in a database.

    A method that changes something returns False, and changes nothing, where the thread is another
    person's; AccountsError is for a database that fails.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- users ------------------------------------------------------------------------------------

    async def user(self, name: str) -> dict[str, Any] | None:
        """Return id, name, creation and metadata of a user; None where nobody has the name.

        For a user with a password, `metadata["is_admin"]` is what `rag user add` said.
        """
        async with self._database.reading() as connection:
            found = (
                await connection.execute(select(users).where(users.c.name == storable(name)))
            ).one_or_none()
        if found is None:
            return None
        metadata = dict(found.metadata)
        if found.password is not None:
            metadata["is_admin"] = found.is_admin
        return {
            "id": found.id,
            "identifier": found.name,
            "createdAt": found.created_at,
            "metadata": metadata,
        }

    async def remember_user(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Keep a user who has logged in, with what the login says of them."""
        values = {"name": storable(name), "metadata": dict(metadata)}
        new = {"id": str(uuid.uuid4()), "created_at": now(), "is_admin": False}
        insert = self._database.insert(users).values(**values, **new)
        async with self._database.writing() as connection:
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["name"], set_=values)
            )

    # -- threads ----------------------------------------------------------------------------------

    async def save_thread(
        self,
        thread_id: str,
        owner: str,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Change a thread, made where it is missing; None leaves a value as it is.

        Args:
            thread_id: Which.
            owner: Whose it is, or will be; never changed.
            name: Cut to 80 characters, on one line.
            tags: Replace the ones before.
            metadata: Merged; a value of None removes its key.
        """
        async with self._database.writing() as connection:
            if not await self._own_thread(connection, thread_id, owner):
                return False
            values: dict[str, Any] = {}
            if name is not None:
                line = " ".join(storable(name).split())
                is_long = len(line) > LONGEST_NAME
                values["name"] = line[: LONGEST_NAME - 1] + "…" if is_long else line
            if tags is not None:
                values["tags"] = list(tags)
            this = threads.c.id == storable(thread_id)
            if metadata is not None:
                before = (
                    await connection.execute(select(threads.c.metadata).where(this))
                ).scalar_one()
                merged = before | dict(metadata)
                values["metadata"] = {k: v for k, v in merged.items() if v is not None}
            if values:
                await connection.execute(update(threads).where(this).values(**values))
        return True

    async def has_thread(self, thread_id: str) -> bool:
        """Return whether there is such a thread."""
        return await self.thread_owner(thread_id) is not None

    async def remove_thread(self, thread_id: str, owner: str) -> bool:
        """Remove a thread with all that is in it."""
        mine = select(users.c.id).where(users.c.name == owner).scalar_subquery()
        statement = delete(threads).where(
            threads.c.id == storable(thread_id), threads.c.user_id == mine
        )
        async with self._database.writing() as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def thread(self, thread_id: str) -> dict[str, Any] | None:
        """Return a thread with steps, elements and ratings, as Chainlit's `ThreadDict`."""
        async with self._database.reading() as connection:
            return await reading.thread(connection, storable(thread_id))

    async def threads(self, user_id: str, page: reading.Page) -> tuple[list[dict[str, Any]], bool]:
        """Return a page of a user's threads, latest activity first, and whether there are more."""
        async with self._database.reading() as connection:
            return await reading.threads_of(connection, user_id, page)

    # -- steps and elements -----------------------------------------------------------------------

    async def save_step(self, step: Mapping[str, Any], owner: str) -> bool:
        """Keep a step, replacing the one of the same id; makes its thread where it is missing."""
        step = storable(step)
        is_message = step["type"] in _MESSAGES
        metadata = step.get("metadata") or {}
        values = {
            "thread_id": step["threadId"],
            "parent_id": step.get("parentId"),
            "type": step["type"],
            "text": (metadata.get("text") or step.get("output") or "") if is_message else None,
            "output": step.get("output") or "",
            "metadata": metadata,
            "rest": {k: v for k, v in step.items() if k not in _OWN_COLUMNS},
        }
        created = {"id": step["id"], "created_at": step.get("createdAt") or now()}
        async with self._database.writing() as connection:
            if not await self._own_thread(connection, step["threadId"], owner):
                return False
            insert = self._database.insert(steps).values(**values, **created)
            saved = await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["id"],
                    set_=values,
                    # the id comes from the browser: it may be that of a step elsewhere
                    where=steps.c.thread_id == insert.excluded.thread_id,
                )
            )
            await connection.execute(
                update(threads).where(threads.c.id == step["threadId"]).values(updated_at=now())
            )
            return saved.rowcount > 0

    async def remove_step(self, step_id: str, owner: str) -> bool:
        """Remove a step with what hangs on it: the steps below it, elements, ratings.

        A run that is over goes with its last message: editing a question removes the old answer,
        and the search that led to it would be left.
        """
        async with self._database.writing() as connection:
            if await self._owner(connection, _owner_of_step(storable(step_id))) != owner:
                return False
            gone = [storable(step_id)]
            if run := await _run_left_empty(connection, gone[0]):
                gone.append(run)
            level = gone
            while level:
                below = select(steps.c.id).where(steps.c.parent_id.in_(level))
                level = [i for i in (await connection.execute(below)).scalars() if i not in gone]
                gone += level
            await connection.execute(delete(feedbacks).where(feedbacks.c.for_id.in_(gone)))
            await connection.execute(delete(elements).where(elements.c.for_id.in_(gone)))
            await connection.execute(delete(steps).where(steps.c.id.in_(gone)))
        return True

    async def save_element(self, element: Mapping[str, Any], owner: str) -> bool:
        """Keep an element, replacing the one of the same id."""
        element = storable(element)
        own = ("id", "threadId", "forId", "props")
        values = {
            "thread_id": element["threadId"],
            "for_id": element.get("forId"),
            "props": element.get("props"),
            "rest": {k: v for k, v in element.items() if k not in own},
        }
        async with self._database.writing() as connection:
            if not await self._own_thread(connection, element["threadId"], owner):
                return False
            insert = self._database.insert(elements).values(**values, id=element["id"])
            saved = await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["id"],
                    set_=values,
                    where=elements.c.thread_id == insert.excluded.thread_id,
                )
            )
            return saved.rowcount > 0

    async def remove_element(self, element_id: str, owner: str) -> bool:
        """Remove an element."""
        of_owner = _owned(elements).where(elements.c.id == storable(element_id))
        async with self._database.writing() as connection:
            if await self._owner(connection, of_owner) != owner:
                return False
            await connection.execute(delete(elements).where(elements.c.id == storable(element_id)))
        return True

    async def element(self, thread_id: str, element_id: str) -> dict[str, Any] | None:
        """Return one element of a thread."""
        statement = select(elements).where(
            elements.c.id == storable(element_id), elements.c.thread_id == storable(thread_id)
        )
        async with self._database.reading() as connection:
            found = (await connection.execute(statement)).one_or_none()
        return None if found is None else reading.element(found)

    async def favourites(self, user_id: str) -> list[dict[str, Any]]:
        """Return a user's messages marked as favourites, latest first."""
        async with self._database.reading() as connection:
            return await reading.favourites(connection, user_id)

    # -- ratings ----------------------------------------------------------------------------------

    async def rate(
        self, step_id: str, owner: str, *, value: int, comment: str | None = None
    ) -> str | None:
        """Rate a step (1 good, 0 bad), replacing the rating before; return the rating's id.

        None where the step is not there or another person's.
        """
        step_id = storable(step_id)
        values = {"value": value, "comment": None if comment is None else storable(comment)}
        async with self._database.writing() as connection:
            if await self._owner(connection, _owner_of_step(step_id)) != owner:
                return None
            of = select(steps.c.thread_id).where(steps.c.id == step_id)
            thread_id = (await connection.execute(of)).scalar_one()
            insert = self._database.insert(feedbacks).values(
                id=str(uuid.uuid4()), for_id=step_id, thread_id=thread_id, **values
            )
            saved = await connection.execute(
                insert.on_conflict_do_update(index_elements=["for_id"], set_=values).returning(
                    feedbacks.c.id
                )
            )
            return str(saved.scalar_one())

    async def unrate(self, feedback_id: str, owner: str) -> bool:
        """Take a rating back."""
        this = feedbacks.c.id == storable(feedback_id)
        async with self._database.writing() as connection:
            if await self._owner(connection, _owned(feedbacks).where(this)) != owner:
                return False
            await connection.execute(delete(feedbacks).where(this))
        return True

    # -- whose ------------------------------------------------------------------------------------

    async def thread_owner(self, thread_id: str) -> str | None:
        """Return whose thread it is; None where there is none."""
        return await self._read_owner(
            select(users.c.name).join(threads).where(threads.c.id == storable(thread_id))
        )

    async def step_owner(self, step_id: str) -> str | None:
        """Return whose step it is; None where there is none."""
        return await self._read_owner(_owner_of_step(storable(step_id)))

    async def feedback_owner(self, feedback_id: str) -> str | None:
        """Return whose rating it is; None where there is none."""
        return await self._read_owner(
            _owned(feedbacks).where(feedbacks.c.id == storable(feedback_id))
        )

    async def _read_owner(self, statement: Select[Any]) -> str | None:
        async with self._database.reading() as connection:
            return await self._owner(connection, statement)

    async def _owner(self, connection: AsyncConnection, statement: Select[Any]) -> str | None:
        found: str | None = (await connection.execute(statement)).scalar_one_or_none()
        return found

    async def _own_thread(self, connection: AsyncConnection, thread_id: str, owner: str) -> bool:
        """Make the thread where it is missing; return whether it is the owner's."""
        user = select(users.c.id).where(users.c.name == storable(owner))
        user_id = (await connection.execute(user)).scalar_one_or_none()
        if user_id is None:
            return False
        at = now()
        await connection.execute(
            self._database.insert(threads)
            .values(
                id=storable(thread_id), user_id=user_id, created_at=at, updated_at=at, metadata={}
            )
            .on_conflict_do_nothing()
        )
        whose = select(threads.c.user_id).where(threads.c.id == storable(thread_id))
        return bool((await connection.execute(whose)).scalar_one() == user_id)


def _owned(table: Any) -> Select[Any]:
    """Return a query for the name of the owner of rows of a table."""
    return (
        select(users.c.name)
        .select_from(table)
        .join(threads, threads.c.id == table.c.thread_id)
        .join(users, users.c.id == threads.c.user_id)
    )


def _owner_of_step(step_id: str) -> Select[Any]:
    return _owned(steps).where(steps.c.id == step_id)


async def _run_left_empty(connection: AsyncConnection, step_id: str) -> str | None:
    """Return the run that is over and holds no message but this one; None otherwise."""
    parent = select(steps.c.parent_id).where(steps.c.id == step_id, steps.c.type.in_(_MESSAGES))
    run_id = (await connection.execute(parent)).scalar_one_or_none()
    run = select(steps.c.rest).where(steps.c.id == run_id, steps.c.type == "run")
    rest = (await connection.execute(run)).scalar_one_or_none() if run_id else None
    if not rest or not rest.get("end"):
        return None  # a note above the answer to come
    others = select(func.count()).where(
        steps.c.parent_id == run_id, steps.c.type.in_(_MESSAGES), steps.c.id != step_id
    )
    return None if (await connection.execute(others)).scalar_one() else str(run_id)
