"""A chat that repeats what it is told, behind the real sign-in: `chainlit run tests/auth_app.py`."""

from __future__ import annotations

import asyncio
import logging

import chainlit as cl
from chainlit.config import config
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rag.accounts import Accounts
from rag.errors import QuestionError
from rag.metrics import Metrics
from rag.settings import Settings
from rag.web import owning, server
from rag.web.auth import install_auth
from rag.web.history import History
from rag.web.limits import Limits
from rag.web.people import person_here, person_now, person_of

DATABASE = "data/chats.db"


async def me(request: Request) -> Response:
    """Tell the page who it is for."""
    person = await person_of(request)
    return JSONResponse(None if person is None else [person.name, person.is_admin])


async def crash(request: Request) -> Response:
    """Fail as no route should."""
    raise RuntimeError("/srv/secret/path")


async def read(request: Request) -> Response:
    """Say how long the body is."""
    return JSONResponse(len(await request.body()))


def main() -> None:
    """Serve it."""
    web = Settings().web
    limits = Limits(web.max_waiting, web.max_questions_per_minute)
    accounts = Accounts(web.database.get_secret_value() if web.database else DATABASE)
    history = History(accounts)
    cl.data_layer(lambda: history)
    owning.install(install_auth(web, accounts, host=config.run.host), accounts)
    own = [
        Route("/rag/me", me),
        Route("/rag/crash", crash),
        Route("/rag/read", read, methods=["POST"]),
    ]
    server.install(
        "Test",
        state=lambda: (False, "There is no Delta table at '/srv/secret/path'."),
        metrics=Metrics(),
        settings=web,
        routes=own,
    )

    @cl.on_chat_resume
    async def on_chat_resume(thread: dict[str, object]) -> None:
        logging.getLogger(__name__).debug("resumed")

    @cl.on_message
    async def on_message(message: cl.Message) -> None:
        here = person_here()
        try:
            with limits.question(here.name):
                if message.content == "wait":
                    await cl.Message(content="Waiting").send()
                    await asyncio.sleep(3600)
                said = [here, await person_now()] if message.content == "who" else message.content
                element = cl.CustomElement(name="Sources", props={"sources": []})
                # the folder for it is made by the real chat too
                cl.context.session.files_dir.mkdir(parents=True, exist_ok=True)
                await cl.Message(content=f"You said {said}", elements=[element]).send()
        except QuestionError as e:
            await cl.ErrorMessage(content=str(e)).send()


# Chainlit loads this file under its path, a test imports it under its name
if __name__.endswith(".py"):
    main()
