"""Settings become parts: table, index, models.

Builds; decides nothing. The heavy libraries (torch, LanceDB, llama.cpp: 2 to 10 seconds each) are
imported inside the functions that need them, so that `import rag`, `rag --help` and the port of
the web chat do not wait for them.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS
from rag.errors import ModelError, SettingsError
from rag.progress import Progress, silent
from rag.settings import Settings

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from rag import mirror
    from rag.index import Index
    from rag.llm.local.gguf import GgufLLM
    from rag.llm.remote.server import ServerLLM
    from rag.reranking import Reranker
    from rag.splitting import Splitter
    from rag.store import NodeStore
    from rag.table import Snapshot

_INDEXES = "data/index"
_LOCAL_N_CTX = 8192
_UNLOAD_S = 5.0
"""What uses a model lets go of it within a token; this is for what does not."""
_POLL_S = 0.02

T = TypeVar("T")
_loading = threading.RLock()  # two threads that need a model load it once
_models: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()
_kept: dict[str, Any] = {}


def index_uri(settings: Settings) -> str:
    """Return where the index is: as set, or a folder of its own for each table."""
    if settings.index.uri is not None:
        return settings.index.uri
    place = same_place(settings.table.uri)
    name = re.sub(r"[^\w.-]+", "-", place.rsplit("/", 1)[-1])[:40]
    mark = hashlib.blake2b(place.encode(), digest_size=4).hexdigest()
    return f"{_INDEXES}/{name}-{mark}"


def same_place(uri: str) -> str:
    """Return one name for a place, however it is written: `table`, `./table/`, `file:///…`."""
    local = uri.removeprefix("file://")
    return local.rstrip("/") if "://" in local else os.path.relpath(local)


def chosen_version(settings: Settings, version: int | None) -> int | None:
    """Return the Delta version that is asked for, else the settings'; None is the latest.

    Raises:
        SettingsError: it is negative.
    """
    if version is not None and version < 0:
        raise SettingsError(f"The version is {version}; a table's versions begin at 0.")
    return settings.table.version if version is None else version


def open_snapshot(settings: Settings, version: int | None) -> Snapshot:
    """Open a version of the table; None is the latest."""
    from rag import table

    return table.open_table(
        settings.table.uri,
        template=settings.table.template,
        key=settings.table.key,
        on_bad_key=settings.table.on_bad_key,
        version=version,
        storage_options=table_options(settings),
    )


def table_options(settings: Settings) -> dict[str, str]:
    """Return the table's storage options."""
    return {k: v.get_secret_value() for k, v in settings.table.storage_options.items()}


def open_index(settings: Settings) -> Index:
    """Open the index on disk."""
    from rag.index import Index

    return Index(index_uri(settings), index_options(settings))


def index_options(settings: Settings) -> dict[str, str] | None:
    """Return the index's storage options: its own, else the table's."""
    options = settings.index.storage_options
    if options is None:
        return table_options(settings) or None
    return {k: v.get_secret_value() for k, v in options.items()} or None


def open_store(settings: Settings) -> NodeStore:
    """Open the index for reading through LlamaIndex."""
    from rag.store import NodeStore

    return NodeStore(index_uri(settings), index_options(settings))


def recipe_of(settings: Settings, progress: Progress = silent) -> mirror.Recipe:
    """Return how passages become vectors; no model is loaded yet."""
    from rag.mirror import Embedder, Recipe

    def model() -> BaseEmbedding:
        progress("loading the embedding model", 0, 0)
        return load_embedding(settings, progress)

    return Recipe(
        embedding=embedding_fingerprint(settings),
        dimension=_dimension(settings),
        chunk_tokens=settings.embedding.chunk_tokens,
        chunk_overlap=settings.embedding.chunk_overlap,
        embedder=Embedder(functools.cache(model), functools.cache(lambda: load_splitter(settings))),
    )


def _dimension(settings: Settings) -> int:
    from rag import weights

    entry = EMBEDDING_MODELS.get(settings.embedding.model)
    if entry is not None:
        return entry.dimension
    config = weights.embedding_folder(settings.embedding.model) / "config.json"
    return int(json.loads(config.read_text())["hidden_size"])


def embedding_fingerprint(settings: Settings) -> str:
    """Return what identifies the space of the embeddings, without loading or fetching anything."""
    from rag import weights
    from rag.embedding import export

    fingerprint = weights.embedding_fingerprint(settings.embedding.model)
    # `auto` takes only an engine that keeps to the model's own space
    return export.space(fingerprint) if settings.embedding.engine == "onnx" else fingerprint


def load_embedding(settings: Settings, progress: Progress = silent) -> BaseEmbedding:
    """Load the embedding model, once while anything uses it.

    Raises:
        ModelError: its export was made and measured only now, and is a space of its own.
    """
    from rag import weights

    with _loading:
        expected = embedding_fingerprint(settings)
        folder = weights.embedding_folder(settings.embedding.model, progress=progress)
        found = _embedding_at(folder, settings, progress)
        if embedding_fingerprint(settings) != expected:
            raise ModelError(
                "The embedding model was exported for ONNX Runtime, and embeds too differently for "
                "an index that torch built. Run `rag sync` to build one of its own, "
                "or set RAG_EMBEDDING__ENGINE=auto."
            )
        return found


