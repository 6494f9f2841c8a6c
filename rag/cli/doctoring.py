"""`rag doctor`: whether this machine can run the chat, and how fast."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rag import doctor as checking
from rag import wiring
from rag.cli.terminal import Json, out, print_json, print_table, progress_shown, stopping_at_once
from rag.settings import Settings

if TYPE_CHECKING:
    from rag.wiring.measuring import Bench, LlmSpeed

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}

_BUSY = 0.25
"""Share of the CPU that other programs may use before the figures say little."""


def doctor(
    bench: Annotated[
        bool, typer.Option("--bench", help="Also measure how fast the models are here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check Python, packages, weights, memory, disk and GPU; say what to do."""
    settings = Settings()
    checks = checking.run(settings)
    if not as_json:
        for check in checks:
            out.print(f"{_MARKS[check.verdict]:<4} {check.name}: {escape(check.found)}")
            if check.remedy:
                out.print(f"     → {escape(check.remedy)}")
    measured = None
    if bench:
        with stopping_at_once("Stopped. Nothing was written down."), progress_shown() as progress:
            measured = wiring.bench(settings, progress=progress)
        if not as_json:
            _print_bench(measured)
    if as_json:
        listed = [dataclasses.asdict(c) for c in checks]
        bench_ = {"bench": dataclasses.asdict(measured)} if measured is not None else None
        print_json({"checks": listed, **bench_} if bench_ is not None else listed)
    if any(c.verdict == "bad" for c in checks):
        sys.exit(1)


def _print_bench(found: Bench) -> None:
    llm, embedding = found.llm_speed, found.embedding_speed
    where = f"{llm.n_threads} threads" if llm.n_threads is not None else llm.version
    out.print()
    print_table(
        ("language model", f"{found.llm}, {where}"),
        ("  reads", _rate(llm.prompt_tokens_per_s)),
        ("  writes", _writes(llm)),
        ("embedding model", found.embedding),
        ("  rows", f"{embedding.texts_per_s:,.0f} texts/s"),
        ("  a question", f"{embedding.query_ms:,.0f} ms"),
        ("finding rows", _found_in(found.retrieval_ms)),
    )
    if found.busy_share > _BUSY and llm.n_threads is not None:
        out.print(
            f"Other programs used {found.busy_share:.0%} of the CPU: alone the models are faster."
        )
    if found.first_word_s is None or found.turn_s is None:
        out.print("The model wrote too little to say what a turn costs here.")
        return
    out.print(
        f"A typical turn here: the first word after {found.first_word_s:.1f} s, "
        f"the whole answer after {found.turn_s:.1f} s."
    )


def _rate(tokens_per_s: float | None) -> str:
    return "–" if tokens_per_s is None else f"{tokens_per_s:,.0f} tokens/s"


def _writes(llm: LlmSpeed) -> str:
    said = _rate(llm.decode_tokens_per_s)
    if llm.copied_tokens_per_s is None or llm.accepted_share is None:
        return said
    return (
        f"{said}; {_rate(llm.copied_tokens_per_s)} where it repeats a passage "
        f"({llm.accepted_share:.0%} of the guesses are right)"
    )


def _found_in(ms: float | None) -> str:
    return "– (no index yet)" if ms is None else f"{ms:,.0f} ms, the question's embedding included"
