"""The connection to one OpenAI-compatible server: a request out, events in.

Knows HTTP and the openai client; knows no prompts. All of it runs on one event loop in a thread of
its own: a task can be cancelled wherever it waits (for a name, a connection, the first byte), and
cancelling closes the connection, by which the server notices that nobody listens any more.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ipaddress
import json
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
import tenacity
from openai import AsyncAPIResponse, AsyncOpenAI

from rag.errors import ModelError
from rag.llm.call import Stop
from rag.llm.remote.client import HttpClient, whole_within
from rag.llm.remote.refusals import Place, Unreadable, is_lost, refused, translated
from rag.streaming import wait_for

Open = Callable[[AsyncOpenAI], AbstractAsyncContextManager[AsyncAPIResponse[Any]]]
"""Begins a streaming request."""
T = TypeVar("T")

_CONNECT_S = 5.0
_POLL_S = 0.03
"""How often a waiting reader looks whether it should stop."""
_CLOSE_S = 2.0
_MOST_LINE_BYTES = 1_000_000
"""An event holds a few words; a longer line is no event."""
_N_ATTEMPTS = 3
_ASK_S = 10.0
"""Most that a short question to the server may take."""
_GRACE_S = 0.5
"""More than that for the whole of it: silence is told as silence."""
_NO_KEY = "none"
"""The openai client insists on a key; this one is never sent."""
_MOST_UNREAD = 1_000
"""Events that wait for their reader; with more of them the server waits too."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class _Door:
    """Whether new work may begin; what is given to the loop before it shuts is seen by `_close`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_shut = False


class Connection:
    """A server and how to talk to it; safe for any thread.

    Requests are tried again, after a random moment, only where the connection failed before
    anything came: what a server refuses, it refuses again, and a second try of what timed out
    doubles the load of a server that is too slow already.

    Args:
        base_url: Where the OpenAI endpoints are; without a path, `/v1` is added.
        api_key: The server's key; goes to this server only, into no message and no log.
        timeout_s: Silence after which a request fails.

    Raises:
        ModelError: no such URL or key can be.
    """

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, ValueError) as e:
            raise ModelError(
                "RAG_LLM__BASE_URL is no URL; write it as http://127.0.0.1:8080/v1."
            ) from e
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ModelError(
                "RAG_LLM__API_KEY holds a line break or a character that no HTTP header can hold."
            )
        if url.path in ("", "/"):
            url = url.copy_with(path="/v1")
        self.url = str(url.copy_with(userinfo=b"", query=None)).rstrip("/")
        """Without a password, as errors name it."""
        self.place = Place(self.url, api_key, timeout_s)
        self._root = str(url.copy_with(query=None)).rstrip("/").removesuffix("/v1")
        # a proxy of the environment is for other machines than this one
        self._http = HttpClient(
            api_key,
            timeout=_timeout(timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            follow_redirects=False,
            trust_env=not _is_loopback(url.host),
        )
        self.client = AsyncOpenAI(
            api_key=_NO_KEY,
            base_url=str(url),
            timeout=self._http.timeout,
            max_retries=0,
            http_client=self._http,
        )
        self._loop = asyncio.new_event_loop()
        self._door = _Door()
        self.thread = threading.Thread(
            target=_run, args=(self._loop,), name="rag-model-server", daemon=True
        )
        """The thread of all requests."""
        self.thread.start()
        self.close = weakref.finalize(self, _close, self._loop, self._http, self._door)
        """End all requests and the thread, at once; safe to call twice."""
        _open.add(self)

    def events(self, begin: Open, stop: Stop | None) -> Generator[dict[str, Any], None, None]:
        """Yield the events of a streaming request; end early, and close it, once `stop` is set.

        Raises:
            ModelError: the server cannot be reached, refuses, falls silent, breaks off, or sends
                something else than events.
        """
        items: queue.SimpleQueue[dict[str, Any] | _End] = queue.SimpleQueue()
        cancel = self._spawn(self._pump(begin, items), items.put)
        is_over = False
        try:
            while stop is None or not stop.is_set():
                try:
                    item = items.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if isinstance(item, _End):
                    is_over = True
                    if item.error is not None:
                        raise translated(item.error, self.place)
                    return
                yield item
        finally:
            cancel()
            until = time.monotonic() + _CLOSE_S
            # the connection is closed when `close` of this generator returns
            while not is_over and time.monotonic() < until:
                with contextlib.suppress(queue.Empty):
                    is_over = isinstance(items.get(timeout=_POLL_S), _End)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON at a path of the server; None where it has no such path.

        Args:
            path: `/v1/…` is below the base URL, anything else below the server's root.
            body: Posted as JSON; None gets.

        Raises:
            ModelError: as `events`, or the answer is long or takes long; the timeout, 10 s at
                most, is that of the whole call.
        """
        url = self.client.base_url.copy_with(query=None) if path.startswith("/v1/") else None
        target = self._root + path if url is None else str(url).rstrip("/") + path[3:]
        place = replace(self.place, timeout_s=min(self.place.timeout_s, _ASK_S))
        done: queue.SimpleQueue[_End] = queue.SimpleQueue()
        found: list[httpx.Response] = []

        async def request() -> None:
            method = "GET" if body is None else "POST"
            async with whole_within(place.timeout_s + _GRACE_S):
                async for attempt in _attempts():
                    with attempt:
                        found.append(
                            await self._http.request(
                                method, target, json=body, timeout=_timeout(place.timeout_s)
                            )
                        )

        self._spawn(request(), done.put)
        error = done.get().error
        if error is not None:
            raise translated(error, place)
        response = found[-1]
        if response.status_code in (404, 405, 501):
            return None
        if not response.is_success:
            raise refused(response.status_code, response, self.place)
        try:
            return response.json()
        except (ValueError, RecursionError) as e:
            raise translated(Unreadable(_described(response.text)), place) from e

    def _spawn(
        self, work: Coroutine[Any, Any, None], put: Callable[[_End], None]
    ) -> Callable[[], None]:
        """Run a coroutine on the loop, put its end, and return what cancels it."""
        tasks: list[asyncio.Task[None]] = []

        def ended(task: asyncio.Task[None]) -> None:
            # whoever cancelled it here reads no end; else `close` did
            put(_End(self._closed() if task.cancelled() else task.exception()))

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(ended)

        def withdraw() -> None:
            tasks[0].cancel()  # there by now: the loop keeps the order of what it is given

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the task with it
                self._loop.call_soon_threadsafe(withdraw)

        with self._door.lock:
            if self._door.is_shut:
                work.close()
                raise self._closed()
            self._loop.call_soon_threadsafe(begin)
        return cancel

    def _closed(self) -> ModelError:
        return ModelError(f"The connection to the model server at {self.url} is closed. Ask again.")

    async def _pump(self, begin: Open, items: queue.SimpleQueue[dict[str, Any] | _End]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            async for attempt in _attempts():
                with attempt:
                    response = await stack.enter_async_context(begin(self.client))
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            if kind == "text/html":
                raise Unreadable("an HTML page")
            is_done = False
            async for line in _lines(response):
                while items.qsize() >= _MOST_UNREAD:  # noqa: ASYNC110 – another thread reads
                    await asyncio.sleep(_POLL_S)
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    is_done = is_done or data == b"[DONE]"
                    if data and not is_done:
                        items.put(_event(data, self.place))
                elif line.startswith(b"{"):  # an answer, or an error, in one piece
                    items.put(_event(line, self.place))


def _timeout(silence_s: float) -> httpx.Timeout:
    return httpx.Timeout(silence_s, connect=min(silence_s, _CONNECT_S), pool=None)


def _attempts() -> tenacity.AsyncRetrying:
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_lost),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=1.0),
        stop=tenacity.stop_after_attempt(_N_ATTEMPTS),
        reraise=True,
    )


