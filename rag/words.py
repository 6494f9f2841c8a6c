"""Words and sentences of a text, in any language; the one place that cuts them.

Knows only strings. Scripts written without spaces (Chinese, Japanese, Thai, …) are cut into pairs
of characters, which serve as words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
"""Thai and Lao, Burmese, Khmer, Japanese kana, Chinese characters."""
_TOKEN = re.compile(rf"[{_NO_SPACES}]+|[^\W_{_NO_SPACES}]+(?:['’][^\W_]+)?")
_IS_SPACELESS = re.compile(rf"[{_NO_SPACES}]")
_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
_STEM = 5
"""Letters that two forms of a word share, as a cheap stem for many languages (`strike`, `striking`
share `strik`)."""

STOP_WORDS = frozenset(
    """a about above after again against all also am an and any are as at be because been before
    being below between both but by can could did do does doing down during each else few for
    from further get give go had has have having he help her here hers him his how i if in into
    is it its itself just let like make many may me might more most much must my need needs no
    nor not of off on once one only or other our out over own please same say she should so some
    such take tell than that the their them then there these they thing things this those
    through to too under until up us use used using very want was we were what when where which
    while who whom why will with without would you your""".split()
)
"""English words that say nothing about a topic; other languages' are few enough to live with."""


@dataclass(frozen=True)
class Word:
    """A content word where it stands in a text."""

    stem: str
    start: int
    end: int


def content_words(text: str) -> list[Word]:
    """Return the words that carry meaning, in order: no stop words, stemmed, lower case."""
    return [
        Word(_stem(token), start, end)
        for token, start, end in _tokens(text)
        if token.lower() not in STOP_WORDS and (len(token) > 1 or token.isdigit())
    ]


def stems(text: str) -> set[str]:
    """Return the stems of the content words."""
    return {w.stem for w in content_words(text)}


def numbers(text: str) -> set[str]:
    """Return the numbers in a text, as written."""
    return set(re.findall(r"\d+(?:[.,]\d+)*", text))


def sentence_ends(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each complete sentence ends, and where the next one starts."""
    for match in _END.finditer(text):
        if text[: match.start()].strip():
            yield match.start(), match.end()


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    for match in _TOKEN.finditer(text):
        token, start, end = match.group(), match.start(), match.end()
        if _IS_SPACELESS.match(token) and len(token) > 2:
            for i in range(len(token) - 1):
                yield token[i : i + 2], start + i, start + i + 2
        else:
            yield token, start, end


def _stem(token: str) -> str:
    token = token.lower()
    token = re.sub(r"['’]s$", "", token)
    if token.isdigit():
        return token
    return token[:_STEM] if len(token) > _STEM else token.removesuffix("s")
