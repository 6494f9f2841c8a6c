"""What a turn tells while it goes on and when it is over, and how that reads.

Values only; the turn itself is `chat`, whoever shows it is above.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rag.citation import Citation
from rag.citing import Cited, Flag, Flagged, Said, Token
from rag.llm.call import Waiting
from rag.retrieval import Hit

__all__ = [
    "Answering",
    "Cited",
    "Done",
    "Event",
    "Flag",
    "Flagged",
    "Searched",
    "Token",
    "TurnTimings",
    "Waiting",
    "metadata",
    "plain",
    "unfounded",
]


@dataclass(frozen=True)
class Searched:
    """The library was searched."""

    query: str
    """What was searched for: the question, made self-contained."""
    hits: list[Hit]
    """Rows found, best first."""
    seconds: float


@dataclass(frozen=True)
class Answering:
    """It is decided what the answer stands on."""

    sources: list[Hit]
    """The passages given to the model, best first; empty when refused."""
    refused: bool


@dataclass(frozen=True)
class TurnTimings:
    """Where the time of a turn went; None is what is not known, of a server or of a refusal."""

    queue_s: float = 0.0
    """Waited for others' questions."""
    rewrite_s: float = 0.0
    """The question made self-contained, searches that it took included."""
    retrieval_s: float = 0.0
    """All searches of the index."""
    first_token_s: float | None = None
    """From the question to the first word of the model."""
    n_evaluated: int | None = None
    """Prompt tokens that had to be read."""
    n_reused: int | None = None
    """Prompt tokens still known from an earlier turn."""
    prompt_s: float | None = None
    """Reading of the prompt."""
    n_tokens: int | None = None
    """Tokens generated."""
    tokens_per_s: float | None = None
    """Generated per second, after the first."""
    total_s: float = 0.0
    """The whole turn."""


@dataclass(frozen=True)
class Done:
    """The turn is over."""

    answer: str
    """The whole answer, without citation marks."""
    refused: bool
    sources: list[Hit]
    citations: list[Citation]
    table_version: int
    flags: list[Flag] = field(default_factory=list)
    """Numbers and quotations in the answer that stand in no passage."""
    n_claims: int = 0
    """Sentences of the answer that make a claim."""
    n_supported: int = 0
    """Of those, the ones bound to a source."""
    n_withheld: int = 0
    """Sentences left out because they repeat an order that a row gives."""
    is_supported: bool = True
    """False when the reply says that the table does not support its answer."""
    missing: tuple[str, ...] = ()
    """Codes in the question that stand in no row found."""
    timings: TurnTimings = field(default_factory=TurnTimings)


Event = Waiting | Searched | Answering | Said | Done


def plain(event: Event) -> str:
    """Return what an event adds to the answer as plain text.

    Its pieces, marks like ` [1]`, and at the end what stands in no row.
    """
    match event:
        case Token():
            return event.text
        case Cited():
            return f" [{event.citation.n}]"
        case Done():
            note = unfounded(event)
            return f"\n\n{note}" if note else ""
        case _:
            return ""


def unfounded(done: Done) -> str:
    """Return one sentence that names what stands in no row, asked or said; empty if all does."""
    # an answer that is not supported says so already, of all that it claims
    said = [flag.text for flag in done.flags] if done.is_supported else []
    texts = list(dict.fromkeys([*done.missing, *said]))
    return f"Not in the table: {', '.join(texts)}." if texts else ""


def metadata(done: Done) -> dict[str, Any]:
    """Return the response metadata of a finished turn."""
    return {
        "refused": done.refused,
        "table_version": done.table_version,
        "citations": [asdict(c) for c in done.citations],
        "flags": [asdict(f) for f in done.flags],
        "n_claims": done.n_claims,
        "n_supported": done.n_supported,
        "n_withheld": done.n_withheld,
        "is_supported": done.is_supported,
        "missing": list(done.missing),
        "timings": asdict(done.timings),
    }
