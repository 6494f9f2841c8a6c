"""A real S3 server on loopback (moto's), in a process of its own, for the whole test session."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.request import ProxyHandler, Request, build_opener

import pytest

SERVER = """
import logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()  # ends when the tests do
"""


@dataclass(frozen=True)
class S3:
    """The server, and the options to reach it."""

    url: str

    @property
    def options(self) -> dict[str, str]:
        """Storage options, by the names that deltalake and LanceDB have in common."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "alice",
            "AWS_SECRET_ACCESS_KEY": "wonderland",
            "AWS_REGION": "us-east-1",
        }

    def bucket(self) -> str:
        """Make a bucket; return its URI."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self._ask("PUT", f"/{name}")
        return f"s3://{name}"

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse whoever has no account, which is everybody."""
        self._ask("POST", "/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self._ask("POST", "/moto-api/reset-auth", b"inf")

    def _ask(self, method: str, path: str, body: bytes = b"") -> None:
        opener = build_opener(ProxyHandler({}))  # a proxy of the developer does not reach loopback
        head = {"Content-Type": "text/plain"}
        with opener.open(Request(self.url + path, body, head, method=method)) as answer:
            assert answer.status == 200, answer.read()


@pytest.fixture(scope="session", name="s3")
def s3_server() -> Iterator[S3]:
    """An S3 server; each test asks it for a bucket of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MOTO_"))}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, "the S3 server did not start"
        yield S3(f"http://127.0.0.1:{port}")
        server.kill()
