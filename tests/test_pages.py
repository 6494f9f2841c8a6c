"""What the browser asks for beside the chat, over real tables: rows, standing, a sync."""

from __future__ import annotations

import asyncio
import colorsys
import logging
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from blockbuster import BlockBuster
from front_app import NASTY_ROW, SILVER, TEMPLATE, Shop, person
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request

from rag.errors import AccountsError, IndexWriteError, TableNotFound
from rag.web import accents, pages, rows
from rag.web.people import Person
from rag.wiring import Status

OWN = {"origin": "http://chat.test"}
GUEST = {"cookie": "who=ann"}


class Site:
    """The routes over one shop, asked as a browser asks."""

    def __init__(self, shop: Shop, accent: str | None = None) -> None:
        self.n_looks, self.n_synced = 0, 0
        self.shop = shop
        self.standing: Callable[[], Status] = shop.standing
        self.sync: Callable[[], int] = lambda: shop.world.sync().table_version
        library = pages.Library(self._stand, shop.row, lambda: self.sync(), self._synced)
        self.app = Starlette(routes=pages.routes(library, person=person, accent=accent))

    def _stand(self) -> Status:
        self.n_looks += 1
        return self.standing()

    async def _synced(self) -> None:
        self.n_synced += 1

    async def ask(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        """Return what the server answers."""
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://chat.test") as client:
            return await client.request(
                method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Shop(tmp_path))


# --- where the table stands ------------------------------------------------------------------


async def test_standing_says_how_far_the_table_is_ahead(
    site: Site, blockbuster: BlockBuster
) -> None:
    told = (await site.ask("/rag/standing")).json()
    assert told == {
        "table": "fantasy-library",
        "version": 0,
        "latest": 1,
        "changed": {"added": 40, "updated": 1, "deleted": 1},
        "building": None,
        "problem": None,
        "versions": [0],
        "is_admin": True,
    }
    assert (await site.ask("/rag/standing", **GUEST)).json()["is_admin"] is False


async def test_many_ask_at_once_and_the_table_is_looked_at_once(site: Site) -> None:
    answers = await asyncio.gather(*(site.ask("/rag/standing") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert site.n_looks == 1


async def test_why_something_fails_is_told_to_admins_only(site: Site, tmp_path: Path) -> None:
    def fail() -> Status:
        raise TableNotFound(str(tmp_path), "no such folder")

    site.standing = fail
    told = (await site.ask("/rag/standing")).json()
    assert told["problem"].startswith(f"There is no Delta table at '{tmp_path}'")
    assert told["version"] is None
    guest = await site.ask("/rag/standing", **GUEST)
    assert guest.json()["problem"].startswith("The table cannot be looked at right now")
    assert str(tmp_path) not in guest.text


async def test_a_version_far_ahead_costs_nothing_when_the_table_is_away(site: Site) -> None:
    def fail() -> Status:
        raise TableNotFound("somewhere", "no such folder")

    site.standing = fail
    answer = await site.ask("/rag/row?key=fs-1&version=9000000000000000000")
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/rag/standing"),
        ("GET", "/rag/row?key=fs-1"),
        ("POST", "/rag/sync"),
        ("GET", "/row?key=fs-1"),
    ],
)
async def test_whoever_is_not_known_is_told_nothing(site: Site, method: str, path: str) -> None:
    answer = await site.ask(path, method, cookie="who=nobody", **OWN)
    assert answer.status_code == 401
    assert "Please sign in to the chat first." in answer.text
    assert "fantasy" not in answer.text
    assert site.n_looks == 0


# --- one row ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "fate", "sentence"),
    [
        ("fs-1", "unchanged", "Unchanged from v0 to v1."),
        ("fs-2", "changed", "Changed since v0: the table is at v1."),
        ("fs-3", "deleted", "Deleted since v0: v1 of the table no longer holds it."),
    ],
)
async def test_a_row_comes_with_what_became_of_it(
    site: Site, blockbuster: BlockBuster, key: str, fate: str, sentence: str
) -> None:
    told = (await site.ask(f"/rag/row?key={key}&version=0")).json()
    assert (told["key"], told["version"], told["latest"]) == (key, 0, 1)
    assert (told["fate"], told["sentence"]) == (fate, sentence)
    assert [name for name, _ in told["columns"]] == [
        "id",
        "scenario",
        "advice",
        "price_gold",
        "in_stock",
    ]
    page = await site.ask(f"/row?key={key}&version=0")
    assert sentence in page.text


