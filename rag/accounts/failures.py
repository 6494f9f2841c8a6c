"""What a database says when it fails, as one sentence of ours.

Knows the errors of SQLAlchemy, SQLite and asyncpg; does not know what was asked.
"""

from __future__ import annotations

import errno
import re
import sqlite3

from sqlalchemy.exc import SQLAlchemyError

from rag.errors import AccountsError, cause

FAILURES: tuple[type[Exception], ...] = (SQLAlchemyError, sqlite3.Error, OSError, TimeoutError)
"""What SQLAlchemy and its drivers raise, asyncpg's own before a connection is there aside."""

_SAID = {
    r"SQLITE_(BUSY|LOCKED)|55P03|40P01": "is locked by another program; close that program",
    r"SQLITE_READONLY|25006": "is read-only; make it and its folder writable",
    r"SQLITE_(FULL|IOERR|NOMEM)|53100|ENOSPC": "has no room: its disk is full or fails; make room",
    r"SQLITE_(CANTOPEN|PERM|AUTH)|EACCES|EPERM|EROFS|ENOTDIR|EEXIST|EISDIR|ENAMETOOLONG": (
        "cannot be opened; let this program read and write the file and its folder"
    ),
    r"SQLITE_(NOTADB|CORRUPT)": "is no SQLite database or is damaged; move the file away",
    r"28\w{3}": "refuses the user or the password; correct them in RAG_WEB__DATABASE",
    r"3D000": "does not exist on the server; create it there",
    r"42501": "gives this user no right to it; grant it",
    r"57P\d\d|08\w{3}|53300|ECONN|ETIMEDOUT|ENOENT|gaierror|Timeout|Interface|OSError": (
        "cannot be reached; start its server or correct RAG_WEB__DATABASE"
    ),
}
"""Names and codes of errors, and what they mean to a user. Source: sqlite.org/rescode.html;
appendix A of PostgreSQL's manual."""


class AccountsUnavailable(AccountsError):
    """The database cannot be used now; the same call may succeed later."""


def told(error: BaseException, name: str) -> AccountsError:
    """Return what to raise for a failure of the database `name`."""
    codes = " ".join(_codes(error))
    for pattern, why in _SAID.items():
        if re.search(rf"\b(?:{pattern})", codes):
            return AccountsUnavailable(f"The database of chats {name!r} {why}, and try again.")
    # the text of SQLAlchemy repeats the statement and its values: rows and questions
    bare = getattr(error, "orig", None) or error
    what = type(bare).__name__ if isinstance(bare, SQLAlchemyError) else cause(bare)
    return AccountsError(
        f"The database of chats {name!r} failed ({what}); the log of the server says more."
    )


def _codes(error: BaseException) -> list[str]:
    """Return names and codes of an error and of what it came from."""
    found: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        for name in ("sqlite_errorname", "sqlstate", "pgcode"):
            found += [str(v) for v in [getattr(seen, name, None)] if v]
        if isinstance(seen, OSError) and not isinstance(seen, sqlite3.Error):
            found += [errno.errorcode.get(seen.errno or 0, ""), "OSError"]
        found.append(type(seen).__name__)
        if getattr(seen, "connection_invalidated", False):
            found.append("Interface")
        seen = getattr(seen, "orig", None) or seen.__cause__
    return found
