"""Chainlit's callbacks: each only translates what the browser did into a call.

Knows Chainlit's sessions; every failure of the room ends here, as one sentence for the reader and
a traceback for the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import chainlit as cl
from chainlit.config import config
from chainlit.input_widget import Select

from rag.errors import RagError
from rag.metrics import Metrics
from rag.progress import Progress
from rag.settings import Settings
from rag.web.answer import Answer
from rag.web.conversations import Conversation, Conversations, MakeEngine
from rag.web.guard import plain
from rag.web.models import Models
from rag.web.preparation import Preparation

NEUTRAL = "Something went wrong on our side; the log of the server says what. Please ask again."
GONE = "That message is no longer part of this chat; please ask it again."

_PATIENCE_S = 0.2
"""A load that ends within this time is not announced."""
_REFRESH_S = 0.5
_CONVERSATION = "conversation"
_OFFERED = "offered"
"""The model that the reader's settings name as the current one."""
_MODEL = "model"

_log = logging.getLogger(__name__)

Ask = Callable[[cl.Message], Awaitable[None]]


def load(settings: Settings, progress: Progress) -> MakeEngine:
    """Prepare everything and return what makes the engine of a session; blocks for seconds.

    Raises:
        RagError: the table, the index or a model cannot be used.
    """
    # imported here because torch, LanceDB and LlamaIndex take 10 s, and the port opens before
    from rag import wiring
    from rag.web import turn  # noqa: F401 – loaded now, so that the first question is not late

    wiring.prepare(settings, progress)
    return partial(wiring.chat_engine, settings)


def known_models(settings: Settings) -> list[str]:
    """Return the names of the language models that are on this machine.

    Blocks: it looks at files, and at first imports what knows them.
    """
    from rag import wiring

    here = ("yes", "package")
    models = wiring.known_models(settings)
    return [m.name for m in models if m.kind == "language" and m.installed in here]


def switch(settings: Settings, name: str, wanted: str, progress: Progress) -> MakeEngine:
    """Load another language model instead of one, and return what makes engines with it; blocks.

    Raises:
        RagError: it cannot be loaded; the one before is loaded again.
    """
    from rag import wiring
    from rag.wiring.answering import switch_llm, with_llm

    changed = switch_llm(with_llm(settings, name), wanted, progress)
    return partial(wiring.chat_engine, changed)


