"""The fantasy library: what its rows say, commit by commit, and what is left in the end.

Knows the four data files beside it; does not know Delta. Each file is one commit of the table:
rows created, rows appended, rows as they read after the update, keys of the rows deleted. `items`
names the three items of an advice; it is for tests and is no column of the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib import resources
from typing import Any

STARTERS = (
    "What do I need against a werewolf?",
    "How do I sail past the sirens?",
    "A dragon sleeps on its gold: how do I slay it?",
    "What helps when a sphinx asks me riddles?",
)
"""Questions the web chat offers at the start."""


@dataclass(frozen=True)
class DemoRow:
    """One row of the library; its columns `Scenario` and `Advice` are lower case here."""

    row_id: str
    scenario: str
    """An adventure, to be read after "For"."""
    advice: str
    """Three items and why, to be read after "you should use"."""
    creature: str
    biome: str
    danger: int
    """1 (a stroll) to 5 (deadly)."""
    price_gold: Decimal
    """Of the three items together."""
    in_stock: bool
    added_on: date
    items: tuple[str, ...]
    """Names of the three items as they stand in `advice`; no column of the table."""


@dataclass(frozen=True)
class Commits:
    """What each version of the table changes."""

    create: Sequence[DemoRow]
    append: Sequence[DemoRow]
    update: Sequence[DemoRow]
    """Whole rows, as they read afterwards."""
    delete: Sequence[str]
    """Row keys."""


def commits() -> Commits:
    """Read the library's history."""
    return Commits(
        create=_rows("0-create.jsonl"),
        append=_rows("1-append.jsonl"),
        update=_rows("2-update.jsonl"),
        delete=[r["row_id"] for r in _lines("3-delete.jsonl")],
    )


def rows() -> list[DemoRow]:
    """Return the rows of the latest version, by row key."""
    history = commits()
    by_key = {r.row_id: r for r in (*history.create, *history.append, *history.update)}
    return [by_key[key] for key in sorted(by_key.keys() - set(history.delete))]


def _rows(file: str) -> list[DemoRow]:
    return [
        DemoRow(
            row_id=r["row_id"],
            scenario=r["Scenario"],
            advice=r["Advice"],
            creature=r["creature"],
            biome=r["biome"],
            danger=r["danger"],
            price_gold=Decimal(r["price_gold"]),
            in_stock=r["in_stock"],
            added_on=date.fromisoformat(r["added_on"]),
            items=tuple(r["items"]),
        )
        for r in _lines(file)
    ]


def _lines(file: str) -> list[dict[str, Any]]:
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
