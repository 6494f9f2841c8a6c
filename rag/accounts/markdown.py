"""A thread as Markdown that shows the very text that was written.

Knows CommonMark and GFM; does not know where the thread is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rag.accounts.turns import Source, Turn, turns

_ALWAYS = re.compile(r"([\\`*_\[\]<>&~|])")
_AT_START = re.compile(r"^([ \t]*)(?:([#+=-])|(\d+)([.)]))", re.MULTILINE)
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=@)(?=\w)", re.IGNORECASE)
_JOINER = "\u2060"
"""Word joiner: parts what GFM would link, where a backslash cannot."""
_NO_BREAK = "\u00a0"
_ENDED = {"stopped": "(stopped)", "failed": "(failed)", "interrupted": "(interrupted)"}
_LINE_ENDS = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")


def exported(thread: Mapping[str, Any]) -> str:
    """Return a conversation as a Markdown document: questions, answers with marks, sources."""
    parts = [f"# {_line(thread.get('name') or 'A conversation')}", f"_{_day(thread['createdAt'])}_"]
    n = 0
    for turn in turns(thread):
        n += 1
        parts += [f"## Question {n}", _quoted(turn.question), *_answer(turn)]
    if not n:
        parts.append("Nothing was answered in this conversation.")
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return Markdown that shows as `text`: nothing in it is a heading, a link, HTML or an image.

    A line ending stays one, and a blank line separates paragraphs.
    """
    text = _LINE_ENDS.sub("\n", text).replace("\0", "\ufffd")
    text = _LINKED.sub(_JOINER, _ALWAYS.sub(r"\\\1", text))
    text = _AT_START.sub(_start, text)
    # four spaces would begin a code block; a trailing backslash keeps single line endings
    lines = [_indented(line).rstrip(" \t") for line in text.split("\n")]
    return "\n".join(
        f"{line}\\" if line and following else line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
    )


def _start(found: re.Match[str]) -> str:
    indent, sign, digits, after = found.groups()
    return f"{indent}\\{sign}" if sign else f"{indent}{digits}\\{after}"


def _indented(line: str) -> str:
    bare = line.lstrip(" \t")
    return _NO_BREAK * (len(line) - len(bare)) + bare if bare else ""


def _answer(turn: Turn) -> Iterator[str]:
    text = turn.marked.strip()
    if text:
        yield escaped(text)
    if turn.state in _ENDED:
        yield f"_{_ENDED[turn.state]}_"
    asked = [f"version {turn.table_version}"] if turn.table_version is not None else []
    asked += [_line(f) for f in turn.filters]
    if turn.filters:
        yield f"Asked of: {', '.join(asked)}"
    if turn.sources:
        yield "Sources:"
        yield "\n".join(_source(s, is_cited=s.row_key in turn.cited) for s in turn.sources)
    if turn.rating is not None:
        rated = "good" if turn.rating > 0 else "bad"
        note = f": “{_line(turn.comment)}”" if turn.comment else ""
        yield f"Rated {rated}{note}"


def _source(source: Source, *, is_cited: bool) -> str:
    place = [_line(source.table)] if source.table else []
    if source.table_version is not None:
        place.append(f"version {source.table_version}")
    place.append(f"row {_line(source.row_key)}")
    told = "" if is_cited else " (not cited)"
    return f"- \\[{source.n}\\] {_line(source.title)} – {', '.join(place)}{told}"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in escaped(text.strip()).split("\n"))


def _line(text: str) -> str:
    return escaped(" ".join(text.split()))


def _day(at: str) -> str:
    return escaped(at.partition("T")[0])
