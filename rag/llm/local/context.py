"""One llama.cpp context with one sequence: what it has read, how it goes on, and how to go back.

Knows llama.cpp's low-level calls and nothing else: not whose tokens these are, not when to stop.
One thread at a time; two calls at once abort the process.

Why not `Llama.generate` and `Llama.save_state`: those keep the logits of every position (537 MB
for Gemma's vocabulary of 262,144), and so a conversation takes 1.8 s to put aside and take up again
instead of the 6 ms of the sequence alone. Source: the notes' measurement, 1,200 tokens.

A trap: of the layers with a sliding window llama.cpp saves the window alone. A restored sequence
can be gone on from, but not gone back in: the tokens before would miss their window, in silence
(another likeliest token; the largest difference of two logits was 7.9, where rounding in another
order makes 1.6). So what is put aside ends where the next prompt goes on, and `keep` knows how far
it can go back. Source: measured 2026-11-23, Gemma 3 270M, 1,446 tokens, back to 900.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama

from rag.errors import ModelError

_SEQUENCE = 0
_ABORTED = 2
"""What llama_decode returns when the abort callback told it to leave off."""


@dataclass(frozen=True)
class State:
    """What a context knew of some tokens."""

    tokens: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def n_bytes(self) -> int:
        """Memory it takes."""
        return int(self.data.nbytes)


class Aborted(Exception):
    """llama.cpp left off because it was told to; what had been read before is still known."""


class Context:
    """The sequence of a loaded model."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama  # keeps the memory that the context lives in
        self._ctx = llama.ctx
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        self.n_batch = int(llama_cpp.llama_n_batch(self._ctx))
        """Tokens that one call can take."""
        self._batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)
        self._tokens: list[int] = []
        self._n_restored = 0
        self._has_window = llama_cpp.llama_model_n_swa(llama.model) > 0
        for i in range(self.n_batch):
            self._batch.n_seq_id[i] = 1
            self._batch.seq_id[i][0] = _SEQUENCE

    @property
    def can_go_back(self) -> bool:
        """Whether the last tokens can be forgotten without reading the others again."""
        model = self._llama.model
        return not (
            llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        )

    @property
    def tokens(self) -> Sequence[int]:
        """What has been read, prompt and answer."""
        return self._tokens

    def common(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt are known already, from its beginning."""
        return n_common(self._tokens, prompt)

    def keep(self, n_tokens: int) -> int:
        """Forget all but the first tokens, and return how many are left.

        None are left where the model cannot go back: a recurrent one, or behind what was restored.
        """
        if n_tokens >= len(self._tokens):
            return len(self._tokens)
        is_lost = self._has_window and n_tokens < self._n_restored
        if n_tokens and not is_lost and self._remove(n_tokens):
            del self._tokens[n_tokens:]
        else:
            self._clear()
        return len(self._tokens)

    def read(self, tokens: Sequence[int], *, n_logits: int = 1) -> None:
        """Read tokens after those known, at most `n_batch`; the last ones can then be sampled.

        Args:
            tokens: Token ids.
            n_logits: After how many of them, counted from the last, the next token is wanted.

        Raises:
            Aborted: the abort callback said so; nothing of these tokens is known.
            ModelError: llama.cpp failed; nothing at all is known any more.
        """
        n_past, n = len(self._tokens), len(tokens)
        self._batch.n_tokens = n
        for i, token in enumerate(tokens):
            self._batch.token[i] = token
            self._batch.pos[i] = n_past + i
            self._batch.logits[i] = i >= n - n_logits
        code = llama_cpp.llama_decode(self._ctx, self._batch)
        if code == 0:
            self._tokens += tokens
            return
        # the sequence may hold a part of the batch
        if not self._remove(n_past):
            self._clear()
        if code == _ABORTED:
            raise Aborted
        self._clear()
        raise ModelError(
            f"The model failed while answering: llama_decode returned {code}. "
            "Ask again; if it stays so, set RAG_LLM__N_CTX to fewer."
        )

    def sample(self, sampler: Sampler, at: int) -> int:
        """Return the next token after the `at`-th token of the last `read`, -1 for its last."""
        return int(llama_cpp.llama_sampler_sample(sampler.chain, self._ctx, at))

    def save(self) -> State:
        """Return a copy of what is known."""
        size = llama_cpp.llama_state_seq_get_size(self._ctx, _SEQUENCE)
        data = np.empty(size, dtype=np.uint8)
        n = llama_cpp.llama_state_seq_get_data(self._ctx, _pointer(data), size, _SEQUENCE)
        return State(tuple(self._tokens), data[:n])

    def restore(self, state: State) -> None:
        """Know what a state knew, and nothing else; nothing at all if llama.cpp refuses it."""
        self._clear()
        data = state.data
        if llama_cpp.llama_state_seq_set_data(self._ctx, _pointer(data), data.nbytes, _SEQUENCE):
            self._tokens += state.tokens
            self._n_restored = len(state.tokens)

    def _remove(self, n_tokens: int) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, _SEQUENCE, n_tokens, -1))

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)
        self._tokens.clear()
        self._n_restored = 0

    def close(self) -> None:
        """Free the model; nothing may be called after this."""
        llama_cpp.llama_batch_free(self._batch)
        self._llama.close()


class Sampler:
    """How the next token is chosen; it remembers nothing but the state of its dice.

    Args:
        temperature: 0 always takes the likeliest token.
        seed: Repeats the dice.
    """

    # llama-cpp-python's own defaults, which are llama.cpp's
    _TOP_K, _TOP_P, _MIN_P = 40, 0.95, 0.05

    def __init__(self, *, temperature: float, seed: int) -> None:
        self.chain = llama_cpp.llama_sampler_chain_init(
            llama_cpp.llama_sampler_chain_default_params()
        )
        for part in self._parts(temperature, seed):
            llama_cpp.llama_sampler_chain_add(self.chain, part)

    def close(self) -> None:
        """Free it."""
        llama_cpp.llama_sampler_free(self.chain)

    def _parts(self, temperature: float, seed: int) -> Iterable[object]:
        if temperature == 0:
            return [llama_cpp.llama_sampler_init_greedy()]
        return [
            llama_cpp.llama_sampler_init_top_k(self._TOP_K),
            llama_cpp.llama_sampler_init_top_p(self._TOP_P, 1),
            llama_cpp.llama_sampler_init_min_p(self._MIN_P, 1),
            llama_cpp.llama_sampler_init_temp(temperature),
            llama_cpp.llama_sampler_init_dist(seed & 0xFFFFFFFF),
        ]


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning."""
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n


def _pointer(data: npt.NDArray[np.uint8]) -> object:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
