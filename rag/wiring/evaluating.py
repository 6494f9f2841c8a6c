"""Questions with known answers to the index and the chat: `rag eval`.

Reads settings, checks that what the questions expect is there, and hands the parts to the room
that measures.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rag.errors import QuestionError, SettingsError, TableEmpty
from rag.progress import Progress, silent
from rag.settings import Settings
from rag.wiring.answering import chat_engine, retriever
from rag.wiring.parts import load_embedding, load_llm, open_store, table_options

if TYPE_CHECKING:
    from llama_index.core.base.llms.types import ChatMessage

    from rag.evaluation import Chat, Evaluation, Outcome, Question, Search
    from rag.evaluation.drafting import Draft
    from rag.events import Event
    from rag.settings import Mode
    from rag.store import NodeStore

_AT_ONCE = 1_000
"""Row keys asked of the index in one query."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Questions that can be asked: read, checked, with everything loaded."""

    questions: tuple[Question, ...]
    search: Search
    chat: Chat | None
    rows: Mapping[str, str]
    """Text of the expected rows, by row key."""
    table_uri: str
    table_version: int

    def ask_each(self, progress: Progress = silent) -> Iterator[Outcome]:
        """Yield what becomes of each question, as it is asked."""
        from rag.evaluation import ask_each

        progress("asking", 0, len(self.questions))
        for n, outcome in enumerate(ask_each(self.questions, self.search, self.chat), 1):
            yield outcome
            progress("asking", n, len(self.questions))

    def evaluation(self, outcomes: Sequence[Outcome], *, seconds: float) -> Evaluation:
        """Return what the outcomes amount to; they may be fewer than the questions."""
        from rag.evaluation import Evaluation, measure

        modes = tuple(self.search.retrievers)
        return Evaluation(
            table_uri=self.table_uri,
            table_version=self.table_version,
            mode=self.search.mode,
            modes=modes,
            outcomes=tuple(outcomes),
            metrics=measure(outcomes, modes, has_answers=self.chat is not None),
            seconds=seconds,
            n_questions=len(self.questions),
            rows=self.rows,
        )


def evaluate(
    settings: Settings,
    questions: str | Iterable[Question | Mapping[str, Any]],
    *,
    modes: Sequence[Mode] | None = None,
    with_answers: bool = True,
    progress: Progress = silent,
) -> Evaluation:
    """Ask questions whose answers are known, and measure what comes back.

    Args:
        settings: Which index and models.
        questions: A file or Delta table of them, or records with `question`, `expected` (row key,
            list of row keys, or None for one that should be refused) and where wanted `answer` and
            `previous`.
        modes: Ways of searching to compare; None is all of them.
        with_answers: Whether to ask the chat; else only the search is measured.
        progress: Told how far it is.

    Returns:
        The figures and each outcome; `to_dict()` for JSON.

    Raises:
        QuestionError: the questions cannot be read, or expect a row that the index does not hold.
        IndexNotBuilt: no sync has completed.
        IndexMismatch: the index was built from something else than the settings name.
    """
    from rag import evaluation

    if isinstance(questions, str):
        known = read_questions(settings, questions)
    else:
        known = evaluation.parse((f"question {n}", q) for n, q in enumerate(questions, 1))
    plan = plan_evaluation(
        settings, known, modes=modes, with_answers=with_answers, progress=progress
    )
    started = time.monotonic()
    outcomes = list(plan.ask_each(progress))
    return plan.evaluation(outcomes, seconds=time.monotonic() - started)


def read_questions(settings: Settings, uri: str) -> list[Question]:
    """Read questions from a file or a Delta table.

    Raises:
        QuestionError: a file cannot be read or a record is malformed.
        TableError: the Delta table cannot be read.
    """
    from rag import evaluation

    return evaluation.read(uri, storage_options=table_options(settings))


