"""A real PostgreSQL from Debian's packages, started for the tests that import these fixtures."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

_PATIENCE_S = 60


class Postgres:
    """A server of its own folder, on a Unix socket only."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self.folder = binaries, folder
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        self._run(
            "initdb",
            "-D",
            str(self.folder / "db"),
            "-U",
            "rag",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(self.folder)]
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "db"), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*_as_other(), *command], stdout=log, stderr=log)
        until = time.monotonic() + _PATIENCE_S
        while subprocess.run(
            [str(self._binaries / "pg_isready"), "-q", "-h", str(self.folder)], check=False
        ).returncode:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until, "PostgreSQL does not start"
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            self._process.wait(_PATIENCE_S)
            self._process = None

    def url(self, *, user: str = "rag", password: str = "hunter2secret") -> str:
        """Create a database and return its address."""
        name = f"chats_{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", str(self.folder), "-U", "rag", name)
        return f"postgresql://{user}:{password}@/{name}?host={self.folder}"

    def _run(self, name: str, *arguments: str) -> None:
        command = [*_as_other(), str(self._binaries / name), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.folder)
        assert not done.returncode, done.stderr


def _as_other() -> list[str]:
    # initdb and postgres refuse to run as root
    if os.getuid():
        return []
    nobody = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        assert not os.environ.get("CI"), "CI must have Debian's package `postgresql`"
        pytest.skip("PostgreSQL is not installed (Debian's package `postgresql`)")
    return found[-1].parent if found else Path(on_path or "").resolve().parent


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Give a running server."""
    binaries = _binaries()
    # not in tmp_path: another user could not come through the folders above it
    folder = Path(tempfile.mkdtemp(prefix="rag-pg-"))
    try:
        if not os.getuid():
            shutil.chown(folder, "nobody")
        server = Postgres(binaries, folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the address of a new database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "made" / "chats.db")
    server: Postgres = request.getfixturevalue("postgres")
    return server.url()
