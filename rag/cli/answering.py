"""`rag ask` and `rag chat`: questions at the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rag import wiring
from rag.cli.terminal import Json, err, out, plain, print_json, progress_shown, stopping_at_once
from rag.errors import RagError
from rag.settings import Settings
from rag.timing import waits

if TYPE_CHECKING:
    from rag.events import Done, Event
    from rag.retrieval import Hit


def ask(question: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
    """Ask one question; the answer streams, then its sources are listed."""
    from rag.question import checked  # LlamaIndex costs two seconds; `rag --help` does not wait

    settings = Settings()
    checked(question, max_chars=settings.chat.max_question_chars)  # before the models load
    with stopping_at_once("Stopped."):
        with progress_shown() as progress:
            progress("loading the models", 0, 0)
            engine = wiring.chat_engine(settings)
        if as_json:
            print_json(_as_json(_drain(engine.events(question))))
        else:
            _say_when_stale(settings, _show(engine.events(question)).table_version)


def chat() -> None:
    """Talk about the table in the terminal; it remembers the conversation."""
    settings = Settings()
    with progress_shown() as progress:
        progress("loading the models", 0, 0)
        engine = wiring.chat_engine(settings)
    out.print("Ask about the table. An empty line or Ctrl-D ends; Ctrl-C stops an answer.")
    told = False
    while True:
        try:
            question = out.input("\n[bold]> [/]").strip()
        except EOFError:
            break
        if not question:
            break
        try:
            mirrored = _show(engine.events(question)).table_version
            if not told:
                _say_when_stale(settings, mirrored)
            told = True
        except KeyboardInterrupt:
            out.print(" (stopped)")
        except RagError as e:
            err.print(f"[red]Error:[/] {escape(str(e))}")


def _say_when_stale(settings: Settings, mirrored: int) -> None:
    if settings.table.version is not None:
        return
    try:
        latest = wiring.table_version(settings)
    except RagError as e:  # the index answers without the table, but its reader should know
        err.print(escape(str(e)))
        return
    if latest != mirrored:
        err.print(
            f"The table is at version {latest}, the index at {mirrored}: "
            "`rag sync` brings it up to date."
        )


def _show(events: Generator[Event, None, None]) -> Done:
    """Print an answer as it comes, then its sources."""
    from rag.events import (
        plain as shown,  # LlamaIndex costs two seconds; `rag --help` does not wait for it
    )

    done = _drain(events, lambda event: out.print(plain(shown(event)), end=""))
    out.print()
    for n, hit in enumerate(done.sources, 1):
        key = hit.node.metadata["row_key"]
        place = f"{hit.node.metadata['table_uri']} · version {done.table_version} · row {key}"
        out.print(f"\n[bold]\\[{n}][/] {plain(hit.title)}  [dim]{hit.relevance:.2f}[/]")
        out.print(f"    [dim]{plain(place)}[/]")
    return done


def _drain(
    events: Generator[Event, None, None], show: Callable[[Event], None] | None = None
) -> Done:
    from rag.events import Done, Waiting

    place = 0
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Waiting) and event.place != place:
                place = event.place
                err.print(waits(event))
            if show is not None:
                show(event)
            if isinstance(event, Done):
                return event
    raise AssertionError("a turn ends with Done")


def _as_json(done: Done) -> dict[str, Any]:
    from rag.events import metadata

    def source(n: int, hit: Hit) -> dict[str, Any]:
        return {
            "n": n,
            "title": hit.title,
            "relevance": round(hit.relevance, 4),
            "text": hit.node.get_content(),
            "metadata": hit.node.metadata,
        }

    sources = [source(n, hit) for n, hit in enumerate(done.sources, 1)]
    return {"answer": done.answer, **metadata(done), "sources": sources}
