"""`rag doctor`: what it sees on this machine, and what it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import TinyModel

from rag import doctor, weights, wiring
from rag.settings import Settings
from rag.wiring import measuring


def found(settings: Settings, name: str) -> doctor.Check:
    (check,) = [c for c in doctor.run(settings) if c.name == name]
    return check


def put_tool(folder: Path, script: str) -> None:
    """Put a `nvidia-smi` of ours into a folder."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "echo 'NVIDIA A, B, 81559, 80000'; echo 'NVIDIA T4, 15360, 12'",
            "0: NVIDIA A, B, 80000 of 81559 MiB free; 1: NVIDIA T4, 12 of 15360 MiB free",
        ),
        ("exit 9", "an NVIDIA GPU that `nvidia-smi` does not describe"),
        ("exit 0", "none found: the models run on the CPU"),
    ],
    ids=["two", "driver fails", "none"],
)
def test_gpus_are_named_with_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    put_tool(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert found(Settings(), "GPU").found.startswith(says)


def test_a_context_beyond_the_memory_is_bad(tmp_path: Path) -> None:
    path = TinyModel(["a"], {}, llama__block_count=500).write(tmp_path / "mine.gguf")
    small = Settings(llm={"model": str(path), "n_ctx": 512})
    assert found(small, "memory").verdict == "ok"
    vast = found(Settings(llm={"model": str(path), "n_ctx": 1 << 24}), "memory")
    assert vast.verdict == "bad"
    assert "RAG_LLM__N_CTX" in vast.remedy


def test_a_server_is_named_without_its_secrets() -> None:
    settings = Settings(llm={"model": "qwen", "base_url": "https://me:secret@127.0.0.1:1/v1"})
    check = found(settings, "language model")
    assert check.found == "qwen, run by the server at https://127.0.0.1:1/v1"


def test_a_record_that_is_broken_or_of_another_version_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    record = weights.cache_dir() / "speeds.json"
    record.parent.mkdir(parents=True)
    other = {"llm": {"a": {"tokens": 3}}}
    for text in ("{", "[]", '{"llm": 3}', '{"llm": {"a": 3}}', json.dumps(other)):
        record.write_text(text)
        assert measuring.llm_speeds() == {}, text
        assert len(wiring.known_models(Settings())) > 3


@pytest.mark.model
def test_a_bench_measures_and_the_list_of_models_shows_it(
    shop_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "delta-table-chat"
    cache.mkdir()
    for made in weights.cache_dir().iterdir():  # what is unpacked already; the record is ours
        if made.name != "speeds.json":
            (cache / made.name).symlink_to(made)
    done = subprocess.run(
        [sys.executable, "-m", "rag", "doctor", "--bench", "--json"],
        cwd=shop_folder,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    bench = json.loads(done.stdout)["bench"]
    assert bench["embedding_speed"]["texts_per_s"] > 0
    assert bench["retrieval_ms"] > 0
    assert bench["llm_speed"]["prompt_tokens_per_s"] > bench["llm_speed"]["decode_tokens_per_s"] > 0
    prompt_s = 350 / bench["llm_speed"]["prompt_tokens_per_s"]
    decode_s = 60 / bench["llm_speed"]["decode_tokens_per_s"]
    waited_s = bench["retrieval_ms"] / 1000
    assert bench["first_word_s"] == pytest.approx(waited_s + prompt_s)
    assert bench["turn_s"] == pytest.approx(waited_s + prompt_s + decode_s)
    assert 0 <= bench["busy_share"] <= 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speeds = {m.name: m.speed for m in wiring.known_models(Settings())}
    assert speeds["gemma-3-270m"] == measuring.LlmSpeed(**bench["llm_speed"])
    assert speeds["multilingual-e5-small"] == measuring.EmbeddingSpeed(**bench["embedding_speed"])
    assert speeds["gemma-3-4b-it"] is None
