"""Real GGUF files of a few megabytes whose answers are known beforehand.

A `llama` model with one block whose attention and feed-forward add nothing: the next token
depends on the current one alone, by a table that the test writes. llama.cpp loads and runs it
like any other model.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Token types of the GGUF format."""

Value = str | int | float | bool | list[str] | list[int] | list[float]

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def write_gguf(
    path: Path, fields: Mapping[str, Value], tensors: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Write a GGUF version 3 file; tensors are float32, shaped `(rows, columns)`."""
    tensors = tensors or {}
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields))
    for name, value in fields.items():
        head += _string(name) + _field(value)
    offset, body = 0, b""
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]  # GGUF counts from the fastest dimension
        head += _string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, offset)
        data = _padded(tensor.astype("<f4").tobytes())
        body += data
        offset += len(data)
    path.write_bytes(_padded(head) + body)
    return path


class TinyModel:
    """A vocabulary of words and what follows each of them.

    Token ids: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3–258 the bytes, then `words` in order.
    """

    def __init__(
        self,
        words: Sequence[str],
        follows: Mapping[int, Sequence[int]],
        *,
        types: Mapping[str, int] | None = None,
        add_space_prefix: bool = False,
        template: str | None = None,
        **fields: Value,
    ) -> None:
        self.words = list(words)
        self.follows = dict(follows)
        """Token id to the ids that may follow it, equally likely; without any, the answer ends."""
        self._types = types or {}
        self._fields: dict[str, Value] = {"tokenizer.ggml.add_space_prefix": add_space_prefix}
        if template is not None:
            self._fields["tokenizer.chat_template"] = template
        self._fields.update({name.replace("__", "."): value for name, value in fields.items()})

    @staticmethod
    def byte(value: int) -> int:
        """Return the token id of a byte."""
        return 3 + value

    def word(self, text: str) -> int:
        """Return the token id of a word."""
        return 259 + self.words.index(text)

    def write(self, path: Path) -> Path:
        """Write the model file."""
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *self.words]
        types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
        types += [self._types.get(word, NORMAL) for word in self.words]
        n_embd = -(-len(tokens) // 64) * 64
        fields: dict[str, Value] = {
            "general.architecture": "llama",
            "llama.context_length": 2048,
            "llama.embedding_length": n_embd,
            "llama.block_count": 1,
            "llama.feed_forward_length": 64,
            "llama.attention.head_count": n_embd // 64,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            # longer words merge first, as in a trained vocabulary
            "tokenizer.ggml.scores": [0.0] * 259 + [float(len(w)) - 100.0 for w in self.words],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": True,
            **self._fields,
        }
        return write_gguf(path, fields, self._tensors(len(tokens), n_embd))

    def _tensors(self, n_vocab: int, n_embd: int) -> dict[str, np.ndarray]:
        embedding = np.eye(n_vocab, n_embd, dtype=np.float32)  # a direction for each token
        output = np.zeros((n_vocab, n_embd), dtype=np.float32)
        output[2] = 0.1  # what has no follower ends
        for token, followers in self.follows.items():
            output[list(followers), token] = 1.0
        square = np.zeros((n_embd, n_embd), dtype=np.float32)
        return {
            "token_embd.weight": embedding,
            "output_norm.weight": np.ones(n_embd, dtype=np.float32),
            "output.weight": output,
            "blk.0.attn_norm.weight": np.ones(n_embd, dtype=np.float32),
            "blk.0.ffn_norm.weight": np.ones(n_embd, dtype=np.float32),
            **{f"blk.0.attn_{part}.weight": square for part in ("q", "k", "v", "output")},
            "blk.0.ffn_gate.weight": np.zeros((64, n_embd), dtype=np.float32),
            "blk.0.ffn_up.weight": np.zeros((64, n_embd), dtype=np.float32),
            "blk.0.ffn_down.weight": np.zeros((n_embd, 64), dtype=np.float32),
        }


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _field(value: Value) -> bytes:
    kind = _kind(value)
    if isinstance(value, list):
        # llama.cpp reads whole numbers as unsigned, except inside an array
        inner = _INT32 if isinstance(value[0], int) else _kind(value[0])
        items = b"".join(_scalar(item) for item in value)
        return struct.pack("<IIQ", kind, inner, len(value)) + items
    return struct.pack("<I", kind) + _scalar(value)


def _kind(value: Value) -> int:
    if isinstance(value, list):
        return _ARRAY
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, str):
        return _STRING
    return _UINT32 if isinstance(value, int) else _FLOAT32


def _scalar(value: str | float | bool) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<?", value)
    if isinstance(value, str):
        return _string(value)
    return struct.pack("<I", value) if isinstance(value, int) else struct.pack("<f", value)
