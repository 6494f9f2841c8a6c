"""The README is true: its tables are generated, its tree is complete, its commands run.

`python tests/test_docs.py` writes the generated parts anew.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rag
from rag import errors
from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS, PackageFile
from rag.settings import leaves, variable

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

RUN_ELSEWHERE = {
    "make chat": "tests/test_make.py",
    "make test": "what runs this test",
    "source .venv/bin/activate": "the environment that runs this test",
    "rag chat": "tests/test_cli.py",
    "rag sync --follow --every 30s": "tests/test_sync_command.py",
    "chainlit run app.py": "tests/test_browser.py",
    "rag models pull gemma-3-4b-it": "tests/test_models.py, with a small file on loopback",
    "pip install '.[server]'": "the environment that runs this test",
    "rag serve-model --parallel 8": "tests/test_serving.py",
    "rag user add ann --admin": "tests/test_accounts.py",
    "chainlit run app.py --host 0.0.0.0": "tests/test_auth.py",
    "rag feedback export ratings": "tests/test_accounts.py",
    "rag eval ratings": "tests/test_accounts.py",
}


def settings_table() -> str:
    lines = ["| variable | default | what it does |", "|---|---|---|"]
    for group, name, default, description in leaves():
        if default is None or default == {}:
            shown = "unset"
        else:
            shown = f"`{json.dumps(default, ensure_ascii=False)}`"
        lines.append(f"| `{variable(group, name)}` | {shown} | {description} |")
    return "\n".join(lines)


def models_table() -> str:
    lines = ["| model | for | from | memory | licence |", "|---|---|---|---|---|"]
    lines += [
        f"| `{e.name}` (default) | embedding | package `{e.source.package}` "
        f"| {e.memory_mb / 1000:.1f} GB | {e.licence} |"
        for e in EMBEDDING_MODELS.values()
    ]
    for m in LLM_MODELS.values():
        packaged = isinstance(m.source, PackageFile)
        origin = f"package `{m.source.package}`" if packaged else f"hub, `{m.source.repository}`"
        mark = " (default)" if packaged else ""
        lines.append(
            f"| `{m.name}`{mark}, {m.quantisation} | answers | {origin} "
            f"| {m.memory_mb / 1000:.1f} GB | {m.licence} |"
        )
    return "\n".join(lines)


GENERATED = {"settings": settings_table, "models": models_table}


def generated(text: str) -> str:
    for name, make in GENERATED.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- /{name} -->)"
        text, n = re.subn(
            pattern, lambda m, make=make: m[1] + make() + "\n" + m[2], text, flags=re.DOTALL
        )
        assert n == 1, name
    return text


def fences(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_generated_parts_are_up_to_date() -> None:
    text = README.read_text()
    assert generated(text) == text, "run `python tests/test_docs.py` to write them anew"


def test_the_tree_names_every_room_and_nothing_else() -> None:
    (tree,) = fences("text")
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, flags=re.MULTILINE))
    rooms = {
        p.name if p.is_file() else f"{p.name}/"
        for p in (ROOT / "rag").iterdir()
        if (p.suffix == ".py" or (p / "__init__.py").exists()) and not p.name.startswith("__")
    }
    assert named == rooms


def test_every_error_is_drawn_in_the_tree() -> None:
    classes = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.RagError)
    }
    drawn = set(re.findall(r"[─ ](\w+)  ", f" {errors.__doc__}  ")) & classes
    assert drawn | {"RagError"} == classes
    for name in classes:
        assert inspect.getdoc(getattr(errors, name)), name


def test_every_command_of_the_readme_is_known_to_a_test() -> None:
    commands = [line for block in fences("bash") for line in block.strip().splitlines()]
    assert len(commands) > 8
    run_here = {line for block in fences("bash")[2:7] for line in block.strip().splitlines()}
    for command in commands:
        known = command in RUN_ELSEWHERE or command.startswith("export RAG_") or command in run_here
        assert known, command
    targets = set(re.findall(r"`?make ([a-z-]+)", README.read_text()))
    for target in targets:
        made = f"^{target}:"
        assert re.search(made, (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target


@pytest.mark.model
def test_the_commands_of_the_readme_run(in_shop: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = 0
    for line in fences("bash")[2].strip().splitlines():
        if line in RUN_ELSEWHERE:
            continue
        subprocess.run(line, shell=True, check=True, env=environment, capture_output=True)
        ran += 1
    assert ran >= 5


def test_the_commands_for_other_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = [line for line in fences("bash")[6].strip().splitlines() if line not in RUN_ELSEWHERE]
    assert len(ran) == 2
    for line in ran:
        subprocess.run(line, shell=True, check=True, env=environment, capture_output=True)
    assert 'model = "gemma-3-4b-it"' in (tmp_path / "rag.toml").read_text()


@pytest.mark.model
def test_the_commands_for_a_changing_table_run(
    shop_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shop_folder / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = ""
    for line in fences("bash")[4].strip().splitlines():
        if line not in RUN_ELSEWHERE:
            done = subprocess.run(
                line, shell=True, check=True, env=environment, capture_output=True, text=True
            )
            said += done.stdout
    assert "version 2 beside version 3, which still answers" in said
    assert "No longer addressable: version 2." in said


@pytest.mark.model
def test_the_commands_of_an_evaluation_run(
    in_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(in_shop / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    lines = fences("bash")[5].strip().splitlines()
    assert len(lines) == 3
    for line in lines:
        subprocess.run(line, shell=True, check=True, env=environment, capture_output=True)
    assert "<table" in (tmp_path / "failures.html").read_text()


@pytest.mark.model
def test_your_own_table_in_five_lines(in_shop: Path, tmp_path: Path) -> None:
    import polars as pl
    from deltalake import write_deltalake

    write_deltalake(
        str(tmp_path / "mine"),
        pl.DataFrame({"title": ["Teapot"], "description": ["Blue, holds a litre"]}),
    )
    lines = fences("bash")[3].strip().splitlines()
    assert len(lines) == 5
    script = [
        line.replace("/path/to/your/delta-table", str(tmp_path / "mine"))
        for line in lines
        if line not in RUN_ELSEWHERE
    ]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(script)], env=environment, capture_output=True, text=True
    )
    assert "+1 ~0 −0 rows" in done.stdout, done.stderr


@pytest.mark.model
def test_the_python_example_runs(in_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = fences("python")
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "wolfsbane" in printed.lower()
    assert "fs-001" in printed
    assert names["hits"]
    assert rag.__all__


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
