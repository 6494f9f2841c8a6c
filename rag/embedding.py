"""E5 in process: texts in, unit vectors out, always with the right prefix and never cut.

Knows LlamaIndex's `HuggingFaceEmbedding` and torch, whose import takes 5 to 13 seconds: import
this room late, in a thread. Does not know where the model folder came from (`weights`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

import torch
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from safetensors import SafetensorError

from rag.devices import chosen_device, no_loading_bar
from rag.errors import ModelError, QuestionError, WeightsNotFound
from rag.splitting import PASSAGE_PREFIX, encodable, window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BytesIO
    from pathlib import Path

QUERY_PREFIX = "query: "
"""What E5 was trained to see before a question. Source: the model card."""

_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens in a batch, padding included. A CPU is as fast with 512 as with 2048, and a question
waits for the batch before it."""
_TEXTS_AT_ONCE = 256
"""Texts that LlamaIndex hands over in one call, to be sorted by length within."""


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
                    query_instruction=QUERY_PREFIX,
                    text_instruction=PASSAGE_PREFIX,
                    normalize=True,
                    embed_batch_size=_TEXTS_AT_ONCE,
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
        prefix = QUERY_PREFIX if input_type == "query" else PASSAGE_PREFIX
        return self._counts([prefix + encodable(text)])[0]

    def _embed(
        self, inputs: Sequence[str | BytesIO], prompt_name: str | None = None
    ) -> list[list[float]]:
        # the one place where all of LlamaIndex's ways in meet, sync and async
        texts = [encodable(text) for text in inputs if isinstance(text, str)]
        if prompt_name is None or len(texts) < len(inputs):
            raise ModelError("The embedding model reads text only, no images.")
        prefix = QUERY_PREFIX if prompt_name == "query" else PASSAGE_PREFIX
        counts = self._counts([prefix + text for text in texts])
        self._refuse_too_long(counts, is_question=prompt_name == "query")
        embeddings: list[list[float]] = [[]] * len(texts)
        for batch in token_batches(
            counts, max_tokens=_BATCH_TOKENS[torch.device(self._device).type]
        ):
            # one batch under the lock, not all: a question slips in between two of a long sync
            with self._lock:
                found = self._model.encode(
                    [texts[i] for i in batch],
                    batch_size=len(batch),
                    prompt_name=prompt_name,
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

    def _refuse_too_long(self, counts: Sequence[int], *, is_question: bool) -> None:
        longest = max(counts, default=0)
        if longest <= self.max_length:
            return
        if is_question:
            raise QuestionError(
                f"The question has {longest} tokens; the embedding model reads at most "
                f"{self.max_length}. Ask it more briefly."
            )
        raise ModelError(
            f"A passage has {longest} tokens; the embedding model reads at most "
            f"{self.max_length}. Split it with `rag.splitting` first."
        )


def token_batches(counts: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Yield the positions of texts in batches of similar length.

    Args:
        counts: Tokens of each text.
        max_tokens: Of a batch, when all its texts are padded to its longest. A text that has
            more is a batch of its own.
    """
    batch: list[int] = []
    for i in sorted(range(len(counts)), key=counts.__getitem__):
        if batch and (len(batch) + 1) * counts[i] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
