"""What the model is asked: question, passages and history in one prompt that fits its window.

Knows text and LlamaIndex's messages; knows no model, no table and no token but by a function that
counts them. Passages come best first, as retrieval returns them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from rag.errors import ModelError, QuestionError
from rag.orders import visible

COMPLETION_STOP: tuple[str, ...] = ("\n",)
"""Where a completion ends: the answers of the examples are one line."""


_LABEL = re.compile(r"\b(question|passage|answer)\s*[:：]", re.IGNORECASE)


class _Shot(NamedTuple):
    question: str
    passage: str
    answer: str


_SHOTS = (
    _Shot(
        question="What do I need to clean an old picture?",
        passage="For restoring an old oil painting in a damp museum you should use a soft badger "
        "brush to lift the dust, a cotton swab with spirit to clean the varnish, and a small "
        "humidity meter to watch the air",
        answer="You need a soft badger brush to lift the dust, a cotton swab with spirit to clean "
        "the varnish, and a small humidity meter to watch the air.",
    ),
    _Shot(
        question="Who lends books?",
        passage="Town library: Lends books and films.",
        answer="The town library lends books and films.",
    ),
)
"""The two examples. Neither is about anything the demo library holds.

Source: 2026-11-22, Gemma 3 270M Q4_K_M, greedy, the right passage given, one line of answer.
Good: names an item of the row, nothing of the examples, at most three sentences, ends by itself.
12 rows like the demo's (all three items named) | 6 rows of other shapes (the fact is named):

    passage, question, answer; two `For … use …` rows                 11 (11) | 3
    the same below a line of instruction                              10 (10) | 3
    the same, the first example a recipe in prose                      6  (5) | 5
    question, passage, answer; two `For … use …` rows                 12 (12) | 4
    ... the first a recipe in prose                                   12 (12) | 5
    ... the second a long fact about opening hours                    12 (12) | 5
    passage first, every answer beginning `For that, use`             12 (12) | 0

