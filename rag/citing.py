"""An answer as it grows: cited, checked and, where a row gives orders, held back by the sentence.

Knows the passages, what supports a sentence and what repeats an order; does not know the model
that writes, nor who reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rag.citation import Citation, Embed, Evidence, declines, makes_claim
from rag.claims import Passage
from rag.markers import Marker, Markers
from rag.orders import Orders, visible
from rag.retrieval import Hit
from rag.words import codes, numbers, sentence_ends, sentences, stems

_QUOTE = re.compile(r"“([^“”]+)”|„([^„“”]+)[“”]|«([^«»]+)»|(?<!\w)\"([^\"\n]+)\"(?!\w)")
_QUOTED_CHARS = 300
"""A longer row is not quoted whole: it would bury the answer, and fill the history."""
_MOST_CHARS = 600
"""Of a quotation, where sentences are that long."""
_TO_WORDS_END = re.compile(rf".{{1,{_MOST_CHARS}}}(?<=\w)(?!\w)", re.DOTALL)
_LIST_NUMBER = re.compile(r"^[^\S\n]*(\d{1,3})[.)](?=\s|$)", re.MULTILINE)


@dataclass(frozen=True)
class Token:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Cited:
    """The sentence just completed is supported by a source."""

    citation: Citation


@dataclass(frozen=True)
class Flag:
    """A number or a quotation in the answer that stands in no passage, nor in the question."""

    start: int
    """Its first character in the answer."""
    end: int
    """One past its last character."""
    text: str
    kind: Literal["number", "quote"]


@dataclass(frozen=True)
class Flagged:
    """The sentence just completed says something that stands in no passage."""

    flag: Flag


Said = Token | Cited | Flagged


class Citer:
    """Follows an answer as it grows and judges each sentence when it is complete.

    Args:
        sources: What the answer stands on, best first.
        question: What it answers.
        embed: Embeds texts as passages, for sentences in another language; None does without.
    """

    def __init__(
        self, sources: Sequence[Hit], *, question: str = "", embed: Embed | None = None
    ) -> None:
        self._sources, self._asked = sources, stems(question)
        self._passages = [s.node.get_content() for s in sources]
        self._evidence = Evidence(self._passages, question=question, embed=embed)
        self._orders = Orders(self._passages, question)
        self._markers = Markers(self._evidence.holds_text, len(sources))
        self._named: list[int] = []
        self._judged_to = self._shown = 0
        self.text = ""
        """The answer so far, without markers and withheld sentences."""
        self.citations: list[Citation] = []
        self.flags: list[Flag] = []
        self.n_claims = self.n_supported = self.n_withheld = 0
        self._has_declined = False

    def feed(self, delta: str) -> Iterator[Said]:
        """Yield what may be shown, with what is found of complete sentences right behind them."""
        for piece in self._markers.feed(delta):
            yield from self._take(piece)

    def finish(self) -> Iterator[Said]:
        """Yield the rest."""
        for piece in self._markers.finish():
            yield from self._take(piece)
        end = len(self.text)
        if self._judged_to < end:
            yield from self._complete(end, end)
        self.text = self.text[: self._shown]  # a withheld end leaves a blank behind
        if not (self.n_claims or self._has_declined) and makes_claim(self.text, least=1):
            self.n_claims = 1  # a word alone is an answer too

    def falls_short(self, min_support: float) -> bool:
        """Whether too few of the claims are supported for the answer to stand."""
        return not self.n_supported or self.n_supported < min_support * self.n_claims

    def quote(self) -> Iterator[Said]:
        """Say what the answer lacks, and quote the best source."""
        found = self._quotable()
        if self.n_claims:
            told = UNSUPPORTED
            if self.n_supported:
                told = PARTLY.format(n=self.n_supported, of=self.n_claims)
        else:
            told = ""
        if found is not None:
            quoted = QUOTED if not told else ROW
            told = f"{told} {quoted}".strip()
        text = told
        if found is not None:
            is_whole = found.end == found.sentences_end
            text += f" “{visible(found.text)}{'' if is_whole else '…'}”"
        if not text and not self.text.strip():
            text = WITHHELD if self.n_withheld else NOTHING
        if text:
            yield from self._add(f"\n\n{text}" if self.text.strip() else text)
        if found is not None:
            yield self._cite(0, found.start, found.end)

    def _take(self, piece: str | Marker) -> Iterator[Said]:
        if isinstance(piece, Marker):
            self._named += [n - 1 for n in piece.numbers]
            return
        self.text += piece
        while ends := next(sentence_ends(self.text[self._judged_to :]), None):
            start = self._judged_to
            yield from self._complete(start + ends[0], start + ends[1])
        if not self._orders:
            yield from self._show(len(self.text))

    def _complete(self, end: int, following: int) -> Iterator[Said]:
        start, named = self._judged_to, self._named
        sentence, self._named = self.text[start:end], []
        if self._orders.repeated_by(sentence):
            self.n_withheld += 1
            self.text = self.text[:start] + self.text[following:]
            return
        self._judged_to = following
        # the mark belongs right behind the sentence, before the blank
        yield from self._show(end)
        if declines(sentence):
            self._has_declined = True
            return
        supports = self._evidence.supports(sentence, named)
        self.n_claims += bool(supports) or makes_claim(sentence)
        self.n_supported += bool(supports)
        for support in supports:
            yield self._cite(support.index, support.start, support.end)
        for flag in self._find_flags(start, end):
            self.flags.append(flag)
            yield Flagged(flag)

    def _find_flags(self, start: int, end: int) -> Iterator[Flag]:
        text, evidence = self.text[start:end], self._evidence
        taken = [m.span(1) for m in _LIST_NUMBER.finditer(text) if self._begins_line(start, m)]
        found: list[tuple[int, int, Literal["number", "quote"]]] = []
        for match in _QUOTE.finditer(text):
            quoted = next(filter(None, match.groups())).strip(" .,;:!?…。，")
            if any(map(str.isalpha, quoted)) and not evidence.holds_text(quoted):
                taken.append(match.span())
                found.append((*match.span(), "quote"))
        for a, b in codes(text):
            if not any(x <= a < y for x, y in taken):
                taken.append((a, b))
                if not evidence.holds_code(text[a:b]):
                    found.append((a, b, "number"))
        found += [
            (n.start, n.end, "number")
            for n in numbers(text)
            if not any(x <= n.start < y for x, y in taken) and not evidence.holds_number(n.values)
        ]
        for a, b, kind in sorted(found):
            yield Flag(start + a, start + b, text[a:b], kind)

    def _begins_line(self, start: int, match: re.Match[str]) -> bool:
        before = self.text[: start + match.start()].rstrip(" \t")
        return not before or before.endswith("\n")

    def _quotable(self) -> _Quotable | None:
        """Return what the best source says besides orders: of much, what the question asks for."""
        parts = self._orders.parts(0) if self._passages else []
        if not parts:
            return None
        passage = self._passages[0]
        start, end = max(parts, key=lambda part: part[1] - part[0])
        if end - start <= _QUOTED_CHARS:
            return _Quotable(passage, start, end, end)
        found = [q for part in parts for q in _quotables(passage, *part)]
        return max(found, key=lambda q: (q.n_held(self._asked), q.n_held_first(self._asked)))

    def _cite(self, index: int, start: int, end: int) -> Cited:
        row_key = self._sources[index].node.metadata["row_key"]
        self.citations.append(Citation(index + 1, row_key, start, end))
        return Cited(self.citations[-1])

    def _add(self, text: str) -> Iterator[Token]:
        self.text += text
        yield from self._show(len(self.text))

    def _show(self, end: int) -> Iterator[Token]:
        if end > self._shown:
            yield Token(self.text[self._shown : end])
            self._shown = end


@dataclass(frozen=True)
class _Quotable:
    """One sentence of a passage, or two neighbours."""

    passage: str
    start: int
    first_end: int
    """Where its first sentence ends."""
    sentences_end: int
    """Where its last sentence ends."""

    @property
    def end(self) -> int:
        """One past its last character that is quoted: too long ones are cut behind a word."""
        if self.sentences_end - self.start <= _MOST_CHARS:
            return self.sentences_end
        match = _TO_WORDS_END.match(self.passage, self.start)
        return match.end() if match else self.start + _MOST_CHARS

    @property
    def text(self) -> str:
        """What is quoted."""
        return self.passage[self.start : self.end]

    def n_held(self, asked: Collection[str]) -> int:
        """Return how many stems of the question it holds."""
        return len(stems(self.text).intersection(asked))

    def n_held_first(self, asked: Collection[str]) -> int:
        """Return how many of them its first sentence holds: what answers follows rather."""
        text = self.passage[self.start : min(self.first_end, self.end)]
        return len(stems(text).intersection(asked))


def _quotables(passage: str, start: int, end: int) -> Iterator[_Quotable]:
    """Yield every two neighbouring sentences of a part, and each alone where two are long."""
    ends = [(start + a, start + b) for a, b in sentences(passage[start:end])]
    for (first, first_end), (_, last_end) in zip(ends, [*ends[1:], ends[-1]], strict=True):
        if last_end - first > _QUOTED_CHARS:
            yield _Quotable(passage, first, first_end, first_end)
        yield _Quotable(passage, first, first_end, last_end)


def missing_codes(question: str, hits: Sequence[Hit]) -> tuple[str, ...]:
    """Return the codes of a question, such as `INV-4471`, that no row found holds.

    Args:
        question: As typed, and as searched for.
        hits: All that was found, not only what the answer stands on; their columns count too.
    """
    rows = [Passage(" | ".join(_written(hit))) for hit in hits]
    asked = {question[a:b].casefold(): question[a:b] for a, b in reversed(codes(question))}
    missing = [c for c in asked.values() if not any(row.holds_code(c) for row in rows)]
    return tuple(reversed(missing))


def _written(hit: Hit) -> Iterator[str]:
    yield hit.node.get_content()
    yield from map(str, hit.node.metadata.values())
    yield from hit.also


QUOTED = "The nearest row says:"
"""Put before a quotation when the model claimed nothing."""
UNSUPPORTED = "The table does not support this."
"""Said when no sentence of an answer is supported."""
PARTLY = "The table supports only {n} of these {of} statements."
"""Said when too few sentences of an answer are supported."""
WITHHELD = "The answer only repeated an order that a row gives, so it is left out."
NOTHING = "There is no answer to this in the rows found."
"""One of them is said when nothing else is: there is always a sentence."""
ROW = "What the nearest row says:"
"""Put before a quotation that follows one of these two."""
