"""The `rag` command: the only core room that prints.

Knows wiring; the outermost handler that turns a `RagError` into one sentence is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from rag import doctor, wiring
from rag.errors import RagError, SettingsError
from rag.progress import Progress, SyncReport
from rag.question import checked
from rag.settings import Settings, leaves, variable

if TYPE_CHECKING:
    from rag.chat import Done, Event
    from rag.mirror import Verdict
    from rag.retrieval import Hit

app = typer.Typer(
    help="Chat with a Delta Lake table: offline, with answers that cite the exact row.\n\n"
    "First steps: `rag demo` writes a demo table, `rag sync` indexes it, `rag ask` answers. "
    "For your own table set RAG_TABLE__URI and RAG_TABLE__TEMPLATE (see `rag settings`).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_out = Console(highlight=False, soft_wrap=True, emoji=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_INTERRUPTED = 130
"""Exit code of a program ended by Ctrl-C."""
_REFRESH_S = 2.0
"""How often progress is told where there is no terminal to draw on."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def main() -> None:
    """Run the command; a mistake of the user is one sentence and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except RagError as e:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        _err.print(f"[red]Error:[/] {escape(str(e))}")
        sys.exit(1)


@app.command()
def demo(
    only_default: Annotated[
        bool, typer.Option("--only-default", help="Do nothing when another table is set.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the demo library, a fantasy shop, as a Delta table at `table.uri`."""
    settings = Settings()
    if only_default and not settings.is_demo:
        _err.print(f"The table is {settings.table.uri!r}: no demo needed.")
        return
    report = wiring.write_demo(settings)
    if as_json:
        _print_json(dataclasses.asdict(report))
        return
    done = "Wrote" if report.was_written else "Already there:"
    _out.print(
        f"{done} {report.uri}, {report.n_rows} rows in {report.version + 1} versions, "
        f"0 to {report.version}."
    )


@app.command()
def sync(
    version: Annotated[
        int | None,
        typer.Option(help="Delta version to mirror instead of the latest; an older one beside it."),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build everything anew.")] = False,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also remove deleted rows and old versions from disk."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change; change nothing.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on, with every new version of the table.")
    ] = False,
    every: Annotated[
        str, typer.Option(help="How often --follow looks at the table: 30s, 5m, 1h.")
    ] = "30s",
    as_json: Json = False,
) -> None:
    """Make the index mirror the table; only changed text is embedded."""
    settings = Settings()
    if follow and (version is not None or rebuild or purge or dry_run):
        raise SettingsError("--follow goes with --every and --json only.")
    if purge and dry_run:
        raise SettingsError("--dry-run changes nothing, --purge does: give one of them.")
    if follow:
        _follow(settings, every_s=_seconds(every), as_json=as_json)
        return
    said = "Stopped. The index is as it was; `rag sync` goes on from what is staged."
    with _stopping_at_once(said), _progress() as progress:
        if dry_run:
            report = wiring.pending(settings, version=version, rebuild=rebuild, progress=progress)
        else:
            report = wiring.sync(
                settings, version=version, rebuild=rebuild, purge=purge, progress=progress
            )
    _tell(report, as_json=as_json, is_done=not dry_run)


