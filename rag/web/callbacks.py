"""Chainlit's callbacks: each only translates what the browser did into a call.

Knows Chainlit's sessions; every failure of the room ends here, as one sentence for the reader and
a traceback for the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import chainlit as cl
import chainlit.server

# `from chainlit import socket` fails: Chainlit looks it up among its lazy names
import chainlit.socket as chainlit_socket
from chainlit.config import config
from chainlit.session import WebsocketSession

from rag.errors import FilterError, ModelError, QuestionError, RagError, RowNotFound
from rag.metrics import Metrics
from rag.web.answer import Answer
from rag.web.commands import Command, parse
from rag.web.composer import MODEL, Composer
from rag.web.conversations import Conversation, Conversations, MakeEngine, turns_of
from rag.web.guard import plain
from rag.web.limits import Limits
from rag.web.models import Models
from rag.web.people import person_here, person_now
from rag.web.preparation import Preparation
from rag.web.watching import Watch

NEUTRAL = "Something went wrong on our side; the log of the server says what. Please ask again."
GONE = "That message is no longer part of this chat; please ask it again."
ADMINS = "Only an admin may switch the model."
MOVED = "rag:moved"
"""What `chat.js` says when the index mirrors another version."""

_PATIENCE_S = 0.2
"""A load that ends within this time is not announced."""
_REFRESH_S = 0.5
_CONVERSATION = "conversation"
_TOLD = "told"
"""The problem with keeping chats that the reader has been told."""

_REPEATING = (QuestionError, FilterError, RowNotFound)
"""Errors that repeat what the reader sent, which no log may hold."""

_log = logging.getLogger(__name__)

Ask = Callable[[cl.Message], Awaitable[None]]
Run = Callable[[Command, cl.Message], Awaitable[None]]


async def _no_problem() -> str | None:
    return None


@dataclass(frozen=True)
class Parts:
    """What the callbacks hand on to."""

    preparation: Preparation[MakeEngine]
    """Loads what makes engines."""
    conversations: Conversations
    metrics: Metrics
    composer: Composer
    watch: Watch
    limits: Limits
    run: Run
    """Does what a command says."""
    max_question_chars: int
    models: Models | None = None
    """The models to choose from; None where there is no choice."""
    problem: Callable[[], Awaitable[str | None]] = _no_problem
    """Says why chats are not kept; None while they are."""


class Callbacks:
    """What happens when the server starts, a person comes, asks, edits, presses Stop or leaves.

    Args:
        parts: What does the work.
        starters: Returns the questions offered at the start; blocks.
    """

    def __init__(self, parts: Parts, starters: Callable[[], tuple[str, ...]]) -> None:
        """Keep what the callbacks need; `register` makes them Chainlit's."""
        self._parts, self._starters = parts, starters
        self._telling: set[asyncio.Task[None]] = set()  # the loop alone would forget them

    def register(self) -> None:
        """Make these Chainlit's callbacks."""
        cl.on_app_startup(self.on_startup)
        cl.on_chat_start(self.on_chat_start)
        cl.on_chat_resume(self.on_chat_resume)
        cl.on_chat_end(self.on_chat_end)
        cl.on_message(self.on_message)
        config.code.on_message = _unless_gone(config.code.on_message)
        cl.on_stop(self.on_stop)
        cl.on_settings_update(self.on_settings_update)
        chainlit.server.sio.on("connection_successful", self.on_connected)
        cl.on_window_message(self.on_window_message)
        cl.set_starters(self.starters)

    async def on_startup(self) -> None:
        """Begin to load and return at once: the port opens only after this."""
        self._parts.preparation.begin()

    async def on_chat_start(self) -> None:
        """Offer what can be set before the first question."""
        async with _telling(Answer()):
            await self._parts.composer.offer()
            await self._parts.composer.say()

    async def on_connected(self, sid: str) -> None:
        """Begin or resume a chat as Chainlit does; show a page what it missed without network."""
        await chainlit_socket.connection_successful(sid)
        session = WebsocketSession.get(sid)
        if session is not None and session.restored and not session.thread_id_to_resume:
            self._parts.watch.came()

    async def on_chat_resume(self, thread: Mapping[str, Any]) -> None:
        """Take a kept conversation up again, and follow what is being written in it."""
        async with _telling(Answer()):
            self._parts.watch.came()
            cl.chat_context.clear()  # a page that comes back: Chainlit adds all messages again
            cl.user_session.set(_TOLD, None)  # it was kept with the thread
            await self._conversation().recall(turns_of(thread.get("steps") or []))
            await self._parts.composer.offer()
            await self._parts.composer.say()

    async def on_chat_end(self) -> None:
        """Stop what nobody looks at any more; a page that is reloaded comes back in time."""
        self._parts.watch.left()

    async def on_settings_update(self, settings: dict[str, Any]) -> None:
        """Take the filters, and let an admin's model answer everyone."""
        async with _telling(Answer()):
            choice = settings.get(MODEL)
            models = self._parts.models
            if models is not None and choice is not None and choice != models.current:
                self._parts.composer.show_settings_anew()
                await self._use(models, str(choice))
        async with _telling(Answer()):
            await self._parts.composer.offer(again=True)
            await self._parts.composer.say()
            self._parts.composer.check()

    async def on_window_message(self, message: object) -> None:
        """Offer what there is now, when the page has seen a sync; its other messages are ours."""
        if message == MOVED:
            async with _telling(Answer()):
                await self._parts.composer.offer(again=True)

    async def starters(self) -> list[cl.Starter]:
        """Return the questions offered on the welcome page."""
        try:
            texts = await asyncio.to_thread(self._starters)  # imports polars
        except RagError as e:  # the first answer will say so
            _log.info("No questions are offered: %s", e)
            texts = ()
        return [cl.Starter(label=text, message=text) for text in texts]

    async def on_message(self, message: cl.Message) -> None:
        """Answer a question, new or edited; Chainlit shows nothing of what is raised here."""
        # Stop cancels this task; Chainlit sets it for a new message, but not for an edited one
        cl.context.session.current_task = asyncio.current_task()
        thread = {"rag": "thread", "id": cl.context.session.thread_id}
        await cl.context.emitter.send_window_message(thread)
        answer = Answer()
        async with _telling(answer):
            is_admin = person_here().is_admin
            command = parse(
                message.content,
                message.command,
                is_admin=is_admin,
                max_chars=self._parts.max_question_chars,
            )
            if command is not None:
                await self._parts.run(command, message)
            else:
                await self._answer(message, answer)
        # not awaited: a database that is locked would hold up the end of the turn
        task = asyncio.create_task(self._tell_problem())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def on_stop(self) -> None:
        """Take back Chainlit's own note; the answer says by itself that it was stopped."""
        for message in cl.chat_context.get()[-2:]:
            if message.content == "Task manually stopped.":
                await message.remove()

    async def _answer(self, message: cl.Message, answer: Answer) -> None:
        parts, person = self._parts, person_here()
        with parts.limits.question(person.name), parts.watch.writing(answer):
            await self._loaded(answer)
            await parts.composer.offer(again=True)  # a sync, or another reader's switch
            asking = parts.composer.asking(message.modes)
            answer.asks(asking)
            await parts.composer.tell(asking)
            conversation = self._conversation()
            async with conversation.turn:
                make = await self._loaded(answer)
                async with parts.conversations.answering():
                    from rag.web.turn import show  # loaded by now; see `core.load`

                    engine = await conversation.engine(make, asking, message.id)
                    await show(engine.aevents(message.content), answer, parts.metrics)

    def _conversation(self) -> Conversation:
        """Return what was said in the thread of this session."""
        found: Conversation | None = cl.user_session.get(_CONVERSATION)
        if found is None:
            thread_id = cl.context.session.thread_id
            found = self._parts.conversations.of(thread_id, user=person_here().name)
            cl.user_session.set(_CONVERSATION, found)
        return found

    async def _use(self, models: Models, choice: str) -> None:
        """Switch the model, telling the reader how far it is."""
        person = await person_now()
        if person is None or not person.is_admin:
            raise ModelError(ADMINS)
        answer = Answer()
        await self._loaded(answer)
        task = asyncio.create_task(models.use(choice))
        await self._until_done(task, answer)
        await task
        await cl.context.emitter.send_toast(f"{choice} answers from now on.", "success")

    async def _tell_problem(self) -> None:
        """Say once that chats are not kept, while that is so."""
        problem = await self._parts.problem()
        if problem != cl.user_session.get(_TOLD):
            cl.user_session.set(_TOLD, problem)
            if problem is not None:
                await cl.context.emitter.send_toast(problem, "warning")

    async def _loaded(self, answer: Answer) -> MakeEngine:
        """Return what the preparation made, telling the reader how far it is.

        Nothing is awaited between the end of the load and the return: what is returned is current.
        """
        while not (task := self._parts.preparation.begin()).done():
            await self._until_done(task, answer)
            await asyncio.shield(task)
        return task.result()

    async def _until_done(self, task: asyncio.Task[Any], answer: Answer) -> None:
        await asyncio.wait({task}, timeout=_PATIENCE_S)
        if task.done():
            return
        try:
            while not task.done():
                await answer.notes(self._progress())
                await asyncio.wait({task}, timeout=_REFRESH_S)
        finally:
            await answer.waited()

    def _progress(self) -> str:
        return f"Warming up: {plain(self._parts.preparation.state)}"


@contextlib.asynccontextmanager
async def _telling(answer: Answer) -> AsyncIterator[None]:
    """Say in an answer how it failed; Chainlit shows nothing of what is raised in a callback."""
    try:
        yield
    except asyncio.CancelledError:
        await answer.stopped()
        raise
    except RagError as e:
        if isinstance(e, _REPEATING):
            _log.info("Told the reader what is wrong with what they sent: %s", type(e).__name__)
        else:
            _log.info("Told the reader: %s", e, exc_info=e)
        await answer.failed(str(e))
    except Exception:  # noqa: BLE001 – the room's outermost handler
        _log.exception("Something could not be done for a reader")
        await answer.failed(NEUTRAL)


def _unless_gone(on_message: Ask) -> Ask:
    """Answer an edited message that the server has forgotten; Chainlit stumbles over it."""

    async def checked(message: cl.Message | None) -> None:
        if message is None:
            await Answer().failed(GONE)
        else:
            await on_message(message)

    return checked
