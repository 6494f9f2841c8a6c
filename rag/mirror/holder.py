"""Who syncs, as the others are told; does not know how that is kept."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from rag.progress import Progress


@dataclass(frozen=True)
class Holder:
    """Who syncs right now, and how far it is."""

    host: str
    pid: int
    since: str
    """ISO 8601, in UTC."""
    what: str = ""
    n_done: int = 0
    n_total: int = 0


def this_process() -> Holder:
    """Return the holder that this process is from now on."""
    return Holder(
        socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
    )


def from_record(record: Mapping[str, Any]) -> Holder | None:
    """Return the holder that was noted; None when it was not one."""
    try:
        found = Holder(**{f.name: record[f.name] for f in fields(Holder)})
        datetime.fromisoformat(found.since)
    except (KeyError, TypeError, ValueError):
        return None
    return found


def say(progress: Progress, found: Holder | None, said: str) -> str:
    """Tell whom is waited for, unless that was said; return what was said."""
    if found is None:
        text = "waiting for another sync"
    else:
        since = datetime.fromisoformat(found.since).astimezone()
        day = "" if since.date() == datetime.now().astimezone().date() else f"{since:%Y-%m-%d} "
        text = (
            f"waiting for the sync of process {found.pid} on {found.host} since {day}{since:%H:%M}"
        )
    if text != said:
        progress(text, 0, 0)
    return text
