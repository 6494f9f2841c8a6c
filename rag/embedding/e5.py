"""What both engines do with texts before the model sees them: prefixes, limits, batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rag.errors import ModelError, QuestionError
from rag.splitting import PASSAGE_PREFIX, encodable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BytesIO

QUERY_PREFIX = "query: "
"""What E5 was trained to see before a question. Source: the model card."""
TEXTS_AT_ONCE = 256
"""Texts that LlamaIndex hands over in one call, to be sorted by length within."""

Prompt = Literal["query", "text"]
"""LlamaIndex's names of what a text is: a question, or a passage."""


def prefix(prompt: Prompt) -> str:
    """Return what stands before a text."""
    return QUERY_PREFIX if prompt == "query" else PASSAGE_PREFIX


def readable(inputs: Sequence[str | BytesIO], prompt: str | None) -> list[str]:
    """Return texts as a tokenizer takes them.

    Raises:
        ModelError: one is an image.
    """
    texts = [encodable(text) for text in inputs if isinstance(text, str)]
    if prompt is None or len(texts) < len(inputs):
        raise ModelError("The embedding model reads text only, no images.")
    return texts


def refuse_too_long(counts: Sequence[int], *, window: int, prompt: Prompt) -> None:
    """Refuse texts that would be cut.

    Args:
        counts: Tokens of each text, prefix and special tokens included.
        window: Tokens that the model reads at most.
        prompt: What the texts are.

    Raises:
        QuestionError: the question is too long.
        ModelError: a passage is.
    """
    longest = max(counts, default=0)
    if longest <= window:
        return
    if prompt == "query":
        raise QuestionError(
            f"The question has {longest} tokens; the embedding model reads at most "
            f"{window}. Ask it more briefly."
        )
    raise ModelError(
        f"A passage has {longest} tokens; the embedding model reads at most "
        f"{window}. Split it with `rag.splitting` first."
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
