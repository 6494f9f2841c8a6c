"""What a purged row leaves in chats: its passage on cards, its title in searches, its answers.

Knows cards and the metadata of answers; does not know who purged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import Table, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from rag.accounts.schema import elements, steps

REMOVED = "(removed: it cited a row that was purged)"
REMOVED_SEARCH = "(removed: it found a row that was purged)"
_AT_ONCE = 500


async def forget(connection: AsyncConnection, keys: AbstractSet[str]) -> int:
    """Blank cards, searches and answers of these row keys; return how many cards and answers."""
    n_changed, answers = 0, set()
    async for row in _each(connection, elements):
        props, n_blanked = _without(row.props, keys)
        if n_blanked:
            this = elements.c.id == row.id
            await connection.execute(update(elements).where(this).values(props=props))
            answers.add(row.for_id)
            n_changed += n_blanked
    runs = set()
    async for row in _each(connection, steps):
        is_near = row.id in answers
        if row.metadata and (is_near or _names(row.metadata, "sources", keys)):
            runs.add(row.parent_id)
        n_changed += await _forget_answer(connection, row, keys)
    await _forget_searches(connection, runs - {None}, keys)
    return n_changed


async def named(connection: AsyncConnection, table: str) -> set[str]:
    """Return the keys of the rows that cards show.

    Args:
        connection: To read by.
        table: As cards name it; rows of another table are left out.
    """
    keys: set[str] = set()
    async for row in _each(connection, elements):
        cards = row.props.get("sources") if isinstance(row.props, dict) else None
        for card in cards if isinstance(cards, list) else ():
            if isinstance(card, dict) and card.get("table") == table:
                keys.add(str(card.get("row")))
    return keys


async def _forget_answer(connection: AsyncConnection, row: Any, keys: AbstractSet[str]) -> int:
    is_cited = _names(row.metadata, "citations", keys)
    is_answer = row.type == "assistant_message"
    if not is_answer or not (is_cited or _names(row.metadata, "sources", keys)):
        return 0
    metadata = dict(row.metadata)
    is_cited = is_cited and metadata.get("text") != REMOVED
    metadata["sources"] = [
        s | {"title": REMOVED} if str(s.get("row_key")) in keys else s
        for s in metadata.get("sources") or []
    ]
    values: dict[str, Any] = {"metadata": metadata}
    if is_cited:
        metadata |= {"text": REMOVED, "marked": REMOVED}
        values |= {"output": REMOVED, "text": REMOVED}
    await connection.execute(update(steps).where(steps.c.id == row.id).values(**values))
    return int(is_cited)


async def _forget_searches(
    connection: AsyncConnection, runs: AbstractSet[str | None], keys: AbstractSet[str]
) -> None:
    """Blank the searches of these runs, whose tables show the titles of rows."""
    async for row in _each(connection, steps):
        is_search = row.type not in ("run", "user_message", "assistant_message")
        if is_search and (row.parent_id in runs or _names(row.metadata, "sources", keys)):
            values = {"output": REMOVED_SEARCH, "metadata": {}}
            await connection.execute(update(steps).where(steps.c.id == row.id).values(**values))


async def _each(connection: AsyncConnection, table: Table) -> AsyncIterator[Any]:
    """Yield every row of a table, few at a time."""
    after = 0
    while True:
        statement = select(table).where(table.c.n > after).order_by(table.c.n).limit(_AT_ONCE)
        found = (await connection.execute(statement)).all()
        for row in found:
            yield row
        if len(found) < _AT_ONCE:
            return
        after = found[-1].n


def _names(metadata: Any, what: str, keys: AbstractSet[str]) -> bool:
    named = metadata.get(what) if isinstance(metadata, dict) else None
    return any(isinstance(m, dict) and str(m.get("row_key")) in keys for m in named or [])


def _without(props: Any, keys: AbstractSet[str]) -> tuple[Any, int]:
    """Return the props of cards with those of purged rows blanked, and how many these are."""
    cards = props.get("sources") if isinstance(props, dict) else None
    if not isinstance(cards, list):
        return props, 0
    kept = [_blank(card) if _is_of(card, keys) else card for card in cards]
    n_blanked = sum(new is not old for new, old in zip(kept, cards, strict=True))
    return props | {"sources": kept}, n_blanked


def _is_of(card: Any, keys: AbstractSet[str]) -> bool:
    is_card = isinstance(card, dict) and not card.get("is_removed")
    return is_card and str(card.get("row")) in keys


def _blank(card: dict[str, Any]) -> dict[str, Any]:
    return card | {
        "title": REMOVED,
        "segments": [{"text": "(removed: this row was purged)", "is_cited": False}],
        "columns": [],
        "is_removed": True,
    }
