"""What is asked: checked, and made self-contained where it leans on an earlier question.

Knows words and messages; what the table holds on a wording it is told by whoever can search
(`Look`). A model of the smallest size cannot rewrite a question, a rule can: it puts the last topic
in front of a question that has none of its own. What a capable model writes instead is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from rag.errors import QuestionError
from rag.orders import visible
from rag.words import content_words, names, stems


class Found(NamedTuple):
    """The best row for a wording."""

    text: str
    share: float
    """Its relevance, as a share of the least that is answered from."""

    @classmethod
    def of(cls, text: str, relevance: float, *, least: float) -> Found:
        """Judge a row by its relevance and the least that is answered from."""
        return cls(text, relevance / least if least else 1.0)

    @property
    def is_relevant(self) -> bool:
        """Whether it would be answered from; else the table holds nothing on the wording."""
        return self.share >= 1


Look = Callable[[str], Found | None]
"""Searches the table for a wording."""

Kind = Literal["chatter", "alone", "pointing", "opened"]
"""`chatter` is no question; `alone` is complete; `pointing` is about what was just spoken of (it,
there, why?); `opened` begins as the continuation of another (and …, what about …)."""

_OPENER = re.compile(
    r"^[\s¿¡]*(?:(?:(?:and|but|or|so|then|also|ok|okay|well|what about|how about|what(?= if\b)|"
    r"(?:why|how)(?= (?:the|not)\b)|und|oder|aber|was ist mit|y|o|pero|qué tal|et|ou|mais|"
    r"qu['’]en est-il)\b|那么?|还有)[\s,:–-]*)+",
    re.IGNORECASE,
)
_POINTERS = re.compile(
    r"\b(?:it|its|they|them|their|theirs|this|these|those|he|him|his|she|her|hers|"
    # "there are" says that something exists, "there" after or without it says where
    r"(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )there(?! (?:is|are|was|were|any)\b)|"
    r"there(?=\W*$)|"
    r"ihn|ihm|ihnen|dafür|dagegen|damit|davon|dazu|dort|dabei|"
    r"eso|esto|ello|él|ella|ellos|ellas|allí|ça|cela|lui|eux)\b"
    # "that" points behind a verb or a preposition, it joins clauses elsewhere
    r"|(?:^|\b(?:is|was|does|do|did|can|will|would|for|with|about|of|at|like|after|before|against|"
    r"use|buy|need|why|how)\s+)that\b"
    r"|\bones?(?=\W*$)|[它他她]|这个|那个|那里|这里",
    re.IGNORECASE,
)
_EXPLETIVE = re.compile(
    r"\bit(?:\s+(?:is|was|has|had|will|be|been|not|ever|never|going to))*\s+"
    r"(?:be|takes?|took|rain\w*|snow\w*)\b",
    re.IGNORECASE,
)
"""An "it" that stands for nothing: will it be sunny, how long does it take."""
_VAGUE = re.compile(
    r"\b(?:anything|something|nothing|everything|another|others?|else|instead|cheaper|better|same|"
    r"such|both|either|neither|alternatives?)\b",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"^\W*(?:warum|wieso|weshalb|wie ?viel|por qué|cuánto|pourquoi|combien|为什么|多少钱?)\W*$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"^(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|"
    r"would|should|may|must|has|have)\b",
    re.IGNORECASE,
)
_CIRCUMSTANCE = re.compile(
    r"^(?:(?:at|in|on|during|if|when|while|without|with|by|after|before|from|"
    r"bei|im|am|ohne|mit|wenn|nachts|de|por|en|sin|con|si|la|sans|avec|à)\b|[^\x00-\u2fff])",
    re.IGNORECASE,
)
"""At night, in winter, if it rains; Chinese and Japanese put such words last, so any."""
_MOMENT = re.compile(r"^(?:at|in|on|during|by|without) \w+\W*$", re.IGNORECASE)
"""At night, on foot, without an article: no topic, though many a row has a night in it."""
_DEFINITE = re.compile(r"\b(?:the|those|these|this)\s", re.IGNORECASE)
_PURPOSE = re.compile(r"^(?:for|against|für|gegen|para|contra|pour|contre)\b", re.IGNORECASE)
_ASKING = re.compile(r"\b(?:need|take|use|bring|buy|get|have)$", re.IGNORECASE)
_LINKS = re.compile(r"(?:\s+(?:to|for|against|with|about|in|on|at|the|a|an|my|our))+$")
_CHATTER = frozenset(
    """hello hi hey thanks thank thx cheers ok okay great nice cool perfect good bye goodbye morning
    evening yes yeah sure fine lovely wonderful super alright welcome helps helped helpful got
    understood hallo danke guten tag hola gracias bonjour merci salut 谢谢 你好""".split()
)
_FUNCTION = frozenset(
    """und oder aber auch was wie wo wann warum wieso wer wen ist sind das die der den dem des ein
    eine einen einem einer für gegen mit bei im am auf von zu mich mir ich es sie
    y pero qué que cómo como cuándo dónde por para con contra en el la los las un una de del lo
    et ou mais quoi comment où quand pour avec contre dans le les une des du au aux anything
    something nothing good work works cost costs price""".split()
)
"""What names nothing, as far as short questions have it: small words of German, Spanish and French,
and English ones that ask about a thing already named."""
_CARRIED_CHARS = 300
"""Of the last topic, so that both fit the embedding model's window."""
_BEFORE, _POINTED, _LONGEST = 1, 3, 6
"""A pointer leans on an earlier question where at most `_BEFORE` content words stand before it that
it could mean, or at most `_POINTED` in the whole question; never with more than `_LONGEST`."""
_OPENED, _VAGUE_OWN = 2, 2
"""An opened clause and a vague word lean on it with at most so many content words of their own."""
_FAR, _FAR_NAMED = 0.03, 0.4
"""A remark with words that the topic's row lacks, or with a name, is off topic where it has alone
less than this share of the relevance that is answered.

Source: 2026-11-23, alone "And at night?" has 0.04 of it, "How many do I need?" 0.035, "And in
Paris?" and "And with my iPhone?" 0.00, "Can you write this in Python?" 0.4. Of 30 off-topic
questions behind one on werewolves, 15 were answered without the rule, 7 with it."""
REWRITTEN_TOKENS = 60
_REWRITTEN_CHARS = 300
_REWRITE_TURNS = 2
_REWRITE = (
    "Rewrite the last question so that it can be understood alone, in its language. "
    "Do not answer it. Reply with the question only.\n\nLast question: "
)
_LABEL = re.compile(r"^[\s\"'“”„«*#>-]*(?:[\w-]+ ){0,3}question\W*:\W*", re.IGNORECASE)


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
    if not visible(question).strip():
        raise QuestionError("The question is empty. Ask something about the table.")
    return question.strip()


