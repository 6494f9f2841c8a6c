"""The HTTP side: own routes, security headers, and pages that name no other host.

Knows Chainlit's FastAPI application and what of its internals must be changed; does not know
questions and answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import chainlit.config
import chainlit.server
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.metrics import CONTENT_TYPE, Metrics

PUBLIC = Path(__file__).parent / "public"

HEADERS = {
    # 'unsafe-eval' is what Chainlit's custom elements run by; images, fonts, media and sockets
    # from elsewhere are what an injected row would call home with
    "content-security-policy": "; ".join(
        (
            "default-src 'self'",
            "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "media-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "frame-ancestors 'none'",
            "form-action 'self'",
        )
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

_EXTERNAL = re.compile(r"<(?:link|meta)\b[^>]*https?://[^>]*>\s*")
_DOCS = {"/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"}
_INK = {"light": ("#3b2415", "#77583f"), "dark": ("#f3e6d0", "#bfa88a")}
"""Colours of the title and of the line below it, for each theme."""


class SecurityHeaders:
    """ASGI middleware: every response carries `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, adding the headers where a response starts."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def install(title: str, *, state: Callable[[], tuple[bool, str]], metrics: Metrics) -> None:
    """Make Chainlit's server ours; safe to call again, as `chainlit run -w` does.

    Args:
        title: Name of the chat, in the page's title and on the welcome page.
        state: Returns whether questions can be answered, and where the preparation is.
        metrics: What `/metrics` tells.
    """
    app = chainlit.server.app
    # both modules hold the name; without this the folder would have to lie beside app.py
    chainlit.config.public_dir = str(PUBLIC)
    vars(chainlit.server)["public_dir"] = str(PUBLIC)
    # Chainlit writes the name into the page as it is
    chainlit.config.config.ui.name = re.sub(r'[<>"]', "", title)
    # an empty list means "no check" to engine.io; None means the own origin only
    chainlit.server.sio.eio.cors_allowed_origins = None
    if getattr(app.state, "is_rag", False):
        return
    app.state.is_rag = True
    _without_other_hosts()
    # in front of Chainlit's own: its last route answers every GET with the page
    kept = [r for r in app.router.routes if getattr(r, "path", None) not in _DOCS]
    app.router.routes[:] = [*_routes(title, state, metrics), *kept]
    app.add_middleware(SecurityHeaders)


def _without_other_hosts() -> None:
    """Drop every tag that names another host: fonts, a style sheet, a banner.

    The two style sheets block the page for as long as their hosts do not answer.
    """
    page: Callable[[str], str] = chainlit.server.get_html_template

    def own_page(root_path: str) -> str:
        return _EXTERNAL.sub("", page(root_path))

    chainlit.server.get_html_template = own_page


def _routes(title: str, state: Callable[[], tuple[bool, str]], metrics: Metrics) -> list[BaseRoute]:
    logos = {theme: _logo(title, theme) for theme in _INK}

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        is_ready, at = state()
        return JSONResponse({"is_ready": is_ready, "state": at}, 200 if is_ready else 503)

    async def counts(_request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def favicon(_request: Request) -> Response:
        return FileResponse(PUBLIC / "favicon.svg", media_type="image/svg+xml")

    async def logo(request: Request) -> Response:
        theme = request.query_params.get("theme", "light")
        return Response(logos.get(theme, logos["light"]), media_type="image/svg+xml")

    async def no_upload(_request: Request) -> Response:
        # Chainlit's route reads the whole body before it says that uploads are off
        return JSONResponse({"detail": "File upload is not enabled"}, 403)

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", counts),
        Route("/favicon", favicon),
        Route("/logo", logo),
        Route("/project/file", no_upload, methods=["POST"]),
    ]


def _logo(title: str, theme: str) -> str:
    """Return the emblem with the title below it, in the theme's colours."""
    ink, faint = _INK[theme]
    emblem = (PUBLIC / "favicon.svg").read_text(encoding="utf-8")
    emblem = emblem[emblem.index("<svg") :].replace(
        "<svg", '<svg x="160" y="0" width="160" height="160"', 1
    )
    size = min(56, 760 // max(len(title), 1))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 270" role="img">'
        f"<title>{escape(title)}</title>{emblem}"
        '<g text-anchor="middle">'
        f'<text x="240" y="220" fill="{ink}" font-size="{size}" font-weight="600" '
        f'font-family="Iowan Old Style, Palatino, Georgia, serif">{escape(title)}</text>'
        f'<text x="240" y="256" fill="{faint}" font-size="21" '
        'font-family="system-ui, sans-serif">Every answer shows the row it came from</text>'
        "</g></svg>"
    )