async def _lines(response: AsyncAPIResponse[Any]) -> AsyncIterator[bytes]:
    rest = bytearray()
    async for chunk in response.iter_bytes():
        *lines, last = chunk.split(b"\n")
        for part in (*lines, last):
            if len(rest) + len(part) > _MOST_LINE_BYTES:
                raise Unreadable(f"a line of more than {_MOST_LINE_BYTES:,} bytes")
            rest += part
            if part is not last:
                yield bytes(rest)
                rest.clear()
    yield bytes(rest)


def _event(data: bytes, place: Place) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise Unreadable(_described(data.decode(errors="replace"))) from e
    if not isinstance(found, dict):
        raise Unreadable(_described(data.decode(errors="replace")))
    if error := found.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        raise refused(status, httpx.Response(status, content=data), place)
    return found


def _described(text: str) -> str:
    if text.lstrip()[:1] == "<":
        return "an HTML page"
    return f"{text[:40]!r}, which is no JSON object" if text.strip() else "an empty answer"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave no thread at its requests while the interpreter takes itself apart."""
    connections = list(_open)
    for connection in connections:
        connection.close()
    wait_for((connection.thread for connection in connections), _CLOSE_S)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(loop: asyncio.AbstractEventLoop, http: httpx.AsyncClient, door: _Door) -> None:
    """Have the loop's own thread end everything; whoever drops the last reference never waits."""

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        try:
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)  # the ends of what was over just before are still to be told
            await http.aclose()
            await loop.shutdown_default_executor()
        finally:
            loop.stop()

    kept: list[asyncio.Task[None]] = []  # the loop itself keeps only a weak reference
    with door.lock:
        door.is_shut = True
        loop.call_soon_threadsafe(lambda: kept.append(loop.create_task(end())))
