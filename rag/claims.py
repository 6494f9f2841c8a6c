"""A sentence as what a passage must hold, and a passage as what can be looked up in it.

Knows words only; does not know which passage is the best one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rag.words import (
    STOP_WORDS,
    Word,
    codes,
    content_words,
    language,
    names,
    numbers,
    sentences,
    stems,
)

MIN_SUPPORT = 0.7
"""Share of a sentence's words, and of those that the question does not hold, that two sentences of
a passage must hold to count as its source; one word more may lack in a short one.

Source: sentences of XQuAD and SQuAD 2.0 against other paragraphs of their article, 2026-11-22: 0.1
to 0.3 % and 0.7 % are supported; at 0.6, 0.1 to 1.0 % and 1.8 %."""
_STRETCH = 2
"""Sentences of a passage that may support one of the answer together."""
MIN_WORDS = 2
"""A part of a sentence with fewer words is not looked up alone."""
_PART = re.compile(r"[,;:]\s+|[、，；]|\s(?:and|or|und|oder|y|et|ou)\s")
_LIST_MARK = re.compile(r"^\s*(?:\d{1,3}[.)]|[-*•–])\s+")
_PLEASANTRIES = frozenset(
    stems(
        "you're you’re sure certainly yes no hello hi thanks thank welcome great absolutely sorry "
        "okay ok indeed"
    )
)
"""A sentence of nothing but these claims nothing."""
_JOINTS = "-_/.@&'’"
"""What parts a word from the next one in a code or a compound: `HL-200-A`."""
_SIGNS = "%‰°#+$£€¥"
"""What belongs to the word or number it stands beside."""
_UNIT = re.compile(rf"[ \u00a0\u202f](?:°?[^\W\d_]{{1,2}}(?!\w)|[{_SIGNS}])")
_NUMBER_WORDS = {
    word: str(n)
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}


@dataclass(frozen=True)
class Support:
    """A passage that supports a sentence, or a part of it."""

    index: int
    start: int
    end: int
    share: float
    """Of the sentence's words that the passage holds, 0 to 1; by meaning, the cosine."""


