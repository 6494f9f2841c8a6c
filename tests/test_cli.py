from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

Write = Callable[..., str]


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAG_")} | variables
    return subprocess.run(
        [sys.executable, "-m", "rag", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_help_names_every_command_and_the_first_steps(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("demo", "sync", "ask", "chat", "status", "doctor", "settings", "RAG_TABLE__URI"):
        assert word in done.stdout


def test_the_cli_does_not_wait_for_heavy_libraries(tmp_path: Path) -> None:
    code = "import sys, rag.cli; print({'torch','llama_index','lancedb','llama_cpp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_an_error_is_one_sentence_and_a_code(tmp_path: Path) -> None:
    done = run("sync", cwd=tmp_path, RAG_TABLE__URI="nowhere")
    assert done.returncode == 1
    assert done.stdout == ""
    assert " ".join(done.stderr.split()).startswith("Error: There is no Delta table at 'nowhere'")
    assert "Traceback" not in done.stderr
    mistyped = run("status", cwd=tmp_path, RAG_TABLE__URL="x")
    assert mistyped.returncode == 1
    assert "Did you mean 'RAG_TABLE__URI'" in " ".join(mistyped.stderr.split())


def test_demo_refuses_a_foreign_table(tmp_path: Path, write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"mine": [1]}))
    done = run("demo", cwd=tmp_path, RAG_TABLE__URI=uri)
    assert done.returncode == 1
    skipped = run("demo", "--only-default", cwd=tmp_path, RAG_TABLE__URI=uri)
    assert skipped.returncode == 0
    assert pl.read_delta(uri).columns == ["mine"]


def test_settings_are_listed_without_secrets(tmp_path: Path) -> None:
    done = run("settings", cwd=tmp_path, RAG_TABLE__STORAGE_OPTIONS='{"AWS_SECRET": "hunter2"}')
    assert "RAG_LLM__MODEL" in done.stdout
    assert "AWS_SECRET" in done.stdout
    assert "hunter2" not in done.stdout


def test_rows_give_the_terminal_no_orders() -> None:
    from rag.cli.terminal import out, plain

    with out.capture() as captured:
        out.print(plain("a :bomb: \x1b]0;title\x07 [red]b[/] \x1b[2J\n"), end="")
    assert captured.get() == "a :bomb: ]0;title [red]b[/] [2J\n"


def test_status_before_anything_is_there(tmp_path: Path) -> None:
    done = run("status", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["table_version"] is None
    assert status["index_version"] is None
    assert "no Delta table" in status["table_problem"]


def test_ctrl_c_ends_a_sync_with_one_sentence(tmp_path: Path, write_table: Write) -> None:
    uri = write_table(pl.DataFrame({"t": ["a"]}))
    code = """
import signal, time
from rag import cli, wiring
def slow(*_, **__):
    print("syncing", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:  # as a library might
            pass
wiring.sync = slow
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sync"],
        env=os.environ | {"RAG_TABLE__URI": uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "syncing\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert told.strip().startswith("Stopped. The index is as it was")


def test_a_bad_question_is_told_before_the_models_load(tmp_path: Path) -> None:
    for question, message in (("", "is empty"), ("x" * 5000, "has 5,000 characters")):
        done = run("ask", question, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
        assert "loading" not in done.stderr


@pytest.mark.model
def test_from_demo_to_answer(shop_folder: Path) -> None:
    again = run("demo", cwd=shop_folder)
    assert "Already there" in again.stdout
    report = json.loads(run("sync", "--json", cwd=shop_folder).stdout)
    assert report["n_embedded"] == 0
    assert report["table_version"] == 3
    status = run("status", cwd=shop_folder)
    assert "version 3" in status.stdout
    doctor = run("doctor", "--json", cwd=shop_folder)
    assert doctor.returncode == 0, doctor.stdout
    assert {c["name"] for c in json.loads(doctor.stdout)} >= {"Python", "memory", "index"}
    asked = run("ask", "What do I need against a werewolf?", cwd=shop_folder)
    assert asked.returncode == 0, asked.stderr
    assert "wolfsbane" in asked.stdout.lower()
    assert "[1]" in asked.stdout
    assert "data/fantasy-library · version 3 · row fs-001" in asked.stdout
    as_json = run("ask", "--json", "What is the capital of France?", cwd=shop_folder)
    assert json.loads(as_json.stdout)["refused"] is True
    found = json.loads(
        run("ask", "--json", "How do I sail past the sirens?", cwd=shop_folder).stdout
    )
    cited, source = found["citations"][0], found["sources"][0]
    assert cited["row_key"] == source["metadata"]["row_id"]
    span = source["text"][cited["start"] : cited["end"]]
    assert span
    assert {w.strip(",.").lower() for w in span.split()} & set(found["answer"].lower().split())
    assert span in "For {Scenario} you should use {Advice}".format(**source["metadata"])


@pytest.mark.model
def test_a_terminal_conversation_remembers(shop_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rag", "chat"],
        cwd=shop_folder,
        input="What do I need against a werewolf?\nAnd how dangerous is it?\n\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("row fs-001") == 2
