"""What the chat calls of the rest of the program; each function imports it only when called.

Knows settings and `rag.wiring`; does not know Chainlit. Everything here blocks, most of it for
seconds: torch, LanceDB and LlamaIndex take 10 s to import, and the port opens before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag.progress import Progress
from rag.settings import Settings
from rag.web.composer import Known
from rag.web.conversations import MakeEngine

if TYPE_CHECKING:
    from rag.engines import TableChatEngine
    from rag.provenance import RowView
    from rag.retrieval import Hit
    from rag.web.asking import Asking
    from rag.wiring import Status


class Core:
    """The table, the index and the models of the settings.

    Args:
        settings: What the server was started with; its model may be switched.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self, progress: Progress) -> MakeEngine:
        """Prepare everything and return what makes engines.

        Raises:
            RagError: the table, the index or a model cannot be used.
        """
        from rag import wiring
        from rag.web import turn  # noqa: F401 – now, so that the first question is not late

        wiring.prepare(self._settings, progress)
        return self._engine

    def switch(self, name: str, wanted: str, progress: Progress) -> MakeEngine:
        """Load another language model instead of one, and return what makes engines with it.

        Raises:
            RagError: it cannot be loaded; the one before is loaded again.
        """
        from rag.wiring.answering import switch_llm, with_llm

        self._settings = switch_llm(with_llm(self._settings, name), wanted, progress)
        return self._engine

    def known_models(self) -> list[str]:
        """Return the names of the language models that are on this machine."""
        from rag import wiring

        here = ("yes", "package")
        models = wiring.known_models(self._settings)
        return [m.name for m in models if m.kind == "language" and m.installed in here]

    def know(self) -> Known:
        """Return what a reader can choose from: columns and versions."""
        from rag import wiring

        settings, pinned = self._settings, self._settings.table.version
        versions = wiring.versions(settings)
        current = max((v for v, _ in versions), default=None) if pinned is None else pinned
        return Known(wiring.columns(settings), versions, current)

    def status(self) -> Status:
        """Return where the table and its index stand."""
        from rag import wiring

        return wiring.status(self._settings)

    def row(self, key: str, version: int | None) -> RowView:
        """Return a row as it was in a version, and what became of it.

        Raises:
            RagError: there is no such row, or the table cannot be read.
        """
        from rag import wiring

        return wiring.row(self._settings, key, version=version)

    def hits(self, query: str, asking: Asking) -> list[Hit]:
        """Return the rows found for a text, best first.

        Raises:
            RagError: the index cannot be used, or a filter does not fit.
        """
        from rag import wiring

        found = wiring.retriever(self._settings, filters=asking.filters, version=asking.version)
        return list(found.retrieve(query))

    def sync(self) -> int:
        """Let the index follow the table, and return the version mirrored.

        Raises:
            RagError: the table cannot be read, or another process syncs.
        """
        from rag import wiring

        return wiring.sync(self._settings).table_version

    def examples(self, n: int) -> tuple[str, ...]:
        """Return questions to begin with, of the demo or drawn from the table's rows."""
        if self._settings.is_demo:
            from rag.demo import STARTERS

            return STARTERS
        from rag import wiring

        return tuple(wiring.examples(self._settings, n))

    def _engine(self, asking: Asking, *, user: str, conversation: str) -> TableChatEngine:
        from rag import wiring
        from rag.llm.call import Caller

        return wiring.chat_engine(
            self._settings,
            filters=asking.filters,
            version=asking.version,
            caller=Caller(user, conversation),
        )
