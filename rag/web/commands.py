"""Commands: what a reader types behind a slash, or picks in the composer, and what it shows.

Knows rows and Chainlit's list of commands; does not know settings or sessions. What is returned
is Markdown in which everything that is not ours is escaped, and cards as `rows` makes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from rag.errors import QuestionError, nearest
from rag.web import rows
from rag.web.guard import plain, plain_line

if TYPE_CHECKING:  # both load LlamaIndex, which takes seconds; the port opens before that
    from rag.provenance import RowView
    from rag.retrieval import Hit
    from rag.web.asking import Asking

Name = Literal["search", "row", "sources", "export", "stats", "help"]

_TYPED = re.compile(r"\s*/([A-Za-z]+)(?:\s+(.*))?\s*", re.DOTALL)
"""`/dev/null` is no command: a question may begin with a path."""
_SHOWN_CHARS = 40
_MOST_CHARS = 2000


@dataclass(frozen=True)
class Command:
    """What was asked for."""

    name: Name
    argument: str = ""
    """What stands behind the name, without white space around it."""


@dataclass(frozen=True)
class Shown:
    """What a command shows: a text, and cards below it."""

    markdown: str
    kind: Literal["sources", "hits", "row"] = "sources"
    """What the cards are."""
    cards: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Entry:
    icon: str
    """A name of Lucide's."""
    tells: str
    takes: str = ""
    """What stands behind the name; nothing where it takes nothing."""
    example: str = ""
    is_for_admins: bool = False


_ENTRIES: dict[Name, _Entry] = {
    "search": _Entry(
        "search", "Rows only, without an answer", "TEXT", example="/search silver dagger"
    ),
    "row": _Entry("rows-3", "One row by its key", "KEY", example="/row fs-001"),
    "sources": _Entry("library", "The sources of the last answer again"),
    "export": _Entry("download", "This conversation as Markdown, with its citations"),
    "stats": _Entry("chart-column", "Charts of the table and of recent questions", "", "", True),
    "help": _Entry("circle-help", "What you can do here"),
}


def offered(*, is_admin: bool) -> list[dict[str, Any]]:
    """Return the commands as the composer lists them, for `emitter.set_commands`.

    Chainlit forgets them: they are sent at the start of a chat and when one is resumed.
    """
    return [
        {
            "id": name,
            "description": f"{entry.tells}: {entry.takes}" if entry.takes else entry.tells,
            "icon": entry.icon,
            "button": False,
            "persistent": False,
        }
        for name, entry in _entries(is_admin=is_admin).items()
    ]


def parse(
    text: str,
    command: str | None = None,
    *,
    is_admin: bool = False,
    max_chars: int = _MOST_CHARS,
) -> Command | None:
    """Return the command that a message is; None when it is a question.

    Args:
        text: What was typed: `/row 7`, or only `7` where the command was picked.
        command: The command picked in the composer, as the message names it.
        is_admin: Whether the person may use the commands of admins.
        max_chars: Of what stands behind a command; more is refused.

    Raises:
        QuestionError: no such command, not for this person, or what it takes is not there or
            too long.
    """
    typed = _TYPED.fullmatch(text)
    # behind a picked command, what begins with another one is its argument
    if typed and (not command or command == typed[1]):
        name, argument = typed[1], typed[2] or ""
    elif command:
        name, argument = command, text
    else:
        return None
    argument = argument.strip()
    for known, entry in _entries(is_admin=True).items():
        if known == name.lower():
            if entry.is_for_admins and not is_admin:
                raise QuestionError(f"/{known} is for admins. {_list(is_admin=False)}")
            return Command(known, _taken(known, entry, argument, max_chars))
    raise _unknown(name, is_admin=is_admin)


def search(hits: Sequence[Hit], text: str, asked: Asking) -> Shown:
    """Show the rows found for a text; no language model is asked.

    Args:
        hits: What a retriever of `asked` found, best first.
        text: What was searched for.
        asked: What the result says that it was asked of.
    """
    cards = rows.cards(hits, ())
    n = "No rows" if not cards else "1 row" if len(cards) == 1 else f"{len(cards)} rows"
    of = [f"v{asked.version}"] if asked.version is not None else []
    where = plain_line(", ".join([*of, *asked.told]))
    among = f", among {where}" if where else ""
    hint = "" if cards else " Try other words" + (", or fewer filters." if asked.told else ".")
    return Shown(f"{n} for “{plain_line(text)}”{among}.{hint}", "hits", cards)


def row(view: RowView) -> Shown:
    """Show one row, as it was in a version, and what became of it since."""
    return Shown(plain(rows.fate_sentence(view)), "row", [rows.row_card(view)])


def sources(cards: Sequence[Mapping[str, Any]] | None) -> Shown:
    """Show the sources of the last answer again.

    Args:
        cards: As they were shown; None or none where nothing was answered yet.
    """
    if not cards:
        return Shown("There are no sources yet: ask a question first.")
    n = "source" if len(cards) == 1 else f"{len(cards)} sources"
    return Shown(f"The {n} of the last answer:", "sources", [dict(card) for card in cards])


def last_sources(elements: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the cards of the last answer of a conversation that is resumed.

    Args:
        elements: The `elements` of the thread, oldest first; those of other kinds are skipped.
    """
    for element in reversed(elements or ()):
        props = element.get("props")
        if element.get("name") == "Sources" and isinstance(props, Mapping):
            cards = props.get("sources")
            if props.get("kind", "sources") == "sources" and isinstance(cards, list) and cards:
                return cards
    return []


def export(thread_id: str) -> Shown:
    """Show the link to a conversation as Markdown."""
    to = f"/rag/export/{quote(thread_id, safe='')}"
    return Shown(f"[Download this conversation]({to}) as Markdown, with its citations.")


def help_text(*, title: str, is_admin: bool) -> Shown:
    """Tell what can be done here.

    Args:
        title: Name of the chat.
        is_admin: Whether to name the commands of admins.
    """
    entries = _entries(is_admin=is_admin)
    listed = "\n".join(
        f"- `/{name}{' ' + entry.takes if entry.takes else ''}` – {entry.tells}"
        for name, entry in entries.items()
    )
    return Shown(
        f"**{plain_line(title)}** answers from the rows of a table. A number in an answer opens "
        f"the row that it stands on.\n\n{listed}\n\nBelow the question you pick the version of "
        "the table that is asked, once there is more than one; the filters are in the settings "
        "beside it."
    )


def _entries(*, is_admin: bool) -> dict[Name, _Entry]:
    return {name: e for name, e in _ENTRIES.items() if is_admin or not e.is_for_admins}


def _taken(name: Name, entry: _Entry, argument: str, max_chars: int) -> str:
    """Return what a command takes of what stands behind it."""
    if not entry.takes:
        return ""
    if not argument:
        raise QuestionError(f"/{name} takes {entry.takes} behind it, as in {entry.example}.")
    if len(argument) > max_chars:
        raise QuestionError(
            f"Behind /{name} stand {len(argument):,} characters; at most {max_chars:,} are read. "
            "Shorten it."
        )
    return argument


def _unknown(name: str, *, is_admin: bool) -> QuestionError:
    shown = name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "…"
    close = nearest(name, _entries(is_admin=is_admin))
    hint = f"Did you mean /{close}? " if close else ""
    return QuestionError(f"There is no command /{shown}. {hint}{_list(is_admin=is_admin)}")


def _list(*, is_admin: bool) -> str:
    return f"There are {', '.join(f'/{n}' for n in _entries(is_admin=is_admin))}."
