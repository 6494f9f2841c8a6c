"""Questions, answers and ratings as a Delta table that `rag eval` reads.

Knows deltalake and polars, so nothing of the web chat imports it. What can be judged is exported:
an answer that was rated good expects the rows that it cites, a refusal that was rated good expects
to be refused. A rating of bad tells that these rows are wrong, not which are right: such rows, and
answers without a rating, are for reading, and their table has no column `expected`, so that
`rag eval` refuses it instead of taking every question for one to be refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from rag.accounts.accounts import Accounts
from rag.accounts.turns import Turn, turns
from rag.errors import AccountsError, cause

_NAME = "rag-feedback"
"""Of our tables, the mark by which another one is never touched."""
_DESCRIPTIONS = {
    False: "Questions that were judged, for `rag eval`.",
    True: "All questions, answers and ratings.",
}
_PREVIOUS = 6
"""Earlier questions kept with one; more of them make each question of `rag eval` slower."""

_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "answer_id": pl.String,
    "thread_id": pl.String,
    "asked_at": pl.String,
    "question": pl.String,
    "previous": pl.List(pl.String),
    "expected": pl.List(pl.String),
    "given_answer": pl.String,
    "marked_answer": pl.String,
    "cited": pl.List(pl.String),
    "refused": pl.Boolean,
    "state": pl.String,
    "rating": pl.Int8,
    "comment": pl.String,
    "table_version": pl.Int64,
    "filters": pl.List(pl.String),
    "user": pl.String,
}


@dataclass(frozen=True)
class Wanted:
    """What is exported, and how."""

    is_all: bool = False
    """Also answers that nobody rated, or rated bad; without the column that `rag eval` needs."""
    with_users: bool = False
    """Also who asked."""
    overwrite: bool = False
    """Replace the rows that are there; else rows are added, or renewed by their answer's id."""


@dataclass(frozen=True)
class Exported:
    """What `export` did."""

    uri: str
    n_rows: int
    """Of this run."""
    version: int
    """Of the table, now."""


async def collect(accounts: Accounts, wanted: Wanted) -> pl.DataFrame:
    """Return one row for each answer that is wanted, oldest first."""
    found = [row async for row in _rows(accounts, is_all=wanted.is_all)]
    frame = pl.DataFrame(found, schema=_SCHEMA)
    left_out = [] if wanted.with_users else ["user"]
    return frame.drop(left_out + (["expected"] if wanted.is_all else []))


def write(
    uri: str,
    frame: pl.DataFrame,
    wanted: Wanted,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> Exported:
    """Write rows of `collect` to a Delta table.

    Args:
        uri: Folder or URL.
        frame: What to write.
        wanted: What it is.
        storage_options: For object storage.

    Raises:
        AccountsError: there is nothing to write, another table is there, or it fails.
    """
    if frame.is_empty():
        what = "No question was answered" if wanted.is_all else "No answer was rated good"
        raise AccountsError(f"{what} yet, so there is nothing to export; nothing was written.")
    options = dict(storage_options or {}) or None
    try:
        if not DeltaTable.is_deltatable(uri, options):
            _create(uri, frame, wanted, options)
        else:
            _renew(uri, frame, wanted, options)
        return Exported(uri, len(frame), DeltaTable(uri, storage_options=options).version())
    except (DeltaError, OSError) as e:
        raise AccountsError(
            f"The feedback could not be written to {uri!r}: {cause(e)}. "
            "Name a folder or URL that can be written."
        ) from e


def _create(uri: str, frame: pl.DataFrame, wanted: Wanted, options: dict[str, str] | None) -> None:
    write_deltalake(
        uri,
        frame,
        name=_NAME,
        description=_DESCRIPTIONS[wanted.is_all],
        storage_options=options,
    )


def _renew(uri: str, frame: pl.DataFrame, wanted: Wanted, options: dict[str, str] | None) -> None:
    table = DeltaTable(uri, storage_options=options)
    found = table.metadata()
    if found.name != _NAME:
        raise AccountsError(
            f"There is a Delta table at {uri!r} that `rag feedback export` did not write; "
            "nothing was changed. Name another folder or URL."
        )
    columns = [field.name for field in table.schema().fields]
    if wanted.overwrite:
        # the schema too: it depends on what is wanted
        write_deltalake(
            table,
            frame,
            mode="overwrite",
            schema_mode="overwrite",
            description=_DESCRIPTIONS[wanted.is_all],
        )
        return
    if columns != frame.columns:
        raise AccountsError(
            f"The table at {uri!r} was exported with other options: it has the columns "
            f"{', '.join(columns)}; expected {', '.join(frame.columns)}. "
            "Add --overwrite to replace it, or name another folder or URL."
        )
    (
        table.merge(
            frame,
            predicate="kept.answer_id = new.answer_id",
            source_alias="new",
            target_alias="kept",
        )
        .when_matched_update_all()
        .when_not_matched_insert_all()
        .execute()
    )


async def _rows(accounts: Accounts, *, is_all: bool) -> AsyncIterator[dict[str, Any]]:
    async for thread in accounts.threads():
        previous: list[str] = []
        for turn in turns(thread):
            if turn.question.strip() and (is_all or _is_judged(turn)):
                yield _row(thread, turn, previous)
            if turn.question.strip():
                previous.append(turn.question)


def _is_judged(turn: Turn) -> bool:
    return turn.state == "done" and turn.rating == 1 and (turn.is_refused or bool(turn.cited))


def _row(thread: Mapping[str, Any], turn: Turn, previous: list[str]) -> dict[str, Any]:
    return {
        "answer_id": turn.answer_id,
        "thread_id": thread["id"],
        "asked_at": turn.asked_at,
        "question": turn.question,
        "previous": list(previous[-_PREVIOUS:]),
        "expected": None if turn.is_refused else list(turn.cited),
        "given_answer": turn.answer,
        "marked_answer": turn.marked,
        "cited": list(turn.cited),
        "refused": turn.is_refused,
        "state": turn.state,
        "rating": turn.rating,
        "comment": turn.comment,
        "table_version": turn.table_version,
        "filters": list(turn.filters),
        "user": thread["userIdentifier"],
    }
