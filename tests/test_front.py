"""What the page adds to Chainlit, in a real Chromium: strip, cards, panel, a row's own page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ROOT, serving
from front_app import NASTY_ROW, SILVER
from playwright.sync_api import Page, expect
from test_browser import ANSWER, NARROW, SLOW_MS, WIDE, OpenTab, Tab, browser, open_tab, serious

__all__ = ["browser", "open_tab"]

pytestmark = pytest.mark.browser

APP = ROOT / "tests" / "front_app.py"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a table that has moved on since it was indexed."""
    with serving(APP, tmp_path_factory.mktemp("front")) as url:
        yield url


def ask(tab: Tab, question: str) -> None:
    """Ask, and wait for one more answer with its cards."""
    cards = tab.page.locator("section.rag-sources")
    n = cards.count()
    tab.ask(question)
    expect(cards).to_have_count(n + 1, timeout=SLOW_MS)


def check(page: Page) -> None:
    """Find no serious fault of ours for people who do not see or point."""
    assert serious(page) == []


def test_the_strip_tells_what_is_asked_and_an_admin_syncs(
    tmp_path: Path, open_tab: OpenTab
) -> None:
    with serving(APP, tmp_path) as url:
        _syncs(open_tab(url))


def _syncs(tab: Tab) -> None:
    page, strip = tab.page, tab.page.locator("#rag-strip")
    status = strip.get_by_role("status")
    expect(status).to_have_text(
        "fantasy-libraryv0table is at v1: +40 rows, 1 changed, −1 row", timeout=SLOW_MS
    )
    expect(strip.get_by_role("list", name="Asked for")).to_be_hidden()
    ask(tab, "filter")  # Chainlit makes another composer for it
    expect(strip.get_by_role("listitem")).to_have_text(["as of v0", "danger ≥ 3", "in stock"])
    expect(strip).to_have_count(1)
    tab.picture("strip-front")
    check(page)

    button = page.get_by_role("button", name="Sync now")
    button.focus()
    page.keyboard.press("Enter")
    expect(status).to_contain_text("syncing to v1 …")
    expect(status).to_have_text("fantasy-libraryv1up to date", timeout=SLOW_MS)
    expect(button).to_be_hidden()
    expect(page.locator("#chat-input")).to_be_focused()


def test_others_see_the_standing_and_no_button(front: str, open_tab: OpenTab) -> None:
    tab = open_tab(front)
    tab.page.context.add_cookies([{"name": "who", "value": "ann", "url": front}])
    tab.page.reload()
    expect(tab.page.locator("#rag-strip")).to_contain_text("table is at v1", timeout=SLOW_MS)
    expect(tab.page.get_by_test_id("sync")).to_be_hidden()


@pytest.mark.parametrize(
    ("size", "theme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide-light", "narrow-dark"]
)
def test_a_row_opens_with_its_fate_and_gives_the_focus_back(
    front: str, open_tab: OpenTab, size: dict[str, int], theme: str
) -> None:
    tab = open_tab(front, size=size, theme=theme)
    page = tab.page
    ask(tab, "What helps?")
    expect(page.get_by_test_id("source")).to_have_count(0)  # nothing opens by itself
    check(page)
    chip = page.locator('a[href="#cite-2"]')
    chip.focus()
    page.keyboard.press("Enter")
    panel, fate = page.get_by_test_id("source"), page.get_by_test_id("fate")
    expect(panel).to_be_focused()
    expect(fate).to_contain_text("Changed since v0: the table is at v1.")
    changes = page.get_by_test_id("changes").locator("> div")
    expect(changes.first.locator("ins b")).to_have_text("whole ")
    expect(changes.last).to_have_text("price_goldwas3.0now4.5")
    tab.picture(f"fate-{'wide' if size is WIDE else 'narrow'}-{theme}")
    check(page)
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(chip).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]

    page.get_by_test_id("card-3").click()
    expect(fate).to_contain_text("Deleted since v0: v1 of the table no longer holds it.")
    expect(page.get_by_test_id("passage")).to_have_text("For a ghost you should use a brass bell")


def test_passage_and_link_are_copied_and_the_link_opens_the_row(
    front: str, open_tab: OpenTab
) -> None:
    tab = open_tab(front)
    page = tab.page
    ask(tab, "What helps?")
    page.get_by_test_id("card-1").click()
    expect(page.get_by_test_id("passage").locator("mark")).to_have_text(SILVER)
    expect(page.get_by_test_id("fate")).to_contain_text("Unchanged from v0 to v1.")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for action, text in (
        ("Copy passage", f"For a werewolf at the mill you should use {SILVER}"),
        ("Copy link", f"{front}/row?key=fs-1&version=0"),
    ):
        page.get_by_role("button", name=action).click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == text
        expect(page.get_by_role("button", name=action)).to_be_visible()
    # without a clipboard, as on a page without https
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy passage").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    expect(page.get_by_role("button", name="Copied")).to_be_focused()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open page").click()
    row = opened.value
    expect(row.get_by_role("heading", name="Row fs-1")).to_be_visible()
    check(row)


def test_a_hostile_row_shows_as_text_on_its_page(front: str, open_tab: OpenTab) -> None:
    tab = open_tab(front)
    page = tab.page
    page.goto(f"{front}/row?key=fs-4&version=0")
    expect(page.locator("blockquote")).to_contain_text(NASTY_ROW)
    assert page.locator("iframe, img, script, blockquote *").count() == 0
    check(page)
    tab.picture("row-page")


def test_the_panel_shows_what_was_cited_when_the_table_cannot_be_asked(
    front: str, open_tab: OpenTab
) -> None:
    tab = open_tab(front)
    page = tab.page
    page.route("**/rag/row?*", lambda route: route.abort())
    ask(tab, "What helps?")
    page.get_by_test_id("card-1").click()
    expect(page.get_by_test_id("fate")).to_contain_text("The table cannot be asked right now")
    expect(page.get_by_test_id("passage")).to_contain_text(SILVER)
    assert tab.faults == ["console Failed to load resource: net::ERR_FAILED"]
    tab.faults.clear()  # Chromium's own, and the only one


def test_a_refusal_and_a_search_head_their_rows(front: str, open_tab: OpenTab) -> None:
    tab = open_tab(front)
    page = tab.page
    ask(tab, "tax")
    nearest = page.get_by_role("region", name="Nearest rows")
    expect(nearest.get_by_role("button")).to_have_count(4)
    check(page)
    tab.picture("refusal-front")
    ask(tab, "search")
    found = page.get_by_role("region", name="Rows found")
    found.get_by_role("button", name=re.compile("Open row 2: .* Relevance 0.80$")).click()
    expect(page.get_by_role("article", name=re.compile("^Row: For sirens"))).to_be_focused()


def test_a_mark_of_what_stands_in_no_row_says_so_and_goes_nowhere(
    front: str, open_tab: OpenTab
) -> None:
    tab = open_tab(front)
    page = tab.page
    ask(tab, "What helps?")
    mark = page.locator(f'{ANSWER} a[href="#unfounded"]')
    expect(mark).to_have_attribute("title", "Not in the table")
    address = page.url
    mark.click()
    assert page.url == address
    assert len(page.context.pages) == 1
