"""Settings become parts, and parts become what `rag` offers; the only core room to read them.

Builds; decides nothing. The heavy libraries (torch, LanceDB, llama.cpp: 2 to 10 seconds each) are
imported inside the functions that need them, so that `import rag`, `rag --help` and the port of
the web chat do not wait for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS
from rag.errors import IndexMismatch, IndexNotBuilt, RagError, SettingsError
from rag.progress import Progress, SyncReport, silent
from rag.settings import Settings

if TYPE_CHECKING:
    from llama_index.core.schema import Document
    from llama_index.core.vector_stores.types import MetadataFilters

    from rag.chat import Turns
    from rag.demo import DemoReport
    from rag.embedding import E5Embedding
    from rag.engines import TableChatEngine, TableQueryEngine
    from rag.llm import GgufLLM
    from rag.mirror import Recipe
    from rag.retrieval import TableRetriever
    from rag.splitting import Splitter
    from rag.store import IndexState, NodeStore
    from rag.table import Snapshot

_INDEXES = "data/index"
_LOCAL_N_CTX = 4096
_LOCAL_N_PASSAGES = {"chat": 3, "completion": 1}
"""What a model outside the catalogue is trusted with."""

T = TypeVar("T")
_loading = threading.RLock()  # two threads that need a model load it once
_models: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()
_kept: dict[str, Any] = {}


def sync(settings: Settings, *, rebuild: bool = False, progress: Progress = silent) -> SyncReport:
    """Make the index mirror the Delta table; only changed text is embedded.

    Args:
        settings: Which table, version, model and index.
        rebuild: Build anew even when the index was made from another table.
        progress: Told how far it is.

    Raises:
        TableError: the table cannot be read as asked; the old index still serves.
        IndexingError: the index is of another table, or cannot be written.
        WeightsError: the embedding model's files are missing or corrupt.
    """
    from rag import mirror

    def load() -> tuple[E5Embedding, Splitter]:
        progress("loading the embedding model", 0, 0)
        return _embedding(settings, progress), _splitter(settings)

    # the bundled demo is ours: written anew, it is simply indexed anew
    return mirror.sync(
        _store(settings),
        _snapshot(settings, settings.table.version),
        _recipe(settings),
        load,
        rebuild=rebuild,
        replaces=settings.is_demo,
        progress=progress,
    )


def documents(settings: Settings, *, version: int | None = None) -> Iterator[Document]:
    """Yield the Delta table as LlamaIndex documents, one a row, lazily.

    Args:
        settings: Which table.
        version: Delta version; None is the settings' or the latest.
    """
    from rag import table

    chosen = settings.table.version if version is None else version
    return table.documents(_snapshot(settings, chosen))


def retriever(
    settings: Settings,
    *,
    top_k: int | None = None,
    filters: MetadataFilters | None = None,
    version: int | None = None,
) -> TableRetriever:
    """Return a LlamaIndex retriever over the mirrored table.

    Args:
        settings: Which index and model.
        top_k: Distinct rows to return at most; None is the settings'.
        filters: Only rows that match; keys are columns of the table.
        version: Refuse unless this Delta version is the mirrored one.

    Raises:
        IndexNotBuilt: no sync has completed.
        IndexMismatch: the index was built from something else than the settings name.
    """
    if top_k is not None and top_k < 1:
        raise SettingsError(f"top_k is {top_k}; a retriever returns at least 1 row.")
    return _retriever_over(_built(settings, version)[0], settings, top_k=top_k, filters=filters)


def _retriever_over(
    store: NodeStore,
    settings: Settings,
    *,
    top_k: int | None = None,
    filters: MetadataFilters | None = None,
) -> TableRetriever:
    from rag.retrieval import TableRetriever
    from rag.table import RESERVED
    from rag.template import Template

    named = Template.parse(settings.table.template).columns[0]
    return TableRetriever(
        store,
        _embedding(settings),
        top_k=top_k or settings.retrieval.top_k,
        filters=filters,
        title_column=f"column.{named}" if named in RESERVED else named,
    )


def query_engine(
    settings: Settings,
    *,
    streaming: bool = False,
    filters: MetadataFilters | None = None,
    version: int | None = None,
) -> TableQueryEngine:
    """Return a LlamaIndex query engine: single questions, answers with citations.

    Args:
        settings: Which index and models.
        streaming: Whether `query` and `aquery` stream.
        filters: Only rows that match may answer.
        version: Refuse unless this Delta version is the mirrored one.
    """
    from rag.engines import TableQueryEngine

    return TableQueryEngine(_turns(settings, filters, version), streaming=streaming)


def chat_engine(
    settings: Settings,
    *,
    filters: MetadataFilters | None = None,
    version: int | None = None,
) -> TableChatEngine:
    """Return a LlamaIndex chat engine: a conversation with memory, answers with citations.

    Args:
        settings: Which index and models.
        filters: Only rows that match may answer.
        version: Refuse unless this Delta version is the mirrored one.
    """
    from rag.engines import TableChatEngine

    return TableChatEngine(
        _turns(settings, filters, version), history_turns=settings.chat.history_turns
    )


def prepare(settings: Settings, progress: Progress = silent) -> None:
    """Do all that the first answer needs: demo and index where they are ours, models warm.

    Raises:
        RagError: whatever is missing, in one sentence.
    """
    if settings.is_demo:
        write_demo(settings)
        sync(settings, progress=progress)
    _built(settings, None)
    progress("loading the embedding model", 0, 0)
    retriever(settings, top_k=1).retrieve("warm-up")
    progress("loading the language model", 0, 0)
    _llm(settings, progress).complete("Hello", formatted=True, max_tokens=1)


def write_demo(settings: Settings) -> DemoReport:
    """Write the demo library at the table's URI; nothing happens when it is there already."""
    from rag import demo

    return demo.write(settings.table.uri, storage_options=_storage_options(settings))


