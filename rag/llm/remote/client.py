"""The HTTP client to a model server: sends nothing needless, reads nothing endless.

Knows headers and sizes; knows no paths, no prompts and no events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from rag.llm.remote.refusals import Unreadable

_HEADERS = {
    *("accept", "connection", "content-length", "content-type"),
    *("host", "transfer-encoding", "user-agent"),
}
"""What is sent. The openai client would add what machine this is, and organisation, project and
custom headers from `OPENAI_…` variables that are meant for another server."""
_MOST_BYTES = 4_000_000
"""Of what is no stream: a list of models, the tokens of a prompt, an error."""


@contextlib.asynccontextmanager
async def whole_within(limit_s: float | None) -> AsyncIterator[None]:
    """Bound everything in the block, where httpx bounds each wait for a byte.

    Raises:
        Unreadable: the time is up.
    """
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            yield
    except TimeoutError as e:
        if not limit.expired():
            raise
        raise Unreadable(f"no whole answer within {limit_s:g} s") from e


class HttpClient(httpx.AsyncClient):
    """Sends the headers that a model server needs, and the key, and no others.

    What is no stream of events is read here, up to a size and within the read timeout as a whole:
    httpx's own timeout begins anew with each byte. Nothing compressed is taken, since a few bytes
    of it become gigabytes.
    """

    def __init__(self, api_key: str | None, **options: Any) -> None:
        super().__init__(**options)
        self._key = api_key

    async def send(
        self, request: httpx.Request, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        """Send a request without what it should not tell.

        Raises:
            Unreadable: the answer is too long, does not end, or is compressed.
        """
        headers = {k: v for k, v in request.headers.items() if k in _HEADERS}
        headers |= {"user-agent": "delta-table-chat", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        sent = httpx.Request(
            request.method,
            request.url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        response = await super().send(sent, stream=True, **options)
        response.request = request  # the openai client looks for a header of its own there
        try:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise Unreadable("a compressed answer, which nobody asked for")
            if not (stream and response.is_success):  # the openai client reads errors whole
                assert isinstance(response.stream, httpx.AsyncByteStream)
                response.stream = _Bounded(response.stream)
                async with whole_within(self.timeout.read):
                    await response.aread()
        except BaseException:  # also when cancelled: the connection must not stay open
            await response.aclose()
            raise
        return response


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        n_bytes = 0
        async for chunk in self._stream:
            n_bytes += len(chunk)
            if n_bytes > _MOST_BYTES:
                raise Unreadable(f"more than {_MOST_BYTES:,} bytes that are no stream of events")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
