"""What a reader can set before asking: model, filters, the version asked, commands.

Knows Chainlit's settings, modes and commands, and reads back what was chosen; does not know how
rows are found. What is offered follows the table: it is offered anew when a sync has moved it on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import chainlit as cl
from chainlit.input_widget import Select

from rag.errors import FilterError, RagError
from rag.web import asking, commands, filters
from rag.web.asking import Asking
from rag.web.models import Models
from rag.web.people import person_here

if TYPE_CHECKING:  # imports polars and deltalake; the port opens before that
    from rag.table import ColumnFacts

MODEL = "model"
"""The setting that names the language model."""
_PICKED = "picked"
"""The version that the last question was put to."""
_SETTINGS, _VERSIONS = "offered settings", "offered versions"
"""What the reader's page offers, to tell whether that is still so."""
_FRESH_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What is known of the table that is asked."""

    facts: Sequence[ColumnFacts] = ()
    """What of its columns a reader can filter by."""
    versions: Sequence[tuple[int, datetime | None]] = ()
    """Mirrored versions and when each was written, latest first."""
    current: int | None = None
    """The version that answers."""


class Composer:
    """What the page offers, and what was chosen on it.

    Args:
        know: Returns what is known of the table; blocks.
        models: The models that an admin may choose from; None where there is no choice.
    """

    def __init__(self, know: Callable[[], Known], models: Models | None) -> None:
        self._know, self._models = know, models
        self._known = Known()
        self._known_at = float("-inf")

    def forget(self) -> None:
        """Ask what is known of the table anew: a sync may have moved it on."""
        self._known_at = float("-inf")

    async def offer(self, *, again: bool = False) -> None:
        """Show what can be set in the session at hand.

        Args:
            again: Show only what has changed since: what is shown anew forgets what was picked.
        """
        known, choices = await self.known(), await self._choices()
        model = self._models.current if self._models else None
        await self._offer_settings(known, choices, [model, str(known.facts)], again=again)
        await self._offer_versions(known, [str(known.versions), known.current], again=again)
        if not again:
            offered = commands.offered(is_admin=person_here().is_admin)
            await cl.context.emitter.set_commands(offered)

    def show_settings_anew(self) -> None:
        """Let the next offer show the settings of the session at hand, whatever it shows now."""
        cl.user_session.set(_SETTINGS, None)

    def check(self) -> None:
        """Refuse filters of the session at hand that cannot be used.

        Raises:
            FilterError: a filter holds a value that its column does not take.
        """
        asking.asked(self._known.facts, cl.context.session.chat_settings, None)

    async def say(self) -> None:
        """Tell the page what the next question will ask."""
        with contextlib.suppress(FilterError):  # the question will say so; the field keeps it
            settings = cl.context.session.chat_settings
            found = asking.asked(self._known.facts, settings, None)
            await self.tell(replace(found, version=cl.user_session.get(_PICKED)))

    async def _offer_settings(
        self, known: Known, choices: list[Any], state: list[Any], *, again: bool
    ) -> None:
        if again and cl.user_session.get(_SETTINGS) == state:
            return
        cl.user_session.set(_SETTINGS, state)
        session = cl.context.session
        chosen = dict(session.chat_settings)
        widgets = [*choices, *filters.widgets(known.facts, chosen)]
        if widgets:
            kept = await cl.ChatSettings(widgets).send()  # takes the defaults for chosen
            session.chat_settings = {**kept, **{k: v for k, v in chosen.items() if k in kept}}

    async def _offer_versions(self, known: Known, state: list[Any], *, again: bool) -> None:
        if again and cl.user_session.get(_VERSIONS) == state:
            return
        cl.user_session.set(_VERSIONS, state)
        picked = cl.user_session.get(_PICKED)
        modes = asking.modes(known.versions, known.current, picked=picked)
        await cl.context.emitter.set_modes(modes)

    def asking(self, modes: Mapping[str, str] | None) -> Asking:
        """Return what the session at hand asks.

        Args:
            modes: What was chosen in the composer; None is nothing.

        Raises:
            FilterError: a filter holds a value that its column does not take.
            QuestionError: the picker names no version.
        """
        found = asking.asked(self._known.facts, cl.context.session.chat_settings, modes)
        cl.user_session.set(_PICKED, found.version)
        return found

    async def tell(self, asked: Asking) -> None:
        """Tell the page what is asked, to be seen while typing."""
        await cl.context.emitter.send_window_message(asked.for_page())

    async def known(self) -> Known:
        """Return what is known of the table, half a minute old at most."""
        if time.monotonic() - self._known_at > _FRESH_S:
            try:
                self._known = await asyncio.to_thread(self._know)
            except RagError as e:  # the answer will say so; the page only offers less
                _log.info("Nothing is known of the table: %s", e)
                self._known = Known()
            if self._known.versions:  # without an index there soon may be one
                self._known_at = time.monotonic()
        return self._known

    async def _choices(self) -> list[Any]:
        if self._models is None or not person_here().is_admin:
            return []
        choices, current = await self._models.choices(), self._models.current
        cl.context.session.chat_settings[MODEL] = current
        if len(choices) < 2:
            return []
        told = "It answers everyone on this server."
        return [
            Select(
                id=MODEL,
                label="Language model",
                values=choices,
                initial_value=current,
                description=told,
            )
        ]