@dataclass(frozen=True)
class Status:
    """Where the table and its index stand."""

    table_uri: str
    table_version: int | None
    """Latest version of the table; None when it cannot be read."""
    table_problem: str | None
    index_uri: str
    index_version: int | None
    """Mirrored version; None when no sync has completed."""
    n_rows: int
    n_nodes: int
    n_blank: int
    embedding_model: str
    llm: str
    index_bytes: int
    models_bytes: int


def status(settings: Settings) -> Status:
    """Return where the table and its index stand, without loading a model."""
    from rag import weights

    problem: str | None = None
    version: int | None = None
    try:
        version = table_version(settings)
    except RagError as e:
        problem = str(e)
    state = _store(settings).state()
    return Status(
        table_uri=settings.table.uri,
        table_version=version,
        table_problem=problem,
        index_uri=index_uri(settings),
        index_version=state.table_version if state else None,
        n_rows=state.n_rows if state else 0,
        n_nodes=state.n_nodes if state else 0,
        n_blank=state.n_blank if state else 0,
        embedding_model=settings.embedding.model,
        llm=settings.llm.model,
        index_bytes=_bytes_under(Path(index_uri(settings))),
        models_bytes=_bytes_under(weights.cache_dir()),
    )


def table_version(settings: Settings) -> int:
    """Return the latest version of the table.

    Raises:
        TableError: the table cannot be read.
    """
    return _snapshot(settings, None).version


def index_uri(settings: Settings) -> str:
    """Return where the index is: as set, or a folder of its own for each table."""
    if settings.index.uri is not None:
        return settings.index.uri
    name = re.sub(r"[^\w.-]+", "-", settings.table.uri.rstrip("/").rsplit("/", 1)[-1])[:40]
    mark = hashlib.blake2b(settings.table.uri.encode(), digest_size=4).hexdigest()
    return f"{_INDEXES}/{name}-{mark}"


def _turns(settings: Settings, filters: MetadataFilters | None, version: int | None) -> Turns:
    from rag.chat import TurnOptions, Turns

    store, state = _built(settings, version)
    found = _retriever_over(store, settings, filters=filters)
    llm = _llm(settings)
    entry = LLM_MODELS.get(settings.llm.model)
    trusted = _LOCAL_N_PASSAGES["chat" if llm.metadata.is_chat_model else "completion"]
    options = TurnOptions(
        persona=settings.chat.persona,
        n_passages=settings.llm.n_passages or (entry.n_passages if entry else trusted),
        min_relevance=settings.retrieval.min_relevance,
        max_question_chars=settings.chat.max_question_chars,
        max_tokens=settings.llm.max_tokens,
        n_ctx=llm.metadata.context_window,
    )

    def mirrored() -> int:
        return (store.state() or state).table_version

    return Turns(found, llm, n_tokens=llm.n_tokens, table_version=mirrored, options=options)


def _snapshot(settings: Settings, version: int | None) -> Snapshot:
    from rag import table

    return table.open_table(
        settings.table.uri,
        template=settings.table.template,
        key=settings.table.key,
        version=version,
        storage_options=_storage_options(settings),
    )