async def test_what_changed_is_told_as_the_columns_show_it(site: Site) -> None:
    told = (await site.ask("/rag/row?key=fs-2&version=0")).json()
    assert told["changes"] == [
        {
            "name": "advice",
            "before": "beeswax for the ears of the crew",
            "after": "beeswax for the ears of the whole crew",
        },
        {"name": "price_gold", "before": "3.0", "after": "4.5"},
    ]


async def test_a_row_of_the_latest_version_is_unchanged(site: Site) -> None:
    told = (await site.ask("/rag/row?key=new-7&version=1")).json()
    assert told["sentence"] == "Unchanged since v1."
    assert told["columns"][3] == ["price_gold", None]


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("", 400, "A row is named by `key`, of 2,000 characters at most, not none."),
        (f"key={'x' * 2001}", 400, "not 2,001 characters."),
        ("key=fs-1&version=x", 400, "`version` is a whole number, as in `version=12`."),
        ("key=fs-1&version=-1", 400, "`version` is a whole number"),
        ("key=fs-1&version=%C2%B2", 400, "`version` is a whole number"),
        ("key=fs-1&version=99999999999999999999", 400, "`version` is a whole number"),
        (
            "key=fs-1&version=9999999999999999999",
            404,
            "There is no version 9223372036854775807 of the table yet.",
        ),
        ("key=fs-1&version=7", 404, "There is no version 7 of the table yet."),
        ("key=new-1&version=0", 404, "There is no row 'new-1' in version 0 of the table."),
        ("key=%3Cimg%3E&version=0", 404, "There is no row '<img>' in version 0 of the table."),
    ],
)
async def test_what_is_not_there_is_said_in_a_sentence(
    site: Site, tmp_path: Path, query: str, status: int, sentence: str
) -> None:
    told = await site.ask(f"/rag/row?{query}")
    assert told.status_code == status
    assert sentence in told.json()["problem"]
    page = await site.ask(f"/row?{query}")
    assert page.status_code == status
    assert sentence in Read(page.text).text
    assert str(tmp_path) not in told.text + page.text


async def test_a_failure_nobody_foresaw_is_neutral_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(tmp_path)

    def fail(key: str, version: int | None) -> Any:
        raise KeyError("secret")

    shop.row = fail  # type: ignore[method-assign]
    site = Site(shop)
    with caplog.at_level(logging.ERROR):
        answer = await site.ask("/rag/row?key=fs-1")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "The table cannot be looked at right now" in answer.json()["problem"]
    assert "secret" in caplog.text


async def test_when_nobody_can_be_known_no_place_is_named(tmp_path: Path) -> None:
    async def fail(request: Request) -> Person | None:
        raise AccountsError("The file '/srv/chats.db' is locked.")

    shop = Shop(tmp_path)
    library = pages.Library(shop.standing, shop.row, shop.sync, shop.synced)
    site = Site(shop)
    site.app = Starlette(routes=pages.routes(library, person=fail))
    for path in ("/rag/standing", "/row?key=fs-1"):
        answer = await site.ask(path)
        assert answer.status_code == 503
        assert "/srv" not in answer.text


