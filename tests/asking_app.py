"""What a reader can set before asking, and the charts: `chainlit run tests/asking_app.py`.

Columns, versions and answers are written here; each message is answered with what arrived of it.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import chainlit as cl

from rag.errors import RagError
from rag.metrics import Metrics
from rag.table import ColumnFacts
from rag.web import asking, commands, filters, server, stats

HOSTILE = 'o\'clock "a.b" `c` $d [1] {e} <b>試</b>'
FACTS = (
    ColumnFacts("biome", "choice", ("sea", "forest", "Any", "<i>x</i>"), counts=(20, 10, 3, 1)),
    ColumnFacts("in_stock", "boolean"),
    ColumnFacts("price_gold", "number", least=6, most=900),
    ColumnFacts("added_on", "date", least=dt.date(2025, 2, 3), most=dt.date(2026, 10, 30)),
    ColumnFacts(HOSTILE, "text"),
    ColumnFacts("long " * 40, "text"),
)
VERSIONS = [(12, dt.datetime(2026, 11, 22, 9)), (11, dt.datetime(2026, 11, 20, 9)), (3, None)]
ANSWERS: list[dict[str, Any]] = [
    {
        "relevance": 0.5 + n / 20,
        "refused": n < 3,
        "timings": {"first_token_s": 0.3 + n / 50, "total_s": 2 + n / 5},
    }
    for n in range(10)
]


async def offer() -> None:
    """Offer what can be set."""
    await cl.ChatSettings(filters.widgets(FACTS)).send()
    await cl.context.emitter.set_modes(asking.modes(VERSIONS, 12))
    await cl.context.emitter.set_commands(commands.offered(is_admin=True))


async def on_message(message: cl.Message) -> None:
    """Say what arrived, or draw the charts."""
    try:
        command = commands.parse(message.content, message.command, is_admin=True)
        asked = asking.asked(FACTS, cl.context.session.chat_settings, message.modes)
    except RagError as e:
        await cl.ErrorMessage(content=str(e)).send()
        return
    if command is not None and command.name == "stats":
        shown = await cl.Message(content="Charts").send()
        for n, figure in enumerate(stats.figures(ANSWERS, FACTS)):
            await cl.Plotly(name=f"chart {n}", figure=figure, display="inline").send(shown.id)
        return
    told = {**asked.plain(), "command": command and [command.name, command.argument]}
    await cl.Message(content=f"```json\n{json.dumps(told)}\n```").send()


def main() -> None:
    """Serve it."""
    server.install("Asking", state=lambda: (True, "ready"), metrics=Metrics())
    cl.on_chat_start(offer)
    cl.on_message(on_message)


# Chainlit loads this file under its path, a test imports it under its name
if __name__.endswith(".py"):
    main()
