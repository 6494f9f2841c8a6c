"""Text to tokens and back, for one GGUF vocabulary; knows no chat and no generation.

Content is never parsed for control tokens: a row or a question that holds `<|im_end|>` is those
ten characters. llama.cpp's own switch (`parse_special=False`) is not enough for that:
- a SentencePiece vocabulary with the pieces `</` and `s>` *merges* them into the end token;
- a control token that the GGUF types as "user defined" is matched with the switch off too.
Both are tested. Here the text of such a token is cut after its first character and the two parts
are tokenised apart: what merged into a control token, what the chat template uses as a marker, and
every `<|…|>`. Other user-defined tokens (HTML tags in Gemma's vocabulary) are content.

Every function may be called from any thread: llama.cpp's vocabulary is read-only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from dataclasses import dataclass

import llama_cpp
from llama_cpp import Llama

_ALWAYS_SPECIAL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN


@dataclass(frozen=True)
class Special:
    """A token whose text a chat template may write to mean that token."""

    token: int
    text: str
    is_user_defined: bool
    """Whether llama.cpp matches it in any text, template or content."""
    strips_left: bool
    strips_right: bool


class Tokens:
    """The vocabulary of a loaded model."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama  # keeps the memory that the vocabulary lives in
        self._vocab = llama_cpp.llama_model_get_vocab(llama.model)
        self.bos = llama_cpp.llama_vocab_bos(self._vocab)
        """The beginning-of-sequence token, -1 where there is none."""
        self.eos = llama_cpp.llama_vocab_eos(self._vocab)
        """The end-of-sequence token, -1 where there is none."""
        self.starts_with_bos = self.bos >= 0 and llama_cpp.llama_vocab_get_add_bos(self._vocab)
        """Whether the model expects `bos` before every prompt."""
        self.specials = self._specials()
        """The tokens that a template may mean, longest text first, as llama.cpp matches them."""
        self._pipes = [s.text for s in self.specials if s.text[:2] == "<|" and s.is_user_defined]

    def encode(self, text: str, *, apart: Collection[str] = ()) -> list[int]:
        """Tokenise content: no beginning-of-sequence token, no control token.

        Args:
            text: Any text; a lone surrogate becomes `?`.
            apart: Texts of further tokens that must not come out, whatever their type.
        """
        for marker in (*apart, *self._pipes) if "<|" in text else apart:
            if marker in text:
                return [t for part in _cut(text, marker) for t in self.encode(part, apart=apart)]
        tokens = self._tokenise(text)
        merged = next((t for t in tokens if self.is_control(t)), None)
        if merged is None:
            return tokens
        marker = self.text(merged)
        if len(marker) < 2 or marker not in text:  # cannot be cut, so it is left out
            return [t for t in tokens if not self.is_control(t)]
        return [t for part in _cut(text, marker) for t in self.encode(part, apart=apart)]

    def prompt(self, text: str) -> list[int]:
        """Tokenise a whole prompt of plain text."""
        tokens = self.encode(text)
        return [self.bos, *tokens] if self.starts_with_bos else tokens

    def is_end(self, token: int) -> bool:
        """Return whether the model ends its answer with this token (llama.cpp's own list)."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """Return whether the token steers the model instead of being text."""
        return bool(self._attributes(token) & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL)

    def text(self, token: int) -> str:
        """Return the token as the vocabulary writes it."""
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", errors="replace")

    def bytes(self, token: int) -> bytes:
        """Return what the token adds to a text; a control token adds nothing."""
        size = 64
        while True:
            buffer = (ctypes.c_char * size)()
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def _specials(self) -> list[Special]:
        # every control token, and every "user defined" one that looks like one: runs of spaces and
        # newlines are user defined in some vocabularies and stay content
        found = []
        for token in range(llama_cpp.llama_vocab_n_tokens(self._vocab)):
            attributes = self._attributes(token)
            if not attributes & (_ALWAYS_SPECIAL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED):
                continue
            text = self.text(token)
            looks_special = text[:1] in "<[|" and text[-1:] in ">]|"
            if len(text) > 1 and (attributes & _ALWAYS_SPECIAL or looks_special):
                found.append(
                    Special(
                        token,
                        text,
                        is_user_defined=not attributes & _ALWAYS_SPECIAL,
                        strips_left=bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP),
                        strips_right=bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP),
                    )
                )
        return sorted(found, key=lambda s: -len(s.text.encode()))

    def _attributes(self, token: int) -> int:
        return int(llama_cpp.llama_vocab_get_attr(self._vocab, token))

    def _tokenise(self, text: str) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        size = len(data) + 8  # rarely more than a token for each byte and a space before them
        while True:
            buffer = (llama_cpp.llama_token * size)()
            n = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, size, False, False)
            if n >= 0:
                return list(buffer[:n])
            size = -n


def _cut(text: str, marker: str) -> list[str]:
    """Cut each `marker` in the text after its first character."""
    first, *rest = text.split(marker)
    parts = [first]
    for part in rest:
        parts[-1] += marker[0]
        parts.append(marker[1:] + part)
    return parts
