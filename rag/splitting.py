"""A text that is longer than the embedding model's window becomes spans that fit it.

Knows the tokenizer of a model folder and nothing of the model: no torch is imported. A span is
a pair of character positions, so that a node is always a literal piece of its document's text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

PASSAGE_PREFIX = "passage: "
"""What E5 was trained to see before a passage. Source: the model card of multilingual-e5-small."""

Span = tuple[int, int]
"""First character and the one after the last."""

_WINDOW_KEYS = (
    ("sentence_bert_config.json", "max_seq_length"),
    ("config.json", "max_position_embeddings"),
    ("tokenizer_config.json", "model_max_length"),
)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+|\n+")
_SPACE = re.compile(r"\s+")
_SLACK = 8
"""Tokens that a piece may have more when it is cut out of its text: a broken word at each end."""
_LAST_PART = 4
"""A span may end early, after a sentence or a word, within the last quarter of its tokens."""


class Splitter:
    """Cuts texts into spans for one embedding model."""

    def __init__(self, folder: Path | str, chunk_tokens: int = 400, overlap: int = 50) -> None:
        """Load the tokenizer of a model folder.

        Args:
            folder: The sentence-transformers folder.
            chunk_tokens: A text beyond the window is cut into spans of at most so many tokens,
                counted where they stand in the text.
            overlap: Tokens that neighbouring spans share at most; half of `chunk_tokens` is the
                limit, so that each span brings something new.
        """
        self.window = window(folder)
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        (n_prefix,) = self._n_tokens([""])
        self._chunk_tokens = min(chunk_tokens, self.window - n_prefix - _SLACK)
        self._overlap = min(overlap, self._chunk_tokens // 2)

    def spans(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return the spans of each text, in order.

        A text that fits the window with its prefix and special tokens has one span, the whole of
        it. Otherwise the spans cover the text without a gap, each fits the window, and each ends
        after a sentence or a word where one ends near enough.
        """
        texts = [encodable(text) for text in texts]
        return [
            [(0, len(text))] if n <= self.window else self._fitting(text, self._cut(text))
            for text, n in zip(texts, self._n_tokens(texts), strict=True)
        ]

    def _n_tokens(self, texts: Sequence[str]) -> list[int]:
        passages = [PASSAGE_PREFIX + text for text in texts]
        return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(passages)]

    def _cut(self, text: str) -> list[Span]:
        ends, starts = self._offsets(text)
        spans: list[Span] = []
        start = covered = 0
        while True:
            first = int(np.searchsorted(ends, start, side="right"))
            if first + self._chunk_tokens >= len(ends):
                return [*spans, (start, len(text))]
            last = first + self._chunk_tokens - 1
            limit = int(ends[last])
            if limit <= covered:  # characters of many tokens: what is repeated fills the span
                start = covered
                continue
            earliest = int(ends[last - self._chunk_tokens // _LAST_PART])
            covered = _good_end(text, max(covered, earliest), limit)
            beyond = int(np.searchsorted(ends, covered, side="right"))
            if beyond == len(ends):
                return [*spans, (start, len(text))]
            spans.append((start, covered))
            back = int(starts[max(beyond - self._overlap, 0)]) if self._overlap else covered
            start = max(_word_start(text, min(back, covered), covered), start + 1)

    def _offsets(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where each token of a text ends and starts, `(n,) int64`, never descending."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        offsets = offsets[offsets[:, 1] > offsets[:, 0]]
        return np.maximum.accumulate(offsets[:, 1]), np.maximum.accumulate(offsets[:, 0])

    def _fitting(self, text: str, spans: list[Span]) -> list[Span]:
        """Halve the spans that do not fit: a piece may have more tokens than within its text."""
        counts = self._n_tokens([text[start:end] for start, end in spans])
        fitting: list[Span] = []
        for (start, end), n in zip(spans, counts, strict=True):
            if n <= self.window or end - start == 1:
                fitting.append((start, end))
            else:
                middle = (start + end) // 2
                fitting += self._fitting(text, [(start, middle), (middle, end)])
        return fitting


def window(folder: Path | str) -> int:
    """Return how many tokens a model reads at most, prefix and special tokens included."""
    found = []
    for file, key in _WINDOW_KEYS:
        path = Path(folder) / file
        if path.is_file():
            value = json.loads(path.read_text("utf-8")).get(key)
            found += [int(value)] if value else []
    return min(found, default=512)


def encodable(text: str) -> str:
    """Return the text with `?` for each lone surrogate, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _good_end(text: str, earliest: int, limit: int) -> int:
    """Return the best place to end a span: after a sentence, else after a word, else `limit`."""
    for pattern in (_SENTENCE_END, _SPACE):
        ends = [match.end() for match in pattern.finditer(text, earliest, limit)]
        if ends:
            return ends[-1]
    return limit


def _word_start(text: str, at: int, end: int) -> int:
    """Return where the first word from `at` on begins; `at` itself when none does before `end`."""
    space = _SPACE.search(text, max(at - 1, 0), end)
    return space.end() if space and space.end() < end else at
