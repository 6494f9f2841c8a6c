"""What a command does in the session at hand: rows are found, and shown without an answer.

Knows Chainlit's session and the parts that do the work; what a command is, `commands` knows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import chainlit as cl

from rag.accounts import Accounts
from rag.errors import QuestionError, RowNotFound
from rag.web import commands, stats
from rag.web.answer import send_cards
from rag.web.commands import Command, Shown
from rag.web.composer import Composer
from rag.web.core import Core
from rag.web.people import person_here, person_now

_N_ANSWERS = 500
"""Recent answers that `/stats` draws."""


class Running:
    """Runs commands.

    Args:
        core: Finds rows.
        composer: Says which rows may be found, in which version.
        accounts: Keeps the answers that `/stats` draws, and conversations.
        title: Name of the chat.
    """

    def __init__(self, core: Core, composer: Composer, accounts: Accounts, *, title: str) -> None:
        self._core, self._composer, self._accounts = core, composer, accounts
        self._title = title

    async def run(self, command: Command, message: cl.Message) -> None:
        """Do what a command says.

        Raises:
            RagError: it cannot be done; the reader is told why.
        """
        asking = self._composer.asking(message.modes)
        match command.name:
            case "search":
                hits = await asyncio.to_thread(self._core.hits, command.argument, asking)
                await _show(commands.search(hits, command.argument, asking))
            case "row":
                await _show(await self._row(command.argument, asking.version))
            case "sources":
                await _show(commands.sources(await self._last_sources()))
            case "export":
                await _show(commands.export(cl.context.session.thread_id))
            case "stats":
                await self._stats()
            case "help":
                shown = commands.help_text(title=self._title, is_admin=person_here().is_admin)
                await _show(shown)

    async def _row(self, key: str, version: int | None) -> Shown:
        try:
            return commands.row(await asyncio.to_thread(self._core.row, key, version))
        except RowNotFound as e:  # its own sentence is for a terminal
            at = "this version" if version is None else f"version {version}"
            raise QuestionError(f"There is no row {key!r} in {at} of the table.") from e

    async def _last_sources(self) -> list[dict[str, Any]]:
        thread = await self._accounts.thread(cl.context.session.thread_id)
        return commands.last_sources(thread["elements"] if thread else ())

    async def _stats(self) -> None:
        person = await person_now()
        if person is None or not person.is_admin:
            raise QuestionError("/stats is for admins; ask one.")
        answers = await self._accounts.recent_answers(_N_ANSWERS)
        known = await self._composer.known()
        figures = await asyncio.to_thread(stats.figures, answers, known.facts)
        if not figures:
            await _show(Shown("There is nothing to draw yet: ask a question first."))
            return
        message = await cl.Message(content="The table and recent questions:").send()
        for n, figure in enumerate(figures, start=1):  # one after the other keeps their order
            chart = cl.Plotly(name=f"chart {n}", figure=figure, display="inline", size="large")
            await chart.send(for_id=message.id)


async def _show(shown: Shown) -> None:
    message = await cl.Message(content=shown.markdown).send()
    if shown.cards:
        props = {
            "message_id": message.id,
            "is_done": True,
            "kind": shown.kind,
            "sources": shown.cards,
        }
        cards = cl.CustomElement(name="Sources", props=props, display="inline")
        await send_cards(cards, message.id)
