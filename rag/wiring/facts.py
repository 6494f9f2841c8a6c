"""What a reader can choose from: columns to filter by, questions to begin with, versions.

Reads settings and the table; loads no model.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING

from rag.errors import TableError
from rag.settings import Settings
from rag.wiring.parts import chosen_version, open_index, open_snapshot

if TYPE_CHECKING:
    from rag.table import ColumnFacts, Snapshot

_QUESTION_CHARS = 80
_QUESTIONS = (
    "What do you have on “{}”?",
    "Tell me about “{}”.",
    "What does the table say of “{}”?",
)
_MOST_COMMITS = 1000
"""Commits looked at for the dates of versions; on object storage each is a request."""


def columns(settings: Settings, *, version: int | None = None) -> list[ColumnFacts]:
    """Return what a reader can filter by, in the table's order; it reads the table: seconds.

    Args:
        settings: Which table.
        version: Delta version; None is the settings', else the one that answers, else the latest.
            One whose files are gone is told by the latest.

    Raises:
        TableError: the table cannot be read.
    """
    try:
        return _snapshot(settings, version).facts()
    except TableError:
        return open_snapshot(settings, None).facts()


def examples(settings: Settings, n: int) -> list[str]:
    """Return questions about some rows, the same for the same rows; it reads the table: seconds.

    Args:
        settings: Which table.
        n: How many, at most.

    Raises:
        TableError: the table cannot be read.
    """
    longest = _QUESTION_CHARS - max(map(len, _QUESTIONS)) + len("{}")
    try:
        titles = _snapshot(settings, None).titles(n, max_chars=longest)
    except TableError:
        titles = open_snapshot(settings, None).titles(n, max_chars=longest)
    return [
        # a table of questions asks by itself
        title if title.endswith("?") else _QUESTIONS[i % len(_QUESTIONS)].format(title)
        for i, title in enumerate(titles)
    ]


def versions(settings: Settings) -> list[tuple[int, datetime | None]]:
    """Return the Delta versions that can be asked, newest first, and when each was committed.

    The time is None where the log no longer tells it.
    """
    from rag.table.opening import commit_times

    mirrored = open_index(settings).versions()
    committed: dict[int, datetime] = {}
    with contextlib.suppress(TableError):
        latest = open_snapshot(settings, None)
        n = latest.version - min(mirrored, default=latest.version) + 1
        committed = commit_times(latest.delta, min(n, _MOST_COMMITS))
    return [(v, committed.get(v)) for v in reversed(mirrored)]


def _snapshot(settings: Settings, version: int | None) -> Snapshot:
    chosen = chosen_version(settings, version)
    if chosen is None and (answering := open_index(settings).answering()) is not None:
        chosen = answering.state.table_version
    return open_snapshot(settings, chosen)
