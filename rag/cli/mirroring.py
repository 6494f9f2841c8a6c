"""`rag sync`, `verify`, `row` and `status`: the index and its table."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rag import wiring
from rag.cli.terminal import (
    Json,
    brief,
    err,
    out,
    plain,
    print_json,
    print_table,
    progress_lines,
    progress_shown,
    size,
    stopping_at_once,
)
from rag.errors import RagError, SettingsError
from rag.progress import SyncReport
from rag.settings import Settings

if TYPE_CHECKING:
    from rag.audit import Verdict

_EVERY = "30s"
_FATES = {
    "unchanged": "Unchanged in version {latest}.",
    "changed": "Changed since; in version {latest}:",
    "deleted": "Deleted since: version {latest} has no such row.",
    "unknown": "Whether it has changed since cannot be told: the table cannot be read.",
}


def sync(
    version: Annotated[
        int | None,
        typer.Option(
            min=0, help="Delta version to mirror instead of the latest; an older one beside it."
        ),
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
        str | None, typer.Option(help="How often --follow looks: 30s (the default), 5m, 1h.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the index mirror the table; only changed text is embedded."""
    settings = Settings()
    if follow and (version is not None or rebuild or purge or dry_run):
        raise SettingsError("--follow goes with --every and --json only.")
    if every is not None and not follow:
        raise SettingsError("--every says how often --follow looks at the table: give both.")
    if purge and dry_run:
        raise SettingsError("--dry-run changes nothing, --purge does: give one of them.")
    if follow:
        _follow(settings, every_s=_seconds(every or _EVERY), as_json=as_json)
        return
    said = "Stopped. The index is as it was; `rag sync` goes on from what is staged."
    with stopping_at_once(said), progress_shown() as progress:
        if dry_run:
            report = wiring.pending(settings, version=version, rebuild=rebuild, progress=progress)
        else:
            report = wiring.sync(
                settings, version=version, rebuild=rebuild, purge=purge, progress=progress
            )
    _tell(report, as_json=as_json, is_done=not dry_run)


def _follow(settings: Settings, *, every_s: float, as_json: bool) -> None:
    with stopping_at_once("Stopped. The index answers as it is."):
        err.print(f"Following {escape(settings.table.uri)} every {every_s:g} s; Ctrl-C ends.")
        reports = wiring.follow(settings, every_s=every_s, progress=progress_lines())
        for report in reports:
            if isinstance(report, RagError):
                err.print(f"[red]Error:[/] {escape(str(report))} Trying again.")
            else:
                _tell(report, as_json=as_json, is_done=True, is_one_line=True)
            sys.stdout.flush()


def _tell(report: SyncReport, *, as_json: bool, is_done: bool, is_one_line: bool = False) -> None:
    if as_json:
        print_json(dataclasses.asdict(report), is_one_line=is_one_line)
        return
    version, now = report.table_version, report.answering_version
    left_out = f", {report.n_blank} blank skipped" if report.n_blank else ""
    left_out += f", {report.n_left_out} left out for their key" if report.n_left_out else ""
    counts = f"+{report.n_added} ~{report.n_updated} −{report.n_deleted} rows, "
    counts += f"{report.n_unchanged} unchanged{left_out}"
    if not is_done:
        out.print(
            f"To mirror version {version}: {counts}; {report.n_embedded} texts to embed. "
            "Nothing was changed."
        )
        return
    beside = f" beside version {now}, which still answers" if now not in (version, None) else ""
    out.print(
        f"The index mirrors version {version}{beside}: {counts}; {report.n_embedded} texts "
        f"embedded in {report.seconds:.1f} s."
    )
    if report.purged:
        out.print(f"No longer addressable: version {', '.join(map(str, report.purged))}.")


def _seconds(text: str) -> float:
    """Read a duration such as `30s`, `5m`, `1h` or `30`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not seconds:
        raise SettingsError(f"--every is {text!r}; write a duration such as 30s, 5m or 1h.")
    return seconds


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
    with stopping_at_once(said), progress_shown() as progress:
        verdict = wiring.verify(Settings(), recall=recall, repair=repair, progress=progress)
    if as_json:
        print_json(_verdict_as_json(verdict))
    else:
        _say(verdict)
    if not verdict.is_ok:
        sys.exit(1)


def _say(verdict: Verdict) -> None:
    measured = "" if verdict.recall is None else f", recall@10 {verdict.recall:.3f}"
    out.print(
        f"Compared the index with version {verdict.table_version} of {plain(verdict.table_uri)}: "
        f"{verdict.n_rows:,} rows, {verdict.n_nodes:,} nodes{measured}."
    )
    for note in verdict.notes:
        out.print(f"Note: {plain(note)}")
    for problem in verdict.problems:
        out.print(f"[red]bad[/] {plain(problem.sentence)}")
    if verdict.is_ok:
        out.print("[green]ok[/]")


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    found = dataclasses.asdict(verdict) | {"is_ok": verdict.is_ok}
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in found.items()}


def row(
    key: Annotated[
        str,
        typer.Argument(help="The row key as citations name it."),
    ],
    version: Annotated[
        int | None, typer.Option(min=0, help="Delta version; else the one that answers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a row as it was in a version, and what became of it since."""
    found = wiring.row(Settings(), key, version=version)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    place = f"{found.table_uri} · version {found.table_version} · row {found.row_key}"
    out.print(f"[bold]{plain(place)}[/]")
    if found.read_from == "index":
        out.print("[dim]from the index: the table's files of that version are gone[/]")
    for name, value in found.columns.items():
        out.print(f"  [bold]{plain(name)}[/]  {plain(brief(value))}")
    if found.row_version is not None:
        out.print(f"Last changed at version {found.row_version}, as far as the log tells.")
    out.print(_FATES[found.fate].format(latest=found.latest_version))
    for change in found.changes:
        out.print(f"  [red]- {plain(change.name)}: {plain(brief(change.before))}[/]")
        out.print(f"  [green]+ {plain(change.name)}: {plain(brief(change.after))}[/]")


def status(as_json: Json = False) -> None:
    """Show the table, the index, the models and the disk they take."""
    found = wiring.status(Settings())
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    latest = f"version {found.table_version}" if found.table_problem is None else "see below"
    mirrored = "not built: run `rag sync`"
    if found.index_version is not None:
        mirrored = f"version {found.index_version}, {found.n_rows} rows, {found.n_nodes} nodes"
        mirrored += f", {found.n_blank} blank rows skipped" if found.n_blank else ""
    if found.changed is not None:
        latest += ": +{added} −{deleted} ~{updated}".format(**found.changed)
    older = [v for v in found.mirrored_versions if v != found.index_version]
    print_table(
        ("table", f"{found.table_uri}, {latest}"),
        ("index", f"{found.index_uri}, {mirrored}"),
        ("also mirrored", ", ".join(f"version {v}" for v in older) or "no other version"),
        ("being built by", found.building or "nobody"),
        ("embedding model", found.embedding_model),
        ("language model", found.llm),
        ("disk", f"index {size(found.index_bytes)}, models {size(found.models_bytes)}"),
    )
    for told in (found.table_problem, found.problem):
        if told is not None:
            err.print(escape(told))