With the question first the model no longer repeats the question or an example's answer. On 12
short rows of other tables (`Clock shop: Repairs clocks.`) the long fact as second example led to
2 invented answers (its opening hours), the short one here to none; of 30 demo questions all good.
"""

_INSTRUCTION = (
    "Answer the question briefly, in at most three sentences, only from the passages. "
    "If the passages do not answer it, say so."
)
_MESSAGE_TOKENS = 12
"""What a chat template adds around a message, at most; a Gemma turn takes 5, a Llama 3 turn 6."""
_TEMPLATE_TOKENS = 48
"""What a chat template adds once; Llama 3.2's date lines take 25, SmolLM2's own system text 21."""
_CHARS_PER_TOKEN = 64
"""No vocabulary puts more characters into a token on average."""


@dataclass(frozen=True)
class Prompt:
    """What the model is given: a text to continue, or messages to answer."""

    text: str = ""
    messages: tuple[ChatMessage, ...] = ()
    n_passages: int = 0
    """How many of the passages it holds, the best ones; the last may be cut."""


@dataclass(frozen=True)
class Parts:
    """What of a prompt may be left out."""

    history: tuple[ChatMessage, ...]
    """Earlier turns, oldest first."""
    passages: tuple[str, ...]
    """Best first."""


def build(
    question: str,
    passages: Sequence[str],
    *,
    is_chat: bool,
    persona: str,
    history: Sequence[ChatMessage],
    n_tokens: Callable[[str], int],
    budget: int,
) -> Prompt:
    """Return the prompt that fits the token budget and holds as much as it can.

    Args:
        question: As typed, or made self-contained for a model that sees no history.
        passages: Best first.
        is_chat: Whether the model has a chat template; else it is shown two examples.
        persona: Who answers; only for chat.
        history: Earlier turns, oldest first; only for chat.
        n_tokens: Counts the tokens of a text as the model does.
        budget: Tokens that the prompt may have.

    Raises:
        ModelError: not even an empty prompt fits the budget.
        QuestionError: the question does not fit the budget.
    """

    def make(parts: Parts) -> Prompt:
        if is_chat:
            messages = chat_messages(
                question, parts.passages, persona=persona, history=parts.history
            )
            return Prompt(messages=tuple(messages), n_passages=len(parts.passages))
        return Prompt(
            text=completion_prompt(question, parts.passages), n_passages=len(parts.passages)
        )

    def cost(prompt: Prompt) -> int:
        if not is_chat:
            return n_tokens(prompt.text) + 1  # a beginning-of-sequence token
        return _TEMPLATE_TOKENS + sum(
            n_tokens(str(m.content)) + _MESSAGE_TOKENS for m in prompt.messages
        )

    parts = Parts(tuple(map(_seen, history)) if is_chat else (), tuple(passages))
    kept = fit(parts, lambda p: cost(make(p)) <= budget, budget=budget)
    if kept is not None:
        return make(kept)
    n_question = n_tokens(_one_line(question))
    n_rest = cost(make(Parts((), ("",)))) - n_question
    if n_rest >= budget:
        raise ModelError(
            f"A prompt needs {n_rest:,} tokens besides the question, but only {budget:,} are "
            "left for it. Set RAG_LLM__N_CTX to more or RAG_LLM__MAX_TOKENS to fewer."
        )
    raise QuestionError(
        f"The question has {n_question:,} tokens; this model reads at most "
        f"{budget - n_rest:,}. Ask it more briefly."
    )


def completion_prompt(question: str, passages: Sequence[str]) -> str:
    """Return a two-shot prompt that a base model continues with the answer, on one line.

    Everything that is put into the frame becomes one line and loses the colon behind a label of the
    frame: else a row with "Answer: …" in it has answered already, as a small model reads it. The
    best passage stands last, next to the answer.
    """
    shown = [(shot.question, [shot.passage], f" {shot.answer}\n\n") for shot in _SHOTS]
    asked = [*shown, (question, passages[::-1], "")]
    return "".join(
        f"Question: {_framed(q)}\n"
        + "".join(f"Passage: {_framed(p)}\n" for p in ps)
        + f"Answer:{answer}"
        for q, ps, answer in asked
    )


def chat_messages(
    question: str,
    passages: Sequence[str],
    *,
    persona: str,
    history: Sequence[ChatMessage],
) -> list[ChatMessage]:
    """Return the conversation for a model that follows instructions.

    The passages stand in the last turn and are not part of the history: llama.cpp then re-reads
    only the last question and answer, a constant cost. Source: the notes' measured layouts,
    0.50 → 0.58 s to the first token over six turns, against 0.5 → 1.0 s with the passages in the
    system text.
    """
    numbered = "\n".join(f"[{n}] {_one_line(p)}" for n, p in enumerate(passages, 1))
    asked = f"Passages:\n{numbered}\n\n{_INSTRUCTION}\n\nQuestion: {_one_line(question)}"
    system = [ChatMessage(role=MessageRole.SYSTEM, content=persona)] if persona.strip() else []
    return [*system, *history, ChatMessage(role=MessageRole.USER, content=asked)]


def fit(parts: Parts, fits: Callable[[Parts], bool], *, budget: int) -> Parts | None:
    """Return what is kept, or None when not even a prompt without passages fits.

    The oldest turns go first, whole; then the last passages; the best passage is cut at a word's
    end, with an ellipsis, when it does not fit alone.

    Args:
        parts: What the prompt should hold.
        fits: Whether a prompt of these parts is within the budget.
        budget: Tokens that the prompt may have; much longer passages are not even counted.
    """
    passages = tuple(_one_line(p[: budget * _CHARS_PER_TOKEN]) for p in parts.passages)
    turns = _turns(parts.history)
    while True:
        parts = Parts(tuple(m for turn in turns for m in turn), passages)
        if fits(parts):
            return parts
        if turns:
            turns = turns[1:]
        elif len(passages) > 1:
            passages = passages[:-1]
        else:
            break
    if not passages or not fits(Parts((), ("",))):
        return None
    return Parts((), (_cut(passages[0], lambda p: fits(Parts((), (p,)))),))


def _seen(message: ChatMessage) -> ChatMessage:
    """Return an earlier message as its reader saw it; a question may have been pasted."""
    text = str(message.content)
    shown = visible(text)
    return message if shown == text else ChatMessage(role=message.role, content=shown)


def _turns(history: Sequence[ChatMessage]) -> list[list[ChatMessage]]:
    """Group messages into turns: a user's message and what followed it."""
    turns: list[list[ChatMessage]] = []
    for message in history:
        if message.role == MessageRole.USER or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def _cut(text: str, fits: Callable[[str], bool]) -> str:
    """Return the longest beginning that fits, with an ellipsis; the empty string if none does."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(f"{text[:middle]} …") else (low, middle - 1)
    while low > 0:
        # a text without blanks (Chinese, a hash) is cut between any two characters
        end = text.rfind(" ", 0, low + 1) if text[low : low + 1] != " " else low
        cut = f"{text[: end if end > low // 2 else low].rstrip()} …"
        if fits(cut):  # fewer characters can be more tokens, by a few
            return cut
        low = low * 9 // 10
    return ""


def _one_line(text: str) -> str:
    # white space of any kind parts words here, so what is invisible goes first
    return " ".join(visible(text).split())


def _framed(text: str) -> str:
    return _LABEL.sub(r"\1 –", _one_line(text))
