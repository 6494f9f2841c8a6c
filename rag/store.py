"""LanceDB: the index of one Delta version, readable through LlamaIndex's own store class.

Knows LanceDB and Arrow; does not know Delta, models or settings. One Lance table, `nodes`, holds
a row for each node and one more, the state row, that says which Delta version this is: data and
version are committed together, so a reader sees one version or the next, never a mixture.
The state row has no vector and no text, so no search can return it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import lance
import lancedb
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
    IndexWriteError,
    cause,
)
from rag.filters import where
from rag.table import row_metadata

NODES = "nodes"
STAGE = "rag-stage-"
"""How the names of staging tables begin; other tables of the database are left alone."""
FORMAT = 1
"""Layout of the index; an index of another format is rebuilt."""

_log = logging.getLogger(__name__)

_STATE_ID = "state"  # a node's id holds a colon, so it cannot be this
_COLUMNS = "metadata"  # the name the stock store expects
_IS_NODE = "row_hash IS NOT NULL"
_FAILURES = (OSError, RuntimeError, ValueError)
"""Lance raises all three for I/O and for damaged files."""
_AMONG = 2_000
"""Values in one IN list."""
_TOMBSTONES = 10_000
"""Tombstones a batch."""


@dataclass(frozen=True)
class IndexState:
    """What the index mirrors and what it was built with."""

    table_uri: str
    table_id: str
    table_version: int
    key: tuple[str, ...]
    template: str
    embedding: str
    """Identity of the embedding space."""
    dimension: int
    chunk_tokens: int
    chunk_overlap: int
    n_rows: int
    n_nodes: int
    n_blank: int
    commit: str = ""
    """Identity of the mirrored commit; a table restored from a backup has another."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the state row's text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> IndexState:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        known = {f.name for f in fields(cls)}
        return cls(
            **{k: v for k, v in values.items() if k in known} | {"key": tuple(values["key"])}
        )


def nodes_schema(dimension: int, columns: pa.Schema) -> pa.Schema:
    """Return the Arrow schema of the index.

    Args:
        dimension: Of the vectors.
        columns: The Delta table's columns; they become one struct, so that filters can use them.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("row_key", pa.string()),
            pa.field("chunk_no", pa.int32()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("row_hash", pa.string()),
            pa.field("text_hash", pa.string()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dimension)),
            pa.field(_COLUMNS, pa.struct(list(columns))),
            pa.field("state", pa.string()),
        ]
    )


def node_id(row_key: str, chunk_no: int) -> str:
    """Return the id of a row's node."""
    return f"{chunk_no}:{row_key}"