def _storage_options(settings: Settings) -> dict[str, str]:
    return {k: v.get_secret_value() for k, v in settings.table.storage_options.items()}


def _store(settings: Settings) -> NodeStore:
    from rag.store import NodeStore

    return NodeStore(index_uri(settings), _storage_options(settings) or None)


def _built(settings: Settings, version: int | None) -> tuple[NodeStore, IndexState]:
    """Return the store, once it is sure that it was built from what the settings name."""
    from rag import weights

    store = _store(settings)
    state = store.state()
    if state is None:
        raise IndexNotBuilt(index_uri(settings))
    mend = "Run `rag sync` to build it anew, or set back what was changed."
    for what, built, wanted in (
        ("table", state.table_uri, settings.table.uri),
        ("template", state.template, settings.table.template),
        (
            "embedding model",
            state.embedding,
            weights.embedding_fingerprint(settings.embedding.model),
        ),
        ("embedding.chunk_tokens", state.chunk_tokens, settings.embedding.chunk_tokens),
        ("embedding.chunk_overlap", state.chunk_overlap, settings.embedding.chunk_overlap),
        ("key", state.key, state.key if settings.table.key is None else settings.table.key),
    ):
        if built != wanted:
            raise IndexMismatch(what, built=built, wanted=wanted, mend=mend)
    wanted_version = settings.table.version if version is None else version
    if wanted_version not in (None, state.table_version):
        raise IndexMismatch(
            "Delta version",
            built=state.table_version,
            wanted=wanted_version,
            mend=f"Run `rag sync --version {wanted_version}` to mirror that one.",
        )
    store.expect(embedding=state.embedding, version=wanted_version)
    return store, state


def _recipe(settings: Settings) -> Recipe:
    from rag import weights
    from rag.mirror import Recipe

    return Recipe(
        embedding=weights.embedding_fingerprint(settings.embedding.model),
        dimension=_dimension(settings),
        chunk_tokens=settings.embedding.chunk_tokens,
        chunk_overlap=settings.embedding.chunk_overlap,
    )


def _dimension(settings: Settings) -> int:
    from rag import weights

    entry = EMBEDDING_MODELS.get(settings.embedding.model)
    if entry is not None:
        return entry.dimension
    config = weights.embedding_folder(settings.embedding.model) / "config.json"
    return int(json.loads(config.read_text())["hidden_size"])


def _embedding(settings: Settings, progress: Progress = silent) -> E5Embedding:
    from rag import weights

    with _loading:
        folder = weights.embedding_folder(settings.embedding.model, progress=progress)
        return _embedding_at(folder, settings.embedding.device)


def _embedding_at(folder: Path, device: str) -> E5Embedding:
    from rag.embedding import E5Embedding

    return _shared("embedding", (folder, device), lambda: E5Embedding(folder, device=device))


def _splitter(settings: Settings) -> Splitter:
    from rag import weights
    from rag.splitting import Splitter

    return Splitter(
        weights.embedding_folder(settings.embedding.model),
        settings.embedding.chunk_tokens,
        settings.embedding.chunk_overlap,
    )


def _llm(settings: Settings, progress: Progress = silent) -> GgufLLM:
    from rag import weights

    entry = LLM_MODELS.get(settings.llm.model)
    with _loading:
        return _llm_at(
            weights.gguf_file(settings.llm.model, progress=progress),
            name=settings.llm.model,
            prompt_format=entry.prompt_format if entry else None,
            n_ctx=settings.llm.n_ctx or (entry.n_ctx if entry else _LOCAL_N_CTX),
            n_gpu_layers=settings.llm.n_gpu_layers,
            n_threads=settings.llm.n_threads,
            max_tokens=settings.llm.max_tokens,
            temperature=settings.llm.temperature,
            seed=settings.llm.seed,
        )


def _llm_at(path: Path, **options: Any) -> GgufLLM:
    from rag.llm import GgufLLM

    key = (path, *sorted(options.items()))
    return _shared("llm", key, lambda: GgufLLM(path, **options))


def _shared(kind: str, key: tuple[object, ...], load: Callable[[], T]) -> T:
    """Return the model of this key: loaded once while anything uses it, and the last one kept."""
    found = _models.get((kind, *key))
    if found is None:
        found = _models[(kind, *key)] = load()
    _kept[kind] = found
    return cast(T, found)


def _bytes_under(folder: Path) -> int:
    n_bytes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a sync may be tidying up
            n_bytes += path.stat().st_size if path.is_file() else 0
    return n_bytes
