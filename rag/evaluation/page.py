"""An evaluation as one HTML page: the figures, and each failure side by side.

Knows results; runs nothing and loads nothing: the page holds all it needs, no script, and whatever
a row, a question or an answer says is text (Jinja2 escapes it).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from rag.evaluation.asking import Cite, Reply
from rag.evaluation.metrics import Estimate
from rag.evaluation.results import FAILURES, RETRIEVAL, Evaluation
from rag.words import sentence_ends

_TEMPLATE = Path(__file__).with_name("page.html")
_N_FOUND = 3
"""Hits shown for a failure."""
_TEXT_CHARS = 1_500
"""Of a row; a longer one is cut."""
_AROUND_CHARS = 300
"""Of a long passage, around the cited span."""


def render(evaluation: Evaluation) -> str:
    """Return the page."""
    chat = [n for n in evaluation.metrics if n.partition(".")[2] not in RETRIEVAL]
    return _template().render(
        e=evaluation,
        retrieval=RETRIEVAL,
        chat=chat,
        what=FAILURES,
        failed=[_failure(evaluation, *f) for f in evaluation.failures()],
    )


def shown(estimate: Estimate | None) -> str:
    """Return a figure with its interval, on one line; a dash where there is none."""
    if estimate is None:
        return "–"
    return f"{_brief(estimate.value)} ({_brief(estimate.low)}–{_brief(estimate.high)})"


def _brief(value: float) -> str:
    return f"{value:.3f}" if value < _SHARES_END else f"{value:.1f}"


_SHARES_END = 10
"""Shares and seconds take three digits behind the point, tokens a second one."""


def _failure(evaluation: Evaluation, outcome: Any, failed: list[str]) -> Mapping[str, Any]:
    reply = outcome.reply
    return {
        "outcome": outcome,
        "names": failed,
        "expected": [
            (key, _cut(evaluation.rows.get(key, ""))) for key in outcome.question.expected
        ],
        "found": [(f, _cut(f.text)) for f in outcome.found[evaluation.mode][:_N_FOUND]],
        "answer": [] if reply is None else _marked(reply),
        "citations": [] if reply is None else [(c, _around(c)) for c in reply.citations],
    }


def _marked(reply: Reply) -> list[tuple[str, str, tuple[int, ...]]]:
    """Cut the answer into pieces: uncited text, the cited sentence behind it, its citations."""
    pieces = []
    for text, cited in reply.parts:
        start = max((end for _, end in sentence_ends(text)), default=0) if cited else len(text)
        pieces.append((text[:start], text[start:], cited))
    return pieces


def _around(cite: Cite) -> tuple[str, str, str]:
    """Return what stands before the cited span, the span, and what stands behind it."""
    before, after = cite.text[: cite.start], cite.text[cite.end :]
    if len(before) > _AROUND_CHARS:
        before = f"…{before[-_AROUND_CHARS:]}"
    if len(after) > _AROUND_CHARS:
        after = f"{after[:_AROUND_CHARS]}…"
    return before, cite.text[cite.start : cite.end], after


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}…"


@functools.cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["shown"] = shown
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
