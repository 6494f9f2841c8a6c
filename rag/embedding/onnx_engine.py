"""E5 on ONNX Runtime: the CPU's engine, with the tokenizer of the model and no torch.

Does not know how the ONNX file is made (`export`).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from onnxruntime.capi import onnxruntime_pybind11_state as foreign
from tokenizers import Tokenizer

from rag.embedding import e5
from rag.errors import ModelError, WeightsError, cause
from rag.machine import n_physical_cores
from rag.splitting import encodable, window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BytesIO
    from pathlib import Path

_BATCH_TOKENS = 1024
"""Tokens in a batch, padding included; a CPU is as fast with 512 as with 2048."""
_SPIN_US = "20"
"""Waking a thread takes as long as a layer of a short question. Measured on 2 cores (2026-11-23): a
question takes 4.2 ms instead of 6.1 for the same CPU time, a batch beside a busy process 10 % more;
without the limit that batch takes 40 % more."""

ERRORS: tuple[type[Exception], ...] = tuple(
    found
    for found in vars(foreign).values()
    if isinstance(found, type) and issubclass(found, Exception)
)
"""Every error that ONNX Runtime raises; they share no class of their own."""


class OnnxE5Embedding(BaseEmbedding):
    """An E5 model as a LlamaIndex embedding: `(dim,)` lists of float, of length 1 each.

    Safe to use from several threads, and no interpreter lock is held while it computes. With 8-bit
    weights an embedding depends a little on the texts that share its batch (cosine >= 0.995).
    """

    max_length: int
    """Tokens that a text may have, prefix and special tokens included."""
    _session: Any = PrivateAttr()
    _tokenizer: Any = PrivateAttr()
    _pad: int = PrivateAttr()

    def __init__(self, folder: Path, *, file: Path) -> None:
        """Load the model of a folder.

        Args:
            folder: The sentence-transformers folder, for its tokenizer and its window.
            file: The same model as an ONNX file (`export.exported`).

        Raises:
            WeightsError: ONNX Runtime cannot load the file.
        """
        super().__init__(
            model_name=str(folder), max_length=window(folder), embed_batch_size=e5.TEXTS_AT_ONCE
        )
        try:
            self._session = _session(file)
        except ERRORS as e:
            raise WeightsError(
                f"ONNX Runtime cannot load {str(file)!r}: {cause(e)}. Delete the folder "
                f"{str(file.parent)!r} and run again: it is made anew; "
                "or set RAG_EMBEDDING__ENGINE=torch."
            ) from e
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        self._pad = config.get("pad_token_id") or 0
        # set once: the tokenizer is shared by threads only because nothing changes it later
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex writes it under."""
        return "OnnxE5Embedding"

    @property
    def dimension(self) -> int:
        """How many numbers an embedding has."""
        return int(self._session.get_outputs()[0].shape[1])

    def n_tokens(self, text: str, input_type: Literal["query", "document"]) -> int:
        """Return how many tokens of the window a text takes, prefix and special tokens included."""
        prefix = e5.prefix("query" if input_type == "query" else "text")
        return len(self._tokenizer.encode(prefix + encodable(text)))

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query], "query")[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text], "text")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts, "text")

    # the base class would compute on the event loop
    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    def _embed(
        self, inputs: Sequence[str | BytesIO], prompt_name: str | None = None
    ) -> list[list[float]]:
        texts = e5.readable(inputs, prompt_name)
        prompt: e5.Prompt = "query" if prompt_name == "query" else "text"
        encodings = self._tokenizer.encode_batch_fast([e5.prefix(prompt) + t for t in texts])
        tokens = [encoding.ids for encoding in encodings]
        counts = [len(ids) for ids in tokens]
        e5.refuse_too_long(counts, window=self.max_length, prompt=prompt)
        embeddings: list[list[float]] = [[]] * len(texts)
        for batch in e5.token_batches(counts, max_tokens=_BATCH_TOKENS):
            found = self._run([tokens[i] for i in batch])
            for i, embedding in zip(batch, found.tolist(), strict=True):
                embeddings[i] = embedding
        return embeddings

    def _run(self, tokens: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return the embeddings `(n, dim)` of one batch of tokens."""
        shape = (len(tokens), max(map(len, tokens)))
        ids = np.full(shape, self._pad, np.int64)
        mask = np.zeros(shape, np.int64)
        for i, row in enumerate(tokens):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        try:
            (found,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        except ERRORS as e:
            raise ModelError(
                f"ONNX Runtime failed to embed {len(tokens)} texts: {cause(e)}. "
                "Close other programs if memory is short, or set RAG_EMBEDDING__ENGINE=torch."
            ) from e
        return found  # type: ignore[no-any-return]


def _session(file: Path) -> onnxruntime.InferenceSession:
    onnxruntime.disable_telemetry_events()  # on Windows it has some
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_physical_cores()
    options.inter_op_num_threads = 1
    # threads that wait by spinning take the cores from LanceDB's pool and from llama.cpp, so they
    # spin no longer than from one layer to the next
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
