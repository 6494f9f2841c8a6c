"""The GGUF's own chat template: messages to the tokens of a prompt.

The template is rendered with a placeholder for each message's content. In what the template wrote
itself, control tokens are found; the contents are put in as plain text. Neighbouring pieces of
plain text, template's and content's, are tokenised in one go, for two reasons: a word may begin in
the template (` [INST] ` + `hello`), and llama.cpp puts SentencePiece's space before each stretch
of text that follows a control token. So harmless messages get exactly the tokens of
`llama_tokenize(rendering, parse_special=True)`, whatever the vocabulary; a test compares them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import cast

from jinja2 import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from llama_cpp.llama_types import ChatCompletionRequestMessage
from llama_index.core.base.llms.types import ChatMessage, MessageRole

from rag.errors import ModelError
from rag.llm.tokens import Special, Tokens

Turn = tuple[str, str]
"""A role (`system`, `user`, `assistant`) and its text."""

_REFUSALS = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What a template may raise: `raise_exception` is a ValueError, the rest are its own mistakes."""
_PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")  # private use: in no template, in no vocabulary
_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


class ChatTemplate:
    """A chat template together with the vocabulary it writes for."""

    def __init__(self, source: str, tokens: Tokens) -> None:
        self._tokens = tokens
        self._formatter = Jinja2ChatFormatter(
            template=source,
            bos_token=tokens.text(tokens.bos) if tokens.bos >= 0 else "",
            eos_token=tokens.text(tokens.eos) if tokens.eos >= 0 else "",
        )
        self._specials = tokens.specials
        self._partition = functools.lru_cache(maxsize=256)(self._find_specials)
        self._has_system = self._renders([("system", "s"), ("user", "u")])

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the tokens of a prompt that asks for the next answer.

        Raises:
            ModelError: no message has any text, or the template refuses the messages.
        """
        turns = as_turns(messages, has_system=self._has_system)
        if not turns:
            raise ModelError("There is nothing to answer: every message is empty.")
        try:
            pieces = self._render(turns)
        except _REFUSALS as e:
            raise ModelError(f"The model's chat template refuses the conversation: {e}") from e

        fragments: list[str | int] = []
        markers: set[str] = set()
        for piece in pieces:
            parts: Iterable[str | int] = (
                [turns[piece][1]] if isinstance(piece, int) else self._partition(piece)
            )
            for part in parts:
                if isinstance(part, int):
                    markers.add(self._tokens.text(part))
                    fragments.append(part)
                elif fragments and isinstance(fragments[-1], str):
                    fragments[-1] += part
                else:
                    fragments.append(part)

        encoded: list[int] = []
        if self._tokens.starts_with_bos and fragments[:1] != [self._tokens.bos]:
            encoded.append(self._tokens.bos)  # most templates write it themselves
        for fragment in fragments:
            if isinstance(fragment, int):
                encoded.append(fragment)
            else:
                encoded += self._tokens.encode(fragment, apart=markers)
        return encoded

    def _render(self, turns: Sequence[Turn]) -> list[str | int]:
        """Return what the template writes, with the index of a turn where its text goes."""
        messages = [
            {"role": role, "content": f"\ue000{i}\ue001"} for i, (role, _) in enumerate(turns)
        ]
        rendering = self._formatter(
            messages=cast("list[ChatCompletionRequestMessage]", messages)
        ).prompt
        parts = _PLACEHOLDER.split(rendering)
        lost = set(range(len(turns))) - {int(i) for i in parts[1::2]}
        if lost:
            raise ValueError(f"it leaves out the {turns[min(lost)][0]} message")
        return [int(part) if at % 2 else part for at, part in enumerate(parts)]

    def _renders(self, turns: Sequence[Turn]) -> bool:
        try:
            self._render(turns)
        except _REFUSALS:
            return False
        return True

    def _find_specials(self, piece: str) -> tuple[str | int, ...]:
        """Split what the template wrote at its control tokens, longest first, as llama.cpp does."""
        fragments: list[str | int] = [piece]
        for special in self._specials:
            if special.text in piece:
                fragments = [
                    part
                    for fragment in fragments
                    for part in (
                        [fragment] if isinstance(fragment, int) else _split(fragment, special)
                    )
                ]
        return tuple(f for f in fragments if f != "")


def as_turns(messages: Sequence[ChatMessage], *, has_system: bool) -> list[Turn]:
    """Return the messages as every chat template accepts them.

    Contents are trimmed (some templates do that, some do not) and empty ones dropped; all system
    text stands first, or in the first user turn where the template takes no system message
    (Gemma, Mistral); neighbours of one role are joined; the conversation begins with the user.

    Args:
        messages: The conversation; tool messages count as the user's.
        has_system: Whether the template takes a system message.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        role = _ROLES.get(message.role, "user")
        text = (message.content or "").strip()
        if not text or (role == "assistant" and not turns):
            continue
        if role == "system":
            system.append(text)
        elif turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
        else:
            turns.append((role, text))
    if not system:
        return turns
    if has_system and turns:
        return [("system", "\n\n".join(system)), *turns]
    first = [*system, turns[0][1]] if turns else system
    return [("user", "\n\n".join(first)), *turns[1:]]


def _split(text: str, special: Special) -> list[str | int]:
    first, *rest = text.split(special.text)
    fragments: list[str | int] = [first]
    for part in rest:
        before = fragments.pop()
        assert isinstance(before, str)
        fragments += [
            before.rstrip() if special.strips_left else before,
            special.token,
            part.lstrip() if special.strips_right else part,
        ]
    return fragments
