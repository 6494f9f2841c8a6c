"""Hits and rows as the plain values that the cards, the panel, the row's page and the step show.

Knows hits, rows and JSON; does not know Chainlit. The cards (`public/elements/*.jsx`) print these
values as text; what goes into the Markdown of the step passes `guard` first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rag.settings import table_name
from rag.web.guard import plain_line

if TYPE_CHECKING:  # all load LlamaIndex, which takes seconds; the port opens before that
    from rag.citation import Citation
    from rag.provenance import RowView
    from rag.retrieval import Hit

_OURS = ("table_uri", "table_version", "row_key", "row_version")
_RENAMED = "column."
"""Prefix of a column that is named like one of ours."""


def cards(sources: Sequence[Hit], citations: Iterable[Citation]) -> list[dict[str, Any]]:
    """Return one card for each source, in order, numbered from 1.

    The passage is cut into `segments` here, because JavaScript counts characters otherwise.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    for citation in citations:
        spans.setdefault(citation.n, []).append((citation.start, citation.end))
    return [_card(n, hit, spans.get(n, [])) for n, hit in enumerate(sources, start=1)]


def _card(n: int, hit: Hit, spans: list[tuple[int, int]]) -> dict[str, Any]:
    metadata = hit.node.metadata
    return {
        "n": n,
        "title": hit.title,
        "relevance": round(hit.relevance, 2),
        "is_cited": bool(spans),
        "segments": segments(hit.text, spans),
        "columns": [
            [_column(name), shown(value)] for name, value in metadata.items() if name not in _OURS
        ],
        "table": table_name(str(metadata["table_uri"])),
        "version": metadata["table_version"],
        "row": str(metadata["row_key"]),
    }


def row_card(view: RowView) -> dict[str, Any]:
    """Return the card of one row that nobody searched for, so that it has no relevance.

    Args:
        view: The row, as it was in a version.
    """
    return {
        "n": 1,
        "title": f"Row {view.row_key}",
        "relevance": None,
        "is_cited": False,
        "segments": segments(view.text, ()),
        "columns": _columns(view),
        "table": table_name(view.table_uri),
        "version": view.table_version,
        "row": view.row_key,
    }


def row_values(view: RowView) -> dict[str, Any]:
    """Return a row and what became of it, as JSON holds it; `sentence` says the fate in words."""
    return {
        "key": view.row_key,
        "version": view.table_version,
        "latest": view.latest_version,
        "fate": view.fate,
        "sentence": fate_sentence(view),
        "changes": [
            {"name": change.name, "before": shown(change.before), "after": shown(change.after)}
            for change in view.changes
        ],
        "columns": _columns(view),
        "text": view.text,
        "table": table_name(view.table_uri),
    }


def fate_sentence(view: RowView) -> str:
    """Return in one sentence what became of a row since the version that it is shown in."""
    was, now = f"v{view.table_version}", f"v{view.latest_version}"
    match view.fate:
        case "unchanged":
            return f"Unchanged since {was}." if was == now else f"Unchanged from {was} to {now}."
        case "changed":
            return f"Changed since {was}: the table is at {now}."
        case "deleted":
            return f"Deleted since {was}: {now} of the table no longer holds it."
        case "unknown":
            return f"As of {was}. The table cannot be read now to tell whether it has changed."


def _columns(view: RowView) -> list[list[str | None]]:
    return [[name, shown(value)] for name, value in view.columns.items()]


def _column(name: str) -> str:
    bare = name.removeprefix(_RENAMED)
    return bare if bare in _OURS else name


def segments(text: str, spans: Iterable[tuple[int, int]]) -> list[dict[str, Any]]:
    """Cut `text` where cited spans begin and end; joined again, the segments are `text`.

    Args:
        text: The passage.
        spans: Start and end of what was cited; they may overlap or reach beyond the text.
    """
    covered = [
        range(max(0, start), min(end, len(text))) for start, end in spans if start < len(text)
    ]
    cuts = {0, len(text), *(r.start for r in covered), *(r.stop for r in covered)}
    found: list[dict[str, Any]] = []
    for start, end in pairwise(sorted(cuts)):
        is_cited = any(start in r for r in covered)
        if found and found[-1]["is_cited"] == is_cited:
            found[-1]["text"] += text[start:end]
        else:
            found.append({"text": text[start:end], "is_cited": is_cited})
    return found


def shown(value: object) -> str | None:
    """Return a column's value as a reader wants it; None when there is no value."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def search_text(query: str, hits: Sequence[Hit], seconds: float) -> str:
    """Return the Markdown of the search step: what was asked for, what was found, how fast."""
    found = f"{len(hits)} rows" if len(hits) != 1 else "1 row"
    lines = [f"“{plain_line(query)}”: {found} in {seconds * 1000:,.0f} ms"]
    if hits:
        lines += ["", "| Relevance | Row |", "| --: | :-- |"]
        lines += [f"| {hit.relevance:.2f} | {plain_line(hit.title)} |" for hit in hits]
    return "\n".join(lines)
