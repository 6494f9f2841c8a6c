"""`rag eval`: how good search and answers are, on questions whose answers are known."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from rag import wiring
from rag.cli.terminal import (
    Json,
    err,
    out,
    plain,
    print_json,
    print_table,
    progress_shown,
    stopping_at_once,
)
from rag.errors import SettingsError
from rag.settings import Settings

if TYPE_CHECKING:
    from rag.evaluation import Evaluation, Outcome
    from rag.settings import Mode

_DRAFTS = Path("questions.jsonl")
_INTERRUPTED = 130
"""Exit code of a program ended by Ctrl-C."""


def evaluate(
    questions: Annotated[
        str | None,
        typer.Argument(help="A .jsonl, .json, .yaml or .parquet file, or a Delta table."),
    ] = None,
    modes: Annotated[
        str | None, typer.Option(help="Ways of searching to compare, as vector,text,hybrid.")
    ] = None,
    no_answers: Annotated[
        bool, typer.Option("--no-answers", help="Measure the search only; no language model.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask at most so many questions, the first ones.")
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 where a figure is worse, as recall@5=0.9; repeatable."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page that shows the failures side by side.")
    ] = None,
    make: Annotated[
        int | None, typer.Option(min=1, help="Instead draft so many questions, for you to edit.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help=f"Where --make writes; {_DRAFTS} unless given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure search and answers on questions whose answers you know, or draft such questions."""
    settings = Settings()
    if make is not None:
        if no_answers or any(v is not None for v in (questions, modes, limit, fail_under, html)):
            raise SettingsError("--make drafts questions: it goes with --output and --json only.")
        _make(settings, make, output or _DRAFTS, as_json=as_json)
        return
    if questions is None:
        raise SettingsError("Name the questions to ask, or draft some with `rag eval --make 50`.")
    if output is not None:
        raise SettingsError("--output says where --make writes: give both.")
    _refuse_unwritable(html)
    chosen = modes and tuple(part.strip() for part in modes.split(","))
    asked = _Asked(questions, chosen or None, limit, not no_answers)
    evaluation, missed = _measure(settings, asked, fail_under or [])
    if html is not None:
        _write_page(html, evaluation)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        _say(evaluation, html)
    if len(evaluation.outcomes) < evaluation.n_questions:
        err.print(
            f"Stopped after {len(evaluation.outcomes)} of {evaluation.n_questions} questions."
        )
        sys.exit(_INTERRUPTED)
    for sentence in missed:
        err.print(f"[red]Failed:[/] {plain(sentence)}")
    if missed:
        sys.exit(1)


@dataclass(frozen=True)
class _Asked:
    """What is asked, as typed."""

    questions: str
    modes: tuple[str, ...] | None
    limit: int | None
    with_answers: bool


def _measure(
    settings: Settings, asked: _Asked, fail_under: Sequence[str]
) -> tuple[Evaluation, list[str]]:
    """Ask the questions; return what was found, and a sentence for each figure that is worse."""
    from rag.evaluation.wanted import parse_wanted  # LlamaIndex costs two seconds

    modes = cast("tuple[Mode, ...] | None", asked.modes)
    names, mode = wiring.figures(settings, modes, with_answers=asked.with_answers)
    wanted = [parse_wanted(text, names, mode=mode) for text in fail_under]
    outcomes: list[Outcome] = []
    with progress_shown() as progress:
        with stopping_at_once("Stopped before a question was asked."):
            known = wiring.read_questions(settings, asked.questions)[: asked.limit]
            plan = wiring.plan_evaluation(
                settings, known, modes=modes, with_answers=asked.with_answers, progress=progress
            )
        started = time.monotonic()
        # what was measured so far is worth seeing: Ctrl-C ends the asking, not the program
        with contextlib.suppress(KeyboardInterrupt):
            for outcome in plan.ask_each(progress):
                outcomes.append(outcome)  # noqa: PERF402 – kept when it is interrupted
    found = plan.evaluation(outcomes, seconds=time.monotonic() - started)
    return found, [told for w in wanted if (told := w.missed(found.metrics)) is not None]


def _refuse_unwritable(html: Path | None) -> None:
    # told before an hour of questions, not after it
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise SettingsError(f"--html is {str(html)!r}; name a file in a folder that is there.")


def _write_page(path: Path, evaluation: Evaluation) -> None:
    from rag.evaluation.page import render

    try:
        path.write_text(render(evaluation), encoding="utf-8", errors="replace")
    except OSError as e:
        raise SettingsError(f"--html {str(path)!r} cannot be written: {e.strerror}.") from e


def _say(evaluation: Evaluation, html: Path | None) -> None:
    from rag.evaluation.page import shown
    from rag.evaluation.results import FAILURES, RETRIEVAL

    n, n_answerable = len(evaluation.outcomes), evaluation.n_answerable
    out.print(
        f"Asked {n} questions of {plain(evaluation.table_uri)}, version "
        f"{evaluation.table_version}, in {evaluation.seconds:.0f} s: {n_answerable} with expected "
        f"rows, {n - n_answerable} to be refused. In brackets 95 % intervals."
    )
    width = len(shown(next(filter(None, evaluation.metrics.values()), None)))
    by_mode = [
        (
            name,
            "  ".join(
                f"{shown(evaluation.metrics[f'{m}.{name}']):<{width}}" for m in evaluation.modes
            ),
        )
        for name in RETRIEVAL
    ]
    chat = [
        (name, f"{shown(e)}" + (f"  of {e.n}" if e else ""))
        for name, e in evaluation.metrics.items()
        if name.partition(".")[2] not in RETRIEVAL
    ]
    heading = ("", "  ".join(f"{m:<{width}}" for m in evaluation.modes))
    print_table(heading, *by_mode, *chat)
    failed = evaluation.to_dict()["failures"]
    for name, count in failed.items():
        out.print(f"{count} × {name}: {FAILURES[name]}")
    if html is not None:
        out.print(f"The failures side by side: {plain(str(html))}")
    elif failed:
        out.print("`--html FILE` shows the failures side by side, `--json` lists them.")


def _make(settings: Settings, n: int, path: Path, *, as_json: bool) -> None:
    if path.exists():
        raise SettingsError(
            f"{str(path)!r} is there already and may hold your edits; name another with --output."
        )
    n_done = n_by_rule = 0
    said = f"Stopped. What was drafted is in {plain(str(path))}."
    with stopping_at_once(said), progress_shown() as progress, contextlib.ExitStack() as opened:
        for draft in wiring.draft_questions(settings, n, progress=progress):
            if not n_done:
                file = opened.enter_context(_new(path))
            file.write(json.dumps(draft.to_dict(), ensure_ascii=False) + "\n")
            file.flush()  # a stop loses nothing
            n_done += 1
            n_by_rule += draft.is_by_rule
    if as_json:
        print_json({"path": str(path), "n_drafts": n_done, "n_by_rule": n_by_rule})
        return
    out.print(f"{n_done} drafts are in {plain(str(path))}, {n_by_rule} of them by a plain rule.")
    out.print(
        "They are drafts: read each one, put it into a customer's words, cut `answer` down to what "
        "a right answer contains, and add questions that should be refused (`expected`: null). "
        f"Then: rag eval {plain(str(path))}"
    )


def _new(path: Path) -> TextIO:
    try:
        return path.open("x", encoding="utf-8", errors="replace")
    except OSError as e:
        raise SettingsError(f"--output {str(path)!r} cannot be written: {e.strerror}.") from e
