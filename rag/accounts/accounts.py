"""Users, and the rest of what is kept, for whoever asks.

Knows the database and passwords; does not know who asks.
"""

from __future__ import annotations

import asyncio
import hashlib
import unicodedata
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, exists, func, select

from rag.accounts import passwords, reading, removing
from rag.accounts.chats import Chats, now
from rag.accounts.database import Database, storable
from rag.accounts.schema import threads, users
from rag.errors import AccountsError

LONGEST_USER_NAME = 128
_LOGINS_AT_ONCE = 2
"""Each takes a core and 32 MB; more of them at once would be slower for all."""
_NOT_OF_STATISTICS = ("text", "marked")


@dataclass(frozen=True)
class User:
    """Somebody who logs in with a password."""

    name: str
    is_admin: bool
    login: str = field(default="", compare=False, repr=False)
    """Differs after each change of the password, and for another person of the same name."""


class Accounts:
    """Users and chats in a database, which is opened, and made, at first use.

    Args:
        url: A path, `sqlite:///path`, or `postgresql://user:password@host/name`.
        patience_s: How long to wait for another program's lock, or for the server.

    Raises:
        AccountsError: the URL is of neither; later, from any method, that the database fails.
    """

    def __init__(self, url: str, *, patience_s: float = 5.0) -> None:
        self._database = Database(url, patience_s=patience_s)
        self.chats = Chats(self._database)
        """Threads, steps, elements and ratings."""
        self._logins = asyncio.Semaphore(_LOGINS_AT_ONCE)

    # -- users ------------------------------------------------------------------------------------

    async def add_user(self, name: str, password: str, is_admin: bool = False) -> None:
        """Let somebody log in; a known user gets the new password and rights, and keeps the chats.

        Raises:
            AccountsError: the name or the password cannot be used.
        """
        name = _checked(name)
        hashed = await asyncio.to_thread(passwords.hashed, password)
        values = {"password": hashed, "is_admin": is_admin}
        insert = self._database.insert(users).values(
            id=str(uuid.uuid4()), name=name, created_at=now(), metadata={}, **values
        )
        async with self._database.writing() as connection:
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["name"], set_=values)
            )

    async def remove_user(self, name: str) -> int:
        """Remove a user with all chats and ratings; return how many chats.

        Raises:
            AccountsError: nobody has the name.
        """
        name = _normal(name)
        mine = select(func.count()).select_from(threads).join(users).where(users.c.name == name)
        async with self._database.writing() as connection:
            n_chats = (await connection.execute(mine)).scalar_one()
            done = await connection.execute(delete(users).where(users.c.name == name))
            if not done.rowcount:
                raise AccountsError(
                    f"There is no user {name!r}. `rag user list` names those who are there."
                )
        return int(n_chats)

    async def users(self) -> list[User]:
        """Return who can log in with a password, by name."""
        statement = (
            select(users.c.name, users.c.is_admin)
            .where(users.c.password.is_not(None))
            .order_by(users.c.name)
        )
        async with self._database.reading() as connection:
            found = (await connection.execute(statement)).all()
        return [User(row.name, row.is_admin) for row in found]

    async def user(self, name: str) -> User | None:
        """Return who can log in by this name; None also for a user who was removed."""
        return (await self._user(name))[0]

    async def check(self, name: str, password: str) -> User | None:
        """Return the user if it is their password; a name that nobody has takes as long."""
        found, stored = await self._user(name)
        async with self._logins:
            is_right = await asyncio.to_thread(passwords.is_right, password, stored)
        return found if is_right else None

    async def has_users(self) -> bool:
        """Return whether anybody can log in with a password."""
        statement = select(exists().where(users.c.password.is_not(None)))
        async with self._database.reading() as connection:
            return bool((await connection.execute(statement)).scalar_one())

    async def _user(self, name: str) -> tuple[User | None, str | None]:
        statement = select(users.c.name, users.c.is_admin, users.c.password).where(
            users.c.name == storable(_normal(name)), users.c.password.is_not(None)
        )
        async with self._database.reading() as connection:
            found = (await connection.execute(statement)).one_or_none()
        if found is None:
            return None, None
        # the stored hash has a new salt each time
        login = hashlib.sha256(found.password.encode()).hexdigest()[:32]
        return User(found.name, found.is_admin, login), found.password

    # -- chats ------------------------------------------------------------------------------------

    async def thread_owner(self, thread_id: str) -> str | None:
        """Return whose thread it is; None where there is none."""
        return await self.chats.thread_owner(thread_id)

    async def step_owner(self, step_id: str) -> str | None:
        """Return whose message or run it is; None where there is none."""
        return await self.chats.step_owner(step_id)

    async def feedback_owner(self, feedback_id: str) -> str | None:
        """Return whose rating it is; None where there is none."""
        return await self.chats.feedback_owner(feedback_id)

    async def thread(self, thread_id: str) -> dict[str, Any] | None:
        """Return a thread with steps and elements, as Chainlit's `ThreadDict`; checks no owner."""
        return await self.chats.thread(thread_id)

    async def recent_answers(self, limit: int) -> list[dict[str, Any]]:
        """Return the metadata of everybody's latest answers, newest first, without their texts."""
        async with self._database.reading() as connection:
            found = await reading.recent_answers(connection, limit)
        return [{k: v for k, v in one.items() if k not in _NOT_OF_STATISTICS} for one in found]

    async def threads(self) -> AsyncIterator[dict[str, Any]]:
        """Yield every thread of everybody, one at a time, oldest first."""
        async with self._database.reading() as connection:
            ids = await reading.thread_ids(connection)
        for thread_id in ids:
            found = await self.chats.thread(thread_id)
            if found is not None:  # removed meanwhile
                yield found

    async def rows_shown(self, table: str) -> set[str]:
        """Return the keys of the rows of a table, as cards name it, that chats hold."""
        async with self._database.reading() as connection:
            return await removing.named(connection, table)

    async def forget_rows(self, keys: Iterable[str]) -> int:
        """Blank what chats hold of rows: their cards, and the answers that cite them.

        Returns:
            How many cards and answers were changed.
        """
        wanted = {storable(str(key)) for key in keys}
        if not wanted:
            return 0
        async with self._database.writing() as connection:
            n_changed = await removing.forget(connection, wanted)
        await self._database.scrub()
        return n_changed

    async def close(self) -> None:
        """Close the database; the next use opens it again."""
        await self._database.close()


def _normal(name: str) -> str:
    """Return a name as it is stored: however a keyboard composes its letters."""
    return unicodedata.normalize("NFC", name.strip())


def _checked(name: str) -> str:
    name = _normal(name)
    if not 0 < len(name) <= LONGEST_USER_NAME or not name.isprintable():
        raise AccountsError(
            f"The user name {name[:LONGEST_USER_NAME]!r} cannot be used: expected 1 to "
            f"{LONGEST_USER_NAME} characters that can be seen. Choose another one."
        )
    return name