def _embedding_at(folder: Path, settings: Settings, progress: Progress) -> BaseEmbedding:
    from rag import weights
    from rag.embedding import loading

    engine, device = settings.embedding.engine, settings.embedding.device
    fingerprint = weights.embedding_fingerprint(settings.embedding.model)
    return _shared(
        "embedding",
        (folder, engine, device),
        lambda: loading.load(folder, fingerprint, engine=engine, device=device, progress=progress),
    )


def load_reranker(settings: Settings, progress: Progress = silent) -> Reranker | None:
    """Load the cross-encoder, once while anything uses it; None where none is set."""
    from rag import weights

    if settings.retrieval.rerank_model is None:
        return None
    with _loading:
        folder = weights.reranker_folder(settings.retrieval.rerank_model, progress=progress)
        return _reranker_at(folder, settings.embedding.device)


def _reranker_at(folder: Path, device: str) -> Reranker:
    from rag.reranking import Reranker

    return _shared("reranker", (folder, device), lambda: Reranker(folder, device=device))


def load_splitter(settings: Settings) -> Splitter:
    """Load what cuts long texts, once while anything uses it."""
    from rag import weights
    from rag.splitting import Splitter

    folder = weights.embedding_folder(settings.embedding.model)
    sizes = (settings.embedding.chunk_tokens, settings.embedding.chunk_overlap)
    return _shared("splitter", (folder, *sizes), lambda: Splitter(folder, *sizes))


def load_llm(settings: Settings, progress: Progress = silent) -> GgufLLM | ServerLLM:
    """Load the language model, or connect to its server, once while anything uses it."""
    from rag import weights
    from rag.llm.local.sizing import Gpu

    entry = LLM_MODELS.get(settings.llm.model)
    with _loading:
        if settings.llm.base_url is not None:
            return _server_llm(settings)
        return _llm_at(
            weights.gguf_file(settings.llm.model, progress=progress),
            name=settings.llm.model,
            prompt_format=entry.prompt_format if entry else None,
            chat_family=entry.chat_template if entry else None,
            n_ctx=settings.llm.n_ctx,
            usual_n_ctx=entry.n_ctx if entry else _LOCAL_N_CTX,
            n_threads=settings.llm.n_threads,
            gpu=Gpu(settings.llm.n_gpu_layers, settings.llm.main_gpu, settings.llm.tensor_split),
            cache_mb=settings.llm.cache_mb,
            prompt_lookup=settings.llm.prompt_lookup,
            max_tokens=settings.llm.max_tokens,
            temperature=settings.llm.temperature,
            seed=settings.llm.seed,
        )


def _llm_at(path: Path, **options: Any) -> GgufLLM:
    from rag.llm.local.gguf import GgufLLM

    key = (path, *sorted(options.items()))
    return _shared("llm", key, lambda: GgufLLM(path, **options))


def _server_llm(settings: Settings) -> ServerLLM:
    from rag.llm.remote.server import ServerLLM

    chosen = settings.llm
    assert chosen.base_url is not None
    entry = LLM_MODELS.get(chosen.model)
    url, key = chosen.base_url, chosen.api_key
    options: dict[str, Any] = {
        "model": chosen.model,
        "prompt_format": entry.prompt_format if entry else None,
        "n_ctx": chosen.n_ctx,
        "max_concurrent": chosen.max_concurrent,
        "timeout_s": chosen.timeout_s,
        "max_tokens": chosen.max_tokens,
        "temperature": chosen.temperature,
        "seed": chosen.seed,
    }

    def connect() -> ServerLLM:
        return ServerLLM(url, api_key=key.get_secret_value() if key else None, **options)

    return _shared("llm", (url, key, *sorted(options.items())), connect)


def _shared(kind: str, key: tuple[object, ...], load: Callable[[], T]) -> T:
    """Return the model of this key: loaded once while anything uses it, and the last one kept."""
    found = _models.get((kind, *key))
    if found is None:
        found = _models[(kind, *key)] = load()
    _kept[kind] = found
    return cast(T, found)


def unload_llm() -> bool:
    """Let go of the language model and wait for its memory; return whether that is free.

    It is not while somebody still uses the model: who does is told nothing and goes on.
    """
    with _loading:
        llm = _kept.pop("llm", None)
        if llm is None:
            return True
        # the engine's thread frees llama.cpp's model a moment later than ours; a server has none
        model = weakref.ref(getattr(llm, "_model", llm))
        del llm
        deadline = time.monotonic() + _UNLOAD_S
        while model() is not None and time.monotonic() < deadline:
            gc.collect()  # LlamaIndex's objects refer to each other
            time.sleep(_POLL_S)
        return model() is None
