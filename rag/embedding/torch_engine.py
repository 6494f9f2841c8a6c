"""E5 on PyTorch, through LlamaIndex's `HuggingFaceEmbedding`.

Knows torch, whose import takes 5 to 13 seconds: import this module late, in a thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

import torch
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from safetensors import SafetensorError

from rag.devices import chosen_device, no_loading_bar
from rag.embedding import e5
from rag.errors import WeightsNotFound
from rag.splitting import PASSAGE_PREFIX, encodable, window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BytesIO
    from pathlib import Path

_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens in a batch, padding included. A CPU is as fast with 512 as with 2048, and a question
waits for the batch before it."""


class E5Embedding(HuggingFaceEmbedding):
    """An E5 model as a LlamaIndex embedding: `(dim,)` lists of float, of length 1 each.

    Safe to use from several threads; no attempt at the network is ever made.
    """

    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, folder: Path | str, *, device: str = "auto") -> None:
        """Load the model of a folder.

        Args:
            folder: A sentence-transformers folder (`weights.embedding_folder`).
            device: `cpu`, `cuda`, or `auto`: CUDA where there is one.

        Raises:
            SettingsError: `cuda` is asked for and there is none.
            WeightsNotFound: the folder holds no model that can be loaded.
        """
        try:
            with no_loading_bar():
                super().__init__(
                    model_name=str(folder),
                    max_length=window(folder),
                    query_instruction=e5.QUERY_PREFIX,
                    text_instruction=PASSAGE_PREFIX,
                    normalize=True,
                    embed_batch_size=e5.TEXTS_AT_ONCE,
                    cache_folder=str(folder),  # else LlamaIndex makes a folder of its own in $HOME
                    device=chosen_device(device),
                    local_files_only=True,
                    model_kwargs={"dtype": torch.float32},
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
            raise WeightsNotFound(
                f"Folder {str(folder)!r} cannot be loaded as an embedding model: {e} "
                "Delete it or set RAG_EMBEDDING__MODEL to another."
            ) from e

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex writes it under."""
        return "E5Embedding"

    @property
    def dimension(self) -> int:
        """How many numbers an embedding has."""
        return int(self._model.get_embedding_dimension() or 0)

    def n_tokens(self, text: str, input_type: Literal["query", "document"]) -> int:
        """Return how many tokens of the window a text takes, prefix and special tokens included."""
        prefix = e5.prefix("query" if input_type == "query" else "text")
        return self._counts([prefix + encodable(text)])[0]

    def _embed(
        self, inputs: Sequence[str | BytesIO], prompt_name: str | None = None
    ) -> list[list[float]]:
        # the one place where all of LlamaIndex's ways in meet, sync and async
        texts = e5.readable(inputs, prompt_name)
        prompt: e5.Prompt = "query" if prompt_name == "query" else "text"
        counts = self._counts([e5.prefix(prompt) + text for text in texts])
        e5.refuse_too_long(counts, window=self.max_length, prompt=prompt)
        embeddings: list[list[float]] = [[]] * len(texts)
        for batch in e5.token_batches(
            counts, max_tokens=_BATCH_TOKENS[torch.device(self._device).type]
        ):
            # one batch under the lock, not all: a question slips in between two of a long sync
            with self._lock:
                found = self._model.encode(
                    [texts[i] for i in batch],
                    batch_size=len(batch),
                    prompt_name=prompt,
                    normalize_embeddings=self.normalize,
                    show_progress_bar=False,
                )
            for i, embedding in zip(batch, found.tolist(), strict=True):
                embeddings[i] = embedding
        return embeddings

    def _counts(self, prefixed: list[str]) -> list[int]:
        # under the lock: two threads that set truncation on one tokenizer end in "Already borrowed"
        with self._lock:
            tokenizer = self._model.tokenizer.backend_tokenizer
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return [len(encoding) for encoding in tokenizer.encode_batch_fast(prefixed)]
