"""How good the answers are, measured on questions whose answers are known.

Knows the search and the turns of the chat; does not know settings.

    questions.py  what is asked and what is expected, read from a file or a Delta table
    asking.py     each question asked, in every mode and of the chat
    metrics.py    the figures, with bootstrap intervals
    results.py    outcomes become figures, failures and JSON
    wanted.py     the least that a figure must be, for scripts
    page.py       the figures and failures as one HTML page
    drafting.py   questions drafted from rows, for a human to edit
"""

from rag.evaluation.asking import DEPTH, Chat, Outcome, Search, ask_each
from rag.evaluation.questions import Question, parse, read
from rag.evaluation.results import MODES, Evaluation, measure

__all__ = [
    "DEPTH",
    "MODES",
    "Chat",
    "Evaluation",
    "Outcome",
    "Question",
    "Search",
    "ask_each",
    "measure",
    "parse",
    "read",
]