def is_followup(question: str) -> bool:
    """Whether a question cannot stand alone, as far as its words tell."""
    return _kind(question) in ("pointing", "opened")


def standalone(question: str, earlier: Sequence[str], look: Look | None = None) -> str:
    """Return the question with what it needs from the earlier ones.

    What only points ("why?", "how do I carry it?") gets the last topic in front. What is opened
    ("and for the swamp?") is a new topic when the table holds something on it, unless the row of
    the last topic holds all its words ("and the bells?"). A question on a known thing ("what is the
    spear for?"), or one that the table holds nothing on, belongs to the last topic too when that
    row holds all its words.
    What leans on a topic that the table holds nothing on is searched for as that topic alone.
    Without `look`, what is opened is taken to be about the last topic.

    Args:
        question: As typed.
        earlier: Earlier questions, oldest first; a refused one is a topic too, or what follows it
            would be answered from the row before it.
        look: Searches the table; it is asked at most two wordings for each question.
    """
    if _kind(question) == "chatter" or not earlier:
        return question
    # most questions stand alone and are done with one look; only the others need the topic
    is_alone = _kind(question) == "alone" and not _is_detail(question)
    if is_alone and (look is None or _is_known(look(question))):
        return question
    topic = ""
    for asked in earlier[_start(earlier) :]:
        topic = _resolve(asked, topic, look)[1]
    return _resolve(question, topic, look)[0]


def _start(earlier: Sequence[str]) -> int:
    """Return where the last question stands that surely needs none before it."""
    for i in range(len(earlier) - 1, 0, -1):
        is_opened = _OPENER.match(earlier[i])
        if (
            not is_opened
            and _kind(earlier[i]) == "alone"
            and len(_own_stems(earlier[i])) > _POINTED
        ):
            return i
    return 0


def _resolve(question: str, topic: str, look: Look | None) -> tuple[str, str]:
    """Return what to search for, and the topic after it."""
    kind, own = _kind(question), _own_stems(question)
    if kind == "chatter":
        return question, topic
    alone = question, (question if own else topic)[:_CARRIED_CHARS]
    if not topic:
        return alone
    both = f"{topic} {question}"
    if look is None:
        return alone if kind == "alone" else (both, topic)
    row = look(topic)
    held = own & stems(row.text) if row else set[str]()
    # what leans on a refused question is refused as that was: added words must not lift it
    staying = (both if _is_known(row) else topic), topic
    if _is_known(row) and own - held and _is_far(look(question), names(question) - held):
        staying = alone  # nor may the topic lift what is off every topic: "and in Paris?"
    if kind == "pointing":
        return staying
    if kind == "opened":
        return staying if _stays(question, held, look) else _moved(question, topic)
    if own and held == own and _is_known(row) and _is_detail(question):
        return staying
    if not own or not _is_known(row) or _is_known(look(question)):
        return alone
    return staying if held == own or (held and _OPENER.match(question)) else alone


