"""The HTTP side: own routes, security headers, and pages that name no other host.

Knows Chainlit's FastAPI application and what of its internals must be changed; does not know
questions and answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hmac import compare_digest
from pathlib import Path
from xml.sax.saxutils import escape

import chainlit.config
import chainlit.server
from chainlit.config import config
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rag.metrics import CONTENT_TYPE, Metrics
from rag.settings import WebSettings
from rag.web import sockets
from rag.web.gates import (
    HEADERS,
    BodyLimit,
    Gate,
    Hosts,
    SecurityHeaders,
    hostname,
    is_forwarded,
    is_loopback,
)
from rag.web.greeting import Greeting

__all__ = ["HEADERS", "PUBLIC", "install"]

PUBLIC = Path(__file__).parent / "public"

_EXTERNAL = re.compile(r"<(?:link|meta)\b[^>]*https?://[^>]*>\s*")
_DOCS = {"/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"}
_NO_METRICS = (
    "The metrics are for this machine, or for whoever sends the bearer token that "
    "RAG_WEB__METRICS_TOKEN sets.\n"
)
_INK = {"light": ("#3b2415", "#77583f"), "dark": ("#f3e6d0", "#bfa88a")}
"""Colours of the title and of the line below it, for each theme."""


def install(
    title: str,
    *,
    state: Callable[[], tuple[bool, str]],
    metrics: Metrics,
    emblem: str = "table.svg",
    settings: WebSettings | None = None,
    routes: Sequence[Route] = (),
) -> None:
    """Make Chainlit's server ours; safe to call again, as `chainlit run -w` does.

    Args:
        title: Name of the chat, in the page's title and on the welcome page.
        state: Returns whether questions can be answered, and where the preparation is.
        metrics: What `/metrics` tells.
        emblem: Picture of `public/` that stands for the chat.
        settings: Host names, the token of `/metrics`, how much may be asked; None: the defaults.
        routes: More routes; they ask for themselves who somebody is.
    """
    settings = settings or WebSettings()
    app = chainlit.server.app
    # both modules hold the name; without this the folder would have to lie beside app.py
    chainlit.config.public_dir = str(PUBLIC)
    vars(chainlit.server)["public_dir"] = str(PUBLIC)
    # Chainlit writes the name into the page as it is
    config.ui.name = re.sub(r'[<>"]', "", title)
    hosts = Hosts(settings.hosts, config.run.host)
    sockets.guard(hosts, per_minute=settings.max_questions_per_minute)
    _put_gates(hosts)
    # in front of Chainlit's own: its last route answers every GET with the page
    ours = _routes(title, PUBLIC / emblem, state, metrics, settings)
    own = [_prefixed(route) for route in (*ours, *routes)]
    earlier = getattr(app.state, "rag_routes", [])
    kept = [
        r for r in app.router.routes if r not in earlier and getattr(r, "path", "") not in _DOCS
    ]
    app.router.routes[:] = [*own, *kept]
    app.state.rag_routes = own
    if not getattr(app.state, "is_rag", False):
        app.state.is_rag = True
        _without_other_hosts()


def _put_gates(hosts: Hosts) -> None:
    """Put the gates around everything, also around what answers a crash."""
    app = chainlit.server.app
    if not hasattr(app.state, "chainlits_stack"):
        app.state.chainlits_stack = app.build_middleware_stack

    def with_gates() -> ASGIApp:
        stack: ASGIApp = BodyLimit(app.state.chainlits_stack(), chainlit.server.SOCKET_IO_PATH)
        if (greet := getattr(app.state, "greet", None)) is not None:
            stack = Greeting(stack, greet)
        return SecurityHeaders(Gate(stack, hosts), config.run.root_path)

    app.build_middleware_stack = with_gates
    app.middleware_stack = None  # made anew for the next request


def _prefixed(route: Route) -> Route:
    """Return a route below `--root-path`, where Chainlit's own are."""
    prefix = config.run.root_path
    return Route(prefix + route.path, route.endpoint, methods=route.methods) if prefix else route


def _without_other_hosts() -> None:
    """Drop every tag that names another host: fonts, a style sheet, a banner.

    The two style sheets block the page for as long as their hosts do not answer.
    """
    page: Callable[[str], str] = chainlit.server.get_html_template

    def own_page(root_path: str) -> str:
        return _EXTERNAL.sub("", page(root_path))

    chainlit.server.get_html_template = own_page


def _routes(
    title: str,
    emblem: Path,
    state: Callable[[], tuple[bool, str]],
    metrics: Metrics,
    settings: WebSettings,
) -> list[Route]:
    logos = {theme: _logo(title, emblem, theme) for theme in _INK}

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        is_ready, at = state()
        status = 200 if is_ready else 503
        if not _is_operator(request, settings):  # a failure's sentence names tables and folders
            at = "ready" if is_ready else "not ready"
        return JSONResponse({"is_ready": is_ready, "state": at}, status)

    async def counts(request: Request) -> Response:
        if not _is_operator(request, settings):
            return Response(_NO_METRICS, 403, media_type="text/plain")
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def favicon(_request: Request) -> Response:
        return FileResponse(emblem, media_type="image/svg+xml")

    async def logo(request: Request) -> Response:
        theme = request.query_params.get("theme", "light")
        return Response(logos.get(theme, logos["light"]), media_type="image/svg+xml")

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", counts),
        Route("/favicon", favicon),
        Route("/logo", logo),
    ]


def _is_operator(request: Request, settings: WebSettings) -> bool:
    """Whether a request comes from this machine itself, or carries the token of `/metrics`."""
    sent = request.headers.get("authorization", "")
    if settings.metrics_token is not None and compare_digest(
        sent.encode(), f"Bearer {settings.metrics_token.get_secret_value()}".encode()
    ):
        return True
    # behind a proxy of this machine every peer is loopback, but not what was asked for
    peer = request.client.host if request.client else ""
    is_here = is_loopback(peer) and is_loopback(hostname(request.headers.get("host", "")))
    return is_here and not is_forwarded(request.headers)


def _logo(title: str, emblem: Path, theme: str) -> str:
    """Return the emblem with the title below it, in the theme's colours."""
    ink, faint = _INK[theme]
    picture = emblem.read_text(encoding="utf-8")
    picture = picture[picture.index("<svg") :].replace(
        "<svg", '<svg x="160" y="0" width="160" height="160"', 1
    )
    size = min(56, 760 // max(len(title), 1))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 270" role="img">'
        f"<title>{escape(title)}</title>{picture}"
        '<g text-anchor="middle">'
        f'<text x="240" y="220" fill="{ink}" font-size="{size}" font-weight="600" '
        f'font-family="Iowan Old Style, Palatino, Georgia, serif">{escape(title)}</text>'
        f'<text x="240" y="256" fill="{faint}" font-size="21" '
        'font-family="system-ui, sans-serif">Every answer shows the row it came from</text>'
        "</g></svg>"
    )
