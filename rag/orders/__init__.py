"""What a row says to the model instead of to its reader: orders, and characters nobody sees.

Knows words and Unicode; knows no model, no table and no prompt. An order that is worded in an
unheard-of way is not found: whatever the model then writes is still checked against the passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag.orders import signs
from rag.orders.seeing import folded, spaced, squeezed, visible
from rag.words import content_words, sentence_ends, stems

__all__ = ["Orders", "visible"]

_LEAST_CHARS = 4
"""A shorter payload (`OK`, `7`) counts only as a whole sentence."""
_ORDERED = 0.5
"""Share of an answer's sentence that may be words which only the orders hold."""
_OWN_WORDS = 2
"""So many content words before an order in its sentence say something of their own."""
_LINE_ENDS = dict.fromkeys(map(ord, "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), "\n")


@dataclass(frozen=True)
class _Sentence:
    """A sentence of a passage, as a reader would read it."""

    start: int
    end: int
    text: str
    at: tuple[int, ...]
    """Where each character of `text` stands in the passage."""
    begins_line: bool


@dataclass(frozen=True)
class _Order:
    """A part of a passage that gives an order."""

    start: int
    end: int
    text: str

    def payloads(self) -> list[str]:
        """Return the letters of what it wants to be said."""
        return [p for p in map(squeezed, signs.payloads(self.text)) if p]


class Orders:
    """The orders that passages give, and what repeats them.

    An order that the question asks about, or quotes, is what the reader wants to hear: it does not
    count.

    Args:
        passages: Texts of rows, as they stand in the table.
        question: What the person asked.
    """

    def __init__(self, passages: Sequence[str], question: str) -> None:
        asked = folded(question)[0]
        is_asked = signs.asks_for_orders(asked)
        self._passages = tuple(passages)
        self._orders = [
            [] if is_asked else [o for o in _orders(p) if not _is_named(o, asked.casefold())]
            for p in passages
        ]
        told = " \n".join([*map(self.without, range(len(passages))), question])
        told = folded(told)[0].casefold()
        orders = [o for found in self._orders for o in found]
        self._stems = {s for o in orders for s in stems(o.text)} - stems(told)
        payloads = {p for o in orders for p in o.payloads()}
        self._payloads = [p for p in map(spaced, payloads) if not p.search(told)]

    def __bool__(self) -> bool:
        return any(self._orders)

    def repeated_by(self, sentence: str) -> bool:
        """Whether a sentence of an answer repeats an order, what it carries, or follows it."""
        if not self:
            return False
        said = folded(sentence)[0].casefold()
        for payload in self._payloads:
            match = payload.search(said)
            if match and (len(squeezed(match[0])) >= _LEAST_CHARS or _is_all(match, said)):
                return True
        words = stems(said)
        n_ordered = len(words & self._stems)
        return n_ordered > 1 and n_ordered >= _ORDERED * len(words)

    def without(self, index: int) -> str:
        """Return a passage without its orders, stripped."""
        passage = self._passages[index]
        return " ".join(passage[start:end] for start, end in self.parts(index))

    def parts(self, index: int) -> list[tuple[int, int]]:
        """Return start and end of what a passage says besides its orders, in order, stripped."""
        passage, start, found = self._passages[index], 0, []
        ends = [(o.start, o.end) for o in self._orders[index]]
        for end, following in [*ends, (len(passage), len(passage))]:
            part = passage[start:end]
            if part.strip():
                first = start + len(part) - len(part.lstrip())
                found.append((first, first + len(part.strip())))
            start = following
        return found


def _is_all(match: re.Match[str], text: str) -> bool:
    return squeezed(match[0]) == squeezed(text)


def _is_named(order: _Order, question: str) -> bool:
    """Whether a question quotes what an order carries, all of it: a part may be a lure."""
    carried = order.payloads()
    return bool(carried) and all(spaced(p).search(question) for p in carried)


def _orders(passage: str) -> list[_Order]:
    """Return the parts of a passage that give orders, in order of their place."""
    sentences = list(_sentences(passage))
    texts = [s.text for s in sentences]
    found: set[int] = set()
    for i, text in enumerate(texts):
        if signs.orders(text):
            found.add(i)
        elif i and signs.goes_on(texts[i - 1], text, is_order=i - 1 in found):
            found |= {i - 1, i}
    for i in sorted(found):
        found |= _forged(i, sentences, found) | _templated(i, texts)
    return [_order(sentences[i]) for i in sorted(found)]


def _forged(i: int, sentences: Sequence[_Sentence], found: set[int]) -> set[int]:
    """Return the turn that an order forges: its line, and the turns and placeholders before."""
    first = last = i
    while not sentences[first].begins_line:
        first -= 1
    if not signs.LABEL.search(sentences[first].text):
        return set()
    while last + 1 < len(sentences) and not sentences[last + 1].begins_line:
        last += 1
    for before in range(first - 1, -1, -1):
        text = sentences[before].text
        if before in found or not (signs.LABEL.search(text) or signs.PLACEHOLDER.match(text)):
            break
        first = before
    return set(range(first, last + 1))


def _templated(i: int, texts: Sequence[str]) -> set[int]:
    """Return what stands between the control token that begins a sentence and the next one."""
    if not signs.TOKEN.match(texts[i]):
        return set()
    after = (j for j in range(i + 1, len(texts)) if signs.TOKEN.search(texts[j]))
    return set(range(i, next(after, i) + 1))


def _order(sentence: _Sentence) -> _Order:
    """Return the order in a sentence, without what the sentence says before it."""
    first = signs.first(sentence.text)
    if len(content_words(sentence.text[:first])) < _OWN_WORDS:
        return _Order(sentence.start, sentence.end, sentence.text)
    return _Order(sentence.at[first], sentence.end, sentence.text[first:])


def _sentences(passage: str) -> Iterator[_Sentence]:
    lines = passage.translate(_LINE_ENDS)
    start, begins_line = 0, True
    for end, following in [*sentence_ends(lines), (len(lines), len(lines))]:
        text, at = folded(lines[start:end])
        n_blank = len(text) - len(text.lstrip())
        if text.strip():
            places = tuple(start + i for i in at[n_blank:])
            yield _Sentence(start, end, text[n_blank:].rstrip(), places, begins_line)
        start, begins_line = following, "\n" in lines[end:following]
