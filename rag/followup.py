"""A follow-up question, made self-contained by rule.

Knows words only. A model of the smallest size cannot rewrite a question, a rule can: it carries
the last question's content words into one that cannot stand alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
_SHORT = 3
"""With a pointer and at most this many content words of its own, a question leans on the last."""


def standalone(question: str, earlier: Sequence[str]) -> str:
    """Return the question with what it needs from the earlier ones.

    Args:
        question: As typed.
        earlier: Earlier questions, oldest first.
    """
    if not earlier or not is_followup(question):
        return question
    # the last question may lean on the one before it
    context = standalone(earlier[-1], earlier[:-1])
    own = {w.stem for w in content_words(question)}
    carried: list[str] = []
    for word in content_words(context):
        if word.stem not in own:
            own.add(word.stem)
            carried.append(context[word.start : word.end])
    return f"{question} ({' '.join(carried)})" if carried else question


def is_followup(question: str) -> bool:
    """Whether a question cannot stand alone."""
    n_own = len(content_words(question))
    if _OPENERS.match(question.strip()):
        return n_own <= 2 * _SHORT
    return n_own == 0 or (n_own <= _SHORT and bool(_POINTERS.search(question)))
