"""Model text and row text, written so that Chainlit's Markdown shows the very same text.

Knows CommonMark, GFM and the two extensions Chainlit adds (directives, `:::` alerts); does not know
Chainlit's API. Nothing is removed and nothing is judged: every character that could start markup is
escaped, so HTML, images, links, headings and `javascript:` are only ever read. It works character
by character on what came before, never on what is to come, so a stream may be split anywhere.
"""

from __future__ import annotations

_JOINER = "\u2060"
"""Word joiner: no width, no meaning; it parts `http:` from `//` where a backslash cannot."""
_NO_BREAK = "\u00a0"
_ALWAYS = frozenset("\\`*_[]<>&~|:")
"""Escaped wherever they stand: they open code, emphasis, links, HTML, entities, directives."""
_AT_LINE_START = frozenset("#+-=")
"""Escaped where a line begins: headings, lists, rules, underlines of headings."""
_SUBSTITUTES = {
    "\0": "\ufffd",  # what CommonMark makes of it
    "\u200b": _JOINER,  # Chainlit draws a blinking cursor for a zero-width space
    "\r": " ",  # a line ending in Markdown; `\r\n` keeps its `\n`
}


class Guard:
    """Neutralises one text that comes in pieces."""

    def __init__(self) -> None:
        self._before = ""
        """The last three characters of the text so far."""
        self._in_indent = True
        self._in_number = False

    def feed(self, text: str) -> str:
        """Return Markdown that shows as `text`, which goes on where the last piece ended."""
        return "".join(map(self._character, text))

    def chip(self, n: int) -> str:
        """Return the link that `Sources.jsx` turns into the citation chip of source `n`."""
        return self._link(f'[{n}](#cite-{n} "Open source {n}")')

    def unfounded(self) -> str:
        """Return the link that marks a sentence which says what stands in no row."""
        return self._link('[?](#unfounded "Not in the table")')

    def _link(self, link: str) -> str:
        # a space that does not break: the link stays with its sentence, and a `!` before it
        # cannot make an image of it
        glue = "" if self._in_indent or self._before[-1:].isspace() else _NO_BREAK
        self._before, self._in_indent, self._in_number = ")", False, False
        return glue + link

    def _character(self, raw: str) -> str:
        ch = _SUBSTITUTES.get(raw, raw)
        previous = self._before[-1:]
        in_indent, in_number = self._in_indent, self._in_number
        shown = self._join(ch, previous)
        self._before = self._before[-2:] + ch
        if ch == "\n":
            self._in_indent, self._in_number = True, False
            # two spaces before a line ending would become a second line break
            return _JOINER + ch if previous in (" ", "\t") else ch
        if in_indent and ch in " \t":
            return _NO_BREAK  # four real ones would begin a code block
        self._in_indent = False
        self._in_number = ch.isdigit() and (in_indent or in_number)
        is_list = in_number and ch in ".)"
        if ch in _ALWAYS or is_list or (in_indent and ch in _AT_LINE_START):
            return f"{shown}\\{ch}"
        return shown + ch

    def _join(self, ch: str, previous: str) -> str:
        # addresses are linked after the escapes are gone: a joiner is what stops that
        is_url = previous == ":" and ch in "/:"
        is_email = previous == "@" and not ch.isspace()
        is_www = ch == "." and self._before.lower() == "www"
        return _JOINER if is_url or is_email or is_www else ""


def plain(text: str) -> str:
    """Return Markdown that shows as `text`, which is complete."""
    return Guard().feed(text)


def plain_line(text: str) -> str:
    """Return Markdown that shows as `text` on one line, for a table cell or a list item."""
    return plain(" ".join(text.split()))
