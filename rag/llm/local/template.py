"""The chat template of a GGUF, or of its family: messages to the tokens of a prompt.

The template is rendered with a placeholder for each message's content. In what the template wrote
itself, control tokens are found; the contents are put in as plain text. Neighbouring pieces of
plain text, template's and content's, are tokenised in one go, for two reasons: a word may begin in
the template (` [INST] ` + `hello`), and llama.cpp puts SentencePiece's space before each stretch
of text that follows a control token. So harmless messages get exactly the tokens of
`llama_tokenize(rendering, parse_special=True)`, whatever the vocabulary; a test compares them.

A template that looks into a content sees the placeholder: Qwen3 and Gemma 4, which cut thoughts out
of earlier answers, cut nothing, and an answer stays the bytes that it was. That keeps the beginning
of each prompt what the model has read already; so does the rule where system text stands (see
`as_turns`). Dates change at midnight only.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from rag.catalogue import ChatFamily
from rag.errors import ModelError
from rag.llm.local.jinja import Template
from rag.llm.local.tokens import Special, Tokens

Turn = tuple[str, str]
"""A role (`system`, `user`, `assistant`) and its text."""

FAMILY_TEMPLATES: dict[ChatFamily, str] = {
    "gemma": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' "
        "+ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
        "{% endif %}{% endfor %}"
    ),
}
"""For GGUF files repacked without their template: Gemma 1 to 3, and Mistral 7B Instruct v0.1 and
v0.2. Source: the renderings of google/gemma-2-2b-it's and of Mistral's original template, which a
test compares."""
_PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")  # private use: in no template, in no vocabulary
_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


def template_source(metadata: Mapping[str, str], family: ChatFamily | None) -> str | None:
    """Return the chat template of a model: the GGUF's own, else its family's, else None.

    Args:
        metadata: The GGUF's, by name.
        family: What the catalogue says of the model.
    """
    return metadata.get("tokenizer.chat_template") or (FAMILY_TEMPLATES[family] if family else None)


class ChatTemplate:
    """A chat template together with the vocabulary it writes for; for any thread."""

    def __init__(self, source: str, tokens: Tokens) -> None:
        """Compile the template and try it on a conversation.

        Raises:
            ModelError: it is no template, or one that no chat needs.
        """
        self._tokens = tokens
        self._template = Template(source)
        self._specials = tokens.specials
        self._partition = functools.lru_cache(maxsize=256)(self._find_specials)
        self._skeleton = functools.lru_cache(maxsize=256)(self._render)
        self._has_system = self._keeps_system_first()

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the tokens of a prompt that asks for the next answer.

        Raises:
            ModelError: no message has any text, or the template refuses the messages, fails or
                does not come to an end.
        """
        turns = as_turns(messages, has_system=self._has_system)
        if not turns:
            raise ModelError("There is nothing to answer: every message is empty.")
        pieces = self._skeleton(tuple(role for role, _ in turns), _today())

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

    def _render(self, roles: Sequence[str], today: date) -> tuple[str | int, ...]:
        """Return what the template writes, with the index of a turn where its text goes."""
        bos, eos = self._tokens.bos, self._tokens.eos
        rendering = self._template.render(
            [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)],
            bos=self._tokens.text(bos) if bos >= 0 else "",
            eos=self._tokens.text(eos) if eos >= 0 else "",
            today=today,
        )
        parts = _PLACEHOLDER.split(rendering)
        lost = set(range(len(roles))) - {int(i) for i in parts[1::2]}
        if lost:
            raise ModelError(
                f"The model's chat template leaves out the {roles[min(lost)]} message. "
                "Set RAG_LLM__MODEL to another GGUF."
            )
        return tuple(int(part) if at % 2 else part for at, part in enumerate(parts))

    def _keeps_system_first(self) -> bool:
        """Return whether a system message keeps its place while the conversation grows.

        Gemma and the first Mistral refuse one, Phi-3's old template drops it, Mistral v3 and Nemo
        move it into the last user turn: it would have to be read anew in each turn, with all that
        follows it.
        """
        try:
            pieces = self._render(("system", "user", "assistant", "user"), _today())
        except ModelError:
            return False
        return [piece for piece in pieces if isinstance(piece, int)] == [0, 1, 2, 3]

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
    text stands first, or in the first user turn where the template keeps no system message first
    (Gemma, Mistral); neighbours of one role are joined; the conversation begins with the user.

    What is joined is parted by a blank line. llama.cpp's Jinja engine takes a single newline for
    Gemma and the first Mistral; Gemma 3's own template, Mistral's own later ones and llama.cpp's
    C API take a blank line, and so does this.

    Args:
        messages: The conversation; tool messages count as the user's.
        has_system: Whether the template takes a system message and keeps it first.
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


def _today() -> date:
    return datetime.now(UTC).astimezone().date()  # where this machine is


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
