"""The web chat as a person starts it, for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextmanager
def serving(
    app: Path, folder: Path, *, env: Mapping[str, str] | None = None, port: int = 0
) -> Iterator[str]:
    """Run the chat as a person does, in a working directory of its own; yield its address.

    Args:
        app: What `chainlit run` is given.
        folder: The working directory; chats and the index are kept there.
        env: More variables; none of `RAG_*` and `CHAINLIT_*` is inherited.
        port: Where to listen; 0 is any that is free.
    """
    shutil.copytree(ROOT / ".chainlit", folder / ".chainlit", dirs_exist_ok=True)
    shutil.copy(ROOT / "chainlit.md", folder)
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "chainlit", "run", str(app), "--headless"]
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAG_", "CHAINLIT_"))}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env={**own, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **(env or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/healthz", server, folder)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError((folder / "server.log").read_text())
