"""Questions drafted from rows of the index, for a human to edit.

Knows the index and a language model; decides nothing about what a good question is, beyond
throwing away what plainly is none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM

from rag.index import Index, Opened
from rag.words import content_words, stems

_SEED = 0
_PORTION = 256
"""Rows read from the index at once."""
_MAX_TOKENS = 60
_MAX_CHARS = 200
_COPIED_WORDS = 8
"""A draft that repeats so many words of the passage in a row copies it."""
_MIN_SHARED = 0.5
"""Share of a draft's content words that stand in the passage, where a base model wrote it: of 4
drafts by the default model, 2026-11-22, one followed an example instead of the passage."""
_NAMED_WORDS = 5
"""Content words that the plain rule takes over."""

_SHOTS = (
    (
        "Town library: lends books and films, open on Tuesday and Friday",
        "Where can I borrow a film?",
    ),
    (
        "For restoring an old oil painting you should use a soft badger brush and a cotton swab",
        "How can I get the dust off my grandmother's portrait?",
    ),
    (
        "Invoice 2211 of Harbour Freight, 14 March, 1,250 crowns, paid late",
        "Which invoice did Harbour Freight not pay in time?",
    ),
)
"""In other words than the passage, as a customer asks; on nothing that the demo library holds."""
_INSTRUCTION = (
    "Write one short question that a customer would ask and that this passage answers. Use other "
    "words than the passage where you can. Reply with the question only.\n\nPassage: "
)


@dataclass(frozen=True)
class Row:
    """A row of the index: its first sampled passage."""

    row_key: str
    text: str


@dataclass(frozen=True)
class Draft:
    """A question that a human should look at."""

    question: str
    row: Row
    is_by_rule: bool
    """Whether the model's own draft was thrown away."""

    def to_dict(self) -> dict[str, str]:
        """Return the record as `rag eval` reads it."""
        return {
            "question": self.question,
            "expected": self.row.row_key,
            "answer": self.row.text,
            "drafted_by": "rule" if self.is_by_rule else "model",
        }


def sample(index: Index, opened: Opened, n: int) -> list[Row]:
    """Return rows drawn at random, with a fixed seed, without reading the whole index.

    Args:
        index: Where the version is.
        opened: The version to draw from.
        n: Rows wanted; fewer where the index holds fewer.
    """
    with index.reading():
        dataset = opened.table.to_lance()
        places = np.random.default_rng(_SEED).permutation(dataset.count_rows())
        found: dict[str, Row] = {}
        for start in range(0, len(places), _PORTION):
            taken = dataset.take(places[start : start + _PORTION].tolist(), ["row_key", "text"])
            for node in taken.to_pylist():
                # the state row has no text
                if node["text"] and node["row_key"] is not None:
                    found.setdefault(node["row_key"], Row(node["row_key"], node["text"]))
                if len(found) == n:
                    return list(found.values())
    return list(found.values())


def draft_each(rows: Collection[Row], llm: LLM) -> Iterator[Draft]:
    """Yield a question for each row: the model's where it is one, else a plain rule's.

    Args:
        rows: What the questions are about.
        llm: A LlamaIndex LLM with `n_tokens`, that takes `stop_strings` and `max_tokens`.
    """
    seen = {question for _, question in _SHOTS}
    min_shared = 0.0 if llm.metadata.is_chat_model else _MIN_SHARED
    for row in rows:
        question = cleaned(_ask(row.text, llm), row.text, min_shared=min_shared)
        if question is None or question in seen:
            yield Draft(by_rule(row.text), row, is_by_rule=True)
        else:
            seen.add(question)
            yield Draft(question, row, is_by_rule=False)


def cleaned(said: str, passage: str, *, min_shared: float = 0.0) -> str | None:
    """Return a model's draft as a question; None where it is none.

    It is none when it is empty or too long, copies the passage, or is about something else.

    Args:
        said: The model's reply.
        passage: What it should ask about.
        min_shared: Share of its content words that must stand in the passage; at least one must.
    """
    line = next((part.strip() for part in said.splitlines() if part.strip()), "")
    line = re.sub(r"^(?:question|q)\s*[:.]\s*", "", line, flags=re.IGNORECASE).strip("\"'“”«»* ")
    words, asked = _words(line), stems(line)
    n_shared = len(asked & stems(passage))
    if len(line) > _MAX_CHARS or not n_shared or n_shared < min_shared * len(asked):
        return None
    most = min(_COPIED_WORDS, len(words))
    runs = (" ".join(words[i : i + most]) for i in range(len(words) - most + 1))
    text = f" {' '.join(_words(passage))} "
    return None if any(f" {run} " in text for run in runs) else line


def by_rule(passage: str) -> str:
    """Return a plain question on a passage: what its first words name."""
    words = content_words(passage)[:_NAMED_WORDS]
    about = passage[words[0].start : words[-1].end] if words else passage[:_MAX_CHARS]
    return f"What does the table say about {' '.join(about[:_MAX_CHARS].split())}?"


def _ask(passage: str, llm: LLM) -> str:
    text = " ".join(passage.split())
    budget = llm.metadata.context_window - 2 * _MAX_TOKENS
    is_chat = llm.metadata.is_chat_model
    make = _instruction if is_chat else _continued
    while text and llm.n_tokens(make(text)) > budget:
        text = text[: len(text) // 2]
    prompt = make(text)
    if is_chat:
        message = ChatMessage(role=MessageRole.USER, content=prompt)
        return str(llm.chat([message], max_tokens=_MAX_TOKENS).message.content or "")
    options = {"max_tokens": _MAX_TOKENS, "stop_strings": ("\n",)}
    return str(llm.complete(prompt, formatted=True, **options).text)


def _instruction(passage: str) -> str:
    return _INSTRUCTION + passage


def _continued(passage: str) -> str:
    shots = "".join(f"Passage: {p}\nQuestion a customer would ask: {q}\n\n" for p, q in _SHOTS)
    return f"{shots}Passage: {passage}\nQuestion a customer would ask:"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