class Callbacks:
    """What happens when the server starts, a person asks, edits, presses Stop or switches.

    Args:
        preparation: Loads what makes engines.
        starters: Returns the questions offered at the start.
        metrics: Where questions are counted.
        conversations: Where engines are kept.
        models: The models that a reader may choose from; None where there is no choice.
    """

    def __init__(
        self,
        preparation: Preparation[MakeEngine],
        starters: Callable[[], tuple[str, ...]],
        *,
        metrics: Metrics,
        conversations: Conversations,
        models: Models | None = None,
    ) -> None:
        """Keep what the callbacks need; `register` makes them Chainlit's."""
        self._preparation, self._starters, self._metrics = preparation, starters, metrics
        self._conversations, self._models = conversations, models

    def register(self) -> None:
        """Make these Chainlit's callbacks."""
        cl.on_app_startup(self.on_startup)
        cl.on_message(self.on_message)
        config.code.on_message = _unless_gone(config.code.on_message)
        cl.on_stop(self.on_stop)
        cl.set_starters(self.starters)
        if self._models is not None:
            cl.on_chat_start(self.on_chat_start)
            cl.on_settings_update(self.on_settings_update)

    async def on_startup(self) -> None:
        """Begin to load and return at once: the port opens only after this."""
        self._preparation.begin()

    async def on_chat_start(self) -> None:
        """Offer the models to choose from."""
        if self._models is not None:
            await self._offer(self._models)

    async def on_settings_update(self, settings: dict[str, Any]) -> None:
        """Let the chosen model answer everyone; Chainlit shows what is raised here as it is."""
        assert self._models is not None, "registered only where there is a choice"
        choice = str(settings.get(_MODEL))
        if choice == self._models.current:
            return
        try:
            await self._use(self._models, choice)
            await cl.context.emitter.send_toast(f"{choice} answers from now on.", "success")
        except RagError as e:
            _log.info("Told the reader: %s", e, exc_info=e)
            await Answer().failed(str(e))
        except Exception:  # noqa: BLE001 – the room's outermost handler
            _log.exception("The model could not be switched")
            await Answer().failed(NEUTRAL)
        await self._offer(self._models)

    async def starters(self) -> list[cl.Starter]:
        """Return the questions offered on the welcome page."""
        texts = await asyncio.to_thread(self._starters)  # the demo's room imports polars
        return [cl.Starter(label=text, message=text) for text in texts]

    async def on_message(self, message: cl.Message) -> None:
        """Answer a question, new or edited; Chainlit shows nothing of what is raised here."""
        # Stop cancels this task; Chainlit sets it for a new message, but not for an edited one
        cl.context.session.current_task = asyncio.current_task()
        answer = Answer()
        try:
            await self._answer(message, answer)
        except asyncio.CancelledError:
            await answer.stopped()
            raise
        except RagError as e:
            _log.info("Told the reader: %s", e, exc_info=e)
            await answer.failed(str(e))
        except Exception:  # noqa: BLE001 – the room's outermost handler
            _log.exception("A question could not be answered")
            await answer.failed(NEUTRAL)

    async def on_stop(self) -> None:
        """Take back Chainlit's own note; the answer says by itself that it was stopped."""
        for message in cl.chat_context.get()[-2:]:
            if message.content == "Task manually stopped.":
                await message.remove()

    async def _answer(self, message: cl.Message, answer: Answer) -> None:
        if self._models is not None and cl.user_session.get(_OFFERED) != self._models.current:
            await self._offer(self._models)  # another reader has switched
        make = await self._loaded()
        async with self._conversations.answering():
            from rag.web.turn import show  # loaded by now; see `load`

            engine = await self._conversation().engine(make, message.id)
            await show(engine.aevents(message.content), answer, self._metrics)

    def _conversation(self) -> Conversation:
        """Return what was said in this session."""
        found: Conversation | None = cl.user_session.get(_CONVERSATION)
        if found is None:
            found = self._conversations.begin()
            cl.user_session.set(_CONVERSATION, found)
        return found

    async def _offer(self, models: Models) -> None:
        """Show the models to choose from in the settings, where there is a choice."""
        choices, current = await models.choices(), models.current
        cl.user_session.set(_OFFERED, current)
        if len(choices) > 1:
            told = "It answers everyone on this server."
            select = Select(
                id=_MODEL,
                label="Language model",
                values=choices,
                initial_value=current,
                description=told,
            )
            await cl.ChatSettings([select]).send()

    async def _use(self, models: Models, choice: str) -> None:
        """Switch the model, telling the reader how far it is."""
        await self._loaded()
        task = asyncio.create_task(models.use(choice))
        await self._until_done(task)
        await task

    async def _loaded(self) -> MakeEngine:
        """Return what the preparation made, telling the reader how far it is.

        Nothing is awaited between the end of the load and the return: what is returned is current.
        """
        while not (task := self._preparation.begin()).done():
            await self._until_done(task)
            await asyncio.shield(task)
        return task.result()

    async def _until_done(self, task: asyncio.Task[Any]) -> None:
        await asyncio.wait({task}, timeout=_PATIENCE_S)
        if not task.done():
            await self._say_warming_up(task)

    async def _say_warming_up(self, task: asyncio.Task[Any]) -> None:
        note = await cl.Message(content=self._progress()).send()
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_REFRESH_S)
                if note.content != (content := self._progress()):
                    note.content = content
                    await note.update()
        finally:
            await note.remove()

    def _progress(self) -> str:
        return f"Warming up: {plain(self._preparation.state)}"


def _unless_gone(on_message: Ask) -> Ask:
    """Answer an edited message that the server has forgotten; Chainlit stumbles over it."""

    async def checked(message: cl.Message | None) -> None:
        if message is None:
            await Answer().failed(GONE)
        else:
            await on_message(message)

    return checked
