"""Other processes for tests: real ones; most are forked from a server that has it all imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["rag.mirror", "rag.store", "pytest", "blockbuster"])


@dataclass
class Other:
    """A process, and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def says(self, timeout: float = 60) -> object:
        """Return the next thing it sends."""
        assert self.pipe.poll(timeout), "the other process said nothing"
        return self.pipe.recv()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def elsewhere(function: Callable[..., None], *args: object) -> Iterator[Other]:
    """Run `function(pipe, *args)` in another process; what is left of it at the end is killed."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=function, args=(theirs, *args))
    process.start()
    theirs.close()
    other = Other(process, ours)
    try:
        yield other
    finally:
        other.kill()
        ours.close()


def run_alone(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end in an interpreter of its own, which finds the modules beside this."""
    head = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def eventually(found: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `found` finds something."""
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
