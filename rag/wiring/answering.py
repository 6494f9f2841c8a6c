"""Questions to the index: retriever, query engine, chat engine, documents.

Reads settings, makes sure that the index is what they name, and hands the parts to the rooms that
do the work.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rag.catalogue import LLM_MODELS
from rag.errors import SettingsError
from rag.progress import Progress, silent
from rag.settings import MODES, Settings
from rag.wiring.mirroring import sync, write_demo
from rag.wiring.parts import (
    chosen_version,
    load_embedding,
    load_llm,
    load_reranker,
    open_snapshot,
    open_store,
    unload_llm,
)
from rag.wiring.standing import refuse_other_recipe

if TYPE_CHECKING:
    from llama_index.core.schema import Document
    from llama_index.core.vector_stores.types import MetadataFilters

    from rag.chat import Turns
    from rag.engines import TableChatEngine, TableQueryEngine
    from rag.index import IndexState
    from rag.llm.call import Caller
    from rag.retrieval import TableRetriever
    from rag.settings import Mode
    from rag.store import NodeStore

_LOCAL_N_PASSAGES = {"chat": 3, "completion": 1}
"""What a model outside the catalogue is trusted with."""


def documents(settings: Settings, *, version: int | None = None) -> Iterator[Document]:
    """Yield the Delta table as LlamaIndex documents, one a row, lazily.

    Args:
        settings: Which table.
        version: Delta version; None is the settings' or the latest.
    """
    from rag import table

    chosen = chosen_version(settings, version)
    return table.documents(open_snapshot(settings, chosen))


def retriever(
    settings: Settings,
    *,
    top_k: int | None = None,
    mode: Mode | None = None,
    filters: MetadataFilters | None = None,
    version: int | None = None,
) -> TableRetriever:
    """Return a LlamaIndex retriever over the mirrored table.

    Args:
        settings: Which index and model.
        top_k: Distinct rows to return at most; None is the settings'.
        mode: `hybrid`, `vector` or `text`; None is the settings'.
        filters: Only rows that match; keys are columns of the table.
        version: Delta version to ask, one of those mirrored; None is the settings' or the last.

    Raises:
        IndexNotBuilt: no sync has completed.
        IndexMismatch: the index was built from something else than the settings name.
    """
    if top_k is not None and top_k < 1:
        raise SettingsError(f"top_k is {top_k}; a retriever returns at least 1 row.")
    if mode is not None and mode not in MODES:
        raise SettingsError(f"The mode is {mode!r}; rows are found by one of {', '.join(MODES)}.")
    chosen = {"top_k": top_k, "mode": mode}
    given = {name: value for name, value in chosen.items() if value is not None}
    retrieval = settings.retrieval.model_copy(update=given)
    changed = settings.model_copy(update={"retrieval": retrieval})
    return _retriever_over(_built(settings, version)[0], changed, filters)


def _retriever_over(
    store: NodeStore, settings: Settings, filters: MetadataFilters | None
) -> TableRetriever:
    from rag.retrieval import RetrievalOptions, TableRetriever
    from rag.table import RESERVED
    from rag.template import Template

    named = Template.parse(settings.table.template).columns[0]
    chosen = settings.retrieval
    reranker = load_reranker(settings)
    options = RetrievalOptions(
        top_k=chosen.top_k,
        mode=chosen.mode,
        filters=filters,
        title_column=f"column.{named}" if named in RESERVED else named,
        n_neighbours=chosen.n_neighbours,
        rerank=reranker.scores if reranker is not None else None,
        rerank_rows=chosen.rerank_rows,
    )
    return TableRetriever(store, load_embedding(settings), options)


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
    caller: Caller | None = None,
) -> TableChatEngine:
    """Return a LlamaIndex chat engine: a conversation with memory, answers with citations.

    Args:
        settings: Which index and models.
        filters: Only rows that match may answer.
        version: Delta version to ask, one of those mirrored; None is the settings' or the last.
        caller: Who asks, and in which conversation; None is somebody and one of its own.
    """
    from rag.engines import TableChatEngine

    turns = _turns(settings, filters, version)
    return TableChatEngine(turns, history_turns=settings.chat.history_turns, caller=caller)


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
    _warm_up(settings, progress)


def switch_llm(settings: Settings, model: str, progress: Progress = silent) -> Settings:
    """Unload the language model and load another; return the settings that name it.

    Engines of before keep the old model until they are let go of: let go of them first.

    Args:
        settings: They name the model that is loaded.
        model: What `llm.model` is to be.
        progress: Told what is loaded.

    Raises:
        RagError: it cannot be loaded; the one before is loaded again.
    """
    changed = with_llm(settings, model)
    unload_llm()
    try:
        _warm_up(changed, progress)
    except BaseException as e:
        traceback.clear_frames(e.__traceback__)  # they hold what was loaded of it
        unload_llm()
        _warm_up(settings, progress)
        raise
    return changed


def with_llm(settings: Settings, model: str) -> Settings:
    """Return the settings with another language model."""
    llm = settings.llm.model_copy(update={"model": model})
    return settings.model_copy(update={"llm": llm})


def _warm_up(settings: Settings, progress: Progress) -> None:
    """Load the language model, and let it read what every prompt begins with."""
    name = Path(settings.llm.model).name  # no path of this machine
    progress(f"loading the language model {name}", 0, 0)
    load_llm(settings, progress)  # the turns load it too, but tell no progress
    _turns(settings, None, None).warm_up()


def _turns(settings: Settings, filters: MetadataFilters | None, version: int | None) -> Turns:
    from rag.chat import TurnOptions, Turns

    store, state = _built(settings, version)
    found = _retriever_over(store, settings, filters)
    model = load_llm(settings)
    entry = LLM_MODELS.get(model.metadata.model_name)  # a server may have another than named
    trusted = _LOCAL_N_PASSAGES["chat" if model.metadata.is_chat_model else "completion"]
    options = TurnOptions(
        persona=settings.chat.persona,
        n_passages=settings.llm.n_passages or (entry.n_passages if entry else trusted),
        min_relevance=settings.retrieval.min_relevance,
        max_question_chars=settings.chat.max_question_chars,
        max_tokens=settings.llm.max_tokens,
        n_ctx=model.metadata.context_window,
        min_support=settings.chat.min_support,
        embed=load_embedding(settings).get_text_embedding_batch,
        rewrites=bool(entry and entry.rewrites and model.metadata.is_chat_model),
    )

    def mirrored() -> int:
        return (store.state() or state).table_version

    return Turns(found, model, n_tokens=model.n_tokens, table_version=mirrored, options=options)


def _built(settings: Settings, version: int | None) -> tuple[NodeStore, IndexState]:
    """Return the store, once it is sure that it was built from what the settings name."""
    store = open_store(settings)
    state = store.state()
    refuse_other_recipe(settings, state)
    assert state is not None
    chosen = chosen_version(settings, version)
    store.expect(embedding=state.embedding, version=chosen)
    if chosen is not None:
        store.refuse_unmirrored()
    return store, store.state() or state
