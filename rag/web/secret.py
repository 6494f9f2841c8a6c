"""What the login cookie is signed with, and how it is called.

Knows a file and Chainlit's environment; does not know who signs in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path

import chainlit.auth.cookie
from chainlit.config import config

from rag.settings import WebSettings

_VARIABLE = "CHAINLIT_AUTH_SECRET"
_NAME_VARIABLE = "CHAINLIT_AUTH_COOKIE_NAME"
_FEWEST_CHARS = 32
"""Source: RFC 7518, 3.2: a key of HS256 is at least as long as its hash."""


def prepare_cookie(settings: WebSettings) -> None:
    """Set what Chainlit signs cookies with, made at the first start, and their name.

    Raises:
        SystemExit: the secret is too short, or its file cannot be used.
    """
    # Chainlit reads both from the environment: the secret at each use, the name when imported
    found = os.environ.get(_VARIABLE)
    if found is None:
        path = _folder(settings) / "auth_secret"
        try:
            found = os.environ[_VARIABLE] = _kept(path)
        except OSError as e:
            raise SystemExit(
                f"The secret of the login cookies cannot be kept in {str(path)!r}: "
                f"{e.strerror or e}. Make the folder writable, or set {_VARIABLE}."
            ) from e
    if len(found) < _FEWEST_CHARS:
        raise SystemExit(
            f"The secret of the login cookies has {len(found)} characters, at least "
            f"{_FEWEST_CHARS} are needed. Set {_VARIABLE} to what `chainlit create-secret` "
            "prints, or unset it and remove the file auth_secret beside the database."
        )
    if _NAME_VARIABLE not in os.environ:
        # cookies know no ports: two chats of one host would log each other's readers out
        mark = hashlib.sha256(b"name of the cookie" + found.encode()).hexdigest()[:8]
        vars(chainlit.auth.cookie)["_auth_cookie_name"] = f"rag_{mark}"
    if config.run.ssl_cert or os.environ.get("CHAINLIT_URL", "").startswith("https://"):
        vars(chainlit.auth.cookie)["_cookie_secure"] = True


def _folder(settings: WebSettings) -> Path:
    """Return the folder of the database, or `data` where that is a server."""
    url = settings.database_url
    if "://" in url and not url.startswith("sqlite"):
        return Path("data")
    path = url.partition("://")[2].removeprefix("/") if "://" in url else url
    return Path(path).parent


def _kept(path: Path) -> str:
    """Return the secret of a file that only we may read; make it when there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # written beside and linked, so that two starts at once agree, and a cut one leaves none
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(48))
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(0o600)
    return path.read_text(encoding="utf-8").strip()
