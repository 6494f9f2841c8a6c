"""One answer on the screen: the search step, the streamed text, the chips and the cards.

Knows Chainlit's messages, steps and elements; does not know where the pieces come from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import chainlit as cl
from chainlit.config import config
from chainlit.utils import utc_now

from rag import timing
from rag.web import rows
from rag.web.guard import Guard, plain

if TYPE_CHECKING:  # all load LlamaIndex, which takes seconds; the port opens before that
    from rag.citation import Citation
    from rag.events import TurnTimings, Waiting
    from rag.retrieval import Hit

STOPPED = "(stopped)"
_PATIENCE_S = 0.4
"""A wait that ends within this time is not told: it would flicker. The queue tells every 0.5 s."""


class Answer:
    """What the reader sees of one turn; each method shows one thing more."""

    def __init__(self) -> None:
        self._guard = Guard()
        self._step: cl.Step | None = None
        self._message: cl.Message | None = None
        self._cards: cl.CustomElement | None = None
        self._place: cl.Message | None = None
        self._waits_since: float | None = None
        self._sources: Sequence[Hit] = ()
        self._citations: list[Citation] = []

    async def searching(self) -> None:
        """Show that the search is on."""
        run = cl.context.current_step
        self._step = cl.Step(
            name="library search",
            type="tool",
            icon="search",
            show_input=False,
            parent_id=run.id if run else None,
        )
        self._step.start = utc_now()
        await self._step.send()

    async def waiting(self, waiting: Waiting) -> None:
        """Show how many questions come first, on one line, once that takes a while."""
        now = time.monotonic()
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since < _PATIENCE_S:
            return
        content = plain(timing.waits(waiting))
        if self._place is None:
            self._place = cl.Message(content=content)
            await self._place.send()
        elif self._place.content != content:
            self._place.content = content
            await self._place.update()

    async def waited(self) -> None:
        """Say no more of a place in the queue."""
        self._waits_since = None
        if self._place is not None:
            place, self._place = self._place, None
            await place.remove()

    async def searched(self, query: str, hits: Sequence[Hit], seconds: float) -> None:
        """Show what was searched for and found."""
        await self._close_step(rows.search_text(query, hits, seconds))

    async def answering(self, sources: Sequence[Hit]) -> None:
        """Show the cards of the passages that the model reads; none when it refuses."""
        self._message = cl.Message(content="")
        self._sources = sources
        if not sources:
            return
        self._cards = cl.CustomElement(name="Sources", props={"id": ""}, display="inline")
        await self._show_cards(is_done=False)

    async def token(self, text: str) -> None:
        """Show the next piece of the text."""
        await self._write(self._guard.feed(text))

    async def cited(self, citation: Citation) -> None:
        """Show the chip of a citation and mark its span in the source."""
        self._citations.append(citation)
        await self._write(self._guard.chip(citation.n))
        await self._show_cards(is_done=False)

    async def took(self, timings: TurnTimings) -> None:
        """Say below what was found how long all of it took."""
        if self._step is not None:
            self._step.output = f"{self._step.output}\n\n{plain(timing.took(timings))}"
            await self._step.update()

    async def done(self, note: str = "") -> None:
        """Say that the text is complete, and what of it stands in no row."""
        if self._message is None:
            return
        if note:
            await self._write(f"\n\n_{plain(note)}_")
        await self._message.send()
        await self._show_cards(is_done=True)

    async def stopped(self) -> None:
        """Keep what is there and say that it was stopped."""
        await self.waited()
        if self._step is not None and self._step.end is None:
            await self._close_step(STOPPED)
        text = f"_{STOPPED}_"
        await self._write(f" {text}" if self._message and self._message.content else text)
        await self.done()

    async def failed(self, sentence: str) -> None:
        """Keep what is there and say in one sentence why there is no more."""
        await self.waited()
        if self._step is not None and self._step.end is None:
            await self._step.remove()
        if self._message is not None and self._message.content:
            await self.done()
        # the author is named because Chainlit took its default before the title was set
        await cl.ErrorMessage(content=plain(sentence), author=config.ui.name).send()

    async def _write(self, markdown: str) -> None:
        self._message = self._message or cl.Message(content="")
        await self._message.stream_token(markdown)

    async def _close_step(self, text: str) -> None:
        if self._step is not None:
            self._step.output = text
            self._step.end = utc_now()
            await self._step.update()

    async def _show_cards(self, *, is_done: bool) -> None:
        if self._cards is None or self._message is None:
            return
        self._cards.props = {
            "message_id": self._message.id,
            "is_done": is_done,
            "sources": rows.cards(self._sources, self._citations),
        }
        # Chainlit keeps a copy of each element there and removes the folder above it when
        # another Chainlit of the same directory ends
        files: Path = cl.context.session.files_dir
        await asyncio.to_thread(files.mkdir, parents=True, exist_ok=True)
        await self._cards.send(for_id=self._message.id)