class NodeStore(LanceDBVectorStore):
    """The index as a LlamaIndex vector store.

    Reading works as people know it (`query`, `get_nodes`, `VectorStoreIndex.from_vector_store`),
    with true cosine similarities, typed filters and `[]` where nothing matches. Writing is the
    mirror's alone: `add` and `delete` are refused, because the Delta table is the only source.

    Args:
        uri: Folder or URL of the LanceDB database.
        storage_options: For object storage.
    """

    _storage_options: dict[str, str] | None = PrivateAttr()
    _embedding: str | None = PrivateAttr(default=None)
    _version: int | None = PrivateAttr(default=None)

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None) -> None:
        # the stock store warns that a table does not exist yet and asks to add data to it
        logging.getLogger("llama_index.vector_stores.lancedb.base").addFilter(_no_advice)
        try:
            connection = lancedb.connect(uri, storage_options=storage_options)
        except _FAILURES as e:
            raise IndexWriteError(uri, _cause(e)) from e
        super().__init__(
            uri=uri,
            table_name=NODES,
            doc_id_key="row_key",
            mode="create",
            connection=connection,
        )
        self._storage_options = storage_options

    def _table_exists(self, tbl_name: str | None = None) -> bool:
        # asked by the stock constructor, which would open the table and keep that version
        return False

    @property
    def table(self) -> LanceTable | None:
        """The index as it is now."""
        return self.snapshot()

    def expect(self, *, embedding: str | None = None, version: int | None = None) -> None:
        """Refuse to read an index of another embedding space or Delta version from now on."""
        self._embedding, self._version = embedding, version

    # -- reading ---------------------------------------------------------------------------

    def snapshot(self) -> LanceTable | None:
        """Open the index as it is now; None when there is none.

        A handle keeps to its version, so what is read from one handle belongs together.
        """
        with self._reading():
            if NODES not in self._connection.list_tables().tables:
                return None
            return self._connection.open_table(NODES)

    def state(self, table: LanceTable | None = None) -> IndexState | None:
        """Return what the index mirrors; None when nothing was built."""
        table = table or self.snapshot()
        if table is None:
            return None
        with self._reading():
            rows = table.search().where(f"id = '{_STATE_ID}'").select(["state"])
            found = rows.limit(1).to_list()
        try:
            return IndexState.from_json(found[0]["state"]) if found else None
        except (KeyError, TypeError, ValueError) as e:
            raise IndexingError(
                f"The index at {self.uri!r} was made by another release. "
                "Run `rag sync --rebuild` to build it anew."
            ) from e

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to a query embedding.

        Args:
            query: Its embedding (normalised), `similarity_top_k`, `filters`, `doc_ids` (row keys)
                and `node_ids` are used.
            **kwargs: LlamaIndex passes some; none is used.

        Returns:
            Nodes, cosine similarities (greatest first) and ids; empty lists for no match.

        Raises:
            IndexNotBuilt: no sync has completed.
            FilterError: a filter does not fit the table, or the search mode is not vector search.
        """
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise FilterError(
                f"Search mode {query.mode.value!r} is not available; this index searches by vector."
            )
        table, state = self._opened()
        search = table.search(query.query_embedding, vector_column_name="vector")
        search = search.distance_type("cosine").limit(query.similarity_top_k)
        parts = [_in("row_key", query.doc_ids)] if query.doc_ids else []
        parts += [_in("id", query.node_ids)] if query.node_ids else []
        parts += [self._where(table, query.filters)] if query.filters is not None else []
        if parts:
            search = search.where(" AND ".join(parts), prefilter=True)
        names = ["id", "row_key", "start", "end", "text", _COLUMNS, "_distance"]
        with self._reading(is_filtered=query.filters is not None):
            rows = search.select(names).to_arrow().to_pylist()
        return VectorStoreQueryResult(
            nodes=[_node(row, state) for row in rows],
            similarities=[1.0 - row["_distance"] for row in rows],
            ids=[row["id"] for row in rows],
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
        table, state = self._opened()
        parts = [_IS_NODE]
        if node_ids is not None:
            parts.append(_in("id", node_ids))
        if filters is not None:
            parts.append(self._where(table, filters))
        rows = table.search().where(" AND ".join(parts)).limit(None)
        names = ["id", "row_key", "start", "end", "text", _COLUMNS]
        with self._reading(is_filtered=filters is not None):
            found = rows.select(names).to_arrow().to_pylist()
        return [_node(row, state) for row in found]

    def hashes(
        self, table: LanceTable, *, column: str = "row_key", among: Sequence[str] | None = None
    ) -> dict[str, tuple[str, int]]:
        """Return the content hash and the number of nodes of rows, by row key.

        Args:
            table: A handle on the index.
            column: `row_key` or `row_hash`, what `among` lists.
            among: Only these; None is all rows.
        """
        if among is not None and len(among) > _AMONG:
            parts = [among[i : i + _AMONG] for i in range(0, len(among), _AMONG)]
            some = [self.hashes(table, column=column, among=part) for part in parts]
            return {key: value for part in some for key, value in part.items()}
        where = _IS_NODE if among is None else f"{_IS_NODE} AND {_in(column, among)}"
        found: dict[str, tuple[str, int]] = {}
        rows = table.search().where(where).limit(None).select(["row_key", "row_hash"])
        for batch in rows.to_batches():
            keys, hashes = (batch.column(n).to_pylist() for n in ("row_key", "row_hash"))
            for key, row_hash in zip(keys, hashes, strict=True):
                found[key] = (row_hash, found.get(key, ("", 0))[1] + 1)
        return found

    def vectors(self, table: LanceTable, text_hashes: Sequence[str]) -> dict[str, list[float]]:
        """Return the vectors of the texts that the index already holds, by text hash."""
        predicate = f"{_IS_NODE} AND {_in('text_hash', text_hashes)}"
        rows = table.search().where(predicate).limit(None).select(["text_hash", "vector"])
        return {row["text_hash"]: row["vector"] for row in rows.to_arrow().to_pylist()}

    def _opened(self) -> tuple[LanceTable, IndexState]:
        table = self.snapshot()
        state = self.state(table) if table is not None else None
        if table is None or state is None:
            raise IndexNotBuilt(str(self.uri))
        # a sync may have rebuilt or moved the index since the reader was made
        for what, built, wanted in (
            ("embedding model", state.embedding, self._embedding),
            ("Delta version", state.table_version, self._version),
        ):
            if wanted is not None and built != wanted:
                raise IndexMismatch(
                    what,
                    built=built,
                    wanted=wanted,
                    mend="Make the engine anew, or run `rag sync`.",
                )
        return table, state

    def _where(self, table: LanceTable, filters: MetadataFilters) -> str:
        struct = table.schema.field(_COLUMNS).type
        columns = pa.schema([struct.field(i) for i in range(struct.num_fields)])
        return where(filters, columns, prefix=_COLUMNS)

    # -- writing: the mirror's side ----------------------------------------------------------

    def stage(self, name: str, schema: pa.Schema) -> LanceTable:
        """Open the staging table of this name, or make it; stages of other syncs are dropped.

        Args:
            name: Begins with `STAGE`.
            schema: Of the nodes.
        """
        with self._writing():
            names = self._stages()
            for other in names:
                if other != name:
                    self._connection.drop_table(other)
            if name in names:
                return self._connection.open_table(name)
            return self._connection.create_table(name, schema=schema)

    def append(self, stage: LanceTable, batch: pa.RecordBatch) -> None:
        """Add a batch of nodes to a stage; it is there completely or not at all."""
        with self._writing():
            stage.add(pa.Table.from_batches([batch]))

    def discard(self) -> None:
        """Drop an index that cannot be read."""
        with self._writing():
            self._connection.drop_table(NODES)

    def tidy(self) -> None:
        """Remove what a publish leaves behind: stages and tombstones.

        The index is right with or without them, so a failure is only logged; the next sync tries
        again.
        """
        try:
            for name in self._stages():
                self._connection.drop_table(name)
            table = self.snapshot()
            tombstones = f"row_hash IS NULL AND id <> '{_STATE_ID}'"
            if table is not None and table.count_rows(tombstones):
                table.delete(tombstones)
        except (*_FAILURES, IndexingError) as e:
            _log.warning("The index at %s could not be tidied: %s", self.uri, _cause(e))

    def _stages(self) -> list[str]:
        names = self._connection.list_tables().tables
        return [n for n in names if n.startswith(STAGE)]

    def replace(self, stage: LanceTable, state: IndexState) -> None:
        """Make the index hold exactly the stage's nodes and this state, in one commit."""
        rows = _reader(stage.schema, _batches(stage), [], state)
        with self._writing():
            # pylance writes what it is given; lancedb would inspect each vector first
            lance.write_dataset(
                rows,
                self._connection.uri.rstrip("/") + f"/{NODES}.lance",
                mode="create" if self.snapshot() is None else "overwrite",
                storage_options=self._storage_options,
            )
            table = self.snapshot()
            assert table is not None
            table.set_unenforced_primary_key("id")

    def merge(
        self, table: LanceTable, stage: LanceTable, gone: Sequence[str], state: IndexState
    ) -> None:
        """Upsert the stage's nodes, remove the nodes named in `gone`, set the state: one commit.

        Args:
            table: The handle that the changes were worked out against.
            stage: New and changed nodes.
            gone: Ids of nodes to remove.
            state: What the index mirrors from now on.

        Raises:
            IndexWriteError: another sync committed since `table` was opened, or the disk is full.
        """
        rows = _reader(table.schema, _batches(stage), gone, state)
        with self._writing():
            # lancedb has no way to refuse a commit on a stale base; pylance has
            merge = table.to_lance().merge_insert("id")
            merge.when_matched_update_all().when_not_matched_insert_all()
            merge.conflict_retries(0).execute(rows)

    @contextlib.contextmanager
    def _reading(self, *, is_filtered: bool = False) -> Iterator[None]:
        try:
            yield
        except _FAILURES as e:
            if (
                is_filtered and "filter" in str(e).lower()
            ):  # every name and literal in it was ours to check
                raise FilterError(f"The filter cannot be applied: {_cause(e)}.") from e
            raise IndexingError(
                f"The index at {self.uri!r} cannot be read: {_cause(e)}. "
                "Run `rag sync --rebuild` to build it anew."
            ) from e

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as e:
            raise IndexWriteError(str(self.uri), _cause(e)) from e

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


