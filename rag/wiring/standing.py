"""Where the table and its index stand, and why the one may not answer for the other.

Reads settings; loads no model.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rag.errors import IndexMismatch, IndexNotBuilt, RagError
from rag.settings import Settings
from rag.wiring.parts import (
    embedding_fingerprint,
    index_options,
    index_uri,
    open_index,
    open_snapshot,
    recipe_of,
    same_place,
)

if TYPE_CHECKING:
    from rag.index import Index, IndexState


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
    problem: str | None
    """Why the index does not answer, or why it cannot follow the table; None where it can."""


def status(settings: Settings) -> Status:
    """Return where the table and its index stand, without loading a model."""
    from rag import weights

    problem: str | None = None
    version: int | None = None
    try:
        version = table_version(settings)
    except RagError as e:
        problem = str(e)
    index = open_index(settings)
    answering = index.answering()
    state = answering.state if answering else None
    changed, stuck = _changed(settings, index) if state and problem is None else (None, None)
    reason: str | None = None
    try:
        refuse_other_recipe(settings, state)
    except RagError as e:
        reason = str(e)
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
        mirrored_versions=index.versions(),
        changed=changed,
        building=building(settings),
        problem=reason or stuck,
    )


def _changed(settings: Settings, index: Index) -> tuple[dict[str, int] | None, str | None]:
    """Return what a sync would change, as far as that is told quickly, or why there can be none."""
    from rag import mirror

    try:
        found = mirror.glance(index, open_snapshot(settings, None), recipe_of(settings))
    except RagError as e:
        return None, str(e)
    if found is None or found.read == "nothing":
        return None, None
    counts = {"added": found.n_added, "updated": found.n_updated, "deleted": found.n_deleted}
    return counts, None


def building(settings: Settings) -> str | None:
    """Return who builds the index right now, and how far that is, in a few words."""
    from rag import mirror

    found = mirror.holder(index_uri(settings), index_options(settings))
    if found is None:
        return None
    far = f", {found.what} {found.n_done:,} of {found.n_total:,}" if found.n_total else ""
    return f"process {found.pid} on {found.host} since {found.since}{far}"


def refuse_other_recipe(settings: Settings, state: IndexState | None) -> None:
    """Refuse an index that was not built from what the settings name.

    Raises:
        IndexNotBuilt: there is none.
        IndexMismatch: something differs; its text says what, and how far a build is.
    """
    if state is None:
        raise IndexNotBuilt(index_uri(settings), progress=_progress_of_build(settings))
    for what, built, wanted in (
        ("table", same_place(state.table_uri), same_place(settings.table.uri)),
        ("template", state.template, settings.table.template),
        (
            "embedding model",
            state.embedding,
            embedding_fingerprint(settings),
        ),
        ("embedding.chunk_tokens", state.chunk_tokens, settings.embedding.chunk_tokens),
        ("embedding.chunk_overlap", state.chunk_overlap, settings.embedding.chunk_overlap),
        ("key", state.key, state.key if settings.table.key is None else settings.table.key),
    ):
        if built != wanted:
            raise IndexMismatch(what, built=built, wanted=wanted, mend=_mend(settings))


def _mend(settings: Settings) -> str:
    going_on = _progress_of_build(settings)
    if going_on:
        return f"{going_on} Until then it answers only those who have the old settings."
    return "Run `rag sync` to build it anew, or set back what was changed."


def _progress_of_build(settings: Settings) -> str:
    """Return the sentence that says how far a build is; empty when there is none."""
    from rag import mirror

    running = building(settings)
    if running is not None:
        return f"`rag sync` is building it: {running}."
    n_staged = mirror.n_staged(open_index(settings))
    if n_staged:
        return f"An interrupted build has {n_staged:,} nodes; `rag sync` goes on with it."
    return ""


def table_version(settings: Settings) -> int:
    """Return the latest version of the table.

    Raises:
        TableError: the table cannot be read.
    """
    return open_snapshot(settings, None).version


def _bytes_under(folder: Path) -> int:
    n_bytes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a sync may be tidying up; a cache may be another's
            n_bytes += path.stat().st_size if path.is_file() else 0
    return n_bytes
