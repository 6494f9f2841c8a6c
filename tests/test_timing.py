"""What a reader is told of waiting and of what an answer took."""

from __future__ import annotations

import pytest
from scripted_app import ANSWER, engine

from rag import timing
from rag.cli import answering
from rag.events import TurnTimings
from rag.llm.call import Waiting


@pytest.mark.parametrize(
    ("timings", "text"),
    [
        (TurnTimings(retrieval_s=0.05, total_s=0.06), "Answered in 0.06 s: search 0.05 s."),
        (
            TurnTimings(0.0, 0.7, 0.05, 12.34, 187, total_s=1234.5),
            "Answered in 1,234 s: question rewritten in 0.7 s, search 0.05 s, waited 0 s, prompt 187 tokens read, first word after 12 s.",
        ),
        (
            # a rule made the question self-contained by a search: nothing of its own
            TurnTimings(0.0, 0.3, 0.3, 0.4, total_s=1.44, tokens_per_s=41.4),
            "Answered in 1.4 s: search 0.3 s, waited 0 s, first word after 0.4 s, 41 tokens/s.",
        ),
    ],
    ids=["refusal", "rewritten", "server"],
)
def test_what_a_turn_took_is_told_as_far_as_it_is_known(timings: TurnTimings, text: str) -> None:
    assert timing.took(timings) == text


@pytest.mark.parametrize(
    ("waiting", "text"),
    [
        (Waiting(1, 0.0), "1 question comes before yours."),
        (Waiting(2, 0.2), "2 questions come before yours, about 1 s."),
        (Waiting(1200, 119), "1,200 questions come before yours, about 2 min."),
    ],
)
def test_a_place_is_told(waiting: Waiting, text: str) -> None:
    assert timing.waits(waiting) == text


def test_the_terminal_tells_each_place_once_beside_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    queue = (Waiting(2, 8.2), Waiting(2, 7.6), Waiting(1, 0.0))
    answering._show(engine(ANSWER, queue=queue).events("What helps?"))
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "2 questions come before yours, about 8 s.",
        "1 question comes before yours.",
    ]
    assert "before yours" not in shown.out
    assert "silver dagger" in shown.out
