"""Which language model answers everyone on this server, and the change to another.

Knows names and the order of things; does not know Chainlit, nor how a model is loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import PurePath

from rag.errors import ModelError
from rag.progress import Progress
from rag.web.conversations import Conversations, MakeEngine
from rag.web.preparation import Preparation

Switch = Callable[[str, str, Progress], MakeEngine]
"""Called as `switch(name, wanted, progress)`; blocks until the wanted model is loaded instead."""

_log = logging.getLogger(__name__)


class Models:
    """The language models to choose from.

    Args:
        name: The one that answers.
        known: Returns the names of those that are here; blocks.
        switch: Unloads one and loads another; what it raises is told the reader who chose, and
            the engines of before are made again.
        preparation: What everybody waits for meanwhile.
        conversations: Whose engines have to be let go of.
    """

    def __init__(
        self,
        name: str,
        *,
        known: Callable[[], Iterable[str]],
        switch: Switch,
        preparation: Preparation[MakeEngine],
        conversations: Conversations,
    ) -> None:
        self._name, self._known, self._switch = name, known, switch
        self._preparation, self._conversations = preparation, conversations

    @property
    def current(self) -> str:
        """What the model that answers is called."""
        return shown(self._name)

    async def choices(self) -> list[str]:
        """Return what the models are called that a reader may choose; the current one too."""
        return list(await self._named())

    async def use(self, choice: str) -> None:
        """Let another model answer everyone, as soon as the answers being written are over.

        Several at once are done one after the other. A caller that is cancelled ends the wait, not
        the change.

        Raises:
            ModelError: no such model is offered.
            RagError: it cannot be loaded; the one before answers again.
        """
        name = (await self._named()).get(choice)
        if name is None:
            raise ModelError(f"There is no model {choice!r} here; `rag models` lists those known.")
        # nothing is awaited between the end of a load and the begin of the next: no other comes in
        while not (task := self._preparation.begin()).done():
            await asyncio.shield(task)
        before = task.result()
        if name == self._name:
            return
        failures: list[Exception] = []

        def load(progress: Progress) -> MakeEngine:
            progress(f"loading the language model {choice}", 0, 0)
            try:
                make = self._switch(self._name, name, progress)
            except Exception as e:  # noqa: BLE001 – raised again for the reader who chose
                _log.error("The model could not be switched", exc_info=e)
                failures.append(e)
                return before
            self._name = name
            return make

        await asyncio.shield(self._preparation.change(load, after=self._conversations.let_go))
        if failures:
            raise failures[0]

    async def _named(self) -> dict[str, str]:
        """Return the models' names by what they are called."""
        names = [*await asyncio.to_thread(self._known), self._name]
        return {shown(name): name for name in names}


def shown(name: str) -> str:
    """Return what a model is called: its name, and no path of the server."""
    return PurePath(name).name