class Read(HTMLParser):
    """A page as a reader has it: its text, and the names of its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_of_a_hostile_row_shows_its_text(site: Site) -> None:
    answer = await site.ask("/row?key=fs-4&version=0")
    page = Read(answer.text)
    assert page.text.count(NASTY_ROW) == 4  # the passage twice, and two columns
    assert page.tags.isdisjoint({"script", "iframe", "img", "a", "style"})
    assert answer.headers["cache-control"] == "no-store"
    assert "fantasy" not in answer.text  # the folder's own name, not the standing's
    assert "table · version 0 · row fs-4" in page.text


async def test_names_and_keys_are_escaped_too(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    nasty = '"><script>alert(1)</script>'
    frame = pl.DataFrame({"id": [nasty], "scenario": ["x"], "advice": ["y"], nasty: [nasty]})
    shop.world.write(frame)
    site = Site(shop)
    page = Read((await site.ask("/row?key=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")).text)
    assert "script" not in page.tags
    assert page.text.count(nasty) >= 4


# --- a sync ----------------------------------------------------------------------------------


async def test_an_admin_syncs_and_the_strip_knows_at_once(site: Site) -> None:
    assert (await site.ask("/rag/standing")).json()["version"] == 0
    answer = await site.ask("/rag/sync", "POST", **OWN)
    assert (answer.status_code, answer.json()) == (200, {"version": 1})
    assert site.n_synced == 1
    told = (await site.ask("/rag/standing")).json()
    assert (told["version"], told["latest"], told["changed"]) == (1, 1, None)


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        (OWN | GUEST, "Only admins may sync; please ask one."),
        ({}, "A sync is started from the chat's own page only."),
        ({"origin": "http://evil.test"}, "A sync is started from the chat's own page only."),
        ({"origin": "null"}, "A sync is started from the chat's own page only."),
        (
            OWN | {"sec_fetch_site": "cross-site"},
            "A sync is started from the chat's own page only.",
        ),
    ],
)
async def test_a_sync_is_refused(site: Site, headers: dict[str, str], sentence: str) -> None:
    answer = await site.ask("/rag/sync", "POST", **headers)
    assert (answer.status_code, answer.json()) == (403, {"problem": sentence})
    assert site.n_synced == 0
    assert site.shop.standing().index_version == 0


async def test_a_sync_is_no_link(site: Site) -> None:
    assert (await site.ask("/rag/sync", **OWN)).status_code == 405


async def test_one_sync_at_a_time(site: Site) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        assert go.wait(30)
        return 1

    site.sync = slow
    first = asyncio.create_task(site.ask("/rag/sync", "POST", **OWN))
    await asyncio.to_thread(begun.wait, 30)
    second = await site.ask("/rag/sync", "POST", **OWN)
    assert second.status_code == 409
    assert "A sync is running already" in second.json()["problem"]
    go.set()
    assert (await first).status_code == 200
    assert site.n_synced == 1


async def test_a_sync_that_fails_says_why_and_can_be_tried_again(site: Site) -> None:
    works = site.sync

    def fail() -> int:
        raise IndexWriteError("data/index", "no space left on the device")

    site.sync = fail
    answer = await site.ask("/rag/sync", "POST", **OWN)
    assert answer.status_code == 503
    assert "no space left on the device" in answer.json()["problem"]
    assert site.n_synced == 0
    site.sync = works
    assert (await site.ask("/rag/sync", "POST", **OWN)).json() == {"version": 1}


# --- cards of one row ------------------------------------------------------------------------


def test_the_card_of_a_row_that_nobody_searched_for(tmp_path: Path) -> None:
    card = rows.row_card(Shop(tmp_path).row("fs-1", 0))
    passage = TEMPLATE.format(scenario="a werewolf at the mill", advice=SILVER)
    assert card["segments"] == [{"text": passage, "is_cited": False}]
    assert (card["title"], card["relevance"], card["is_cited"]) == ("Row fs-1", None, False)
    assert (card["table"], card["version"], card["row"]) == ("table", 0, "fs-1")
    assert ["in_stock", "yes"] in card["columns"]


# --- colour ----------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFFFF), st.sampled_from(["light", "dark"]))
def test_any_accent_can_be_read(colour: int, theme: str) -> None:
    hue, saturation, lightness = accents.readable(f"#{colour:06x}", theme).split()
    own = colorsys.hls_to_rgb(
        int(hue) / 360, int(lightness.rstrip("%")) / 100, int(saturation.rstrip("%")) / 100
    )
    # what theme.json has behind it
    ground = colorsys.hls_to_rgb(
        *((40 / 360, 0.97, 0.45) if theme == "light" else (24 / 360, 0.09, 0.16))
    )
    assert accents.contrast(own, ground) >= 4.5


def test_an_accent_that_can_be_read_stays_as_it_is() -> None:
    assert accents.readable("#1f4fa8", "light") == "219 69% 39%"
    assert "--primary: 219 69% 39% !important;" in accents.accent_css("#1f4fa8")


async def test_the_accent_is_in_both_style_sheets(tmp_path: Path) -> None:
    site = Site(Shop(tmp_path), accent="#1f4fa8")
    for name, rule in (("app.css", ":root.dark {"), ("row.css", "@media screen")):
        sheet = await site.ask(f"/public/{name}")
        assert sheet.headers["content-type"].startswith("text/css")
        own = (Path(accents.__file__).parent / "public" / name).read_text(encoding="utf-8")
        assert sheet.text.startswith(own)
        added = sheet.text.removeprefix(own)
        assert "--primary: 219 69% 39%" in added
        assert rule in added


async def test_without_an_accent_the_files_are_served_as_they_are(site: Site) -> None:
    assert (await site.ask("/public/app.css")).status_code == 404
