"""The chat in the browser, on Chainlit.

The only room that knows Chainlit. Nothing heavy (torch, LlamaIndex, LanceDB, polars) is imported
here or in what this imports: the port opens within seconds, the rest is loaded behind it.

    callbacks.py      what happens when a person comes, asks, edits, presses Stop or leaves
    composer.py       what can be set before asking → asking.py, filters.py, commands.py
    running.py        what a command does → stats.py
    conversations.py  an engine for each thread, and what was said
    watching.py       who looks at an answer that is being written
    models.py         which language model answers everyone, and the change to another
    preparation.py    the load in the background; core.py: what is called of the other rooms
    turn.py           events of a turn → answer.py, one answer on the screen
    guard.py          text that stays text in Chainlit's Markdown
    rows.py           hits as plain values for public/elements/*.jsx
    history.py        chats kept in `rag.accounts`, for Chainlit
    auth.py           how a person signs in → people.py, greeting.py, secret.py
    owning.py         what is somebody's own: routes that need more than Chainlit does
    limits.py         how much one person may ask, and guess
    server.py         routes, security headers, no other host → gates.py, sockets.py
    pages.py          the table, a row and a sync beside the chat → accents.py, download.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import chainlit as cl
from chainlit.config import config

from rag.accounts import Accounts
from rag.errors import RagError
from rag.metrics import Metrics
from rag.settings import Settings, table_name
from rag.web import download, owning, pages, server
from rag.web.auth import install_auth
from rag.web.callbacks import Callbacks, Parts
from rag.web.composer import Composer
from rag.web.conversations import Conversations, MakeEngine
from rag.web.core import Core
from rag.web.history import History
from rag.web.limits import Limits
from rag.web.models import Models
from rag.web.people import person_of
from rag.web.preparation import Preparation
from rag.web.running import Running
from rag.web.watching import Watch

if TYPE_CHECKING:  # loads what takes seconds; the port opens before that
    from rag.wiring import Status

__all__ = ["can_switch", "serve", "setup", "starters", "title"]

_N_STARTERS = 4


def setup() -> None:
    """Make Chainlit serve the chat of the settings; call it at the top of `app.py`.

    Raises:
        SystemExit: a setting is wrong; its sentence is what the terminal shows.
    """
    try:
        settings = Settings()
    except RagError as e:
        raise SystemExit(str(e)) from e
    serve(settings, Core(settings))


def serve(settings: Settings, core: Core) -> None:
    """Make Chainlit serve the chat of a table, an index and models.

    Raises:
        SystemExit: the chat would be open to everybody, or a setting cannot be used.
    """
    web, named = settings.web, title(settings)
    accounts = Accounts(web.database_url)
    owning.install(install_auth(web, accounts, host=config.run.host), accounts)
    history = History(accounts)
    cl.data_layer(lambda: history)
    metrics, conversations = Metrics(), Conversations()
    preparation = Preparation(core.load)
    models = None
    if can_switch(settings):
        models = Models(
            settings.llm.model,
            known=core.known_models,
            switch=core.switch,
            preparation=preparation,
            conversations=conversations,
        )
    composer = Composer(core.know, models)
    table = Table(core, preparation, composer, conversations, metrics)
    library = pages.Library(table.standing, core.row, core.sync, table.synced)
    server.install(
        named,
        state=lambda: (preparation.is_ready, preparation.state),
        metrics=metrics,
        emblem="flask.svg" if settings.is_demo else "table.svg",
        settings=web,
        routes=[
            *pages.routes(library, person=person_of, accent=web.accent),
            download.route(accounts),
        ],
    )

    async def problem() -> str | None:
        await history.settled()
        return history.problem()

    parts = Parts(
        preparation=preparation,
        conversations=conversations,
        metrics=metrics,
        composer=composer,
        watch=Watch(web.grace_s),
        limits=Limits(web.max_waiting, web.max_questions_per_minute),
        max_question_chars=settings.chat.max_question_chars,
        run=Running(core, composer, accounts, title=named).run,
        models=models,
        problem=problem,
    )
    Callbacks(parts, lambda: starters(settings, core)).register()


@dataclass(frozen=True)
class Table:
    """The table as the pages beside the chat see it, and who must hear of a sync."""

    core: Core
    preparation: Preparation[MakeEngine]
    composer: Composer
    conversations: Conversations
    metrics: Metrics

    def standing(self) -> Status:
        """Return where the table and its index stand; blocks."""
        status = self.core.status()
        self.metrics.stands(mirrored=status.index_version, latest=status.table_version)
        if status.index_version is None and self.preparation.is_under_way:
            # the first load builds the index; that there is none yet is no fault
            at = status.building or self.preparation.state
            return replace(status, building=at, problem=None)
        return status

    async def synced(self) -> None:
        """Offer the new version, and let engines be made anew."""
        self.composer.forget()
        await self.conversations.let_go()


def can_switch(settings: Settings) -> bool:
    """Return whether the language model can be switched: a server has its own."""
    return settings.web.switch_model and settings.llm.base_url is None


def title(settings: Settings) -> str:
    """Return the name of the chat."""
    if settings.web.title:
        return settings.web.title
    return "Fantasy Shop" if settings.is_demo else table_name(settings.table.uri)


def starters(settings: Settings, core: Core) -> tuple[str, ...]:
    """Return the questions offered at the start, drawn from the table where none are set; blocks.

    Raises:
        RagError: the table cannot be read.
    """
    if settings.web.starters is not None:
        return settings.web.starters
    return core.examples(_N_STARTERS)
