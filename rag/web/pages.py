"""What the browser asks for beside the chat: where the table stands, one row, a sync.

Knows requests, who asks, and HTML; does not know Chainlit, nor the table: what looks there comes as
callables that block, and runs in a thread. Whatever of a row is shown has been escaped here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rag.errors import RagError, RowNotFound, VersionNotFound, VersionNotMirrored
from rag.settings import table_name
from rag.web import accents, rows

if TYPE_CHECKING:  # but for Person, these load what takes seconds; the port opens before that
    from rag.provenance import RowView
    from rag.web.people import Person
    from rag.wiring import Status

_FRESH_S = 5.0
"""For so long what was seen of the table is told to everybody: each look reads its log."""
_AT_ONCE = 2
"""Rows looked up at the same time; each may read files of the table."""
_MAX_KEY_CHARS = 2_000
_MAX_VERSION = 2**63 - 1
"""Delta's versions are 64-bit numbers."""
_SOON_FOUND = 1_000_000
"""To find that a table has no such version took 0.06 s for this one and a minute for 10**9."""
_UNSEEN = "The table cannot be looked at right now; the log of the server says why."

_log = logging.getLogger(__name__)

PersonOf = Callable[[Request], Awaitable["Person | None"]]
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Library:
    """The table as the pages reach it; the first three block and are run in a thread."""

    standing: Callable[[], Status]
    """Returns where the table and its index stand."""
    row: Callable[[str, int | None], RowView]
    """Returns a row by key and version; None is the version that answers."""
    sync: Callable[[], int]
    """Makes the index follow the table, and returns the version that it then mirrors."""
    synced: Callable[[], Awaitable[None]]
    """Called after a sync: whoever keeps engines makes them anew."""


