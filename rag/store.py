"""The index as LlamaIndex's own store class reads it.

Knows LlamaIndex and the index; does not know Delta, models or settings. Reading only: writing is
the mirror's alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pyarrow as pa
from lancedb.table import LanceTable
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
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
from rag.filters import where
from rag.index import (
    COLUMNS,
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
from rag.table import row_metadata
from rag.upkeep import N_PROBES, REFINE_FACTOR

_NODE = ["id", "row_key", "start", "end", "row_version", "text", COLUMNS]

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

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to a query.

        Args:
            query: Its `mode` (vector search, or text search by BM25), embedding (normalised) or
                `query_str`, `similarity_top_k`, `filters`, `doc_ids` (row keys) and `node_ids`
                are used.
            **kwargs: LlamaIndex passes some; none is used.

        Returns:
            Nodes, cosine similarities (text search: BM25 scores), greatest first, and ids; empty
            lists for no match.

        Raises:
            IndexNotBuilt: no sync has completed.
            FilterError: a filter does not fit the table, or the search mode is another.
        """
        if query.mode not in _MODES:
            raise FilterError(
                f"Search mode {query.mode.value!r} is not available; "
                "this index searches by vector ('default') or by words ('text_search')."
            )
        return self._following(lambda opened: self._query(query, opened))

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
                parts.append(_where(opened.table, filters))
            search = opened.table.search().where(" AND ".join(parts)).limit(None)
            rows = search.select(_NODE).to_arrow().to_pylist()
            return [_node(row, opened.state) for row in rows]

        return self._following(read, is_filtered=filters is not None)

    def _query(self, query: VectorStoreQuery, opened: Opened) -> VectorStoreQueryResult:
        table = opened.table
        if query.mode == VectorStoreQueryMode.DEFAULT:
            search = table.search(query.query_embedding, vector_column_name="vector")
            search = search.distance_type("cosine")
            search = search.nprobes(N_PROBES)
            search = search.refine_factor(REFINE_FACTOR)
            measure = "_distance"
        else:
            search = table.search(query.query_str or "", query_type="fts", fts_columns="text")
            measure = "_score"
        parts = [is_in("row_key", query.doc_ids)] if query.doc_ids else []
        parts += [is_in("id", query.node_ids)] if query.node_ids else []
        parts += [_where(table, query.filters)] if query.filters is not None else []
        if parts:
            search = search.where(" AND ".join(parts), prefilter=True)
        found = search.limit(query.similarity_top_k).select([*_NODE, measure])
        rows = found.to_arrow().to_pylist()
        return VectorStoreQueryResult(
            nodes=[_node(row, opened.state) for row in rows],
            similarities=[
                row["_score"] if measure == "_score" else 1.0 - row["_distance"] for row in rows
            ],
            ids=[row["id"] for row in rows],
        )

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


_MODES = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.TEXT_SEARCH)


def _no_advice(record: logging.LogRecord) -> bool:
    return "Please add some data" not in record.getMessage()


def _where(table: LanceTable, filters: MetadataFilters) -> str:
    struct = table.schema.field(COLUMNS).type
    columns = pa.schema([struct.field(i) for i in range(struct.num_fields)])
    return where(filters, columns, prefix=COLUMNS)


def _node(row: dict[str, Any], state: IndexState) -> TextNode:
    metadata = row_metadata(
        state.table_uri,
        state.table_version,
        row["row_key"],
        row[COLUMNS],
        row_version=state.no_later(row["row_version"]),
    )
    hidden = list(metadata)
    return TextNode(
        id_=row["id"],
        text=row["text"],
        start_char_idx=row["start"],
        end_char_idx=row["end"],
        metadata=metadata,
        # a prompt or an embedding gets the template's text, nothing else
        excluded_embed_metadata_keys=hidden,
        excluded_llm_metadata_keys=hidden,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=row["row_key"])},
    )


def _read_only() -> IndexingError:
    return IndexingError(
        "This index mirrors a Delta table and is not written to directly. "
        "Change the table, then run `rag sync`."
    )
