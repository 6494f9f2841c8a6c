"""Passwords as scrypt stores them.

Knows hashlib; does not know users. Each takes 0.1 s and 32 MB on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from rag.errors import AccountsError

LONGEST_PASSWORD = 1024
SHORTEST_PASSWORD = 8
_N, _R, _P = 2**15, 8, 1
"""Source: OWASP Password Storage Cheat Sheet has N=2^17 as the strongest and 2^15 with p=3; 2^15
and p=1 is 0.1 s on two slow cores."""
_SALT_BYTES, _HASH_BYTES = 16, 32
_MOST_BYTES = 2**28
"""Of memory, whatever the stored parameters ask for."""


def hashed(password: str) -> str:
    """Return what to store of a password: parameters, a new salt and the hash; blocks for 0.1 s.

    Raises:
        AccountsError: it is too short or too long.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise AccountsError(
            f"The password has {len(password):,} characters; expected {SHORTEST_PASSWORD} to "
            f"{LONGEST_PASSWORD:,}. Choose another one."
        )
    salt = secrets.token_bytes(_SALT_BYTES)
    found = _scrypt(password, salt, _N, _R, _P)
    return "$".join(("scrypt", str(_N), str(_R), str(_P), _text(salt), _text(found)))


def is_right(password: str, stored: str | None) -> bool:
    """Return whether it is the stored password; None takes the same time and is never right."""
    kind, n, r, p, salt, expected = (stored or _NOBODY).split("$")
    assert kind == "scrypt"
    # cut: a login of a megabyte would cost more than the hash
    found = _scrypt(password[: LONGEST_PASSWORD + 1], _bytes(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, _bytes(expected)) and stored is not None


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    # surrogatepass: a browser may send halves of characters, and a login must not fail on them
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=_MOST_BYTES, dklen=_HASH_BYTES)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


_NOBODY = "$".join(
    ("scrypt", str(_N), str(_R), str(_P), _text(bytes(_SALT_BYTES)), _text(bytes(_HASH_BYTES)))
)
"""What a name that nobody has is compared with."""
