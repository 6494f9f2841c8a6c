"""The tables, the same on SQLite and PostgreSQL.

Knows SQLAlchemy; does not know what is in the columns.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

VERSION = 1
"""Of the layout; a database of a higher one is refused."""

tables = MetaData()
# with a prefix, because a PostgreSQL database may hold other programs' `users`

schema = Table("chat_schema", tables, Column("version", Integer, nullable=False))

users = Table(
    "chat_users",
    tables,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Text, nullable=False),
    # null: known by a proxy or OAuth only
    Column("password", Text),
    Column("is_admin", Boolean, nullable=False),
    Column("metadata", JSON, nullable=False),
)

threads = Table(
    "chat_threads",
    tables,
    Column("id", Text, primary_key=True),
    Column("user_id", ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
    Column("name", Text),
    Column("tags", JSON),
    Column("metadata", JSON, nullable=False),
)
Index("chat_threads_of_user", threads.c.user_id, threads.c.updated_at, threads.c.id)


def _of_thread() -> Column[str]:
    return Column("thread_id", ForeignKey(threads.c.id, ondelete="CASCADE"), nullable=False)


steps = Table(
    "chat_steps",
    tables,
    # the order of arrival settles the order of steps that are made at the same time
    Column("n", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    _of_thread(),
    Column("parent_id", Text),
    Column("type", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    # as the reader sees it, without markup; null where nobody searches
    Column("text", Text),
    Column("output", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
    # the fields of Chainlit that nothing here reads: a new one of a new release is kept too
    Column("rest", JSON, nullable=False),
)
Index("chat_steps_of_thread", steps.c.thread_id, steps.c.created_at)
Index("chat_steps_of_parent", steps.c.parent_id)

elements = Table(
    "chat_elements",
    tables,
    Column("n", Integer, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    _of_thread(),
    Column("for_id", Text),
    Column("props", JSON),
    Column("rest", JSON, nullable=False),
)
Index("chat_elements_of_thread", elements.c.thread_id)
Index("chat_elements_of_step", elements.c.for_id)

feedbacks = Table(
    "chat_feedbacks",
    tables,
    Column("id", Text, primary_key=True),
    # one for each step; the step itself may not be there yet
    Column("for_id", Text, nullable=False, unique=True),
    _of_thread(),
    Column("value", SmallInteger, nullable=False),
    Column("comment", Text),
)
Index("chat_feedbacks_of_thread", feedbacks.c.thread_id)