def _no_advice(record: logging.LogRecord) -> bool:
    return "Please add some data" not in record.getMessage()


def _node(row: dict[str, Any], state: IndexState) -> TextNode:
    metadata = row_metadata(state.table_uri, state.table_version, row["row_key"], row[_COLUMNS])
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


def _cause(error: BaseException) -> str:
    # Lance adds where in its own sources it failed, which tells a user nothing
    return re.split(r",? ?(?:/rustc|/root|/home|rust/)", cause(error))[0].rstrip(". ")


def _in(column: str, values: Sequence[str]) -> str:
    # single quotes are strings in Lance's SQL, doubled inside
    listed = ", ".join("'" + v.replace("'", "''") + "'" for v in values)
    return f"{column} IN ({listed})" if values else "false"


def _batches(stage: LanceTable) -> Iterator[pa.RecordBatch]:
    yield from stage.to_lance().to_batches()


def _reader(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], gone: Sequence[str], state: IndexState
) -> pa.RecordBatchReader:
    """Stream the nodes, a tombstone (an id and nulls) for each node gone, and the state row."""

    def rows() -> Iterator[pa.RecordBatch]:
        yield from batches
        nulls = dict.fromkeys(schema.names)
        for i in range(0, len(gone), _TOMBSTONES):
            ids = gone[i : i + _TOMBSTONES]
            yield pa.RecordBatch.from_pylist([{**nulls, "id": n} for n in ids], schema=schema)
        last = {**nulls, "id": _STATE_ID, "state": state.to_json()}
        yield pa.RecordBatch.from_pylist([last], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, rows())


def _read_only() -> IndexingError:
    return IndexingError(
        "This index mirrors a Delta table and is not written to directly. "
        "Change the table, then run `rag sync`."
    )