class Passage:
    """A text as what can be looked up in it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def items(self) -> list[Word]:
        """Words and numbers, in order."""
        text = self.text
        found = [w for w in content_words(text) if not text[w.start : w.end].isdigit()]
        for n in numbers(text):
            found += [Word(f"#{v}", n.start, n.end) for v in (*n.values, *n.parts)]
        found += [
            Word(f"#{_NUMBER_WORDS[m.group().lower()]}", m.start(), m.end())
            for m in re.finditer(rf"(?i)\b(?:{'|'.join(_NUMBER_WORDS)})\b", text)
        ]
        return sorted(found, key=lambda w: w.start)

    @cached_property
    def stretches(self) -> list[list[Word]]:
        """The items of every `_STRETCH` sentences in a row: words far apart make no claim."""
        spans = sentences(self.text)
        last = max(len(spans) - _STRETCH, 0)
        ends = [
            (spans[i][0], spans[min(i + _STRETCH, len(spans)) - 1][1])
            for i in range(last + 1)
            if spans
        ]
        return [[w for w in self.items if a <= w.start < b] for a, b in ends]

    @cached_property
    def keys(self) -> frozenset[str]:
        """The words and numbers, each once."""
        return frozenset(w.stem for w in self.items)

    @cached_property
    def language(self) -> str | None:
        """The language, as far as it can be told."""
        return language(self.text)

    @cached_property
    def folded(self) -> str:
        """The text in one case, with single blanks."""
        return " ".join(self.text.casefold().split())

    def holds_code(self, code: str) -> bool:
        """Whether it holds a code, whatever parts its letters from its digits."""
        parts = re.findall(r"[^\W\d_]+|\d+", code.casefold())
        text = self.folded
        return any(
            not _goes_on(text, m.start() - 1) and not _goes_on(text, m.end())
            for m in re.finditer(r"[\W_]?".join(map(re.escape, parts)), text)
        )

    def holds_text(self, text: str) -> bool:
        """Whether it holds these words, however spaced and cased."""
        return " ".join(text.casefold().split()) in self.folded


class Claim:
    """A sentence, or a part of one, as what a passage must hold."""

    def __init__(self, text: str, asked: Collection[str]) -> None:
        self.text = _LIST_MARK.sub("", text)
        self._asked = asked

    @cached_property
    def _words(self) -> frozenset[str]:
        written = {w.stem: self.text[w.start : w.end].lower() for w in content_words(self.text)}
        return frozenset(
            stem
            for stem, word in written.items()
            # "it's" and "you're" say no more than "it" and "you"
            if not word.isdigit() and re.split("['’]", word)[0] not in STOP_WORDS
        )

    @cached_property
    def _numbers(self) -> list[frozenset[str]]:
        return [frozenset(f"#{v}" for v in n.values) for n in numbers(self.text)]

    @cached_property
    def _codes(self) -> list[str]:
        return [self.text[start:end] for start, end in codes(self.text)]

    @property
    def n_items(self) -> int:
        """How many words and numbers the claim has."""
        return len(self._words) + len(self._numbers)

    @property
    def is_pleasant(self) -> bool:
        """Whether nothing but pleasantries is said."""
        return not self._numbers and self._words <= _PLEASANTRIES

    def parts(self) -> Iterator[Claim]:
        """Yield what a list or a sentence of several clauses is made of."""
        for part in _PART.split(self.text):
            yield Claim(part, self._asked)

    def is_held(self, passages: Sequence[Passage]) -> bool:
        """Whether each number and code stands in one of the passages."""
        keys = frozenset[str]().union(*(p.keys for p in passages))
        return all(values & keys for values in self._numbers) and all(
            any(p.holds_code(code) for p in passages) for code in self._codes
        )

    def _share(self, keys: Collection[str]) -> float:
        n_held = sum(w in keys for w in self._words)
        n_held += sum(any(v in keys for v in values) for values in self._numbers)
        return n_held / self.n_items if self.n_items else 0.0

    def support(self, passage: Passage, index: int) -> Support | None:
        """Return where the passage supports the claim, or None."""
        if self.is_pleasant:
            return None
        if not self.is_held([passage]) or names(self.text) - set(self._asked) - passage.keys:
            return None
        wanted = self._words.union(*self._numbers)
        news = self._words - set(self._asked)
        best: Support | None = None
        for items in passage.stretches:
            keys = {w.stem for w in items} & wanted
            share = self._share(keys)
            if not _are_enough(share * self.n_items, self.n_items):
                continue
            if not _are_enough(len(news & keys), len(news)):
                continue
            if best is None or share > best.share:
                window = _shortest_window([w for w in items if w.stem in wanted])
                best = Support(index, *_whole(passage.text, *window), share)
        return best


def _are_enough(n_held: float, n_all: int) -> bool:
    return n_held >= MIN_SUPPORT * n_all or (n_held >= MIN_WORDS and n_all - n_held <= 1)


def _shortest_window(matched: Sequence[Word]) -> tuple[int, int]:
    """Return the shortest span that holds each matched stem at least once."""
    n_wanted = len({w.stem for w in matched})
    counts: dict[str, int] = {}
    best = (matched[0].start, max(w.end for w in matched))
    left = 0
    for right in matched:
        counts[right.stem] = counts.get(right.stem, 0) + 1
        while len(counts) == n_wanted:
            first = matched[left]
            end = max(right.end, first.end)
            if end - first.start < best[1] - best[0]:
                best = (first.start, end)
            counts[first.stem] -= 1
            if not counts[first.stem]:
                del counts[first.stem]
            left += 1
    return best


def _whole(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span with the rest of what it cuts into, and with the unit of a number."""
    while _is_inner(text, start - 1) and _is_inner(text, start):
        start -= 1
    while _is_inner(text, end - 1) and _is_inner(text, end):
        end += 1
    unit = _UNIT.match(text, end) if text[end - 1].isdigit() else None
    if unit and unit.group().strip().lower() not in STOP_WORDS:
        end = unit.end()
    return start, end


def _is_inner(text: str, at: int) -> bool:
    """Whether a character goes on the word or code beside it, rather than the sentence."""
    if not 0 <= at < len(text):
        return False
    if text[at] in _JOINTS:
        return _goes_on(text, at - 1) and _goes_on(text, at + 1)
    return text[at] in _SIGNS or _goes_on(text, at)


def _goes_on(text: str, at: int) -> bool:
    # letters without case (Lo) may stand side by side through a whole sentence, as in Chinese
    return 0 <= at < len(text) and text[at].isalnum() and unicodedata.category(text[at]) != "Lo"
