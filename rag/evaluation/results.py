"""What the outcomes amount to: the figures, the failures, and both as JSON.

Knows outcomes and metrics; asks nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.evaluation import metrics
from rag.evaluation.asking import Outcome, Reply
from rag.evaluation.metrics import CUTOFFS, Estimate
from rag.settings import Mode

MODES: tuple[Mode, ...] = ("vector", "text", "hybrid")
_DEPTH = CUTOFFS[-1]
_RETRIEVAL: dict[str, Callable[[metrics.Ranking, Sequence[str]], float]] = {
    **{f"recall@{k}": functools.partial(metrics.recall, k=k) for k in CUTOFFS},
    f"mrr@{_DEPTH}": functools.partial(metrics.reciprocal_rank, k=_DEPTH),
    f"ndcg@{_DEPTH}": functools.partial(metrics.ndcg, k=_DEPTH),
}
RETRIEVAL = tuple(_RETRIEVAL)
"""Names of the figures that each mode has."""
AUC = "refusal.auc"
"""What the search alone tells of the refusals."""
_ANSWERS = (
    "answer.answered",
    "answer.support",
    "answer.unsupported",
    "answer.citation_precision",
    "answer.contains_reference",
    "refusal.precision",
    "refusal.recall",
    AUC,
    "time.first_token_s",
    "time.first_token_p95_s",
    "time.tokens_per_s",
)
LOWER_IS_BETTER = ("answer.unsupported", "time.first_token_s", "time.first_token_p95_s")
FAILURES = {
    "not asked": "the question could not be asked",
    "not found": f"no expected row among the first {CUTOFFS[1]}",
    "refused": "refused, though a row answers it",
    "not refused": "answered, though it should be refused",
    "unsupported": "the reply says that the table does not support it",
    "wrong citation": "a cited row is not an expected one",
    "reference missing": "the answer does not contain the reference",
}
"""What a failure is called, and what it means."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    As JSON (`to_dict`):

        table_uri, table_version   what was asked
        mode                       whose figures `recall@5` without a mode means
        n_questions                to ask; fewer are in the rest where it was stopped
        n_answerable, n_refusable, seconds
        metrics                    by name: {"value", "low", "high", "n"}, the 95 % interval and
                                   what it was measured on; null where there is nothing to measure
        failures                   how many questions failed in which way, by name
        questions                  for each: question, previous, expected, reference, query,
                                   relevance, failures, problem (why it could not be asked), found
                                   (by mode: row keys, best first), answer, refused, is_supported,
                                   citations ({"n", "row_key", "is_expected", "start", "end"}),
                                   first_token_s; the last five are null where the chat was not
                                   asked

    The metrics, shares from 0 to 1 unless they say otherwise:

        MODE.recall@1, @5, @10     of the expected rows, found among the first k (`vector`, `text`,
                                   `hybrid`); one expected row: how often it was found
        MODE.mrr@10, MODE.ndcg@10
        answer.answered            of the questions with expected rows: not refused
        answer.support             of the claims in answers: bound to a source
        answer.unsupported         of the answers: marked as not supported by the table
        answer.citation_precision  of the citations, where rows are expected: of an expected row
        answer.contains_reference  of the questions with a reference: the answer contains it
        refusal.precision          of the refused questions: should be refused
        refusal.recall             of those that should be refused: refused
        refusal.auc                a question with expected rows has a more relevant first hit than
                                   one that should be refused; 0.5 is chance
        time.first_token_s         seconds from the question to the first token, median
        time.first_token_p95_s     its 95th percentile
        time.tokens_per_s          of decoding, after the first token
    """

    table_uri: str
    mode: str
    modes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    metrics: Mapping[str, Estimate | None]
    seconds: float
    n_questions: int
    """To ask; more than the outcomes where it was stopped."""
    table_version: int
    rows: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Text of the expected rows, by row key."""

    @property
    def n_answerable(self) -> int:
        """Questions with expected rows."""
        return sum(bool(o.question.expected) for o in self.outcomes)

    def failures(self) -> Iterator[tuple[Outcome, list[str]]]:
        """Yield each outcome that failed in some way, with the names of the ways."""
        for outcome in self.outcomes:
            if failed := failures_of(outcome, self.mode):
                yield outcome, failed

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds; the class says what is in it."""
        failed = list(itertools.chain.from_iterable(names for _, names in self.failures()))
        return {
            "table_uri": self.table_uri,
            "table_version": self.table_version,
            "mode": self.mode,
            "n_questions": self.n_questions,
            "n_answerable": self.n_answerable,
            "n_refusable": len(self.outcomes) - self.n_answerable,
            "seconds": round(self.seconds, 3),
            "metrics": {
                name: None if e is None else {k: _rounded(v) for k, v in vars(e).items()}
                for name, e in self.metrics.items()
            },
            "failures": {name: failed.count(name) for name in FAILURES if name in failed},
            "questions": [_as_dict(o, self.mode) for o in self.outcomes],
        }


def names(modes: Sequence[str], *, has_answers: bool) -> list[str]:
    """Return the names of the figures that an evaluation reports."""
    found = [f"{mode}.{name}" for mode in modes for name in RETRIEVAL]
    return [*found, *(_ANSWERS if has_answers else (AUC,))]


def measure(
    outcomes: Sequence[Outcome], modes: Sequence[str], *, has_answers: bool
) -> dict[str, Estimate | None]:
    """Return each figure by name; None where there is nothing to measure."""
    found: dict[str, Estimate | None] = {}
    answerable = [o for o in outcomes if o.question.expected]
    for mode in modes:
        rankings = [[f.keys for f in o.found[mode]] for o in answerable]
        expected = [o.question.expected for o in answerable]
        for name, figure in _RETRIEVAL.items():
            values = [figure(r, e) for r, e in zip(rankings, expected, strict=True)]
            found[f"{mode}.{name}"] = metrics.ratio(values)
    if has_answers:
        asked = [(o, o.reply) for o in outcomes if o.reply is not None]
        found |= _of_answers(asked) | _of_refusals(asked) | _of_times([r for _, r in asked])
    found[AUC] = metrics.auc(
        [o.relevance for o in answerable],
        [o.relevance for o in outcomes if not o.question.expected],
    )
    return {name: found[name] for name in names(modes, has_answers=has_answers)}


def failures_of(outcome: Outcome, mode: str) -> list[str]:
    """Return the ways in which a question failed, by name."""
    expected, reply = outcome.question.expected, outcome.reply
    found = {key for hit in outcome.found[mode][: CUTOFFS[1]] for key in hit.keys}
    failed = ["not asked"] if outcome.problem else []
    if expected and found.isdisjoint(expected):
        failed.append("not found")
    if reply is None:
        return failed
    if reply.refused:
        return [*failed, "refused"] if expected else failed
    if not expected:
        failed.append("not refused")
    if not reply.is_supported:
        failed.append("unsupported")
    if expected and not all(c.is_expected for c in reply.citations):
        failed.append("wrong citation")
    if _contains_reference(outcome, reply) is False:
        failed.append("reference missing")
    return failed


_Asked = Sequence[tuple[Outcome, Reply]]


def _of_answers(asked: _Asked) -> dict[str, Estimate | None]:
    answered = [(o, r) for o, r in asked if not r.refused]
    expecting = [(o, r) for o, r in answered if o.question.expected]
    contained = [_contains_reference(o, r) for o, r in asked]
    return {
        "answer.answered": metrics.ratio([not r.refused for o, r in asked if o.question.expected]),
        "answer.support": metrics.ratio(
            [r.n_supported for _, r in answered], [r.n_claims for _, r in answered]
        ),
        "answer.unsupported": metrics.ratio([not r.is_supported for _, r in answered]),
        "answer.citation_precision": metrics.ratio(
            [sum(c.is_expected for c in r.citations) for _, r in expecting],
            [len(r.citations) for _, r in expecting],
        ),
        "answer.contains_reference": metrics.ratio([c for c in contained if c is not None]),
    }


def _of_refusals(asked: _Asked) -> dict[str, Estimate | None]:
    wanted = [not o.question.expected for o, _ in asked]
    refused = [r.refused for _, r in asked]
    if all(wanted) or not any(wanted):
        return {"refusal.precision": None, "refusal.recall": None}
    right = [w and r for w, r in zip(wanted, refused, strict=True)]
    return {
        "refusal.precision": metrics.ratio(right, refused),
        "refusal.recall": metrics.ratio(right, wanted),
    }


def _of_times(replies: Sequence[Reply]) -> dict[str, Estimate | None]:
    first = [r.first_token_s for r in replies if not r.refused]
    timed = [r for r in replies if r.n_decoded and r.decoding_s > 0]
    speed = metrics.ratio([r.n_decoded for r in timed], [r.decoding_s for r in timed])
    return {
        "time.first_token_s": metrics.quantile(first, 0.5),
        "time.first_token_p95_s": metrics.quantile(first, 0.95),
        # a rate: its whole is seconds, and it was measured on answers
        "time.tokens_per_s": speed and dataclasses.replace(speed, n=len(timed)),
    }


def _contains_reference(outcome: Outcome, reply: Reply) -> bool | None:
    reference = outcome.question.answer
    return None if reference is None else metrics.contains(reply.answer, reference)


def _as_dict(outcome: Outcome, mode: str) -> dict[str, Any]:
    question, reply = outcome.question, outcome.reply
    return {
        "question": question.question,
        "previous": list(question.previous),
        "expected": list(question.expected) or None,
        "reference": question.answer,
        "query": outcome.query,
        "relevance": _rounded(outcome.relevance),
        "failures": failures_of(outcome, mode),
        "problem": outcome.problem or None,
        "found": {m: [f.row_key for f in found] for m, found in outcome.found.items()},
        "answer": reply and reply.answer,
        "refused": reply and reply.refused,
        "is_supported": reply and reply.is_supported,
        "citations": reply
        and [
            {
                "n": c.n,
                "row_key": c.row_key,
                "is_expected": c.is_expected,
                "start": c.start,
                "end": c.end,
            }
            for c in reply.citations
        ],
        "first_token_s": reply and _rounded(reply.first_token_s),
    }


def _rounded(value: float) -> float:
    return round(value, 4)
