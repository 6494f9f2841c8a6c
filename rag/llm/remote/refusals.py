"""What goes wrong between here and a model server, each as one sentence.

The one place that knows the errors of httpx and of the openai client. No text of theirs is passed
on: it may repeat the key. What the server itself says is, shortened and without the key.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from rag.errors import ModelError

_MOST_SAID = 200
_TOO_LONG = re.compile(
    r"exceed_context_size|context[_ ](size|length|window)|maximum context|too many tokens",
    re.IGNORECASE,
)
_STATUS_TIMEOUT = (408, 504)


class Unreadable(Exception):
    """What came is no answer of such a server; the text says what it is."""


@dataclass(frozen=True)
class Place:
    """A server, as an error may name it."""

    url: str
    """Without a password."""
    key: str | None
    timeout_s: float

    def without_key(self, text: str) -> str:
        """Return a text of the server's that repeats no key, on one line."""
        if self.key:
            text = text.replace(self.key, "…")
        line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split()).rstrip(".")
        return line if len(line) <= _MOST_SAID else f"{line[:_MOST_SAID]}…"


_FOREIGN = (
    *(httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, openai.OpenAIError),
    *(OSError, UnicodeError, Unreadable),
)


def translated(error: BaseException, place: Place) -> BaseException:
    """Return an error as one sentence, with its cause; one that is none of theirs as it is."""
    if not isinstance(error, _FOREIGN):
        return error
    told = _sentence(error, place)
    told.__cause__ = error
    return told


def _sentence(error: BaseException, place: Place) -> ModelError:
    if isinstance(error, openai.APIStatusError):
        return refused(error.status_code, error.response, place)
    for cause in _causes(error):
        match cause:
            case httpx.ConnectTimeout():
                return _unreachable(place, "it does not take the connection")
            case httpx.TimeoutException() | openai.APITimeoutError():
                return _slow(place)
            case socket.gaierror() | UnicodeError():
                return _unreachable(place, "no machine of that name is known")
            case ssl.SSLCertVerificationError():
                return _unreachable(place, f"its certificate is not trusted ({cause.reason})")
            case ssl.SSLError():
                return _unreachable(place, "it does not speak TLS: write http:// in its address")
            case Unreadable():
                return ModelError(
                    f"The model server at {place.url} sent {place.without_key(str(cause))}. "
                    "Set RAG_LLM__BASE_URL to an OpenAI-compatible server, "
                    "its address usually ends in /v1."
                )
    if any(isinstance(c, httpx.ConnectError | httpx.UnsupportedProtocol) for c in _causes(error)):
        return _unreachable(place, "nothing listens there")
    # the text of what is left (a header that cannot be sent, say) may hold the key
    return ModelError(
        f"The connection to the model server at {place.url} broke ({_kind(error)}). "
        "Ask again, and look at the server's own log if it stays so."
    )


def refused(status: int, response: httpx.Response, place: Place) -> ModelError:
    """Return the one sentence for an HTTP status that is no success."""
    said = place.without_key(_message(response))
    server = f"The model server at {place.url}"
    told = f"HTTP {status}" + (f", {said!r}" if said else "")
    if status in (401, 403):
        what = "refuses the key" if place.key else "wants a key"
        return ModelError(f"{server} {what} ({told}). Set RAG_LLM__API_KEY to one that it takes.")
    if status == 429:
        return ModelError(
            f"{server} is busy ({told}). Ask again in a moment, "
            "or set RAG_LLM__MAX_CONCURRENT to fewer calls at once."
        )
    if status in _STATUS_TIMEOUT:
        return _slow(place)
    if 300 <= status < 400:
        return ModelError(
            f"{server} answers with a redirect (HTTP {status}), which is not followed because the "
            "key would go there too. Set RAG_LLM__BASE_URL to where the server is now."
        )
    if status == 404:
        return ModelError(
            f"{server} has no such model or no such path ({told}). Set RAG_LLM__MODEL to a model "
            "that it has, and RAG_LLM__BASE_URL to its address, which usually ends in /v1."
        )
    if status == 503:
        return ModelError(f"{server} is not ready yet ({told}). Ask again in a moment.")
    if status in (400, 413, 422) and _TOO_LONG.search(_message(response)):
        return ModelError(
            f"The prompt is longer than the context window of the model server at {place.url} "
            f"({told}). Ask more briefly, or set RAG_LLM__N_CTX to what the server has."
        )
    verb = "failed" if status >= 500 else "refuses the call"
    return ModelError(f"{server} {verb} ({told}). Look at the server's own log.")


def is_lost(error: BaseException) -> bool:
    """Return whether the connection failed, as opposed to what was answered or how late."""
    if not isinstance(error, Exception):  # cancelled; what it interrupted is no reason to go on
        return False
    lost = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
    return any(isinstance(cause, lost) for cause in _causes(error))


def _unreachable(place: Place, why: str) -> ModelError:
    return ModelError(
        f"The model server at {place.url} cannot be reached: {why}. Start it, or set "
        "RAG_LLM__BASE_URL to where it is (unset, the model runs in this process)."
    )


def _slow(place: Place) -> ModelError:
    return ModelError(
        f"The model server at {place.url} was silent for {place.timeout_s:g} s. "
        "Ask again, or set RAG_LLM__TIMEOUT_S to more."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        at = waiting.pop(0)
        if id(at) in seen:
            continue
        seen.add(id(at))
        yield at
        if isinstance(at, BaseExceptionGroup):  # one for each address of the name
            waiting += at.exceptions
        waiting += [e for e in (at.__cause__, at.__context__) if e is not None]


def _kind(error: BaseException) -> str:
    return type(list(_causes(error))[-1]).__name__


def _message(response: httpx.Response) -> str:
    """Return what a response says about an error, in whatever form."""
    try:
        text = response.text
    except httpx.ResponseNotRead:
        return ""
    if text.lstrip()[:1] == "<":
        return "an HTML page"
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
