"""A database that is opened at first use: SQLite or PostgreSQL.

Knows SQLAlchemy's engines and the pragmas; does not know what the tables hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, insert, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from rag.accounts import schema
from rag.accounts.failures import FAILURES, told
from rag.errors import AccountsError

_OPENING = 7_246_010
"""Number of the lock that keeps two programs from creating the tables at once on PostgreSQL."""
_log = logging.getLogger(__name__)


class Database:
    """Tables in SQLite or PostgreSQL.

    Args:
        url: A path, `sqlite:///path`, or `postgresql://user:password@host/name`.
        patience_s: How long to wait for another program's lock, or for the server.

    Raises:
        AccountsError: the URL is of neither.
    """

    def __init__(self, url: str, *, patience_s: float) -> None:
        self._url, self._patience_s = _parsed(url), patience_s
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        database = self._url.database or ""
        self.name = Path(database).name if self.is_sqlite else database
        """For messages: no path of the server, no password."""
        self._failures = FAILURES
        self._engine: AsyncEngine | None = None
        self._opening = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a transaction that sees one state."""
        async with self._transaction({}) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a transaction; what was written is there at its end, or nothing is.

        Raises:
            AccountsUnavailable: locked, read-only, full or away.
        """
        # an SQLite transaction that begins by reading cannot wait for its turn to write
        async with self._transaction({"is_writing": True}) as connection:
            yield connection

    def insert(self, table: Any) -> Any:
        """Return an INSERT that can say what a conflict does."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def scrub(self) -> None:
        """Leave nothing of what was overwritten in the file's log (SQLite)."""
        if self.is_sqlite:
            async with self._translated():
                engine = await self._opened()
                options = {"isolation_level": "AUTOCOMMIT"}
                async with engine.connect() as connection:
                    free = await connection.execution_options(**options)
                    await free.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))

    async def close(self) -> None:
        """Close all connections; the next use opens it again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    @contextlib.asynccontextmanager
    async def _transaction(self, options: dict[str, Any]) -> AsyncIterator[AsyncConnection]:
        async with self._translated():
            engine = await self._opened()
            async with engine.execution_options(**options).begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except self._failures as e:
            raise told(e, self.name) from e

    async def _opened(self) -> AsyncEngine:
        async with self._opening:
            if self._engine is None:
                if self.is_sqlite:
                    await asyncio.to_thread(_create_file, Path(self._url.database or ""))
                engine = await asyncio.to_thread(self._made)  # imports the driver
                try:
                    async with engine.execution_options(is_writing=True).begin() as connection:
                        if not self.is_sqlite:
                            await connection.execute(
                                text(f"SELECT pg_advisory_xact_lock({_OPENING})")
                            )
                        await connection.run_sync(self._create_tables)
                except BaseException:  # also when cancelled: its connections would stay open
                    await engine.dispose()
                    raise
                self._engine = engine
            return self._engine

    def _made(self) -> AsyncEngine:
        common: dict[str, Any] = {"json_serializer": _json, "hide_parameters": True}
        if self.is_sqlite:
            engine = create_async_engine(
                self._url, connect_args={"timeout": self._patience_s}, **common
            )
            event.listen(engine.sync_engine, "connect", self._prepare)
            event.listen(engine.sync_engine, "begin", _begin)
            return engine
        try:
            from asyncpg import InterfaceError, PostgresError
        except ModuleNotFoundError as e:
            raise AccountsError(
                "RAG_WEB__DATABASE names PostgreSQL, whose driver is not installed. "
                "Install the extra `postgres`: pip install 'delta-table-chat[postgres]'."
            ) from e
        self._failures = (*FAILURES, InterfaceError, PostgresError)
        waits = {"timeout": self._patience_s, "command_timeout": 4 * self._patience_s}
        return create_async_engine(self._url, connect_args=waits, pool_pre_ping=True, **common)

    def _prepare(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # `_begin` begins; the driver would begin too late
        connection.create_function("lower", 1, _lower)  # SQLite's own knows ASCII only
        try:
            self._set_pragmas(connection)
        except sqlite3.Error:
            connection.close()  # the pool forgets a connection that fails here
            raise

    def _set_pragmas(self, connection: Any) -> None:
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={int(self._patience_s * 1000)}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            "secure_delete=ON",  # a purged passage must not stay in free pages
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def _create_tables(self, connection: Connection) -> None:
        """Create what is missing, and refuse a layout that is not known."""
        schema.tables.create_all(connection)
        found = connection.execute(select(schema.schema.c.version)).scalar()
        if found is None:
            connection.execute(insert(schema.schema).values(version=schema.VERSION))
            _log.info("Created the database of chats %r", self.name)
        elif found > schema.VERSION:
            raise AccountsError(
                f"The database of chats {self.name!r} has layout {found}, of a newer version of "
                f"this program; this one knows {schema.VERSION}. Install the newer version again, "
                "or name another database (RAG_WEB__DATABASE)."
            )


def _parsed(url: str) -> URL:
    if "://" not in url:
        found = URL.create("sqlite", database=url)
    else:
        try:
            found = make_url(url)
        except (ArgumentError, ValueError) as e:
            raise _unknown(url.partition("://")[0]) from e
    backend = found.drivername.partition("+")[0]
    if backend == "sqlite" and found.database not in (None, "", ":memory:"):
        return URL.create("sqlite+aiosqlite", database=found.database)
    if backend in ("postgresql", "postgres") and found.database:
        query = {("ssl" if k == "sslmode" else k): v for k, v in found.query.items()}
        return found.set(drivername="postgresql+asyncpg", query=query)
    raise _unknown(found.drivername)


def _unknown(scheme: str) -> AccountsError:
    # not the URL: it may hold a password
    return AccountsError(
        f"RAG_WEB__DATABASE is of kind {scheme!r} or names no database: expected the path of a "
        "SQLite file, as data/chats.db, or postgresql://user:password@host/name."
    )


def _create_file(path: Path) -> None:
    """Create an empty file that only its owner reads, unless it is there; SQLite would take 644."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _begin(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get("is_writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _json(value: Any) -> str:
    return json.dumps(storable(value), ensure_ascii=False, default=str, allow_nan=False)


def storable(value: Any) -> Any:
    """Return a value in which every text and number can be stored by both databases.

    NUL, halves of characters, infinities: hostile, and either database refuses the whole row.
    """
    match value:
        case str():
            clean = value.replace("\0", "\ufffd")
            return clean.encode("utf-8", "replace").decode("utf-8")
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {storable(str(k)): storable(v) for k, v in value.items()}
        case list() | tuple():
            return [storable(v) for v in value]
        case _:
            return value
