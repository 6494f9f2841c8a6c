"""What a row says to the model instead of to its reader: orders, and characters nobody sees.

Knows words and Unicode; knows no model, no table and no prompt. An order that is worded in an
unheard-of way is not found: whatever the model then writes is still checked against the passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag.orders import signs, wording
from rag.orders.seeing import folded, spaced, squeezed, visible
from rag.words import content_words, sentence_ends, stems

__all__ = ["Orders", "visible"]

_LEAST_CHARS = 4
"""A shorter payload (`OK`, `7`) counts only as a whole sentence."""
_ORDERED = 0.5
"""Share of an answer's sentence that may be words which only the orders hold."""
_OWN_WORDS = 2
"""So many content words before an order in its sentence say something of their own."""
_TITLE_WORDS = 3
"""So few content words before a list of questions and answers are its title."""
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
        is_script_asked = signs.asks_what_to_say(asked)
        given = [[] if is_asked else _orders(p, is_script_asked=is_script_asked) for p in passages]
        self._orders = [[o for o in row if not _is_named(o, asked.casefold())] for row in given]
        told = " \n".join([*map(self.without, range(len(passages))), question])
        told = folded(told)[0].casefold()
        self._asked = stems(asked)
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
            if match and (_is_telling(match[0]) or _is_all(match, said)):
                return True
        # the words of the question are in an answer whoever gives it
        words = stems(said) - self._asked
        ordered = words & self._stems
        if any(len(w) > 1 and w.isdigit() for w in ordered):
            return True
        return len(ordered) > 1 and len(ordered) >= _ORDERED * len(words)

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


def _is_telling(said: str) -> bool:
    """Whether nobody says this by chance: it is long, or a code such as `X1`."""
    letters = squeezed(said)
    is_code = any(map(str.isdigit, letters)) and any(map(str.isalpha, letters))
    return is_code or len(letters) >= _LEAST_CHARS


def _is_all(match: re.Match[str], text: str) -> bool:
    return squeezed(match[0]) == squeezed(text)


def _is_named(order: _Order, question: str) -> bool:
    """Whether a question quotes what an order carries, all of it: a part may be a lure."""
    carried = order.payloads()
    return bool(carried) and all(spaced(p).search(question) for p in carried)


def _orders(passage: str, *, is_script_asked: bool) -> list[_Order]:
    """Return the parts of a passage that give orders, in order of their place."""
    sentences = list(_sentences(passage))
    texts = [s.text for s in sentences]
    found: set[int] = set()
    for i, text in enumerate(texts):
        if signs.orders(text, is_script_asked=is_script_asked):
            found.add(i)
        elif i and signs.goes_on(texts[i - 1], text, is_order=i - 1 in found):
            found |= {i - 1, i}
    for i in sorted(found):
        found |= _forged(i, sentences, found) | _templated(i, texts)
    firsts = {i: signs.first(texts[i]) for i in found}
    for i, first in _framed(sentences).items():
        firsts[i] = min(first, firsts.get(i, first))
    return [_order(sentences[i], firsts[i]) for i in sorted(firsts)]


def _framed(sentences: Sequence[_Sentence]) -> dict[int, int]:
    """Return the sentences of turns that forge the prompt's frame, and where each begins."""
    labels = [(i, m) for i, s in enumerate(sentences) for m in wording.FRAME.finditer(s.text)]
    if len(labels) < 2:
        return {}
    i, label = labels[0]
    before = [*(s.text for s in sentences[:i]), sentences[i].text[: label.start()]]
    is_first = len(content_words(" ".join(before))) <= _TITLE_WORDS
    names = [m["begun"] or m["inner"] for _, m in labels]
    forged = labels[signs.n_framed(names, is_first=is_first) :]
    if not forged:
        return {}
    i, label = forged[0]
    return {i: label.start(), **dict.fromkeys(range(i + 1, len(sentences)), 0)}


def _forged(i: int, sentences: Sequence[_Sentence], found: set[int]) -> set[int]:
    """Return the turn that an order forges: its line, and the turns and placeholders before."""
    first = last = i
    while not sentences[first].begins_line:
        first -= 1
    if not wording.LABEL.search(sentences[first].text):
        return set()
    while last + 1 < len(sentences) and not sentences[last + 1].begins_line:
        last += 1
    for before in range(first - 1, -1, -1):
        text = sentences[before].text
        if before in found or not (wording.LABEL.search(text) or wording.PLACEHOLDER.match(text)):
            break
        first = before
    return set(range(first, last + 1))


def _templated(i: int, texts: Sequence[str]) -> set[int]:
    """Return what stands between the control token that begins a sentence and the next one."""
    if not wording.TOKEN.match(texts[i]):
        return set()
    after = (j for j in range(i + 1, len(texts)) if wording.TOKEN.search(texts[j]))
    return set(range(i, next(after, i) + 1))


def _order(sentence: _Sentence, first: int) -> _Order:
    """Return the order that begins in a sentence, without what the sentence says before it."""
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
