"""An E5 data file of a few kilobytes, in the layout of the package's, with known weights."""

from __future__ import annotations

import string
import struct
from functools import cache

import numpy as np

HIDDEN, FEED_FORWARD, WINDOW = 32, 64, 64
PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "▁",
    "▁query",
    "▁passage",
    "▁wolf",
    *string.printable[:94],
]
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", (16,))])


@cache
def weights() -> dict[str, np.ndarray]:
    """Return the float32 weights by the data file's names; matrices are exact in 4 bits."""
    random = np.random.default_rng(7)

    def matrix(n_out: int, n_in: int) -> np.ndarray:
        return (random.integers(0, 16, (n_out, n_in)) - 8).astype(np.float32) * np.float32(0.0625)

    def vector(n: int) -> np.ndarray:
        return random.standard_normal(n).astype(np.float32)

    found = {
        "emb.word": matrix(len(PIECES), HIDDEN),
        "emb.pos": vector(WINDOW * HIDDEN),
        "emb.type": vector(2 * HIDDEN),
        "emb.ln.w": vector(HIDDEN),
        "emb.ln.b": vector(HIDDEN),
    }
    for name in ("q", "k", "v", "ao", "fi", "fo"):
        n_out = FEED_FORWARD if name == "fi" else HIDDEN
        n_in = FEED_FORWARD if name == "fo" else HIDDEN
        found[f"l0.{name}.w"] = matrix(n_out, n_in)
        found[f"l0.{name}.b"] = vector(n_out)
    for name in ("aln", "oln"):
        found[f"l0.{name}.w"] = vector(HIDDEN)
        found[f"l0.{name}.b"] = vector(HIDDEN)
    return found


@cache
def data_file() -> bytes:
    """Return the content of the data file."""
    head = struct.pack("<4sI", b"E5S1", 1)
    head += struct.pack("<7i", HIDDEN, 1, 2, FEED_FORWARD, len(PIECES), WINDOW, 2)
    head += struct.pack("<fi", 1e-12, 32) + struct.pack("<5i", len(PIECES), 0, 2, 1, 3)
    encoded = [piece.encode() for piece in PIECES]
    bounds = np.cumsum([0, *map(len, encoded)]).astype("<u4")
    # longer pieces score better, so that a word is one token rather than its letters
    scores = np.array([0.0 if i < 4 else -9.0 / len(p) for i, p in enumerate(PIECES)], "<f4")
    head += struct.pack("<Q", int(bounds[-1])) + bounds.tobytes() + scores.tobytes()
    head += b"".join(encoded)
    normaliser = struct.pack("<IBI", 9, 1, 32)
    head += struct.pack("<iI", 1, len(normaliser)) + normaliser

    directory, body = b"", b""
    n_directory = 4 + sum(2 + len(name) + 21 for name in weights())
    for name, values in weights().items():
        raw = _q4(values) if values.ndim == 2 else values.tobytes()
        directory += struct.pack("<H", len(name)) + name.encode()
        offset = len(head) + n_directory + len(body)
        directory += struct.pack("<BIQQ", values.ndim == 2, values.size, offset, len(raw))
        body += raw
    return head + struct.pack("<i", len(weights())) + directory + body


def _q4(values: np.ndarray) -> bytes:
    nibbles = (values / np.float32(0.0625) + 8).astype(np.uint8).reshape(-1, 32)
    blocks = np.empty(len(nibbles), _BLOCK)
    blocks["scale"] = 0.0625
    blocks["nibbles"] = nibbles[:, :16] | nibbles[:, 16:] << 4
    return blocks.tobytes()