def routes(library: Library, *, person: PersonOf, accent: str | None = None) -> list[Route]:
    """Return the routes beside the chat, to be put in front of Chainlit's.

    Args:
        library: The table.
        person: Returns who asks; None for nobody who is known.
        accent: Colour of buttons and citations as `#rrggbb`; None is the theme's.
    """
    pages = Pages(library, person)
    styles = {} if accent is None else accents.styles(accent)

    async def style(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return Response(styles[name], media_type="text/css", headers={"cache-control": "no-cache"})

    return [
        Route("/rag/standing", _as_json(pages.standing)),
        Route("/rag/row", _as_json(pages.row)),
        Route("/rag/sync", _as_json(pages.sync), methods=["POST"]),
        Route("/row", _as_page(pages.row_page)),
        # in front of Chainlit's own /public, for the accent
        *(Route(f"/public/{name}", style) for name in styles),
    ]


class Refused(Exception):
    """What is asked for is not given; the text is the sentence for the reader."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Pages:
    """What each route answers."""

    def __init__(self, library: Library, person: PersonOf) -> None:
        self._library, self._person = library, person
        self._seen: tuple[float, dict[str, Any]] | None = None
        self._looking, self._syncing = asyncio.Lock(), asyncio.Lock()
        self._rows = asyncio.Semaphore(_AT_ONCE)

    async def standing(self, request: Request) -> Response:
        """Tell where the table stands; why something fails is for admins, it names places."""
        person = await self._known(request)
        told = dict(await self._look())
        if not person.is_admin:
            told["problem"] = told["problem"] and _UNSEEN
            told["building"] = told["building"] and "a sync is running"
        return _json({**told, "is_admin": person.is_admin})

    async def row(self, request: Request) -> Response:
        """Tell a row and what became of it."""
        await self._known(request)
        return _json(rows.row_values(await self._row(request)))

    async def row_page(self, request: Request) -> Response:
        """Show a row as a page of its own: what a copied link opens."""
        await self._known(request)
        return HTMLResponse(row_html(await self._row(request)), headers=_PRIVATE)

    async def sync(self, request: Request) -> Response:
        """Make the index follow the table, for an admin, one at a time."""
        person = await self._known(request)
        if not _is_own(request):
            raise Refused(HTTPStatus.FORBIDDEN, "A sync is started from the chat's own page only.")
        if not person.is_admin:
            raise Refused(HTTPStatus.FORBIDDEN, "Only admins may sync; please ask one.")
        if self._syncing.locked():
            raise Refused(HTTPStatus.CONFLICT, "A sync is running already; please wait for it.")
        async with self._syncing:
            try:
                version = await asyncio.to_thread(self._library.sync)
                await self._library.synced()
            except RagError as e:  # an admin can act on its own sentence
                _log.warning("A sync failed", exc_info=e)
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(e)) from e
            finally:
                self._seen = None
        return _json({"version": version})

    async def _known(self, request: Request) -> Person:
        person = await self._person(request)
        if person is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "Please sign in to the chat first.")
        return person

    async def _look(self) -> dict[str, Any]:
        """Return where the table stands, as somebody saw it a few seconds ago at most."""
        async with self._looking:
            if self._seen is None or time.monotonic() - self._seen[0] > _FRESH_S:
                try:
                    told = _told(await asyncio.to_thread(self._library.standing))
                except RagError as e:
                    told = _NOT_KNOWN | {"problem": str(e)}
                self._seen = time.monotonic(), told
            return self._seen[1]

    async def _is_to_come(self, version: int) -> bool:
        """Whether the table has no such version yet.

        Asked before the table is: to look for a version far ahead takes the longer the farther.
        """
        for _ in range(2):
            latest: int | None = (await self._look())["latest"]
            if latest is not None and version <= latest:
                return False
            self._seen = None  # it may have been written since
        return latest is not None or version > _SOON_FOUND

    async def _row(self, request: Request) -> RowView:
        key, version = _asked(request)
        at = "the version that answers" if version is None else f"version {version} of the table"
        if version is not None and await self._is_to_come(version):
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no {at} yet.")
        async with self._rows:
            try:
                return await asyncio.to_thread(self._library.row, key, version)
            except RowNotFound as e:
                sentence = f"There is no row {key!r} in {at}."
                raise Refused(HTTPStatus.NOT_FOUND, sentence) from e
            except (VersionNotFound, VersionNotMirrored) as e:
                sentence = f"There is no {at} to read any more."
                raise Refused(HTTPStatus.NOT_FOUND, sentence) from e
            except RagError as e:
                # its own sentence names places of the server
                _log.warning("A row could not be read", exc_info=e)
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, _UNSEEN) from e


_NOT_KNOWN: dict[str, Any] = {
    "table": None,
    "version": None,
    "latest": None,
    "changed": None,
    "building": None,
    "problem": None,
    "versions": [],
}


def _told(seen: Status) -> dict[str, Any]:
    return {
        "table": table_name(seen.table_uri),
        "version": seen.index_version,
        "latest": seen.table_version,
        "changed": seen.changed,
        "building": seen.building,
        "problem": seen.problem or seen.table_problem,
        "versions": seen.mirrored_versions,
    }


def _asked(request: Request) -> tuple[str, int | None]:
    """Return the key and the version that a request names."""
    key, version = request.query_params.get("key", ""), request.query_params.get("version", "")
    if not 0 < len(key) <= _MAX_KEY_CHARS:
        found = f"{len(key):,} characters" if key else "none"
        sentence = (
            f"A row is named by `key`, of {_MAX_KEY_CHARS:,} characters at most, not {found}."
        )
        raise Refused(HTTPStatus.BAD_REQUEST, sentence)
    if not version:
        return key, None
    if not (version.isascii() and version.isdigit() and len(version) <= len(str(_MAX_VERSION))):
        raise Refused(HTTPStatus.BAD_REQUEST, "`version` is a whole number, as in `version=12`.")
    return key, min(int(version), _MAX_VERSION)


def _is_own(request: Request) -> bool:
    """Whether the own page asks: another site's form or script would carry the cookie too."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    if site is not None:
        return site == "same-origin"
    return urlsplit(origin).netloc == request.headers.get("host") != ""


# --- answers ---------------------------------------------------------------------------------

_PRIVATE = {"cache-control": "no-store"}


def _json(value: dict[str, Any], status: int = HTTPStatus.OK) -> Response:
    return JSONResponse(value, status, headers=_PRIVATE)


def _as_json(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as e:  # noqa: BLE001 – the outermost handler of these routes
            status, sentence = _sentence(e)
            return _json({"problem": sentence}, status)

    return answer


def _as_page(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as e:  # noqa: BLE001 – the outermost handler of these routes
            status, sentence = _sentence(e)
            body = f'<h1>{escape(sentence)}</h1><p><a href="./">Go to the chat</a></p>'
            return HTMLResponse(_page(sentence, body), status, headers=_PRIVATE)

    return answer


def _sentence(error: Exception) -> tuple[HTTPStatus, str]:
    if isinstance(error, Refused):
        return error.status, str(error)
    _log.error("A page failed", exc_info=error)
    is_known = isinstance(error, RagError)  # but its sentence may name places of the server
    return (
        HTTPStatus.SERVICE_UNAVAILABLE if is_known else HTTPStatus.INTERNAL_SERVER_ERROR
    ), _UNSEEN


def row_html(view: RowView) -> str:
    """Return the page of one row; everything of the row is escaped."""
    values = rows.row_values(view)
    key, table, version = escape(view.row_key), escape(values["table"]), view.table_version
    gone = "" if view.read_from == "table" else " · read from the index"
    body = (
        f"<header><p>{table} · version {version}</p><h1>Row {key}</h1></header>"
        f'<p class="fate" data-fate="{view.fate}">{escape(values["sentence"])}</p>'
        f'<blockquote dir="auto">{escape(view.text)}</blockquote>'
        f"{_changes(values['changes'])}"
        f"<h2>Columns</h2>{_table('', ('Column', 'Value'), values['columns'])}"
        f"<footer>{table} · version {version} · row {key}{gone}</footer>"
    )
    return _page(f"Row {view.row_key} · {values['table']}", body)


def _changes(changes: Sequence[dict[str, str | None]]) -> str:
    if not changes:
        return ""
    cells = [[c["name"], c["before"], c["after"]] for c in changes]
    return f"<h2>What changed</h2>{_table('changes', ('Column', 'Before', 'Now'), cells)}"


def _table(kind: str, heads: Sequence[str], cells: Sequence[Sequence[str | None]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row" dir="auto">{escape(str(name))}</th>'
        + "".join(f'<td dir="auto">{_cell(value)}</td>' for value in values)
        + "</tr>"
        for name, *values in cells
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(value: str | None) -> str:
    return "<i>empty</i>" if value is None else escape(value)


def _page(title: str, body: str) -> str:
    # relative addresses, because a proxy may put the chat under a path
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        '<link rel="icon" href="favicon"><link rel="stylesheet" href="public/row.css">'
        f"</head><body><main>{body}</main></body></html>"
    )
