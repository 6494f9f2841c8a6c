"""Settings become parts, and parts become what `rag` offers; the only core room to read them.

Builds; decides nothing. The heavy libraries (torch, LanceDB, llama.cpp: 2 to 10 seconds each) are
imported inside the functions that need them, so that `import rag`, `rag --help` and the port of
the web chat do not wait for them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

from rag.catalogue import EMBEDDING_MODELS, LLM_MODELS
from rag.errors import (
    IndexingError,
    IndexMismatch,
    IndexNotBuilt,
    RagError,
    SettingsError,
    TableError,
)
from rag.progress import Progress, SyncReport, silent
from rag.settings import Settings

if TYPE_CHECKING:
    from llama_index.core.schema import Document
    from llama_index.core.vector_stores.types import MetadataFilters

    from rag import mirror
    from rag.chat import Turns
    from rag.demo import DemoReport
    from rag.embedding import E5Embedding
    from rag.engines import TableChatEngine, TableQueryEngine
    from rag.index import Index, IndexState
    from rag.llm import GgufLLM
    from rag.provenance import RowView
    from rag.retrieval import TableRetriever
    from rag.splitting import Splitter
    from rag.store import NodeStore
    from rag.table import Snapshot

_INDEXES = "data/index"
_REPAIRS = 2
"""What could not be read is verified only once it can: that takes a second look."""
_LOCAL_N_CTX = 4096
_LOCAL_N_PASSAGES = {"chat": 3, "completion": 1}
"""What a model outside the catalogue is trusted with."""

T = TypeVar("T")
_loading = threading.RLock()  # two threads that need a model load it once
_models: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()
_kept: dict[str, Any] = {}


def sync(
    settings: Settings,
    *,
    version: int | None = None,
    rebuild: bool = False,
    purge: bool = False,
    progress: Progress = silent,
) -> SyncReport:
    """Make the index mirror the Delta table; only changed text is embedded.

    Args:
        settings: Which table, model and index.
        version: Delta version; None is the settings' or the latest. One older than the version
            that answers is mirrored beside it.
        rebuild: Build anew even when the index was made from another table.
        purge: Afterwards remove from disk what is deleted, and every older version of the index.
        progress: Told how far it is.

    Raises:
        TableError: the table cannot be read as asked; the old index still serves.
        IndexingError: the index is of another table, or cannot be written.
        WeightsError: the embedding model's files are missing or corrupt.
    """
    from rag import mirror

    chosen = settings.table.version if version is None else version
    return mirror.sync(
        _index(settings),
        _snapshot(settings, chosen),
        _recipe(settings, progress),
        options=_options(settings, chosen, rebuild=rebuild, purge=purge),
        progress=progress,
    )


def pending(
    settings: Settings,
    *,
    version: int | None = None,
    rebuild: bool = False,
    progress: Progress = silent,
) -> SyncReport:
    """Return what `sync` would do, without writing or embedding anything.

    Args:
        settings: Which table, model and index.
        version: Delta version; None is the settings' or the latest.
        rebuild: As for `sync`.
        progress: Told how far it is.
    """
    from rag import mirror

    chosen = settings.table.version if version is None else version
    return mirror.pending(
        _index(settings),
        _snapshot(settings, chosen),
        _recipe(settings, progress),
        options=_options(settings, chosen, rebuild=rebuild),
        progress=progress,
    )


def verify(
    settings: Settings, *, recall: bool = False, repair: bool = False, progress: Progress = silent
) -> mirror.Verdict:
    """Compare the index with the Delta version that it mirrors, row by row.

    Args:
        settings: Which table and index; `table.version` chooses which mirrored version.
        recall: Whether to measure how much the vector index finds.
        repair: Whether to mend what differs, and to look again.
        progress: Told how far it is.

    Returns:
        What was found; after a repair what was found then, with what was mended in the notes.

    Raises:
        IndexNotBuilt: no sync has completed.
        TableError: the table cannot be read at the mirrored version any more.
        IndexingError: the index cannot be mended.
    """
    from rag import mirror

    index = _index(settings)
    state = mirror.state_of(index, settings.table.version)
    try:
        verdict = mirror.verify(
            index, _snapshot_of(settings, state), recall=recall, progress=progress
        )
    except TableError as e:
        latest = _refuse_unless_gone(settings, state, e, repair=repair)
        sync(settings, progress=progress)
        verdict = verify(settings, recall=recall, repair=True, progress=progress)
        gone = f"The mirrored version can no longer be read; now {latest} is mirrored, the latest."
        return replace(verdict, notes=(gone, *verdict.notes))
    if not repair:
        return verdict
    mended: list[str] = []
    for _ in range(_REPAIRS):
        if verdict.is_ok:
            break
        _repair(settings, index, verdict, progress)
        version = verdict.table_version
        mended += [f"Mended by mirroring version {version}: {p.sentence}" for p in verdict.problems]
        verdict = verify(settings, recall=recall, progress=progress)
    return replace(verdict, notes=(*mended, *verdict.notes))


def _repair(settings: Settings, index: Index, verdict: mirror.Verdict, progress: Progress) -> None:
    from rag import mirror

    version = verdict.table_version
    options = mirror.mend(index, verdict, _options(settings, version), progress=progress)
    mirror.sync(
        index,
        _snapshot(settings, version),
        _recipe(settings, progress),
        options=options,
        progress=progress,
    )


def _snapshot_of(settings: Settings, state: IndexState | None) -> Snapshot:
    """Open the version of the table that the index mirrors, as the index was built from it."""
    from rag import table

    if state is None:
        return _snapshot(settings, settings.table.version)
    return table.open_table(
        settings.table.uri,
        template=state.template,
        key=state.key,
        on_bad_key=cast("table.OnBadKey", state.on_bad_key),
        version=state.table_version,
        storage_options=_storage_options(settings),
    )


def _refuse_unless_gone(
    settings: Settings, state: IndexState | None, error: TableError, *, repair: bool
) -> int:
    """Return the latest version, which a repair mirrors instead of one that is gone."""
    latest = table_version(settings)  # raises where the table itself is the problem
    if state is None or latest == state.table_version:
        raise error
    if repair and settings.table.version is None:
        return latest
    raise TableError(
        f"The index mirrors version {state.table_version} of Delta table {settings.table.uri!r}, "
        "whose rows or log are no longer there, so the two cannot be compared. "
        f"Run `rag sync` to mirror the latest version, {latest}."
    ) from error


def follow(
    settings: Settings, *, every_s: float, progress: Progress = silent
) -> Iterator[SyncReport | RagError]:
    """Sync again whenever the table has a new version, for ever.

    Args:
        settings: Which table, model and index.
        every_s: Seconds between two looks at the table.
        progress: Told how far a sync is.

    Yields:
        What each sync did. A failure is yielded once and tried again: the table may come back.
    """
    mirrored: int | None = None
    failure = ""
    while True:
        try:
            if table_version(settings) != mirrored:
                report = sync(settings, progress=progress)
                mirrored, failure = report.table_version, ""
                yield report
        except (TableError, IndexingError) as e:
            if str(e) != failure:
                failure = str(e)
                yield e
        time.sleep(every_s)


def _options(
    settings: Settings, version: int | None, *, rebuild: bool = False, purge: bool = False
) -> mirror.Options:
    from rag.mirror import Options

    return Options(
        rebuild=rebuild,
        # the bundled demo is ours: written anew, it is simply indexed anew
        replaces=settings.is_demo,
        is_pinned=version is not None,
        purge=purge,
        keep_versions=settings.index.keep_versions,
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


def row(settings: Settings, key: str, *, version: int | None = None) -> RowView:
    """Return a row as it was in a version, and what became of it since.

    Args:
        settings: Which table and index.
        key: The row key, as citations name it.
        version: Delta version; None is the settings', else the one that answers, else the latest.

    Raises:
        RowNotFound: that version has no such row.
        TableError: that version cannot be read, and is not mirrored.
    """
    from rag import provenance

    index = _index(settings)
    chosen = settings.table.version if version is None else version
    if chosen is None and (answering := index.answering()) is not None:
        chosen = answering.state.table_version
    at = _snapshot(settings, chosen)
    latest: Snapshot | None = None
    with contextlib.suppress(TableError):  # told as a fate that is not known
        latest = _snapshot(settings, None)
    mirrored = index.mirrored(at.version)
    return provenance.look(key, at, latest, index=index, mirrored=mirrored)


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
        version: Delta version to ask, one of those mirrored; None is the settings' or the last.

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
        version: Delta version to ask, one of those mirrored; None is the settings' or the last.
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
        version: Delta version to ask, one of those mirrored; None is the settings' or the last.
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
    mirrored_versions: list[int]
    """Delta versions that can be asked."""
    changed: dict[str, int] | None
    """Rows `added`, `updated` and `deleted` since the mirrored version; None where telling that
    would take long."""
    building: str | None
    """Who builds the index right now, and how far it is; None when nobody does."""


def status(settings: Settings) -> Status:
    """Return where the table and its index stand, without loading a model."""
    from rag import weights

    problem: str | None = None
    version: int | None = None
    try:
        version = table_version(settings)
    except RagError as e:
        problem = str(e)
    index = _index(settings)
    answering = index.answering()
    state = answering.state if answering else None
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
        mirrored_versions=sorted(index.tags()),
        changed=_changed(settings, index) if state and version != state.table_version else None,
        building=_building(settings),
    )


def _changed(settings: Settings, index: Index) -> dict[str, int] | None:
    from rag import mirror

    try:
        found = mirror.glance(index, _snapshot(settings, None), _recipe(settings))
    except RagError:  # the table's problem, or another recipe: a sync will say so
        return None
    if found is None:
        return None
    return {"added": found.n_added, "updated": found.n_updated, "deleted": found.n_deleted}


def _building(settings: Settings) -> str | None:
    """Return who builds the index right now, and how far that is, in a few words."""
    from rag import mirror

    found = mirror.holder(index_uri(settings), _index_options(settings))
    if found is None:
        return None
    far = f", {found.what} {found.n_done:,} of {found.n_total:,}" if found.n_total else ""
    return f"process {found.pid} on {found.host} since {found.since}{far}"


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
        on_bad_key=settings.table.on_bad_key,
        version=version,
        storage_options=_storage_options(settings),
    )


def _storage_options(settings: Settings) -> dict[str, str]:
    return {k: v.get_secret_value() for k, v in settings.table.storage_options.items()}


def _index_options(settings: Settings) -> dict[str, str] | None:
    options = settings.index.storage_options
    if options is None:
        return _storage_options(settings) or None
    return {k: v.get_secret_value() for k, v in options.items()} or None


def _index(settings: Settings) -> Index:
    from rag.index import Index

    return Index(index_uri(settings), _index_options(settings))


def _store(settings: Settings) -> NodeStore:
    from rag.store import NodeStore

    return NodeStore(index_uri(settings), _index_options(settings))


def _built(settings: Settings, version: int | None) -> tuple[NodeStore, IndexState]:
    """Return the store, once it is sure that it was built from what the settings name."""
    from rag import weights

    store = _store(settings)
    state = store.state()
    if state is None:
        raise IndexNotBuilt(index_uri(settings), progress=_progress_of_build(settings))
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
            raise IndexMismatch(what, built=built, wanted=wanted, mend=_mend(settings))
    chosen = settings.table.version if version is None else version
    store.expect(embedding=state.embedding, version=chosen)
    if chosen is not None:
        store.refuse_unmirrored()
    return store, store.state() or state


def _mend(settings: Settings) -> str:
    going_on = _progress_of_build(settings)
    if going_on:
        return f"{going_on} Until then it answers only those who have the old settings."
    return "Run `rag sync` to build it anew, or set back what was changed."


def _progress_of_build(settings: Settings) -> str:
    """Return the sentence that says how far a build is; empty when there is none."""
    from rag import mirror

    running = _building(settings)
    if running is not None:
        return f"`rag sync` is building it: {running}."
    n_staged = mirror.n_staged(_index(settings))
    if n_staged:
        return f"An interrupted build has {n_staged:,} nodes; `rag sync` goes on with it."
    return ""


def _recipe(settings: Settings, progress: Progress = silent) -> mirror.Recipe:
    from rag import weights
    from rag.mirror import Embedder, Recipe

    def model() -> E5Embedding:
        progress("loading the embedding model", 0, 0)
        return _embedding(settings, progress)

    return Recipe(
        embedding=weights.embedding_fingerprint(settings.embedding.model),
        dimension=_dimension(settings),
        chunk_tokens=settings.embedding.chunk_tokens,
        chunk_overlap=settings.embedding.chunk_overlap,
        embedder=Embedder(functools.cache(model), functools.cache(lambda: _splitter(settings))),
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