def _stays(question: str, held: set[str], look: Look) -> bool:
    """Whether an opened question is about the last topic.

    Args:
        question: As typed.
        held: What of its own stems the row of the last topic holds.
        look: Searches the table.
    """
    own, rest = _own_stems(question), _OPENER.sub("", question)
    if held == own or _MOMENT.match(rest):
        return True
    if _is_known(look(question)):
        return False
    # the table holds nothing on it alone: a remark on the last topic, or off every topic
    is_remark = len(own) <= 1 and not _CLAUSE.match(rest)
    return bool(held or _CIRCUMSTANCE.match(rest) or is_remark)


def _moved(question: str, topic: str) -> tuple[str, str]:
    """Return an opened question about something else: with how the last one asked, not of what."""
    rest = _OPENER.sub("", question)
    asked = re.split(r"(?<=[.!?])\s+", topic)[-1]
    words = content_words(asked)
    lead = _LINKS.sub("", asked[: words[0].start if words else None].strip(" ?"))
    moved = f"{lead} {rest}" if _PURPOSE.match(rest) and _ASKING.search(lead) else question
    return moved, moved


def _kind(question: str) -> Kind:
    words = re.findall(r"[^\W_]+", question.lower())
    own, rest = _own_stems(question), _OPENER.sub("", question)
    if _CHATTER.intersection(words) and not own - stems(" ".join(_CHATTER)):
        return "chatter"
    # "who are you?" has no content word either, but asks the shopkeeper
    is_bare = not own and not {"you", "your"}.intersection(words)
    is_vague = bool(_VAGUE.search(question)) and len(own) <= _VAGUE_OWN
    is_clause, is_opened = bool(_CLAUSE.match(rest)), rest != question
    if is_bare or _BARE.match(rest):
        return "pointing"
    # "and if it is a djinn instead?" points, but names what may be a topic of its own
    if (is_vague or _points(question)) and (is_clause or not is_opened):
        return "pointing"
    is_short = len(own) <= (_OPENED if is_clause else _LONGEST)
    return "opened" if is_opened and is_short else "alone"


def _points(question: str) -> bool:
    n_own = len(_own_stems(question))
    if n_own > _LONGEST:
        return False
    empty = {m.start() for m in _EXPLETIVE.finditer(question)}
    return any(
        n_own <= _POINTED or len(_own_stems(question[: m.start()])) <= _BEFORE
        for m in _POINTERS.finditer(question)
        if m.start() not in empty
    )


def _own_stems(question: str) -> set[str]:
    """Return the stems of what a question names itself."""
    rest = _OPENER.sub("", question)
    return {w.stem for w in content_words(rest) if rest[w.start : w.end].lower() not in _FUNCTION}


def _is_detail(question: str) -> bool:
    """Whether a question names a single thing, and as one that is known: what is the spear for?"""
    return len(_own_stems(question)) == 1 and bool(_DEFINITE.search(question))


def _is_far(found: Found | None, new_names: set[str]) -> bool:
    return found is None or found.share < (_FAR_NAMED if new_names else _FAR)


def _is_known(found: Found | None) -> bool:
    return found is not None and found.is_relevant


def rewriting(question: str, history: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the messages that ask a capable model to make a question self-contained.

    Args:
        question: As typed.
        history: Earlier turns, oldest first; the last two are shown, long messages cut.
    """
    asked = [i for i, m in enumerate(history) if m.role == MessageRole.USER]
    shown = history[asked[-_REWRITE_TURNS:][0] :] if asked else []
    return [
        *(ChatMessage(role=m.role, content=str(m.content or "")[:_REWRITTEN_CHARS]) for m in shown),
        ChatMessage(role=MessageRole.USER, content=_REWRITE + question[:_REWRITTEN_CHARS]),
    ]


def rewritten(reply: str, question: str, said: Sequence[str]) -> str | None:
    """Return the question that a model wrote, or None when its reply is no use.

    It is none when it is empty or long, or shares no content word with what was said.

    Args:
        reply: What the model wrote; its first line that is no heading is taken.
        question: As typed.
        said: Earlier questions and answers.
    """
    lines = (_LABEL.sub("", line).strip(" \t\"'“”„«»*`") for line in reply.splitlines())
    line = next((line for line in lines if line and not line.endswith(":")), "")
    if not line or len(line) > _REWRITTEN_CHARS:
        return None
    return line if stems(line) & stems(" ".join([question, *said])) else None
