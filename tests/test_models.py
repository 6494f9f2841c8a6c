"""`rag models`: what is listed, how a model comes here, and what choosing one writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_hub import FakeHub
from tiny_gguf import TinyModel, write_gguf

from rag import wiring
from rag.catalogue import LLM_MODELS, HubFile
from rag.errors import SettingsError, WeightsError, WeightsNotFound
from rag.settings import Settings
from rag.weights import gguf, stored

MODEL = "gemma-3-1b-it"
REPOSITORY = "ggml-org/gemma-3-1b-it-GGUF"
FILE = "gemma-3-1b-it-Q4_K_M.gguf"
CHUNK = 10 * 1024 * 1024
"""What the hub's client writes at once."""


def environment(url: str, home: Path) -> dict[str, str]:
    """Return the variables of a process that knows one hub and has caches of its own."""
    kept = {"PATH", "HOME", "LANG"}
    found = {name: value for name, value in os.environ.items() if name in kept}
    here = {"HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    return found | here | {"NO_PROXY": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}


def models(*arguments: str, url: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rag", "models", *arguments],
        env=environment(url, home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )


def listed(url: str, home: Path) -> dict[str, dict[str, object]]:
    done = models("list", "--json", url=url, home=home)
    assert done.returncode == 0, done.stderr
    return {m["name"]: m for m in json.loads(done.stdout)}


def closed_port() -> str:
    """Return the address of a hub that is down."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one error that a command ended with."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


@pytest.fixture
def content() -> bytes:
    return b"GGUF" + random.Random(3).randbytes(2 * CHUNK + 5_000_000)


# --- pull ---


def test_a_download_goes_on_after_a_broken_connection(tmp_path: Path, content: bytes) -> None:
    with FakeHub({REPOSITORY: {FILE: content}}, breaks_after=CHUNK + 100_000) as hub:
        done = models("pull", MODEL, url=hub.url, home=tmp_path)
        ranges = [r.rpartition("bytes=")[2] for r in hub.requests if "bytes=" in r]
    assert done.returncode == 0, done.stderr
    assert ranges == [f"{CHUNK}-", f"{2 * CHUNK}-"]
    (path,) = tmp_path.glob(f"hf/hub/*/snapshots/*/{FILE}")
    assert path.read_bytes() == content
    assert str(path) in done.stdout
    assert "Gemma Terms of Use" in done.stdout
    assert f"rag models use {MODEL}" in done.stdout


def test_a_download_goes_on_in_the_next_process(tmp_path: Path, content: bytes) -> None:
    with FakeHub({REPOSITORY: {FILE: content}}, stalls_after=CHUNK + 100_000) as hub:
        process = subprocess.Popen(
            [sys.executable, "-m", "rag", "models", "pull", MODEL],
            env=environment(hub.url, tmp_path),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert hub.stalled.wait(60)
        (part,) = wait_for_bytes(tmp_path, CHUNK)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Stopped. `rag models pull {MODEL}` goes on" in told
    assert part.read_bytes() == content[:CHUNK]
    with FakeHub({REPOSITORY: {FILE: content}}) as hub:
        assert listed(hub.url, tmp_path)[MODEL]["installed"] == "partly"
        assert hub.requests == []
        done = models("pull", MODEL, url=hub.url, home=tmp_path)
        assert [r for r in hub.requests if r.endswith(f"bytes={CHUNK}-")]
        assert listed(hub.url, tmp_path)[MODEL]["installed"] == "yes"
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob(f"hf/hub/*/snapshots/*/{FILE}")
    assert path.read_bytes() == content
    assert not part.exists()


def wait_for_bytes(home: Path, n_bytes: int) -> list[Path]:
    """Wait until the part of a download has so many bytes on disk."""
    while True:
        parts = list(home.glob("hf/hub/*/blobs/*.incomplete"))
        if parts and parts[0].stat().st_size >= n_bytes:
            return parts
        time.sleep(0.02)


def test_a_hub_that_knows_no_ranges_starts_again(tmp_path: Path, content: bytes) -> None:
    with FakeHub({REPOSITORY: {FILE: content}}, has_ranges=False) as hub:
        blobs = tmp_path / "hf/hub" / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{sha256(content)}.incomplete").write_bytes(b"other bytes")
        done = models("pull", MODEL, url=hub.url, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (blobs / sha256(content)).read_bytes() == content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Refused:
    id: str
    says: str
    model: str = MODEL
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    is_down: bool = False


@pytest.mark.parametrize(
    "case",
    [
        Refused("corrupt", "is corrupt: its SHA-256 is", options={"corrupt": {FILE}}),
        Refused("gated", "accept its licence", options={"gated": {REPOSITORY}}),
        Refused("down", "the hub cannot be reached", is_down=True),
        Refused("room", "needs 1,000,000.0 GB more", options={"told_sizes": {FILE: 10**15}}),
        Refused("unknown", "Did you mean 'gemma-3-1b-it'?", model="gemma3-1b-it"),
        Refused("nothing like it", "`rag models` lists those", model="qwerty"),
    ],
    ids=lambda case: case.id,
)
def test_what_cannot_be_pulled_is_one_sentence(tmp_path: Path, case: Refused) -> None:
    with FakeHub({REPOSITORY: {FILE: b"GGUF right"}}, **case.options) as hub:
        url = closed_port() if case.is_down else hub.url
        done = models("pull", case.model, url=url, home=tmp_path)
        n_bodies = sum(r.startswith("GET") and FILE in r for r in hub.requests)
    assert case.says in sentence(done)
    assert n_bodies == (1 if case.id == "corrupt" else 0)


def test_a_packages_model_is_not_unpacked_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vast = dataclasses.replace(LLM_MODELS["gemma-3-270m"], disk_mb=10**12)
    monkeypatch.setitem(LLM_MODELS, "gemma-3-270m", vast)
    with pytest.raises(WeightsError, match="set XDG_CACHE_HOME"):
        wiring.pull_model("gemma-3-270m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_a_packages_model_is_unpacked_and_checked(tmp_path: Path) -> None:
    done = models("pull", "gemma-3-270m", url=closed_port(), home=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("cache/delta-table-chat/*/*.gguf")
    assert str(path) in done.stdout
    assert path.stat().st_size == 253_113_024
    assert listed(closed_port(), tmp_path)["gemma-3-270m"]["installed"] == "yes"


# --- list ---


def test_the_list_has_the_catalogue_and_what_the_settings_name(tmp_path: Path) -> None:
    file = TinyModel(["a"], {}).write(tmp_path / "mine.gguf")
    (tmp_path / "rag.toml").write_text(f'[llm]\nmodel = "{file.name}"\nn_ctx = 1024\n')
    with FakeHub({}) as hub:
        found = listed(hub.url, tmp_path)
        as_table = models(url=hub.url, home=tmp_path)
        assert hub.requests == []
    assert found.keys() >= {*LLM_MODELS, "multilingual-e5-small", "mine.gguf"}
    assert [name for name, m in found.items() if m["is_used"]] == [
        "multilingual-e5-small",
        "mine.gguf",
    ]
    assert found["gemma-3-270m"]["installed"] == "package"
    assert found[MODEL]["installed"] == "no"
    mine = found["mine.gguf"]
    assert (mine["installed"], mine["n_bytes"]) == ("yes", file.stat().st_size)
    assert mine["speed"] is None
    lines = as_table.stdout.splitlines()
    at = lines[0].index("licence")
    (row,) = [line for line in lines if f"  {MODEL} " in line]
    assert row[at:] == "Gemma Terms of Use"
    assert row[at - 2 : at] == "  "
    assert [line.split()[1] for line in lines if line.startswith("* ")][:2] == [
        "multilingual-e5-small",
        "mine.gguf",
    ]


def test_a_gated_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    gated = dataclasses.replace(LLM_MODELS[MODEL], source=HubFile("org/x", "x.gguf", gated=True))
    monkeypatch.setitem(LLM_MODELS, MODEL, gated)
    assert [m.name for m in wiring.known_models(Settings()) if m.is_gated] == [MODEL]


def test_a_servers_model_stands_beside_the_local_ones() -> None:
    settings = Settings(llm={"model": "qwen", "base_url": "http://me:secret@127.0.0.1:1/v1?k=s"})
    (used,) = [m for m in wiring.known_models(settings) if m.is_used and m.kind == "language"]
    assert (used.name, used.installed) == ("qwen at http://127.0.0.1:1/v1", "server")
    assert used.memory_bytes is None


def test_memory_grows_with_the_context_window(tmp_path: Path) -> None:
    fields = {
        "general.architecture": "gemma3",
        "gemma3.block_count": 18,
        "gemma3.embedding_length": 640,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "tokenizer.ggml.tokens": ["a"] * 3,
    }
    path = write_gguf(tmp_path / "a.gguf", fields)
    assert gguf.network(path).cache_bytes == 18 * (256 + 256) * 2
    needs = [
        wiring.memory_bytes(Settings(llm={"model": str(path), "n_ctx": n_ctx}))
        for n_ctx in (1000, 2000)
    ]
    assert needs[1] - needs[0] == 1000 * 18 * (256 + 256) * 2


def test_what_is_no_gguf_takes_nothing_per_token(tmp_path: Path) -> None:
    for blob in (b"", b"GGUF", b"GGUF" + b"\xff" * 40, b"text, as long as a header would be"):
        (tmp_path / "a.gguf").write_bytes(blob)
        assert gguf.network(tmp_path / "a.gguf").cache_bytes == 0


def test_a_broken_link_in_the_hubs_cache_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub({REPOSITORY: {FILE: b"GGUF right"}}) as hub:
        assert models("pull", MODEL, url=hub.url, home=tmp_path).returncode == 0
        (blob,) = tmp_path.glob("hf/hub/*/blobs/*")
        blob.unlink()
        assert listed(hub.url, tmp_path)[MODEL]["installed"] == "no"


# --- use ---

TOML = """# my shop
[table]
uri = "shop"  # the Delta table

[llm]
# small, but here
model = "gemma-3-270m"
temperature = 0.2
"""


def test_a_choice_changes_one_value_and_nothing_else() -> None:
    Path("rag.toml").write_text(TOML)
    Path("rag.toml").chmod(0o640)
    choice = wiring.use_model(MODEL)
    assert Path("rag.toml").read_text() == TOML.replace("gemma-3-270m", MODEL)
    assert Path("rag.toml").stat().st_mode & 0o777 == 0o640
    assert Settings().llm.model == MODEL
    assert choice.kind == "language"
    assert [p.name for p in Path().iterdir()] == ["rag.toml"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[llm]\nmodel = "gemma-2b-it"\n'),
        ('llm = {model = "a.gguf", seed = 3}\n', 'llm = {model = "gemma-2b-it", seed = 3}\n'),
        ('llm.model = "a.gguf"\n', 'llm.model = "gemma-2b-it"\n'),
        ("[llm]\r\nseed = 3\r\n", '[llm]\r\nseed = 3\r\nmodel = "gemma-2b-it"\n'),
    ],
    ids=["no file", "inline", "dotted", "line ends of Windows"],
)
def test_a_choice_fits_the_file_as_it_is_written(before: str, after: str) -> None:
    if before:
        Path("rag.toml").write_bytes(before.encode())
    wiring.use_model("gemma-2b-it")
    assert Path("rag.toml").read_bytes().decode() == after
    assert Settings().llm.model == "gemma-2b-it"


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "shared.toml").write_text("[llm]\nseed = 3\n")
    Path("rag.toml").symlink_to(tmp_path / "shared.toml")
    wiring.use_model(MODEL)
    assert Path("rag.toml").is_symlink()
    assert MODEL in (tmp_path / "shared.toml").read_text()


@pytest.mark.parametrize("text", ["[llm\n", "llm = 3\n", "[llm]\nmodl = 'x'\n", "\xff"])
def test_a_file_that_cannot_be_read_is_left_as_it_is(text: str) -> None:
    Path("rag.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError) as raised:
        wiring.use_model(MODEL)
    assert "\n" not in str(raised.value)
    assert Path("rag.toml").read_bytes() == text.encode("latin-1")


def test_a_choice_says_what_is_missing_and_what_stands_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert stored.stored(MODEL).installed == "no"
    assert wiring.use_model(MODEL).notes == [f"It is not here yet: run `rag models pull {MODEL}`."]
    assert wiring.use_model("gemma-3-270m").notes == []
    monkeypatch.setenv("RAG_LLM__MODEL", "gemma-3-4b-it")
    (note,) = wiring.use_model("gemma-3-270m").notes
    assert note == "The environment sets RAG_LLM__MODEL to 'gemma-3-4b-it', which wins: unset it."


def test_another_embedding_model_means_another_index(tmp_path: Path) -> None:
    (tmp_path / "e5").mkdir()
    choice = wiring.use_model("e5")
    assert choice.kind == "embedding"
    assert choice.notes == ["Another embedding model: `rag sync` builds the index anew."]
    assert Settings().embedding.model == "e5"
    assert wiring.use_model("e5").notes == []


def test_a_local_file_and_a_servers_name_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TinyModel(["a"], {}).write(tmp_path / "mine.gguf")
    assert wiring.use_model("mine.gguf").kind == "language"
    assert Settings().llm.model == "mine.gguf"
    with pytest.raises(WeightsNotFound, match="There is no model 'qwen3'"):
        wiring.use_model("qwen3")
    monkeypatch.setenv("RAG_LLM__BASE_URL", "http://me:secret@127.0.0.1:1/v1")
    (note,) = wiring.use_model("qwen3").notes
    assert note == "The server at http://127.0.0.1:1/v1 is asked for it."
    assert Settings().llm.model == "qwen3"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gemma-3-1b", "Did you mean 'gemma-3-1b-it'?"),
        ("gone.gguf", "Model file 'gone.gguf' is not there"),
        ("notes.txt", "Model file 'notes.txt' is no `.gguf` file"),
        ("org/e5", "Run `rag models pull org/e5` first"),
        ("", "There is no model ''"),
    ],
)
def test_what_is_no_model_is_not_written(name: str, says: str) -> None:
    Path("notes.txt").write_text("hello")
    with pytest.raises(WeightsNotFound) as raised:
        wiring.use_model(name)
    assert says in str(raised.value)
    assert not Path("rag.toml").exists()


def test_the_command_tells_what_it_wrote(tmp_path: Path) -> None:
    done = models("use", MODEL, url=closed_port(), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"names {MODEL} as the language model" in done.stdout
    assert f"→ It is not here yet: run `rag models pull {MODEL}`." in done.stdout
    assert listed(closed_port(), tmp_path)[MODEL]["is_used"] is True
