"""What the web chat adds to the engine: a token's way to the browser, fifty people at once.

    python benchmarks/web.py            # both parts, about 5 minutes
    python benchmarks/web.py first      # the first word in a real browser, with the real models
    python benchmarks/web.py sessions   # 50 sessions over websockets, the words of a script

The server is `chainlit run`, as a person starts it. For `sessions` its model is a script that says
20 words a second, so what is measured is the chat and not a model; everything else is real.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import socketio
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from chat_server import serving  # noqa: E402 – the tests' own, and their scripted model

N_SESSIONS, N_TURNS = 50, 2
PACE_S = 0.05
N_QUESTIONS = 10
MODEL_MS = 300_000
"""The first start reads the table, exports the embedding model and warms the other."""
_N_BEGINNINGS = 2
"""Chainlit says that it is done with the connection, then with what a chat begins with."""
QUESTIONS = (
    "What do I need against a werewolf?",
    "How do I cross a swamp?",
    "What helps against a vampire?",
    "What should I take for a dragon?",
    "How do I get past a troll bridge?",
)


def main() -> None:
    chosen = sys.argv[1:] or ["first", "sessions"]
    for name in chosen:
        print({"first": first, "sessions": sessions}[name](), end="\n\n", flush=True)


@contextmanager
def server(app: Path) -> Iterator[tuple[str, Path]]:
    """Run the chat in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "go").touch()
        (folder / "pace").write_text(str(PACE_S))
        # all of them are the one user of this machine
        with serving(app, folder, env={"RAG_WEB__MAX_WAITING": str(N_SESSIONS)}) as url:
            yield url, folder


# --- the first word ---

WATCH = """() => {
    window.firstWord = null;
    const before = document.querySelectorAll('[data-step-type="assistant_message"]').length;
    const look = () => {
        const all = document.querySelectorAll('[data-step-type="assistant_message"]');
        if (all.length === before) return;
        const text = all[all.length - 1].querySelector('.message-content');
        if (text && /\\w/.test(text.innerText.replace(/Reading[\\s\\S]*/, ''))) {
            window.firstWord = performance.now();
            observer.disconnect();
        }
    };
    const observer = new MutationObserver(look);
    observer.observe(document.body, {subtree: true, childList: true, characterData: true});
    const asked = () => (window.asked = performance.now());
    document.addEventListener('click', asked, {capture: true, once: true});
}"""


def first() -> str:
    """Compare the first word on the screen with the engine's own, both from the question on."""
    with server(ROOT / "app.py") as (url, _), sync_playwright() as playwright:
        path = shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.locator("#command-button").wait_for(timeout=60_000)  # the socket is open
        _ask(page, QUESTIONS[-1])  # waits for the models
        page.wait_for_url("**/thread/**")  # Chainlit makes the composer anew
        found = [_ask(page, QUESTIONS[n % len(QUESTIONS)]) for n in range(N_QUESTIONS)]
        browser.close()
    later = sorted(1000 * (screen - engine) for screen, engine in found)
    return (
        "| first word, of 10 questions | engine | browser | later by, median | at most |\n"
        "|---|--:|--:|--:|--:|\n"
        f"| seconds from the question | {median(e for _, e in found):.2f} "
        f"| {median(s for s, _ in found):.2f} | {median(later):.0f} ms | {later[-1]:.0f} ms |"
    )


def _ask(page: Page, question: str) -> tuple[float, float]:
    """Return the seconds to the first word on the screen and of the engine."""
    page.locator("#chat-input").fill(question)
    page.evaluate(WATCH)
    page.locator("#chat-submit").click()
    page.wait_for_function("() => window.firstWord", timeout=MODEL_MS, polling=20)
    screen = page.evaluate("() => window.firstWord - window.asked") / 1000
    page.locator("#stop-button").wait_for(state="detached", timeout=MODEL_MS)
    counts = page.request.get(f"{page.url.split('/thread')[0].rstrip('/')}/metrics").text()
    return screen, _sum(counts)


_seen = 0.0


def _sum(counts: str) -> float:
    """Return the seconds that the last question added to the engine's."""
    global _seen
    found = re.search(r"^rag_first_token_seconds_sum (\S+)", counts, re.MULTILINE)
    assert found is not None
    added, _seen = float(found[1]) - _seen, float(found[1])
    return added


# --- fifty sessions ---


@dataclass
class Session:
    """A person's browser, as far as the server sees it."""

    socket: socketio.AsyncClient
    is_done: asyncio.Event = field(default_factory=asyncio.Event)
    at: list[float] = field(default_factory=list)
    """When each token came."""
    n_ended: int = 0


def sessions() -> str:
    """Ask from 50 sessions at once, and look at the gaps between tokens."""
    with server(ROOT / "tests" / "scripted_app.py") as (url, _):
        found, took = asyncio.run(_crowd(url))
    gaps = sorted(b - a for times in found for a, b in itertools.pairwise(times))
    n_tokens, n_answered = sum(map(len, found)), sum(len(times) > 1 for times in found)
    return (
        "| sessions, questions | answered | tokens/s | gap between tokens, median | p95 |\n"
        "|---|--:|--:|--:|--:|\n"
        f"| {N_SESSIONS}, {len(found)} | {n_answered} | {n_tokens / took:.0f} "
        f"| {1000 * gaps[len(gaps) // 2]:.0f} ms | {1000 * gaps[int(0.95 * len(gaps))]:.0f} ms |"
    )


async def _crowd(url: str) -> tuple[list[list[float]], float]:
    async with aiohttp.ClientSession() as http, http.post(f"{url}/auth/header") as reply:
        cookies = "; ".join(f"{c.key}={c.value}" for c in reply.cookies.values())
    people = await asyncio.gather(*(_connected(url, cookies) for _ in range(N_SESSIONS)))
    began = time.perf_counter()
    found = await asyncio.gather(*(_person(session) for session in people))
    took = time.perf_counter() - began
    await asyncio.gather(*(session.socket.disconnect() for session in people))
    return [times for turns in found for times in turns], took


async def _connected(url: str, cookies: str) -> Session:
    session = Session(socketio.AsyncClient())

    def token(_data: Any) -> None:
        session.at.append(time.perf_counter())

    def ended(_data: Any) -> None:
        session.n_ended += 1
        if session.n_ended >= _N_BEGINNINGS:
            session.is_done.set()

    session.socket.on("stream_start", token)
    session.socket.on("stream_token", token)
    session.socket.on("task_end", ended)
    await session.socket.connect(
        url,
        headers={"Cookie": cookies, "Origin": url},
        socketio_path="/ws/socket.io",
        transports=["websocket"],
        auth={
            "clientType": "webapp",
            "sessionId": str(uuid.uuid4()),
            "threadId": "",
            "userEnv": "{}",
            "chatProfile": "",
        },
    )
    await session.socket.emit("connection_successful")
    await asyncio.wait_for(session.is_done.wait(), 60)
    return session


async def _person(session: Session) -> list[list[float]]:
    turns = []
    for n in range(N_TURNS):
        session.at, session.is_done = [], asyncio.Event()
        message = {
            "id": str(uuid.uuid4()),
            "type": "user_message",
            "output": f"A crowd, question {n}",
            "name": "User",
            "createdAt": "2026-01-01T00:00:00Z",
        }
        await session.socket.emit("client_message", {"message": message, "fileReferences": []})
        await asyncio.wait_for(session.is_done.wait(), 300)
        turns.append(session.at)
    return turns


if __name__ == "__main__":
    main()
