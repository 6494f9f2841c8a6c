"""One answer on the screen: the search step, the streamed text, the chips and the cards.

Knows Chainlit's messages, steps and elements; does not know where the pieces come from. What is
on the screen is kept as it grows, so a server that is killed leaves what it had written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import chainlit as cl
from chainlit.config import config
from chainlit.data import get_data_layer
from chainlit.step import StepDict
from chainlit.utils import utc_now

from rag import timing
from rag.web import rows
from rag.web.guard import Guard, plain

if TYPE_CHECKING:  # all load LlamaIndex, which takes seconds; the port opens before that
    from rag.citation import Citation
    from rag.events import Done, Waiting
    from rag.retrieval import Hit
    from rag.web.asking import Asking

_log = logging.getLogger(__name__)

State = Literal["writing", "done", "stopped", "failed"]

STOPPED = "(stopped)"
_PATIENCE_S = 0.4
"""A wait that ends within this time is not told: it would flicker. The queue tells every 0.5 s."""
_KEEP_S = 1.0
"""How often a text that is being written is kept."""
_N_NEAREST = 3
"""Rows that a refusal offers."""


class Answer:
    """What the reader sees of one turn; each method shows one thing more."""

    def __init__(self) -> None:
        self._guard = Guard()
        self._step: cl.Step | None = None
        self._message: cl.Message | None = None
        self._cards: cl.CustomElement | None = None
        self._note: cl.Message | None = None
        self._error: cl.ErrorMessage | None = None
        self._removed: list[StepDict] = []
        """What was on the screen meanwhile."""
        self._waits_since: float | None = None
        self._kept_at = 0.0
        self._keeping: set[asyncio.Task[None]] = set()  # the loop alone would forget them
        self._hits: Sequence[Hit] = ()
        self._sources: Sequence[Hit] = ()
        self._citations: list[Citation] = []
        self._is_marked = False
        self._metadata: dict[str, Any] = {
            "state": "writing",
            "text": "",
            "marked": "",
            "refused": False,
        }

    async def show_again(self) -> None:
        """Show in the session at hand, another tab, what there is so far."""
        emitter = cl.context.emitter
        for removed in self._removed:
            await emitter.delete_step(removed)
        for step in (self._step, self._note, self._message, self._error):
            if step is None or self._is_removed(step.id):
                continue
            if step is self._step or step.content:  # a message is shown from its first word on
                await emitter.send_step(step.to_dict())
        if self._cards is not None:
            await emitter.send_element(self._cards.to_dict())

    def _is_removed(self, step_id: str) -> bool:
        return any(removed["id"] == step_id for removed in self._removed)

    def asks(self, asking: Asking) -> None:
        """Keep with the answer which version is asked, and which rows."""
        self._metadata["asked"] = {"version": asking.version, "filters": list(asking.told)}

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
        await self.notes(plain(timing.waits(waiting)))

    async def notes(self, markdown: str) -> None:
        """Show what is waited for, on one line, until `waited`."""
        if self._note is None:
            self._note = cl.Message(content=markdown)
            await self._note.send()
        elif self._note.content != markdown:
            self._note.content = markdown
            await self._note.update()

    async def waited(self) -> None:
        """Say no more of what was waited for."""
        self._waits_since = None
        if self._note is not None:
            note, self._note = self._note, None
            self._removed.append(note.to_dict())
            await note.remove()

    async def searched(self, query: str, hits: Sequence[Hit], seconds: float) -> None:
        """Show what was searched for and found."""
        self._hits = hits
        self._metadata["relevance"] = hits[0].relevance if hits else None
        if self._step is not None:  # by which a purge finds what the step says
            keys = [str(hit.node.metadata["row_key"]) for hit in hits]
            self._step.metadata = {"sources": [{"row_key": key} for key in keys]}
        await self._close_step(rows.search_text(query, hits, seconds))

    async def answering(self, sources: Sequence[Hit], *, refused: bool) -> None:
        """Show the cards of the passages that the model reads; of a refusal the nearest rows."""
        self._message = cl.Message(content="")
        self._metadata["refused"] = refused
        self._sources = self._hits[:_N_NEAREST] if refused else sources
        self._metadata["sources"] = [
            {
                "n": n,
                "title": hit.title,
                "row_key": str(hit.node.metadata["row_key"]),
                "table_version": hit.node.metadata["table_version"],
            }
            for n, hit in enumerate(self._sources, start=1)
        ]
        if not self._sources and not refused:
            return
        self._cards = cl.CustomElement(name="Sources", props={"id": ""}, display="inline")
        await self._show_cards(is_done=False)

    async def token(self, text: str) -> None:
        """Show the next piece of the text."""
        self._metadata["text"] += text
        self._metadata["marked"] += text
        self._is_marked = False
        await self._write(self._guard.feed(text))

    async def cited(self, citation: Citation) -> None:
        """Show the chip of a citation and mark its span in the source."""
        self._citations.append(citation)
        self._metadata["marked"] += f" [{citation.n}]"
        await self._write(self._guard.chip(citation.n))
        await self._show_cards(is_done=False)

    async def flagged(self) -> None:
        """Mark the sentence before as one that says what stands in no row, once."""
        if not self._is_marked:
            self._is_marked = True
            await self._write(self._guard.unfounded())

    async def done(self, done: Done, note: str) -> None:
        """Say that the text is complete, what of it stands in no row, and how long it took."""
        self._metadata["table_version"] = done.table_version
        self._metadata["timings"] = asdict(done.timings)
        self._metadata["text"] = done.answer
        chosen = self._metadata["asked"]["filters"] if "asked" in self._metadata else []
        if done.refused and chosen:
            note = f"Only rows that fit your filters were looked at: {', '.join(chosen)}."
        if note:
            await self._write(f"\n\n_{plain(note)}_")
        await self._end("done")
        if self._step is not None:
            self._step.output = f"{self._step.output}\n\n{plain(timing.took(done.timings))}"
            await self._step.update()

    async def stopped(self) -> None:
        """Keep what is there and say that it was stopped."""
        await self.waited()
        if self._step is not None and self._step.end is None:
            await self._close_step(STOPPED)
        text = f"_{STOPPED}_"
        await self._write(f" {text}" if self._message and self._message.content else text)
        await self._end("stopped")

    async def failed(self, sentence: str) -> None:
        """Keep what is there and say in one sentence why there is no more."""
        await self.waited()
        if self._step is not None and self._step.end is None:
            self._removed.append(self._step.to_dict())
            await self._step.remove()
        if self._message is not None and self._message.content:
            await self._end("failed")
        # the author is named because Chainlit took its default before the title was set
        self._error = cl.ErrorMessage(content=plain(sentence), author=config.ui.name)
        await self._error.send()

    async def _end(self, state: State) -> None:
        if self._message is None:
            return
        self._message.metadata = self._facts(state)
        await self._message.send()
        await self._show_cards(is_done=True)

    def _facts(self, state: State) -> dict[str, Any]:
        cited = [
            {"n": c.n, "row_key": self._row_key(c.n), "start": c.start, "end": c.end}
            for c in self._citations
        ]
        return {**self._metadata, "state": state, "citations": cited}

    def _row_key(self, n: int) -> str:
        return str(self._metadata["sources"][n - 1]["row_key"])

    async def _write(self, markdown: str) -> None:
        self._message = self._message or cl.Message(content="")
        await self._message.stream_token(markdown)
        if time.monotonic() - self._kept_at > _KEEP_S:
            self._keep(self._message)

    def _keep(self, message: cl.Message) -> None:
        """Keep the text so far, behind the stream: a server may be killed."""
        self._kept_at = time.monotonic()
        layer = get_data_layer()
        if layer is not None:
            message.created_at = message.created_at or utc_now()
            step = {**message.to_dict(), "metadata": self._facts("writing"), "streaming": False}
            task = asyncio.create_task(layer.create_step(step))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

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
            "kind": "nearest" if self._metadata["refused"] else "sources",
            "sources": rows.cards(self._sources, self._citations),
        }
        await send_cards(self._cards, self._message.id)


async def send_cards(cards: cl.CustomElement, message_id: str) -> None:
    """Show cards under a message, or show them anew."""
    # Chainlit keeps a copy of each element there and removes the folder above it when
    # another Chainlit of the same directory ends
    files: Path = cl.context.session.files_dir
    try:
        await asyncio.to_thread(files.mkdir, parents=True, exist_ok=True)
        await cards.send(for_id=message_id)
    except OSError:  # a full disk; the page needs no copy, and the history has its own
        _log.warning("Chainlit's copy of cards cannot be written", exc_info=True)
        await cl.context.emitter.send_element(cards.to_dict())