@app.command()
def verify(
    recall: Annotated[
        bool, typer.Option("--recall", help="Also measure what the vector index finds.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what differs, and look again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare the index with the table, row by row; exit code 1 where they differ."""
    said = "Stopped. The index answers as it is."
    with _stopping_at_once(said), _progress() as progress:
        verdict = wiring.verify(Settings(), recall=recall, repair=repair, progress=progress)
    if as_json:
        _print_json(_verdict_as_json(verdict))
    else:
        _say(verdict)
    if not verdict.is_ok:
        sys.exit(1)


def _say(verdict: Verdict) -> None:
    measured = "" if verdict.recall is None else f", recall@10 {verdict.recall:.3f}"
    _out.print(
        f"Compared the index with version {verdict.table_version} of {_text(verdict.table_uri)}: "
        f"{verdict.n_rows:,} rows, {verdict.n_nodes:,} nodes{measured}."
    )
    for note in verdict.notes:
        _out.print(f"Note: {_text(note)}")
    for problem in verdict.problems:
        _out.print(f"[red]bad[/] {_text(problem.sentence)}")
    if verdict.is_ok:
        _out.print("[green]ok[/]")


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    found = dataclasses.asdict(verdict) | {"is_ok": verdict.is_ok}
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in found.items()}


def _follow(settings: Settings, *, every_s: float, as_json: bool) -> None:
    with _stopping_at_once("Stopped. The index answers as it is."):
        _err.print(f"Following {escape(settings.table.uri)} every {every_s:g} s; Ctrl-C ends.")
        reports = wiring.follow(settings, every_s=every_s, progress=_lines())
        for report in reports:
            if isinstance(report, RagError):
                _err.print(f"[red]Error:[/] {escape(str(report))} Trying again.")
            else:
                _tell(report, as_json=as_json, is_done=True)
            sys.stdout.flush()


def _tell(report: SyncReport, *, as_json: bool, is_done: bool) -> None:
    if as_json:
        _print_json(dataclasses.asdict(report))
        return
    version, now = report.table_version, report.answering_version
    left_out = f", {report.n_blank} blank skipped" if report.n_blank else ""
    left_out += f", {report.n_left_out} left out for their key" if report.n_left_out else ""
    counts = f"+{report.n_added} ~{report.n_updated} −{report.n_deleted} rows, "
    counts += f"{report.n_unchanged} unchanged{left_out}"
    if not is_done:
        _out.print(
            f"To mirror version {version}: {counts}; {report.n_embedded} texts to embed. "
            "Nothing was changed."
        )
        return
    beside = f" beside version {now}, which still answers" if now not in (version, None) else ""
    _out.print(
        f"The index mirrors version {version}{beside}: {counts}; {report.n_embedded} texts "
        f"embedded in {report.seconds:.1f} s."
    )
    if report.purged:
        _out.print(f"No longer addressable: version {', '.join(map(str, report.purged))}.")


def _seconds(text: str) -> float:
    """Read a duration such as `30s`, `5m`, `1h` or `30`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not seconds:
        raise SettingsError(f"--every is {text!r}; write a duration such as 30s, 5m or 1h.")
    return seconds


@app.command()
def ask(question: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
    """Ask one question; the answer streams, then its sources are listed."""
    settings = Settings()
    checked(question, max_chars=settings.chat.max_question_chars)  # before the models load
    with _stopping_at_once("Stopped."):
        with _progress() as progress:
            progress("loading the models", 0, 0)
            engine = wiring.chat_engine(settings)
        if as_json:
            _print_json(_as_json(_drain(engine.events(question))))
        else:
            _say_when_stale(settings, _show(engine.events(question)).table_version)


@app.command()
def chat() -> None:
    """Talk about the table in the terminal; it remembers the conversation."""
    settings = Settings()
    with _progress() as progress:
        progress("loading the models", 0, 0)
        engine = wiring.chat_engine(settings)
    _out.print("Ask about the table. An empty line or Ctrl-D ends; Ctrl-C stops an answer.")
    told = False
    while True:
        try:
            question = _out.input("\n[bold]> [/]").strip()
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
            _out.print(" (stopped)")
        except RagError as e:
            _err.print(f"[red]Error:[/] {escape(str(e))}")


@app.command()
def status(as_json: Json = False) -> None:
    """Show the table, the index, the models and the disk they take."""
    found = wiring.status(Settings())
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    latest = f"version {found.table_version}" if found.table_problem is None else "not readable"
    mirrored = "not built: run `rag sync`"
    if found.index_version is not None:
        mirrored = f"version {found.index_version}, {found.n_rows} rows, {found.n_nodes} nodes"
        mirrored += f", {found.n_blank} blank rows skipped" if found.n_blank else ""
    if found.changed is not None:
        latest += ": +{added} −{deleted} ~{updated}".format(**found.changed)
    older = [v for v in found.mirrored_versions if v != found.index_version]
    _print_table(
        ("table", f"{found.table_uri}, {latest}"),
        ("index", f"{found.index_uri}, {mirrored}"),
        ("also mirrored", ", ".join(f"version {v}" for v in older) or "no other version"),
        ("being built by", found.building or "nobody"),
        ("embedding model", found.embedding_model),
        ("language model", found.llm),
        ("disk", f"index {_size(found.index_bytes)}, models {_size(found.models_bytes)}"),
    )
    if found.table_problem is not None:
        _err.print(escape(found.table_problem))


@app.command()
def row(
    key: Annotated[str, typer.Argument(help="The row key, as citations name it.")],
    version: Annotated[
        int | None, typer.Option(help="Delta version; else the one that answers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a row as it was in a version, and what became of it since."""
    found = wiring.row(Settings(), key, version=version)
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    place = f"{found.table_uri} · version {found.table_version} · row {found.row_key}"
    _out.print(f"[bold]{_text(place)}[/]")
    if found.read_from == "index":
        _out.print("[dim]from the index: the table's files of that version are gone[/]")
    for name, value in found.columns.items():
        _out.print(f"  [bold]{_text(name)}[/]  {_text(_brief(value))}")
    if found.row_version is not None:
        _out.print(f"Last changed at version {found.row_version}, as far as the log tells.")
    _out.print(_FATES[found.fate].format(latest=found.latest_version))
    for change in found.changes:
        _out.print(f"  [red]- {_text(change.name)}: {_text(_brief(change.before))}[/]")
        _out.print(f"  [green]+ {_text(change.name)}: {_text(_brief(change.after))}[/]")


_FATES = {
    "unchanged": "Unchanged in version {latest}.",
    "changed": "Changed since; in version {latest}:",
    "deleted": "Deleted since: version {latest} has no such row.",
    "unknown": "Whether it has changed since cannot be told: the table cannot be read.",
}


@app.command(name="doctor")
def doctor_(as_json: Json = False) -> None:
    """Check Python, packages, weights, memory, disk and GPU; say what to do."""
    checks = doctor.run(Settings())
    if as_json:
        _print_json([dataclasses.asdict(c) for c in checks])
    else:
        marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
        for check in checks:
            _out.print(f"{marks[check.verdict]:<4} {check.name}: {escape(check.found)}")
            if check.remedy:
                _out.print(f"     → {escape(check.remedy)}")
    if any(c.verdict == "bad" for c in checks):
        sys.exit(1)


@app.command(name="settings")
def settings_() -> None:
    """List every setting: its variable, its value now and what it does."""
    current = Settings()
    for group, name, _, description in leaves():
        value = getattr(getattr(current, group), name)
        if isinstance(value, dict):
            value = ", ".join(value) or None  # storage options hold secrets: their names only
        _out.print(f"[bold]{variable(group, name)}[/] = {escape(_brief(value))}")
        _out.print(f"    {escape(description)}")


@contextlib.contextmanager
def _stopping_at_once(said: str) -> Iterator[None]:
    """End the process at Ctrl-C, even inside a library that swallows the interrupt.

    Nothing is lost: an index is published in one commit, and an answer is only shown.
    """

    def stop(*_: object) -> None:
        _err.show_cursor()
        _err.print(f"\n{said}")
        sys.stdout.flush()
        os._exit(_INTERRUPTED)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say_when_stale(settings: Settings, mirrored: int) -> None:
    if settings.table.version is not None:
        return
    try:
        latest = wiring.table_version(settings)
    except RagError as e:  # the index answers without the table, but its reader should know
        _err.print(escape(str(e)))
        return
    if latest != mirrored:
        _err.print(
            f"The table is at version {latest}, the index at {mirrored}: "
            "`rag sync` brings it up to date."
        )


def _show(events: Generator[Event, None, None]) -> Done:
    """Print an answer as it comes, then its sources."""
    from rag.chat import plain  # LlamaIndex costs two seconds; `rag --help` does not wait for it

    done = _drain(events, lambda event: _out.print(_text(plain(event)), end=""))
    _out.print()
    for n, hit in enumerate(done.sources, 1):
        key = hit.node.metadata["row_key"]
        place = f"{hit.node.metadata['table_uri']} · version {done.table_version} · row {key}"
        _out.print(f"\n[bold]\\[{n}][/] {_text(hit.title)}  [dim]{hit.relevance:.2f}[/]")
        _out.print(f"    [dim]{_text(place)}[/]")
    return done


def _drain(
    events: Generator[Event, None, None], show: Callable[[Event], None] | None = None
) -> Done:
    from rag.chat import Done

    with contextlib.closing(events):
        for event in events:
            if show is not None:
                show(event)
            if isinstance(event, Done):
                return event
    raise AssertionError("a turn ends with Done")


def _as_json(done: Done) -> dict[str, Any]:
    from rag.chat import metadata

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


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Draw progress on stderr: a bar with rate and time left on a terminal, else lines."""
    if not _err.is_terminal:
        yield _lines()
        return
    bar = Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=_err,
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=None, rate="")

        def tell(what: str, n_done: int, n_total: int) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            bar.update(task, description=what, completed=n_done, total=n_total or None, rate=rate)

        yield tell


def _lines() -> Progress:
    last: list[Any] = [None, 0.0]

    def tell(what: str, n_done: int, n_total: int) -> None:
        now = time.monotonic()
        if what != last[0] or now - last[1] > _REFRESH_S:
            last[:] = [what, now]
            _err.print(f"{what} {n_done}/{n_total}" if n_total else what)

    return tell


def _print_table(*rows: tuple[str, str]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _out.print(f"[bold]{name:<{width}}[/]  {escape(value)}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))  # noqa: T201


def _text(text: str) -> str:
    """Return text as it is: no markup of ours, no orders to the terminal."""
    return escape(_CONTROL.sub("", text))


def _brief(value: Any) -> str:
    return "–" if value is None else str(value)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
