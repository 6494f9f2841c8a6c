"""The chat's page on a real table that has moved on: `chainlit run tests/front_app.py`.

Table, index, rows and routes are the real ones; what the assistant says is written here. Who asks
is an admin, or whoever the cookie `who` names. It writes the table into the working directory.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import chainlit as cl
import polars as pl
from conftest import World
from scripted_app import NASTY_ROW, hit
from starlette.requests import Request

from rag import provenance
from rag.citation import Citation
from rag.metrics import Metrics
from rag.retrieval import Hit
from rag.web import pages, rows, server
from rag.web.people import Person
from rag.wiring import Status

TEMPLATE = "For {scenario} you should use {advice}"
SILVER = "a silver dagger and a bundle of wolfsbane"
WAX = "beeswax for the ears of the crew"


def before() -> pl.DataFrame:
    """Return the rows that were indexed."""
    return pl.DataFrame(
        {
            "id": ["fs-1", "fs-2", "fs-3", "fs-4"],
            "scenario": ["a werewolf at the mill", "sirens", "a ghost", NASTY_ROW],
            "advice": [SILVER, WAX, "a brass bell", NASTY_ROW],
            "price_gold": [12.5, 3.0, 7.0, 1.0],
            "in_stock": [True, True, None, False],
        }
    )


def after() -> pl.DataFrame:
    """Return the rows as they are now: one changed, one gone, forty new."""
    changed = pl.when(pl.col("id") == "fs-2").then(4.5).otherwise(pl.col("price_gold"))
    advice = pl.col("advice").str.replace("the crew", "the whole crew")
    kept = before().filter(pl.col("id") != "fs-3").with_columns(advice, price_gold=changed)
    new = [f"new-{n}" for n in range(40)]
    more = pl.DataFrame({"id": new, "scenario": new, "advice": new})
    return pl.concat([kept, more], how="diagonal")


class Shop:
    """The table, mirrored at its first version."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, TEMPLATE)
        self.world.key = ("id",)
        self.world.create(before())
        self.world.sync()
        self.world.write(after())

    def standing(self) -> Status:
        """Return where table and index stand."""
        answering, latest = self.world.index.answering(), self.world.snapshot()
        mirrored = answering.state.table_version if answering else None
        pending = self.world.pending()
        counts = {"added": pending.n_added, "updated": pending.n_updated}
        return Status(
            table_uri="somewhere/fantasy-library",
            table_version=latest.version,
            table_problem=None,
            index_uri=self.world.index.uri,
            index_version=mirrored,
            n_rows=4,
            n_nodes=4,
            n_blank=0,
            embedding_model="words",
            llm="none",
            index_bytes=0,
            models_bytes=0,
            mirrored_versions=self.world.index.versions(),
            changed=counts | {"deleted": pending.n_deleted} if mirrored != latest.version else None,
            building=None,
            problem=None,
        )

    def row(self, key: str, version: int | None) -> provenance.RowView:
        """Return a row and what became of it."""
        at = self.world.snapshot(version)
        mirrored = self.world.index.mirrored(at.version)
        return provenance.look(
            key, at, self.world.snapshot(), index=self.world.index, mirrored=mirrored
        )

    def sync(self) -> int:
        """Follow the table, long enough for a reader to see it."""
        time.sleep(1)
        return self.world.sync().table_version

    async def synced(self) -> None:
        """Nobody keeps engines here."""

    def hits(self) -> list[Hit]:
        """Return the rows that were indexed, as a search finds them."""
        found = []
        for n, row in enumerate(before().to_dicts(), start=1):
            text = TEMPLATE.format(**row)
            one = hit(n, text, **row)
            one.node.metadata |= {
                "table_uri": "somewhere/fantasy-library",
                "table_version": 0,
                "row_key": row["id"],
            }
            found.append(one)
        return found


async def person(request: Request) -> Person | None:
    """Return who the cookie names; without one, the admin of this machine."""
    who = request.cookies.get("who", "local")
    return Person(who, is_admin=who == "local") if who != "nobody" else None


async def answer(hits: list[Hit], kind: str) -> None:
    """Say what an answer of this kind looks like."""
    cited = TEMPLATE.format(**before().row(0, named=True)).index(SILVER)
    texts = {
        "sources": 'Use a silver dagger and a bundle of wolfsbane.\u00a0[1](#cite-1 "Open source 1") '
        'Against sirens, wax helps.\u00a0[2](#cite-2 "Open source 2") '
        'It costs 99 gold.\u00a0[?](#unfounded "Not in the table")',
        "nearest": "The table holds nothing on this.",
        "hits": "4 rows in 12 ms",
    }
    spans = [Citation(1, "fs-1", cited, cited + len(SILVER)), Citation(2, "fs-2", 23, 35)]
    message = cl.Message(content=texts[kind])
    await message.send()
    props = {
        "message_id": message.id,
        "is_done": True,
        "kind": kind,
        "sources": rows.cards(hits, spans if kind == "sources" else []),
    }
    await cl.CustomElement(name="Sources", props=props, display="inline").send(for_id=message.id)


def main() -> None:
    """Serve it."""
    shop = Shop(Path.cwd())
    hits = shop.hits()
    library = pages.Library(shop.standing, shop.row, shop.sync, shop.synced)
    server.install(
        "Fantasy Shop",
        state=lambda: (True, "ready"),
        metrics=Metrics(),
        routes=pages.routes(library, person=person),
    )

    @cl.set_starters
    async def starters() -> list[cl.Starter]:
        return [cl.Starter(label="What helps against a werewolf?", message="werewolf")]

    @cl.on_message
    async def on_message(message: cl.Message) -> None:
        asking = {"rag": "asking", "filters": ["danger ≥ 3", "in stock"], "version": 0}
        if "filter" in message.content:
            await cl.context.emitter.send_window_message(asking)
        kinds = {"tax": "nearest", "search": "hits"}
        kind = next((k for word, k in kinds.items() if word in message.content), "sources")
        await asyncio.sleep(0)
        await answer(hits, kind)


if __name__.endswith(".py"):
    main()
