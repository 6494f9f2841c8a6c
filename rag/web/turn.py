"""The events of one turn, shown one by one.

The only module of this room that loads the core, which takes seconds: it is imported by the
background load, never before the port is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from rag.events import (
    Answering,
    Cited,
    Done,
    Event,
    Flagged,
    Searched,
    Token,
    Waiting,
    unfounded,
)
from rag.metrics import Metrics
from rag.web.answer import Answer


async def show(events: AsyncGenerator[Event, None], answer: Answer, metrics: Metrics) -> None:
    """Show a turn as it happens, and count it; cancelled, it closes `events`: the model stops."""
    await answer.searching()
    async with contextlib.aclosing(events):
        with metrics.turn() as see:
            async for event in events:
                see(event)
                await _show(event, answer)


async def _show(event: Event, answer: Answer) -> None:
    match event:
        case Waiting():
            await answer.waiting(event)
        case Searched():
            await answer.waited()
            await answer.searched(event.query, event.hits, event.seconds)
        case Answering():
            await answer.answering(event.sources, refused=event.refused)
        case Token():
            await answer.waited()
            await answer.token(event.text)
        case Cited():
            await answer.cited(event.citation)
        case Flagged():
            await answer.flagged()
        case Done():
            await answer.waited()
            await answer.done(event, unfounded(event))
