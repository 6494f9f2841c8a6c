"""Whether a file is a whole GGUF; it does not know what a model is.

A user's own `.gguf` has no checksum to compare. A copy that broke off is found by its own
directory: each tensor says where it lies, so the last one says how long the file must be.
Source: the GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from typing import TYPE_CHECKING, NamedTuple

from rag.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"GGUF"
_UINT32, _STRING, _ARRAY = 4, 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Size of a metadata value by its type, for the types of a fixed size."""
_WHOLE = {_UINT32: "<I", 5: "<i", 7: "<?"}
_TENSOR_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    30: (1, 2),  # BF16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
}
"""Weights and bytes of a block, by tensor type. A type that is not here counts as empty,
so that a new quantisation is never refused."""


_DAMAGED = (struct.error, LookupError, ValueError, ArithmeticError, RecursionError)
"""What reading a directory of nonsense ends in: lengths of 2^64, an alignment of 0, deep lists."""


def check(path: Path) -> None:
    """Check that a file begins and ends like a GGUF.

    Raises:
        WeightsError: it is no GGUF, or it breaks off before its last tensor ends.
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != _MAGIC:
            raise WeightsError(
                f"Model file {str(path)!r} is no GGUF: it begins with {magic!r}, "
                f"expected {_MAGIC!r}. Set RAG_LLM__MODEL to a `.gguf` file."
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                n_expected = _end(view)
            except _DAMAGED:
                n_expected = n_bytes + 1
    if n_expected > n_bytes:
        raise WeightsError(
            f"Model file {str(path)!r} is cut short or damaged: it has {n_bytes:,} bytes, "
            f"expected at least {n_expected:,}. Copy or download it again."
        )


class Network(NamedTuple):
    """What a GGUF says about its network; 0 is what it does not say."""

    n_layers: int = 0
    n_ctx: int = 0
    """Context window it was trained for, in tokens."""
    cache_bytes: int = 0
    """Memory of a token of the context window, with keys and values in 16 bits. Layers that look
    at a window only are counted whole, as llama.cpp's `swa_full` keeps them."""


def network(path: Path) -> Network:
    """Read what a GGUF says about its network, without loading it."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            found = _numbers(view)
    except (OSError, ValueError, struct.error, KeyError, OverflowError):
        return Network()
    n_layers, n_heads = found.get("block_count", 0), found.get("attention.head_count", 0)
    if not n_heads:  # another kind of network, or a number for each layer
        return Network(n_layers, found.get("context_length", 0))
    n_key = found.get("attention.key_length", found.get("embedding_length", 0) // n_heads)
    n_value = found.get("attention.value_length", n_key)
    n_pairs = n_layers * found.get("attention.head_count_kv", n_heads)
    return Network(n_layers, found.get("context_length", 0), 2 * n_pairs * (n_key + n_value))


def fields(path: Path) -> dict[str, int | str]:
    """Read the single whole numbers, truths and texts of a GGUF, under the names they have there.

    Returns:
        What stands in the file up to where it is damaged, if it is.
    """
    found: dict[str, int | str] = {}
    with (
        contextlib.suppress(OSError, *_DAMAGED),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        (n_values,) = struct.unpack_from("<Q", view, 16)
        at = 24
        for _ in range(n_values):
            key, at = _string(view, at)
            (kind,) = struct.unpack_from("<I", view, at)
            name = key.decode("utf-8", "replace")
            if kind == _STRING:
                found[name] = _string(view, at + 4)[0].decode("utf-8", "replace")
            elif kind in _WHOLE:
                (found[name],) = struct.unpack_from(_WHOLE[kind], view, at + 4)
            at = _skip(view, at + 4, kind)
    return found


def _numbers(view: mmap.mmap) -> dict[str, int]:
    """Return the whole numbers that describe the network, without its architecture's name."""
    found: dict[str, int] = {}
    (n_values,) = struct.unpack_from("<Q", view, 16)
    at = 24
    for _ in range(n_values):
        key, at = _string(view, at)
        (kind,) = struct.unpack_from("<I", view, at)
        if key.startswith(b"tokenizer."):  # long, and what describes the network stands before it
            break
        if kind == _UINT32:
            (found[key.decode("utf-8", "replace").partition(".")[2]],) = struct.unpack_from(
                "<I", view, at + 4
            )
        at = _skip(view, at + 4, kind)
    return found


def _end(view: mmap.mmap) -> int:
    """Return the byte at which the last tensor ends."""
    _, n_tensors, n_values = struct.unpack_from("<IQQ", view, 4)
    at, alignment = 24, 32
    for _ in range(n_values):
        key, at = _string(view, at)
        (kind,) = struct.unpack_from("<I", view, at)
        if key == b"general.alignment":
            (alignment,) = struct.unpack_from("<I", view, at + 4)
        at = _skip(view, at + 4, kind)
    last = 0
    for _ in range(n_tensors):
        _, at = _string(view, at)
        (n_dims,) = struct.unpack_from("<I", view, at)
        *dims, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", view, at + 4)
        at += 4 + 8 * n_dims + 12
        per_block, block_bytes = _TENSOR_BLOCKS.get(kind, (1, 0))
        last = max(last, offset + math.prod(dims) // per_block * block_bytes)
    return -(-at // alignment) * alignment + last


def _string(view: mmap.mmap, at: int) -> tuple[bytes, int]:
    (n,) = struct.unpack_from("<Q", view, at)
    return view[at + 8 : at + 8 + n], at + 8 + n


def _skip(view: mmap.mmap, at: int, kind: int) -> int:
    """Return where the value that starts at `at` ends."""
    if kind == _STRING:
        return at + 8 + int(struct.unpack_from("<Q", view, at)[0])
    if kind != _ARRAY:
        return at + _VALUE_BYTES[kind]
    kind, n = struct.unpack_from("<IQ", view, at)
    at += 12
    if kind in _VALUE_BYTES:
        return int(at + n * _VALUE_BYTES[kind])
    for _ in range(n):
        at = _skip(view, at, kind)
    return at
