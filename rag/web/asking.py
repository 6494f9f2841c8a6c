"""What is asked, besides the question: which version of the table, and which of its rows.

Knows Chainlit's picker in the composer; does not know the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from chainlit.mode import Mode, ModeOption

from rag.errors import QuestionError
from rag.web.filters import chosen, told

if TYPE_CHECKING:  # both load what takes seconds; the port opens before that
    from llama_index.core.vector_stores.types import MetadataFilters

    from rag.table import ColumnFacts

PICKER = "asof"
"""The id under which a message names the version."""

_LATEST = "latest"
_VERSION = re.compile(r"v([0-9]{1,18})")
_SHOWN_CHARS = 40


@dataclass(frozen=True)
class Asking:
    """Which version and which rows a question is put to; equal where the answers would be."""

    version: int | None = None
    """None is the one that answers."""
    filters: MetadataFilters | None = dataclass_field(default=None, hash=False)
    told: tuple[str, ...] = ()
    """The filters in a few words each; the table's and the reader's words, no Markdown."""

    def plain(self) -> dict[str, Any]:
        """Return it as JSON, for a message's metadata under `asked`."""
        return {"version": self.version, "filters": list(self.told)}

    def for_page(self) -> dict[str, Any]:
        """Return what the page's script shows above the composer."""
        return {"rag": "asking", **self.plain()}


def asked(facts: Sequence[ColumnFacts], values: Mapping[str, Any], modes: object) -> Asking:
    """Return what the settings and the picker say.

    Args:
        facts: Columns that can be filtered by.
        values: The chat settings of the session.
        modes: The `modes` of the message; None is the version that answers.

    Raises:
        FilterError: a filter holds what its column cannot be compared with.
        QuestionError: the picker names no version.
    """
    return Asking(version_of(modes), chosen(facts, values), tuple(told(facts, values)))


def modes(
    versions: Sequence[tuple[int, datetime | None]],
    current: int | None,
    *,
    picked: int | None = None,
) -> list[Mode]:
    """Return the picker of the version; none where there is nothing to pick.

    Chainlit forgets it: it is sent at the start of a chat, when one is resumed, and when a sync
    has changed the versions.

    Args:
        versions: Those that can be asked, and when each was committed.
        current: The one that answers; None is the newest.
        picked: What the reader has picked; None, or a version that is gone, is the latest.
    """
    newest = max((version for version, _ in versions), default=None)
    now = newest if current is None else current
    older = sorted((v for v in versions if v[0] != now), key=lambda v: v[0], reverse=True)
    if not older:
        return []
    at = picked if picked in dict(older) else None
    latest = ModeOption(
        id=_LATEST,
        name=f"Latest (v{now})",
        description="Follows the table",
        default=at is None,
    )
    options = [
        ModeOption(id=f"v{version}", name=_named(version, when), default=version == at)
        for version, when in older
    ]
    return [Mode(id=PICKER, name="As of", options=[latest, *options])]


def version_of(modes: object) -> int | None:
    """Return the version that a message was asked of; None is the one that answers.

    Args:
        modes: The `modes` of the message, as the browser sent them.

    Raises:
        QuestionError: they name no version.
    """
    picked = modes.get(PICKER, _LATEST) if isinstance(modes, Mapping) else _LATEST
    if picked == _LATEST:
        return None
    found = _VERSION.fullmatch(picked) if isinstance(picked, str) else None
    if found is None:
        raise QuestionError(
            f"The question is put to version {str(picked)[:_SHOWN_CHARS]!r}, which is none; "
            "pick one below the question."
        )
    return int(found[1])


def _named(version: int, when: datetime | None) -> str:
    return f"v{version}" if when is None else f"v{version} · {when.date().isoformat()}"
