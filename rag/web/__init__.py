"""The chat in the browser, on Chainlit.

The only room that knows Chainlit. Nothing heavy (torch, LlamaIndex, LanceDB, polars) is imported
here or in what this imports: the port opens within seconds, the rest is loaded behind it.

    callbacks.py      what happens when a person asks, edits, presses Stop or switches the model
    conversations.py  an engine for each session, and what was said
    models.py         which language model answers everyone, and the change to another
    preparation.py    the load in the background
    turn.py           events of a turn → answer.py, one answer on the screen
    guard.py          text that stays text in Chainlit's Markdown
    rows.py           hits as plain values for public/elements/*.jsx
    server.py         routes, security headers, no other host
"""

from __future__ import annotations

from functools import partial

from rag.errors import RagError
from rag.metrics import Metrics
from rag.settings import Settings
from rag.web import server
from rag.web.callbacks import Callbacks, known_models, load, switch
from rag.web.conversations import Conversations
from rag.web.models import Models
from rag.web.preparation import Preparation
from rag.web.rows import table_name

__all__ = ["setup", "starters", "title"]


def setup() -> None:
    """Make Chainlit serve the chat of the settings; call it at the top of `app.py`.

    Raises:
        SystemExit: a setting is wrong; its sentence is what the terminal shows.
    """
    try:
        settings = Settings()
    except RagError as e:
        raise SystemExit(str(e)) from e
    preparation = Preparation(partial(load, settings))
    conversations, metrics = Conversations(), Metrics()
    server.install(
        title(settings),
        state=lambda: (preparation.is_ready, preparation.state),
        metrics=metrics,
    )
    models = None
    if settings.web.switch_model and settings.llm.base_url is None:
        models = Models(
            settings.llm.model,
            known=partial(known_models, settings),
            switch=partial(switch, settings),
            preparation=preparation,
            conversations=conversations,
        )
    Callbacks(
        preparation,
        partial(starters, settings),
        metrics=metrics,
        conversations=conversations,
        models=models,
    ).register()


def title(settings: Settings) -> str:
    """Return the name of the chat."""
    if settings.web.title:
        return settings.web.title
    return "Fantasy Shop" if settings.is_demo else table_name(settings.table.uri)


def starters(settings: Settings) -> tuple[str, ...]:
    """Return the questions offered at the start; none for a table that is not the demo."""
    if settings.web.starters is not None:
        return settings.web.starters
    if not settings.is_demo:
        return ()
    # here because it imports polars and deltalake, and only the demo needs it
    from rag.demo import STARTERS

    return STARTERS