def plan_evaluation(
    settings: Settings,
    questions: Sequence[Question],
    *,
    modes: Sequence[Mode] | None = None,
    with_answers: bool = True,
    progress: Progress = silent,
) -> EvaluationPlan:
    """Check that the questions can be asked, and load and warm what answers them.

    Args:
        settings: Which index and models.
        questions: What to ask.
        modes: Ways of searching to compare; None is all of them.
        with_answers: Whether to ask the chat.
        progress: Told what is loaded.

    Raises:
        QuestionError: a question expects a row that the index does not hold.
    """
    from rag.evaluation import DEPTH, Search

    chosen, main = _modes(settings, modes)
    progress("loading the embedding model", 0, 0)
    search = Search(
        retrievers={m: retriever(settings, top_k=DEPTH, mode=m) for m in chosen},
        embed=load_embedding(settings, progress).get_query_embedding,
        mode=main,
        min_relevance=settings.retrieval.min_relevance,
    )
    store = _store(settings)
    state = store.state()
    assert state is not None
    rows = _expected_rows(store, questions)
    search.retrievers[search.mode].retrieve("warm-up")
    return EvaluationPlan(
        questions=tuple(questions),
        search=search,
        chat=_chat(settings, progress) if with_answers else None,
        rows=rows,
        table_uri=settings.table.uri,
        table_version=state.table_version,
    )


def draft_questions(settings: Settings, n: int, *, progress: Progress = silent) -> Iterator[Draft]:
    """Yield questions drafted from rows of the index, drawn with a fixed seed.

    Args:
        settings: Which index and language model.
        n: Questions wanted; fewer where the index holds fewer rows.
        progress: Told how far it is.

    Raises:
        TableEmpty: the index holds no row.
    """
    from rag.evaluation.drafting import draft_each, sample

    retriever(settings)  # refuses an index of something else
    store = _store(settings)
    index, version = store.index, settings.table.version
    opened = index.answering() if version is None else index.mirrored(version)
    assert opened is not None
    rows = sample(index, opened, n)
    if not rows:
        raise TableEmpty(settings.table.uri, opened.state.table_version, opened.state.n_blank)
    progress("loading the language model", 0, 0)
    llm = load_llm(settings, progress)
    progress("drafting", 0, len(rows))
    for done, draft in enumerate(draft_each(rows, llm), 1):
        yield draft
        progress("drafting", done, len(rows))


def figures(
    settings: Settings, modes: Sequence[Mode] | None = None, *, with_answers: bool = True
) -> tuple[list[str], Mode]:
    """Return the names of the figures of an evaluation, and the mode that `recall@5` means.

    Raises:
        SettingsError: there is no such mode.
    """
    from rag.evaluation.results import names

    chosen, main = _modes(settings, modes)
    return names(chosen, has_answers=with_answers), main


def _modes(settings: Settings, modes: Sequence[Mode] | None) -> tuple[tuple[Mode, ...], Mode]:
    """Return the modes to compare, and the one of them that answers."""
    from rag.evaluation import MODES

    chosen = MODES if modes is None else tuple(dict.fromkeys(modes))
    wrong = [m for m in chosen if m not in MODES]
    if wrong or not chosen:
        found = repr(wrong[0]) if wrong else "nothing"
        raise SettingsError(f"The mode is {found}; there are {', '.join(MODES)}.")
    own = settings.retrieval.mode
    return chosen, own if own in chosen else chosen[0]


def _store(settings: Settings) -> NodeStore:
    store = open_store(settings)
    store.expect(version=settings.table.version)
    return store


def _expected_rows(store: NodeStore, questions: Sequence[Question]) -> dict[str, str]:
    """Return the text of the expected rows; a long row's first node stands for it."""
    from rag.index import node_id

    wanted = list(dict.fromkeys(key for q in questions for key in q.expected))
    rows: dict[str, str] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        ids = [node_id(key, 0) for key in wanted[start : start + _AT_ONCE]]
        for node in store.get_nodes(node_ids=ids):
            rows[node.metadata["row_key"]] = node.get_content()
    missing = [key for key in wanted if key not in rows]
    if missing:
        first = next(q for q in questions if missing[0] in q.expected)
        others = f" (nor {len(missing) - 1:,} more expected ones)" if len(missing) > 1 else ""
        raise QuestionError(
            f"{first.place or 'A question'} expects row {missing[0]!r}, which the index does not "
            f"hold{others}. Give the keys as citations show them (`rag ask --json`), "
            "or run `rag sync` if the row is new."
        )
    return rows


def _chat(settings: Settings, progress: Progress) -> Chat:
    from rag.evaluation import Chat

    progress("loading the language model", 0, 0)
    llm = load_llm(settings, progress)
    engine = chat_engine(settings)
    llm.complete("Hello", formatted=True, max_tokens=1)

    def ask(question: str, history: list[ChatMessage]) -> Iterator[Event]:
        engine.recall(history)
        return engine.events(question)

    return Chat(cast(Any, ask), llm.n_tokens)
