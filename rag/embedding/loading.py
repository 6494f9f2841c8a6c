"""Which engine runs a model: torch where there is a GPU, ONNX Runtime on a CPU.

Imports an engine only to load it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from typing import TYPE_CHECKING, Literal, get_args

from rag.embedding import export
from rag.errors import ChecksumMismatch, SettingsError, WeightsError, cause
from rag.machine import may_have_gpu
from rag.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    from llama_index.core.base.embeddings.base import BaseEmbedding

Engine = Literal["auto", "torch", "onnx"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

_log = logging.getLogger(__name__)


def load(
    folder: Path,
    fingerprint: str,
    *,
    engine: Engine = "auto",
    device: str = "auto",
    progress: Progress = silent,
) -> BaseEmbedding:
    """Load the model of a folder with the engine that is set.

    `auto` takes ONNX Runtime only where both engines share an index, and torch wherever the other
    cannot be had; why is logged.

    Args:
        folder: The sentence-transformers folder.
        fingerprint: What identifies the model (`weights.embedding_fingerprint`).
        engine: `torch`, `onnx`, or `auto`.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is one.
        progress: Told what is being done; the first use of `onnx` exports the model.

    Raises:
        SettingsError: `onnx` on CUDA, or CUDA where there is none.
        WeightsError: the engine cannot load the model.
    """
    if takes_torch(engine, device):
        return _on_torch(folder, device)
    try:
        found = export.exported(folder, fingerprint, progress=progress)
        if engine == "onnx" or found.is_same_space:
            return _on_onnx(folder, found.file)
        _log.warning(
            "The embedding model runs on torch: its 8-bit copy differs too much (least cosine "
            "%.3f). RAG_EMBEDDING__ENGINE=onnx takes it all the same, with an index of its own.",
            found.min_cosine,
        )
    except ChecksumMismatch:
        raise  # a damaged file is to be mended, not passed over
    except WeightsError as e:
        if engine == "onnx":
            raise
        _log.warning("The embedding model runs on torch, not on ONNX Runtime. %s", e)
    return _on_torch(folder, device)


def takes_torch(engine: Engine, device: str) -> bool:
    """Say whether torch runs a model that could be exported.

    torch itself is asked only where something speaks for a GPU.

    Raises:
        SettingsError: `onnx` on CUDA.
    """
    if engine == "onnx" and device == "cuda":
        raise SettingsError(
            "RAG_EMBEDDING__ENGINE is 'onnx', which runs on the CPU, but RAG_EMBEDDING__DEVICE is "
            "'cuda'. Set the engine to 'auto' or 'torch', or the device to 'auto' or 'cpu'."
        )
    if engine != "auto" or device != "auto":
        return engine == "torch" or device == "cuda"
    if not may_have_gpu() or importlib.metadata.version("torch").endswith("+cpu"):
        return False
    import torch  # takes 5 to 13 seconds, which a GPU pays back

    return bool(torch.cuda.is_available())


def _on_torch(folder: Path, device: str) -> BaseEmbedding:
    from rag.embedding.torch_engine import E5Embedding  # torch takes 5 to 13 seconds

    return E5Embedding(folder, device=device)


def _on_onnx(folder: Path, file: Path) -> BaseEmbedding:
    try:
        from rag.embedding.onnx_engine import OnnxE5Embedding  # LlamaIndex takes a second
    except ImportError as e:
        raise WeightsError(
            f"ONNX Runtime cannot be imported: {cause(e)}. Install it again "
            "(`pip install --force-reinstall onnxruntime`), or set RAG_EMBEDDING__ENGINE=torch."
        ) from e
    return OnnxE5Embedding(folder, file=file)
