"""`make chat` as a user types it, in a copy of the checkout with the environment that runs this."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that git knows, with their times."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    folder = tmp_path / "checkout"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def make_chat(folder: Path, port: int) -> Iterator[str]:
    """Run it until it is ready; yield what it printed so far."""
    log = folder / "chat.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["make", "chat", f"VENV={Path(sys.executable).parents[1]}", f"PORT={port}"],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ready = f"http://127.0.0.1:{port}/readyz"
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(ready) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.25)
        yield log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.mark.model
def test_make_chat_prepares_once_and_serves(checkout: Path) -> None:
    installed = Path(sys.executable).parents[1] / ".installed"
    if not installed.exists():
        pytest.skip("the environment was not made by `make install`")
    port = free_port()
    with make_chat(checkout, port) as printed:
        assert "Wrote data/fantasy-library" in printed
        assert f"http://127.0.0.1:{port}" in printed
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"Fantasy Shop" in page.read()
    with make_chat(checkout, port) as printed:
        assert "Already there" in printed
        assert "0 texts embedded" in printed


@pytest.mark.parametrize("command", ["make help", "bash .ci/needs"])
def test_the_first_look_works(checkout: Path, command: str) -> None:
    done = subprocess.run(command.split(), cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "make chat" in done.stdout or "C++ compiler" in done.stdout


def test_a_missing_compiler_is_named(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "df", "awk", "python3"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(sys.executable if tool == "python3" else found)
    done = subprocess.run(
        [str(tools / "bash"), ".ci/needs"],
        cwd=checkout,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "apt-get install g++ gcc" in done.stderr
