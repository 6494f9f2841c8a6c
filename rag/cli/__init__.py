"""The `rag` command: the only core room that prints.

Knows wiring; the outermost handler that turns a `RagError` into one sentence is here.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import Annotated

import typer
from rich.markup import escape

from rag import wiring
from rag.cli import accounts, answering, doctoring, evaluating, mirroring, models, serving
from rag.cli.terminal import Json, brief, err, out, print_json
from rag.errors import RagError
from rag.settings import Settings, leaves, variable

app = typer.Typer(
    help="Chat with a Delta Lake table: offline, with answers that cite the exact row.\n\n"
    "First steps: `rag demo` writes a demo table, `rag sync` indexes it, `rag ask` answers. "
    "For your own table set RAG_TABLE__URI and RAG_TABLE__TEMPLATE (see `rag settings`).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run the command; a mistake of the user is one sentence and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except RagError as e:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        err.print(f"[red]Error:[/] {escape(str(e))}")
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
        err.print(f"The table is {settings.table.uri!r}: no demo needed.")
        return
    report = wiring.write_demo(settings)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    done = "Wrote" if report.was_written else "Already there:"
    out.print(
        f"{done} {report.uri}, {report.n_rows} rows in {report.version + 1} versions, "
        f"0 to {report.version}."
    )


for _command in (
    mirroring.sync,
    answering.ask,
    answering.chat,
    mirroring.row,
    mirroring.status,
    mirroring.verify,
):
    app.command()(_command)


app.command(name="eval")(evaluating.evaluate)
app.command()(doctoring.doctor)
app.add_typer(models.app, name="models")
app.command()(serving.serve_model)
app.add_typer(accounts.user_app, name="user")
app.add_typer(accounts.feedback_app, name="feedback")


@app.command(name="settings")
def settings_() -> None:
    """List every setting: its variable, its value now and what it does."""
    current = Settings()
    for group, name, _, description in leaves():
        value = getattr(getattr(current, group), name)
        if isinstance(value, dict):
            value = ", ".join(value) or None  # storage options hold secrets: their names only
        elif name == "base_url" and value:
            value = wiring.server_name(value)  # a URL may hold some too
        out.print(f"[bold]{variable(group, name)}[/] = {escape(brief(value))}")
        out.print(f"    {escape(description)}")
