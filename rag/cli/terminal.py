"""What the commands print and how: consoles, progress, Ctrl-C, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

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

from rag.progress import Progress

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNESCAPED = re.compile(r"[\x7f-\x9f]")
_INTERRUPTED = 130
"""Exit code of a program ended by Ctrl-C."""
_REFRESH_S = 2.0
"""How often progress is told where there is no terminal to draw on."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@contextlib.contextmanager
def stopping_at_once(said: str) -> Iterator[None]:
    """End the process at Ctrl-C, even inside a library that swallows the interrupt.

    Nothing is lost: an index is published in one commit, and an answer is only shown.
    """

    def stop(*_: object) -> None:
        err.show_cursor()
        err.print(f"\n{said}")
        sys.stdout.flush()
        os._exit(_INTERRUPTED)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def progress_shown() -> Iterator[Progress]:
    """Draw progress on stderr: a bar with rate and time left on a terminal, else lines."""
    if not err.is_terminal:
        yield progress_lines()
        return
    bar = Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=None, rate="")

        def tell(what: str, n_done: int, n_total: int) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            bar.update(task, description=what, completed=n_done, total=n_total or None, rate=rate)

        yield tell


def progress_lines() -> Progress:
    """Tell progress on stderr in lines."""
    last: list[Any] = [None, 0.0]

    def tell(what: str, n_done: int, n_total: int) -> None:
        now = time.monotonic()
        if what != last[0] or now - last[1] > _REFRESH_S:
            last[:] = [what, now]
            err.print(f"{what} {n_done}/{n_total}" if n_total else what)

    return tell


def print_table(*rows: tuple[str, str]) -> None:
    """Print names and values, aligned."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out.print(f"[bold]{name:<{width}}[/]  {escape(value)}")


def print_json(value: Any, *, is_one_line: bool = False) -> None:
    """Print a value as JSON; on one line where a script reads one after the other."""
    indent = None if is_one_line else 2
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    # JSON leaves DEL and the C1 controls as they are; a terminal would obey them
    print(_UNESCAPED.sub(lambda m: f"\\u{ord(m[0]):04x}", text))  # noqa: T201


def plain(text: str) -> str:
    """Return text as it is: no markup of ours, no orders to the terminal."""
    return escape(_CONTROL.sub("", text))


def brief(value: Any) -> str:
    """Return a value on one line; a dash stands for none."""
    return "–" if value is None else str(value)


def size(n_bytes: int) -> str:
    """Return a number of bytes as a reader wants it."""
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.0f} kB"
