"""Markers such as `[2]` that a model writes itself, taken out of a text that comes in pieces.

Knows strings only; whether a marker is right is judged where the passages are known. Works
character by character, so it does not matter how the pieces fall.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MARKER = re.compile(
    r"\[\s*(?:(?:source|passage|row)s?\s*)?\^?(?P<plain>\d{1,2}(?:\s*[,;–-]\s*\d{1,2})*)\s*\]"
    r"|【\s*(?P<wide>\d{1,2})\s*(?:†[^】]*)?】",
    re.IGNORECASE,
)
_MAY_BE = re.compile(r"\[\s*[a-zA-Z]{0,8}\s*\^?[\d\s,;–-]*|【\s*\d{0,2}\s*(?:†\w*)?")
_MAX_CHARS = 20
"""A longer one is no marker: so much of the text is held back at most."""
_WORD_CHARS = 40
"""Of the word before a marker, to look it up in the passages."""


@dataclass(frozen=True)
class Marker:
    """What the model says its source is."""

    numbers: tuple[int, ...]
    """Numbers of passages, from 1; they need not exist."""


class Markers:
    """Parts the text from the markers in it.

    Args:
        holds: Whether the passages or the question hold a text: then it is no marker but quoted.
        n_passages: How many passages the model was given.
    """

    def __init__(self, holds: Callable[[str], bool], n_passages: int) -> None:
        self._holds, self._n_passages = holds, n_passages
        self._before = ""
        """The end of the text let through."""
        self._blank = ""
        """White space held back: it goes with the marker behind it."""
        self._dropped: str | None = None
        """White space before the marker just taken out; None after text."""
        self._held = ""
        """What may become a marker."""

    def feed(self, piece: str) -> Iterator[str | Marker]:
        """Yield text and markers in their order, as far as they are decided."""
        text = ""
        for character in piece:
            for found in self._character(character):
                if isinstance(found, str):
                    text += found
                    continue
                if text:
                    yield text
                yield found
                text = ""
        if text:
            yield text

    def finish(self) -> Iterator[str]:
        """Yield what was held back to the end, but no blanks."""
        if self._held:
            yield self._let_through(self._held)
        self._blank = self._held = ""

    def _character(self, character: str) -> Iterator[str | Marker]:
        if self._held:
            self._held += character
            if character in "]】":
                yield from self._decide()
            elif not _MAY_BE.fullmatch(self._held) or len(self._held) > _MAX_CHARS:
                held, self._held = self._held[:-1], ""
                yield self._let_through(held)
                yield from self._character(character)
        elif character in "[【":
            self._held = character
        elif character.isspace():
            self._blank += character
        else:
            yield self._let_through(character)

    def _let_through(self, text: str) -> str:
        blank = self._blank
        if self._dropped is not None:
            at_line_start = not self._before or self._before.endswith("\n")
            if at_line_start:
                blank = blank[blank.rfind("\n") + 1 :].lstrip() if "\n" not in blank else blank
            elif not blank and text[0].isalnum():
                blank = self._dropped
        self._blank, self._dropped = "", None
        self._before = (self._before + blank + text)[-_WORD_CHARS:]
        return blank + text

    def _decide(self) -> Iterator[str | Marker]:
        held, self._held = self._held, ""
        match = _MARKER.fullmatch(held)
        named = _numbers(match["plain"] or match["wide"]) if match else ()
        if not named or self._is_text(held, named):
            yield self._let_through(held)
            return
        if "\n" in self._blank:  # it begins a line, so it is not of the line before
            blank, self._blank = self._blank, ""
            self._before += blank
            yield blank
        self._dropped = self._blank or self._dropped or ""
        self._blank = ""
        yield Marker(named)

    def _is_text(self, held: str, named: tuple[int, ...]) -> bool:
        """Whether brackets are what the passages say, as in `array[2]` or `sizes: [1, 2]`."""
        last = self._before[-1:]
        word = "" if last.isspace() else (self._before.split() or [""])[-1]
        is_attached = not self._blank and (last.isalnum() or last == "_")
        if self._dropped is not None:  # right behind another one
            return False
        if len(named) > 1 and self._holds(held):
            return True
        if is_attached:
            exist = all(1 <= n <= self._n_passages for n in named)
            return not exist or self._holds(word + held)
        return bool(word and self._blank) and self._holds(f"{word} {held}")


def _numbers(listed: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in re.split(r"\s*[,;]\s*", listed):
        first, *last = (int(n) for n in re.split(r"\s*[–-]\s*", part))
        found += range(first, (last or [first])[-1] + 1)
    return tuple(found)
