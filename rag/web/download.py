"""A conversation as a Markdown file, for whoever had it.

Knows requests and `Accounts`; does not know Chainlit.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rag.accounts import Accounts, markdown
from rag.errors import AccountsError
from rag.web.people import person_of

_GONE = "There is no such conversation of yours."
_log = logging.getLogger(__name__)


def route(accounts: Accounts) -> Route:
    """Return the route `/rag/export/{thread_id}`."""

    async def download(request: Request) -> Response:
        try:
            return await _download(accounts, request)
        except AccountsError as e:
            _log.warning("A conversation could not be read", exc_info=e)
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, str(e))

    return Route("/rag/export/{thread_id}", download)


async def _download(accounts: Accounts, request: Request) -> Response:
    person = await person_of(request)
    if person is None:
        return _problem(HTTPStatus.UNAUTHORIZED, "Please sign in to the chat first.")
    thread_id = request.path_params["thread_id"]
    # another's is answered like none, so that nobody learns which ones there are
    if await accounts.thread_owner(thread_id) != person.name:
        return _problem(HTTPStatus.NOT_FOUND, _GONE)
    thread = await accounts.thread(thread_id)
    if thread is None:
        return _problem(HTTPStatus.NOT_FOUND, _GONE)
    return Response(
        markdown.exported(thread),
        media_type="text/markdown; charset=utf-8",
        headers={
            "content-disposition": 'attachment; filename="conversation.md"',
            "cache-control": "no-store",
        },
    )


def _problem(status: HTTPStatus, sentence: str) -> Response:
    return JSONResponse({"problem": sentence}, status)
