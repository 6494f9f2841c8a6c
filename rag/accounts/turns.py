"""A thread as questions with their answers.

Knows the shape of threads and of the metadata of answers; does not know the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Source:
    """A row that an answer was given from."""

    n: int
    title: str
    row_key: str
    table_version: int | None
    table: str
    """Empty where no card names it."""


@dataclass(frozen=True)
class Turn:
    """A question with its answer."""

    question: str
    asked_at: str
    answer: str
    """Plain text, without marks."""
    marked: str
    """With marks as ` [1]`."""
    state: str
    """`done`, `stopped`, `failed` or `interrupted`; empty for what is no answer of a model."""
    answer_id: str
    sources: tuple[Source, ...] = ()
    cited: tuple[str, ...] = ()
    """Row keys, in the order of the answer, each once."""
    is_refused: bool = False
    table_version: int | None = None
    rating: int | None = None
    """1 good, -1 bad."""
    comment: str | None = None
    filters: tuple[str, ...] = field(default=())


def turns(thread: Mapping[str, Any]) -> Iterator[Turn]:
    """Yield the answers of a thread, each with its question, in order.

    The question is the user message that the answer hangs on, through its run; an edited question
    has the answer to what it says now.
    """
    steps = {step["id"]: step for step in thread["steps"]}
    for step in steps.values():
        if step["type"] == "assistant_message" and (step.get("metadata") or {}).get("state"):
            chain = list(_upwards(step, steps))
            asked = next((s for s in chain if s["type"] == "user_message"), None)
            if asked is not None:
                yield _turn(thread, step, asked=asked, chain=chain)


def _turn(
    thread: Mapping[str, Any],
    step: Mapping[str, Any],
    *,
    asked: Mapping[str, Any],
    chain: list[Mapping[str, Any]],
) -> Turn:
    metadata = step["metadata"]
    text = str(metadata.get("text") or step.get("output") or "")
    citations = metadata.get("citations") or []
    rating: Mapping[str, Any] = next((s["feedback"] for s in chain if s.get("feedback")), {})
    state = str(metadata["state"])
    return Turn(
        question=str(asked.get("output") or ""),
        asked_at=str(asked.get("createdAt") or ""),
        answer=text,
        marked=str(metadata.get("marked") or text),
        # nobody writes it while this is read, or what is read is cut here
        state="interrupted" if state == "writing" else state,
        answer_id=str(step["id"]),
        sources=tuple(_sources(thread, step)),
        cited=tuple(dict.fromkeys(str(c.get("row_key")) for c in citations)),
        is_refused=bool(metadata.get("refused")),
        table_version=metadata.get("table_version"),
        rating=(1 if rating["value"] else -1) if rating else None,
        comment=rating.get("comment") or None,
        filters=tuple(map(str, (metadata.get("asked") or {}).get("filters") or ())),
    )


def _upwards(
    step: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """Yield a step and all above it; ids come from browsers, so a circle ends."""
    seen: set[str] = set()
    at: Mapping[str, Any] | None = step
    while at is not None and at["id"] not in seen:
        seen.add(at["id"])
        yield at
        at = steps.get(at.get("parentId") or "")


def _sources(thread: Mapping[str, Any], step: Mapping[str, Any]) -> Iterator[Source]:
    tables: dict[str, str] = {}
    for element in thread.get("elements") or []:
        if element.get("forId") == step["id"]:
            for card in (element.get("props") or {}).get("sources") or []:
                tables[str(card.get("row"))] = str(card.get("table") or "")
    for source in step["metadata"].get("sources") or []:
        key = str(source.get("row_key"))
        yield Source(
            n=int(source.get("n") or 0),
            title=str(source.get("title") or key),
            row_key=key,
            table_version=source.get("table_version"),
            table=tables.get(key, ""),
        )
