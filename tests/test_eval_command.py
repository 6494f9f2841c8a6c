"""`rag eval` as it is typed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rag
from rag.cli import app
from rag.errors import QuestionError, RagError, SettingsError
from rag.evaluation import read

ASKED = [
    {
        "question": "How do I sail past the sirens?",
        "expected": "fs-017",
        "answer": "wax",
    },
    {
        "question": "And how do I use it?",
        "expected": ["fs-017"],
        "previous": ["How do I sail past the sirens?"],
    },
    {"question": "What is the capital of France?", "expected": None},
]


def refused(*arguments: str) -> RagError:
    found = CliRunner().invoke(app, ["eval", *arguments]).exception
    assert isinstance(found, RagError), found
    assert len(str(found).splitlines()) == 1
    return found


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in ASKED))
    return path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "or draft some with `rag eval --make 50`"),
        (("q.jsonl", "--make", "5"), "--make drafts questions: it goes with --output and --json"),
        (("--make", "5", "--no-answers"), "--make drafts questions"),
        (("q.jsonl", "--output", "x"), "--output says where --make writes"),
        (("q.jsonl", "--html", "no/such/folder/x.html"), "name a file in a folder that is there"),
        (("q.jsonl", "--html", "."), "name a file in a folder that is there"),
        (("q.jsonl", "--modes", "vector,meaning"), "The mode is 'meaning'; there are vector, text"),
        (("q.jsonl", "--fail-under", "recal@5=0.9"), "Did you mean 'recall@5'?"),
        (("q.jsonl", "--fail-under", "recall@5"), "write a figure and a number"),
        (("q.jsonl", "--modes", "text", "--fail-under", "vector.recall@5=1"), "is no figure"),
        (("q.jsonl", "--no-answers", "--fail-under", "answer.support=1"), "is no figure"),
    ],
)
def test_what_does_not_fit_together_is_told_before_anything_is_read(
    arguments: tuple[str, ...], told: str
) -> None:
    found = refused(*arguments)
    assert isinstance(found, SettingsError)
    assert told in str(found)


def test_questions_that_cannot_be_read_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    assert "cannot be read: no such file" in str(refused("gone.jsonl"))
    (tmp_path / "bad.yaml").write_text("- question: What?")
    found = refused("bad.yaml", "--no-answers")
    assert isinstance(found, QuestionError)
    assert "bad.yaml, record 1 has no field 'expected'" in str(found)


def test_drafts_never_overwrite_a_file(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("edited by hand")
    assert "'questions.jsonl' is there already" in str(refused("--make", "5"))
    assert (tmp_path / "questions.jsonl").read_text() == "edited by hand"


def test_ctrl_c_reports_what_was_measured(questions: Path) -> None:
    code = """
import sys, time
from rag import cli, wiring
from rag.evaluation import Outcome, Question, Search
from rag.wiring.evaluating import EvaluationPlan
class Slow(EvaluationPlan):
    def ask_each(self, progress):
        yield Outcome(Question("rope?", ("7",)), "rope?", {"hybrid": ()}, 0.0)
        print("asking", flush=True)
        time.sleep(60)
def plan(settings, questions, **_):
    search = Search({"hybrid": None}, None, "hybrid", 0.5)
    return Slow(tuple(questions), search, None, {}, "shop", 3)
wiring.plan_evaluation = plan
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "eval", str(questions), "--json", "--fail-under", "mrr@10=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate()
    assert process.returncode == 130, told
    assert "Stopped after 1 of 3 questions." in told
    assert json.loads(printed)["failures"] == {"not found": 1}


@pytest.mark.model
def test_an_evaluation_from_questions_to_exit_code(in_shop: Path, questions: Path) -> None:
    page = questions.with_suffix(".html")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rag", "eval", str(questions), "--json", "--html", str(page)),
            *("--fail-under", "recall@5=0.9", "--fail-under", "time.tokens_per_s=100000"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "asking 0/3" in done.stderr
    failed = re.findall(r"Failed: (.*)", done.stderr)
    assert len(failed) == 1, failed
    assert re.fullmatch(
        r"time\.tokens_per_s is [\d.]+; wanted at least (1e\+05|100000)\.", failed[0]
    )
    found = json.loads(done.stdout)
    measured = found["metrics"]
    assert found["table_version"] == 3
    for mode in ("vector", "text", "hybrid"):
        assert measured[f"{mode}.recall@10"]["n"] == 2
    assert measured["hybrid.recall@5"]["value"] == 1
    assert measured["answer.citation_precision"]["value"] == 1
    assert measured["answer.contains_reference"] == {"value": 1, "low": 1, "high": 1, "n": 1}
    assert measured["refusal.recall"]["value"] == measured["refusal.auc"]["value"] == 1
    assert measured["time.first_token_s"]["value"] > 0
    assert "sirens" in found["questions"][1]["query"]
    assert "<h1>Evaluation</h1>" in page.read_text()


@pytest.mark.model
def test_without_answers_no_language_model_is_loaded(in_shop: Path, questions: Path) -> None:
    code = "import sys, rag.cli; sys.argv[0] = 'rag'\ntry: rag.cli.main()\nfinally: print('llama_cpp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", str(questions), "--no-answers", "--modes", "text"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *report, loaded = done.stdout.strip().splitlines()
    assert loaded == "False"
    assert "Asked 3 questions of data/fantasy-library, version 3" in report[0]
    assert any(re.match(r"recall@5 +\d\.\d{3} \(", line) for line in report)
    assert "answer.support" not in done.stdout


@pytest.mark.model
def test_an_expected_row_that_is_not_there_is_named(in_shop: Path) -> None:
    asked = [{"question": "a?", "expected": ["fs-001", "fs-9999", "5"]}]
    with pytest.raises(QuestionError, match="question 1 expects row 'fs-9999', which the index"):
        rag.evaluate(rag.Settings(), asked, with_answers=False)


@pytest.mark.model
def test_the_python_door_takes_records(in_shop: Path) -> None:
    found = rag.evaluate(rag.Settings(), ASKED, modes=["vector"], with_answers=False)
    assert found.metrics["vector.recall@1"].value == 1
    assert found.to_dict()["n_refusable"] == 1


@pytest.mark.model
def test_drafts_can_be_asked_as_they_are(in_shop: Path, tmp_path: Path) -> None:
    path = tmp_path / "drafts.jsonl"
    done = CliRunner().invoke(app, ["eval", "--make", "4", "--output", str(path)])
    assert done.exit_code == 0, done.exception
    assert "They are drafts" in done.stdout
    drafts = [json.loads(line) for line in path.read_text().splitlines()]
    print(*drafts, sep="\n")
    assert len({d["expected"] for d in drafts}) == 4
    assert all(d["question"].strip() and d["answer"].startswith("For ") for d in drafts)
    assert any(d["drafted_by"] == "model" for d in drafts)
    found = rag.evaluate(rag.Settings(), str(path), with_answers=False)
    assert found.metrics["hybrid.recall@10"].value >= 0.5


def test_the_demo_conversations_can_be_asked() -> None:
    found = read(str(Path(__file__).parent / "data" / "demo_conversations.yaml"))
    assert len(found) == 30
    assert all(q.expected for q in found)
