"""The index as LlamaIndex's own store class reads it.

Knows LlamaIndex and the index; does not know Delta, models or settings. Reading only: writing is
the mirror's alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lancedb.table import LanceTable
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.lancedb import LanceDBVectorStore

from rag.errors import (
    FilterError,
    IndexingError,
    IndexMismatch,
    IndexNotBuilt,
    VersionNotMirrored,
)
from rag.index import (
    FAILURES,
    FORMAT,
    IS_NODE,
    NODES,
    Index,
    IndexState,
    Opened,
    index_cause,
    is_in,
)
from rag.ranking import coverage, fused
from rag.search import (
    NODE,
    Found,
    Search,
    by_both,
    by_vector,
    by_words,
    node_of,
    predicate,
)

T = TypeVar("T")


class NodeStore(LanceDBVectorStore):
    """The index as a LlamaIndex vector store.

    Reading works as people know it (`query`, `get_nodes`, `VectorStoreIndex.from_vector_store`),
    with true cosine similarities, typed filters and `[]` where nothing matches. Writing is the
    mirror's alone: `add` and `delete` are refused, because the Delta table is the only source.
    Each call reads one version of the index, the one that answers when it is made.

    Args:
        uri: Folder or URL of the LanceDB database.
        storage_options: For object storage.
    """

    _index: Index = PrivateAttr()
    _embedding: str | None = PrivateAttr(default=None)
    _version: int | None = PrivateAttr(default=None)

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        # the stock store warns that a table does not exist yet and asks to add data to it
        logging.getLogger("llama_index.vector_stores.lancedb.base").addFilter(_no_advice)
        index = Index(uri, storage_options)
        super().__init__(
            uri=uri,
            table_name=NODES,
            doc_id_key="row_key",
            mode="create",
            connection=index.connection,
        )
        self._index = index

    def _table_exists(self, tbl_name: str | None = None) -> bool:
        # asked by the stock constructor, which would open the table and keep that version
        return False

    @property
    def table(self) -> LanceTable | None:
        """The version that answers now."""
        opened = self._index.answering()
        return None if opened is None else opened.table

    @property
    def index(self) -> Index:
        """The index on disk."""
        return self._index

    def expect(self, *, embedding: str | None = None, version: int | None = None) -> None:
        """Choose what to read from now on.

        Args:
            embedding: Refuse an index of another embedding space.
            version: Read the mirror of this Delta version; None is the one that answers.
        """
        self._embedding, self._version = embedding, version

    def state(self) -> IndexState | None:
        """Return what the version read mirrors; None when there is none."""
        opened = self._chosen()
        return None if opened is None else opened.state

    def refuse_unmirrored(self) -> None:
        """Refuse when what `expect` asked for is not there.

        Raises:
            IndexNotBuilt: nothing is mirrored.
            VersionNotMirrored: other versions are.
            IndexMismatch: it is of another embedding space.
        """
        self._readable()

    def search(
        self,
        embedding: Sequence[float],
        words: str,
        *,
        n: int,
        filters: MetadataFilters | None = None,
    ) -> list[Found]:
        """Return the nodes nearest by meaning, then those best by words that are not among them.

        Args:
            embedding: Of the question, normalised.
            words: The question; empty asks by meaning alone.
            n: Nodes of each search.
            filters: Only nodes of rows that match.

        Returns:
            At most `2 * n` nodes, all of one version of the index.

        Raises:
            IndexNotBuilt: no sync has completed.
            FilterError: a filter does not fit the table.
        """
        asked = Search(embedding=embedding, words=words, n=n, filters=filters)
        return self._following(lambda o: by_both(o, asked), is_filtered=filters is not None)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to a query.

        Args:
            query: Its `mode` (`default`: by vector; `text_search`: by words; `hybrid`: both),
                embedding (normalised), `query_str`, `similarity_top_k`, `filters`, `doc_ids` (row
                keys) and `node_ids` are used.
            **kwargs: LlamaIndex passes some; none is used.

        Returns:
            Nodes, scores (cosine similarity, BM25, or both fused), greatest first, and ids; empty
            lists for no match.

        Raises:
            IndexNotBuilt: no sync has completed.
            FilterError: a filter does not fit the table, or the search mode is another.
        """
        if query.mode not in _MODES:
            raise FilterError(
                f"Search mode {query.mode.value!r} is not available; this index searches by "
                "vector ('default'), by words ('text_search') or by both ('hybrid')."
            )
        return self._following(
            lambda opened: _query(query, opened), is_filtered=query.filters is not None
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Do as `query`, without holding the event loop."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Return nodes by id, by filter, or both; in no promised order."""

        def read(opened: Opened) -> list[BaseNode]:
            parts = [IS_NODE]
            if node_ids is not None:
                parts.append(is_in("id", node_ids))
            if filters is not None:
                parts.append(predicate(opened.table, filters))
            search = opened.table.search().where(" AND ".join(parts)).limit(None)
            rows = search.select(NODE).to_arrow().to_pylist()
            return [node_of(row, opened.state) for row in rows]

        return self._following(read, is_filtered=filters is not None)

    def _following(self, read: Callable[[Opened], T], *, is_filtered: bool = False) -> T:
        """Read from the version that answers; once more when a sync has cleaned it up meanwhile."""
        opened = self._readable()
        try:
            return read(opened)
        except FAILURES as e:
            # every name and literal in a filter was ours to check
            if is_filtered and "filter" in str(e).lower():
                raise FilterError(f"The filter cannot be applied: {index_cause(e)}.") from e
            newer = self._readable()
            if newer.number == opened.number:
                with self._index.reading():
                    raise
        with self._index.reading():
            return read(newer)

    def _chosen(self) -> Opened | None:
        if self._version is None:
            return self._index.answering()
        return self._index.mirrored(self._version)

    def _readable(self) -> Opened:
        opened = self._chosen()
        if opened is None and self._version is not None:
            raise self._not_mirrored(self._version)
        if opened is None:
            raise IndexNotBuilt(str(self.uri))
        if opened.state.format != FORMAT:
            raise IndexingError(
                f"The index at {self.uri!r} was made by another release (format "
                f"{opened.state.format}, this one reads {FORMAT}). Run `rag sync`: it is built "
                "anew from its own vectors."
            )
        # a sync may have rebuilt the index since the reader was made
        built, wanted = opened.state.embedding, self._embedding
        if wanted is not None and built != wanted:
            raise IndexMismatch(
                "embedding model",
                built=built,
                wanted=wanted,
                mend="Make the engine anew, or run `rag sync`.",
            )
        return opened

    def _not_mirrored(self, version: int) -> IndexingError:
        known = self._index.versions()
        return (
            VersionNotMirrored(str(self.uri), known, version)
            if known
            else IndexNotBuilt(str(self.uri))
        )

    # -- what LlamaIndex would write, refused ------------------------------------------------

    def add(self, nodes: list[BaseNode], **add_kwargs: Any) -> list[str]:
        """Refuse: the index mirrors the Delta table."""
        raise _read_only()

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Refuse: the index mirrors the Delta table."""
        raise _read_only()

    def clear(self) -> None:
        """Refuse: the index mirrors the Delta table."""
        raise _read_only()

    def delete_nodes(self, node_ids: list[str], **delete_kwargs: Any) -> None:
        """Refuse: the index mirrors the Delta table."""
        raise _read_only()


_MODES = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.HYBRID,
)
N_CANDIDATES = 20
"""Nodes of each search that are ranked, at least."""


def _query(query: VectorStoreQuery, opened: Opened) -> VectorStoreQueryResult:
    asked = Search(
        embedding=query.query_embedding,
        words=query.query_str or "",
        n=query.similarity_top_k,
        filters=query.filters,
        row_keys=query.doc_ids,
        node_ids=query.node_ids,
    )
    if query.mode == VectorStoreQueryMode.TEXT_SEARCH:
        scored = by_words(opened, asked)
    elif query.mode == VectorStoreQueryMode.HYBRID:
        found = by_both(opened, replace(asked, n=max(asked.n, N_CANDIDATES)))
        scored = sorted(_scored(asked.words, found), key=lambda pair: pair[1], reverse=True)
    else:
        scored = [(f.node, f.cosine) for f in by_vector(opened, asked)]
    del scored[asked.n :]
    return VectorStoreQueryResult(
        nodes=[node for node, _ in scored],
        similarities=[score for _, score in scored],
        ids=[node.node_id for node, _ in scored],
    )


def _scored(question: str, found: Sequence[Found]) -> list[tuple[TextNode, float]]:
    """Return each node with its fused score."""
    shares = coverage(question, [f.node.text for f in found])
    return [(f.node, fused(f.cosine, share)) for f, share in zip(found, shares, strict=True)]


def _no_advice(record: logging.LogRecord) -> bool:
    return "Please add some data" not in record.getMessage()


def _read_only() -> IndexingError:
    return IndexingError(
        "This index mirrors a Delta table and is not written to directly. "
        "Change the table, then run `rag sync`."
    )
