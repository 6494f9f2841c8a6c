"""The events of one turn, shown one by one.

The only module of this room that loads the core, which takes seconds: it is imported by the
background load, never before the port is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from rag.chat import Answering, Cited, Done, Event, Searched, Token, unfounded
from rag.web.answer import Answer


async def show(events: AsyncGenerator[Event, None], answer: Answer) -> None:
    """Show a turn as it happens; cancelled, it closes `events`, which stops the model."""
    await answer.searching()
    async with contextlib.aclosing(events):
        async for event in events:
            match event:
                case Searched():
                    await answer.searched(event.query, event.hits, event.seconds)
                case Answering():
                    await answer.answering(event.sources)
                case Token():
                    await answer.token(event.text)
                case Cited():
                    await answer.cited(event.citation)
                case Done():
                    await answer.done(unfounded(event))
