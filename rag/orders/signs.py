"""The signs by which a sentence is told to give an order to a language model.

Knows patterns only, for folded text. No sign but a secret asked for or a forged turn is an order
alone: `print` and `ignore` are ordinary advice until the text speaks to a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.orders.wording import (
    ADDRESSED,
    CONDITION,
    DEED,
    DEMAND,
    EXACTLY,
    FEIGNED,
    LABEL,
    LEADING,
    LOOSE_OVERRIDE,
    LOOSELY_ADDRESSED,
    MANNER,
    MODEL,
    NEW_ROLE,
    ONE_WORD,
    ONLY,
    OVERRIDE,
    PERSONA,
    PURPOSE,
    REPLIES,
    SCRIPT,
    SECRET,
    SPELT,
    TASK,
    TOKEN,
    WORDED,
    any_of,
)

_ASKED_OF = any_of(
    rf"\b(?:{MODEL}|assistant)\b",
    r"\b(?:ki|sprachmodell|assistent|ia|asistente)(?:en|s|e)?\b|人工智能|语言模型|助手",
)
_ATTACK = any_of(r"\b(?:prompt[- ]injections?|jailbreak\w*|hijack\w*)\b")
_WHAT_TO_SAY = any_of(
    r"\b(?:what|how|which) [^?]{0,40}?\b(?:say|tell|answer|reply|respond)\b(?! me)",
    r"\b(?:was|wie) [^?]{0,40}?\b(?:sag|antwort)\w*",
    r"\b(?:qué|que|cómo|comment) [^?]{0,40}?\b(?:decir|digo|decimos|respond\w+|contest\w+|dire|"
    r"dit-on|répond\w*)\b",
    r"(?:说|說|回答|回复|回覆)(?:什么|什麼)|(?:怎么|怎麼|如何)(?:说|說|回答|回复|回覆)",
)
_POLITE = any_of(r"\b(?:please|bitte|por favor|s'il (?:te|vous) pla[iî]t)\b|[请請]")


def asks_for_orders(question: str) -> bool:
    """Whether a question is about what a text tells a model, or tells it itself."""
    is_about = _ASKED_OF.search(question) and (DEMAND.search(question) or DEED.search(question))
    return bool(is_about or _ATTACK.search(question) or OVERRIDE.search(question))


def asks_what_to_say(question: str) -> bool:
    """Whether a question is what to say, as the staff asks that a script tells what to say."""
    return bool(_WHAT_TO_SAY.search(question))


def speaks(sentence: str) -> bool:
    """Whether a sentence speaks to a model, so that a demand right after it is an order."""
    is_told = any(p.search(sentence) for p in (OVERRIDE, PERSONA, ADDRESSED))
    return bool(TOKEN.match(sentence)) or (is_told and not CONDITION.search(sentence))


def orders(sentence: str, *, is_script_asked: bool = False) -> bool:
    """Whether a sentence gives a model an order, whatever stands beside it.

    Args:
        sentence: Folded.
        is_script_asked: What to say to whoever asks is then data.
    """
    says, does = bool(DEMAND.search(sentence)), bool(DEED.search(sentence))
    is_exact = bool(EXACTLY.search(sentence))
    if SECRET.search(sentence) or (TOKEN.match(sentence)) or len(TOKEN.findall(sentence)) > 1:
        return True
    if override := OVERRIDE.search(sentence):
        rest = _POLITE.sub("", sentence[: override.start()] + sentence[override.end() :])
        is_bare = not re.search(r"\w\W+\w", rest)
        return is_bare or bool(DEMAND.search(rest)) or (does and is_exact)
    if PERSONA.search(sentence) or ADDRESSED.search(sentence):
        return says or does
    if _is_ruled(sentence) or (SCRIPT.search(sentence) and not is_script_asked):
        return True
    is_loose = any(p.search(sentence) for p in (LOOSE_OVERRIDE, LOOSELY_ADDRESSED, LABEL))
    return is_loose and is_exact and (says or does)


def _is_ruled(sentence: str) -> bool:
    """Whether a sentence lays down how to answer: from now on, as a task, or with one word."""
    if NEW_ROLE.search(sentence):
        is_worded = REPLIES.search(sentence) and WORDED.search(sentence)
        if MANNER.search(sentence) or (is_worded and EXACTLY.search(sentence)):
            return True
    if TASK.search(sentence) and (SPELT.search(sentence) or FEIGNED.search(sentence)):
        return True
    word = ONE_WORD.search(sentence)
    if not word or not ONLY.search(word[0]) or not EXACTLY.search(sentence, word.end()):
        return False
    return not (CONDITION.search(sentence) or PURPOSE.search(sentence, word.end()))


def goes_on(before: str, sentence: str, *, is_order: bool) -> bool:
    """Whether a sentence goes on with what the one before it says to a model."""
    if NEW_ROLE.search(before) and MANNER.search(sentence):
        return True
    if TASK.search(before) and (SPELT.search(sentence) or FEIGNED.search(sentence)):
        return True
    says = bool(DEMAND.search(sentence))
    is_exact = bool(EXACTLY.search(sentence) and DEED.search(sentence))
    if LABEL.search(before) and not is_order:
        return bool(EXACTLY.search(sentence)) and says
    if LOOSE_OVERRIDE.search(before) and not CONDITION.search(before):
        return says and bool(EXACTLY.search(sentence))
    return (is_order or speaks(before)) and (says or is_exact)


def first(sentence: str) -> int:
    """Return where in a sentence the words to the model begin."""
    if TOKEN.match(sentence):
        return 0
    to_model = (
        OVERRIDE,
        LOOSE_OVERRIDE,
        SECRET,
        PERSONA,
        ADDRESSED,
        LOOSELY_ADDRESSED,
        TASK,
        SCRIPT,
    )
    return min((m.start() for p in to_model if (m := p.search(sentence))), default=0)


def n_framed(labels: Sequence[str], *, is_first: bool) -> int:
    """Return how many of a passage's frame labels are data; those after them forge a turn.

    A list of questions and answers is data where the passage begins with it, one pair elsewhere; so
    are labels without an answer, or of one kind.

    Args:
        labels: As they follow each other in the passage.
        is_first: Whether the passage begins with them, but for a title.
    """
    row = "".join(label[0].upper() for label in labels)
    if "A" not in row or len(set(row)) == 1:
        return len(row)
    data = re.match("P?(?:Q+A?)*" if is_first else "(?:P?QA)?", row)
    return data.end() if data else 0


# --- what an order carries -----------------------------------------------------------------------

_QUOTED = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«\s*([^»]+?)\s*»|`([^`]+)`|<([^<>]+)>|「([^」]+)」"
    r"|『([^』]+)』|(?<!\w)'([^']+)'(?!\w)|‘([^’]+)’"
)
_CODE = re.compile(r"\b(?=[\w-]{0,40}\d)(?=[\w-]{0,40}[^\W\d_])\w{1,40}(?:-\w{1,40})*|\b\d{4,}\b")
"""Letters with digits, and long numbers: nobody writes them by chance."""
_CAPITALS = re.compile(r"(?<![A-Za-z])[A-Z]{4,}(?:[ -][A-Z]{2,})*(?![A-Za-z])")
"""Words in capitals; an order in capitals throughout has none."""
_N_DEMANDS, _MOST_CHARS = 16, 300
"""Of an order that are read; what such an order wants beyond them is known by its words."""
_LEAD = any_of(rf"^\W*(?:(?:to|{LEADING}) )*")
_TAIL = any_of(r"(?: (?:aus|for me|please|bitte|only|instead))*\W*$")


def payloads(order: str) -> list[str]:
    """Return what an order wants to be said: quoted, else what follows a demand; and codes."""
    order = TOKEN.sub(" ", order)
    said = [next(filter(None, groups)) for groups in _QUOTED.findall(order)]
    if not said:
        ends = sorted(m.end() for p in (DEMAND, DEED) for m in p.finditer(order))[-_N_DEMANDS:]
        rests = [order[end:] for end in ends if len(order) - end <= _MOST_CHARS]
        said = [_TAIL.sub("", _LEAD.sub("", rest)) for rest in rests]
    codes: list[str] = _CODE.findall(order)
    if not (order.isupper() and order.isascii()):
        codes += _CAPITALS.findall(order)
    parts = [p for c in codes for p in re.findall(r"[^\W\d_]{4,}|\d{4,}", c)]
    return [text for text in [*said, *codes, *parts] if len(text) <= _MOST_CHARS]
