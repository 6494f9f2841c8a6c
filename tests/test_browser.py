"""The chat in a real Chromium, as a reader meets it: nothing leaves the machine, nothing breaks."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chat_server import serving
from deltalake import DeltaTable
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    WebSocket,
    expect,
    sync_playwright,
)
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from scripted_app import NASTY_ROW, TEXTS, WOLFSBANE
from test_web import normal

from rag.citing import UNSUPPORTED

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
APP = ROOT / "tests" / "scripted_app.py"
PICTURES = ROOT / "artefacts"
WIDE = {"width": 1280, "height": 860}
NARROW = {"width": 390, "height": 844}
CHAINLITS_OWN = "`DialogContent` requires a `DialogTitle`"
"""On narrow screens Chainlit's panel has a title, but renames its id, which Radix looks for."""
SLOW_MS = 60_000
SETTLE_MS = 300
expect.set_options(timeout=20_000)  # of a machine that does other work

ANSWER = '[data-step-type="assistant_message"]'
CHIP = 'a[href^="#cite-"]'


# --- the server and the browser --------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a Chromium: the system's, or one that Playwright installed."""
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        found = [*filter(None, map(shutil.which, names)), playwright.chromium.executable_path]
        path = next((p for p in found if Path(p).exists()), None)
        if path is None:
            reason = "no Chromium: install Debian's `chromium` or run `playwright install chromium`"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        chromium = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        yield chromium
        chromium.close()


AXES_OWN = {
    # the handle between chat and panel names a panel that has no such id; the arrow keys work
    "aria-valid-attr-value": "[data-resize-handle]",
}
"""What axe finds that Chainlit's own parts do and nothing of ours can mend."""


def serious(page: Page) -> list[str]:
    """Return what is seriously wrong for people who do not see or point, and stays so.

    The page names Chainlit's buttons a quarter of a second after they appear.
    """
    for _ in range(20):
        page.wait_for_timeout(SETTLE_MS)
        found = _serious(page)
        if not found:
            break
    return found


def _serious(page: Page) -> list[str]:
    return [
        f"{found['id']}: {node['html']}"
        for found in Axe().run(page).response["violations"]
        for node in found["nodes"]
        if found["impact"] in ("serious", "critical")
        and not page.locator(node["target"][0])
        .and_(page.locator(AXES_OWN.get(found["id"], "#none")))
        .count()
    ]


@dataclass
class Tab:
    """A page, and what must not have happened on it."""

    page: Page
    faults: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of faults that the test provokes."""
    login_faults: list[str] = field(default_factory=list)
    """What axe finds on the page to sign in."""
    received: list[str] = field(default_factory=list)
    """What came over its sockets."""

    def until_connected(self) -> None:
        """Wait for the server's first word; before it a click on Send does nothing."""
        until = time.monotonic() + SLOW_MS / 1000
        while "task_end" not in "".join(self.received):
            assert time.monotonic() < until, "the server did not answer over the socket"
            self.page.wait_for_timeout(20)

    def ask(self, question: str) -> None:
        """Type a question and send it."""
        self.page.locator("#chat-input").fill(question)
        self.page.locator("#chat-submit").click()

    def until_done(self) -> None:
        """Wait for the answer to be complete."""
        expect(self.page.locator(ANSWER).last).to_be_visible(timeout=SLOW_MS)
        expect(self.page.locator("#stop-button")).to_have_count(0, timeout=SLOW_MS)

    def picture(self, name: str) -> None:
        """Save what is on the screen, for a person to look at."""
        PICTURES.mkdir(exist_ok=True)
        self.page.wait_for_timeout(400)  # the panel slides in
        self.page.screenshot(path=PICTURES / f"{name}.png")


OpenTab = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[OpenTab]:
    """Open pages; at the end none may have had a fault or asked another host."""
    tabs: list[Tab] = []
    contexts = []

    def make(
        url: str, *, size: dict[str, int] = WIDE, theme: str = "light", login: str | None = None
    ) -> Tab:
        context = browser.new_context(viewport=size)  # type: ignore[arg-type]
        contexts.append(context)
        context.add_init_script(f"localStorage.setItem('vite-ui-theme', '{theme}')")
        tab = Tab(context.new_page())
        tabs.append(tab)

        def on_request(request: Request) -> None:
            own = (url, url.replace("http", "ws"), "data:", "blob:")
            if not request.url.startswith(own):
                tab.faults.append(f"request to {request.url}")

        def on_console(message: ConsoleMessage) -> None:
            if message.type == "error" and not message.text.startswith(CHAINLITS_OWN):
                tab.faults.append(f"console {message.text}")

        tab.page.on("request", on_request)

        def on_socket(socket: WebSocket) -> None:
            if not socket.url.startswith(url.replace("http", "ws")):
                tab.faults.append(f"socket to {socket.url}")
            socket.on("framereceived", lambda frame: tab.received.append(str(frame)))

        tab.page.on("websocket", on_socket)
        tab.page.on("pageerror", lambda e: tab.faults.append(f"error {e}"))
        tab.page.on("console", on_console)
        tab.page.goto(url)
        if login is not None:
            tab.expected += ["401", "Unauthorized"]  # the page asks who one is, and shows the form
            expect(tab.page.locator("#email")).to_be_visible(timeout=SLOW_MS)
            tab.login_faults = serious(tab.page)
            tab.page.locator("#email").fill(login)
            tab.page.locator("#password").fill(f"{login}s secret")
            tab.page.locator("button[type=submit]").click()
        expect(tab.page.locator("#chat-input")).to_be_visible(timeout=SLOW_MS)
        tab.until_connected()
        return tab

    yield make
    for context in contexts:
        context.close()
    faults = [
        fault
        for tab in tabs
        for fault in tab.faults
        if not any(part in fault for part in tab.expected)
    ]
    assert faults == []


# --- scripted: what the model says is known --------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the working directory of the scripted server; its load waits for `go` there."""
    return tmp_path_factory.mktemp("scripted")


@pytest.fixture(scope="module")
def loading(folder: Path) -> Iterator[str]:
    with serving(APP, folder) as url:
        yield url


@pytest.fixture
def scripted(loading: str, folder: Path) -> str:
    (folder / "go").touch()
    return loading


def test_from_a_starter_through_the_warm_up_to_the_row(
    loading: str, folder: Path, open_tab: OpenTab
) -> None:
    tab = open_tab(loading)
    page = tab.page
    assert page.title() == "Test & Shop"
    tab.picture("welcome-scripted")
    page.locator("#starters button").first.click()
    expect(page.get_by_text("Warming up: embedding 120/165")).to_be_visible()
    (folder / "go").touch()
    chip = page.locator(CHIP)
    expect(chip).to_have_text("1", timeout=SLOW_MS)
    tab.until_done()
    expect(page.get_by_text("Warming up")).to_have_count(0)
    assert chip.get_attribute("title") == "Open source 1"

    chip.click()
    assert len(page.context.pages) == 1
    expect(page.locator("#side-view-title")).to_contain_text("Source 1")
    expect(page.get_by_test_id("passage")).to_have_text(WOLFSBANE)
    expect(page.get_by_test_id("passage").locator("mark")).to_contain_text("silver dagger")
    expect(page.get_by_test_id("columns").locator("tr")).to_have_text(
        [
            "ScenarioA werewolf at the mill",
            "price_gold12.50",
            "in_stockyes",
            "added_on2026-01-02",
            "noteempty",
        ]
    )
    expect(page.get_by_test_id("origin")).to_have_text("shop · version 3 · row row-1")
    tab.picture("panel-scripted")


def test_keyboard_opens_and_closes_the_panel(scripted: str, open_tab: OpenTab) -> None:
    tab = open_tab(scripted)
    page = tab.page
    tab.ask("What helps?")
    tab.until_done()
    card = page.get_by_role("button", name=re.compile("Open source 1: .* cited"))
    card.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("source")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("source")).to_have_count(0)


def test_a_row_and_an_answer_full_of_markup_show_as_text(scripted: str, open_tab: OpenTab) -> None:
    tab = open_tab(scripted)
    page = tab.page
    tab.ask("markup")
    tab.until_done()
    content = page.locator(f"{ANSWER} .message-content > div").first
    # our own marks of what stands in no row; React would put back what is removed
    page.add_style_tag(content='a[href="#unfounded"] { display: none !important; }')
    shown = content.evaluate("e => [...e.querySelectorAll('[role=article]')].map(p => p.innerText)")
    said, _, quoted = "\n".join(shown).partition(UNSUPPORTED.strip())
    # marks that a model writes itself are checked, and these stand for no source
    written = "\n".join(TEXTS).replace("[1](#cite-9) [^1]", "(#cite-9)")
    assert normal(said) == normal(written)
    assert WOLFSBANE in quoted
    markup = (
        "img, a:not([href^='#cite-'], [href='#unfounded']), script, iframe, video, h1, h2, ul, ol, table, blockquote, "
        "code, pre, hr, .alert"
    )
    assert content.locator(markup).count() == 0

    page.locator('[data-step-type="tool"] button').first.click()
    expect(page.locator('[data-step-type="tool"] td').nth(3)).to_contain_text("<iframe src=")
    page.get_by_test_id("card-2").click()
    expect(page.get_by_test_id("passage")).to_have_text(NASTY_ROW)
    shown_row = page.locator("[data-testid=passage], [data-testid=columns]")
    assert shown_row.locator("img, a, script").count() == 0
    assert page.locator('[data-step-type="tool"] .message-content :is(img, a)').count() == 0
    tab.picture("markup-scripted")


def test_stop_freezes_the_text_and_an_edit_asks_again(scripted: str, open_tab: OpenTab) -> None:
    tab = open_tab(scripted)
    page = tab.page
    tab.ask("A long one")
    answer = page.locator(f"{ANSWER} .message-content")
    expect(answer).to_contain_text("word word word")
    page.locator("#stop-button").click()
    tab.until_done()
    expect(answer).to_contain_text("(stopped)")
    expect(answer).to_contain_text("Sources", timeout=SLOW_MS)  # the card says so a moment later
    frozen = answer.inner_text()
    page.wait_for_timeout(700)
    assert answer.inner_text() == frozen
    assert len(frozen.split()) < 300
    expect(page.get_by_text("Task manually stopped")).to_have_count(0)

    page.locator('[data-step-type="user_message"]').hover()
    page.locator(".edit-message").click()
    page.locator("#edit-chat-input").fill("What helps?")
    page.locator(".confirm-edit").click()
    expect(answer.last).to_contain_text("silver dagger", timeout=SLOW_MS)
    expect(answer).to_have_count(1)


def test_an_empty_answerless_question_gets_a_sentence(scripted: str, open_tab: OpenTab) -> None:
    tab = open_tab(scripted)
    tab.ask("why? " * 40)
    tab.until_done()
    expect(tab.page.locator(ANSWER)).to_contain_text("The question has")
    tab.picture("error-scripted")


def test_the_model_is_chosen_in_the_settings(tmp_path: Path, open_tab: OpenTab) -> None:
    (tmp_path / "go").touch()
    with serving(APP, tmp_path) as url:  # the choice is everybody's
        tab = open_tab(url)
        _switches(tab)
        tab.page.close()


def _switches(tab: Tab) -> None:
    page = tab.page
    expect(page.locator("#starters button")).to_have_count(1)
    page.locator("#chat-settings-open-modal").click()
    panel = page.locator("#chat-settings")
    expect(panel).to_contain_text("It answers everyone on this server.")
    models = panel.get_by_role("combobox", name="Language model")
    expect(models).to_have_text("small")
    models.click()
    tab.picture("settings-scripted")
    page.get_by_role("option", name="large").click()
    panel.locator("#confirm").click()
    expect(page.get_by_text("large answers from now on.")).to_be_visible(timeout=SLOW_MS)
    tab.ask("What helps?")
    tab.until_done()
    expect(page.locator(ANSWER)).to_contain_text("I am folder/large.")
    page.locator('[data-step-type="tool"] button').first.click()
    step = page.locator('[data-step-type="tool"] .message-content')
    expect(step).to_contain_text(re.compile(r"Answered in [\d.]+ s: search [\d.]+ s, waited 0 s"))


# --- conversations ---------------------------------------------------------------------------


def test_a_conversation_survives_reload_and_restart(
    tmp_path: Path, open_tab: OpenTab, browser: Browser
) -> None:
    (tmp_path / "go").touch()
    with serving(APP, tmp_path) as url:
        tab = open_tab(url)
        page = tab.page
        tab.ask("What helps against a werewolf?")
        tab.until_done()
        page.locator(".positive-feedback-off").click()
        page.locator("[role=dialog] textarea").fill("It did.")
        page.locator("#submit-feedback").click()
        expect(page.locator(".positive-feedback-on")).to_be_visible()
        thread = page.url
        assert "/thread/" in thread
        page.reload()
        expect(page.locator(ANSWER)).to_contain_text("silver dagger", timeout=SLOW_MS)
        expect(page.locator(".positive-feedback-on")).to_be_visible()
        port = int(url.rpartition(":")[2])
        tab.expected.append("'localStorage'")  # an empty page has none
        page.goto("about:blank")
    with serving(APP, tmp_path, port=port):
        page.goto(thread)
        expect(page.locator(ANSWER)).to_contain_text("silver dagger", timeout=SLOW_MS)
        page.locator(CHIP).click()
        expect(page.get_by_test_id("passage").locator("mark")).to_contain_text("silver dagger")
        page.keyboard.press("Escape")
        tab.ask("And against a vampire?")
        expect(page.locator(ANSWER)).to_have_count(2, timeout=SLOW_MS)
        tab.until_done()
        tab.picture("resumed-scripted")
        history = page.locator("#thread-history")
        expect(history).to_contain_text("What helps against a werewolf?")
        page.locator("#new-chat-button").first.click()
        expect(page.locator(ANSWER)).to_have_count(0)
        history.get_by_text("What helps against a werewolf?").click()
        expect(page.locator(ANSWER)).to_have_count(2, timeout=SLOW_MS)
        page.close()


def test_a_page_that_is_reloaded_follows_the_answer(scripted: str, open_tab: OpenTab) -> None:
    tab = open_tab(scripted)
    page = tab.page
    tab.ask("A long one")
    answer = page.locator(f"{ANSWER} .message-content")
    expect(answer).to_contain_text("word word word")
    page.wait_for_url("**/thread/**")
    page.reload()
    expect(answer).to_contain_text("word word", timeout=SLOW_MS)
    tab.until_done()
    n_words = "document.querySelector('[data-step-type=assistant_message]').innerText.split('word').length"
    page.wait_for_function(f"() => {n_words} > 400", timeout=SLOW_MS)


def test_a_phone_that_reloads_keeps_its_chat(scripted: str, open_tab: OpenTab) -> None:
    tab = open_tab(scripted, size=NARROW, theme="dark")
    page = tab.page
    tab.ask("What helps?")
    tab.until_done()
    page.wait_for_url("**/thread/**")
    page.reload()
    expect(page.locator(ANSWER)).to_contain_text("silver dagger", timeout=SLOW_MS)
    expect(page.locator("#chat-submit")).to_have_attribute("aria-label", "Send")


def test_what_is_asked_is_in_sight(scripted: str, open_tab: OpenTab) -> None:
    tab = open_tab(scripted)
    page = tab.page
    strip = page.locator("#rag-strip")
    expect(strip).to_contain_text("shop")
    expect(strip).to_contain_text("table is at v5: +340 rows")
    page.locator("#mode-picker-trigger-asof").click()
    page.get_by_role("menuitem", name="v2").or_(page.get_by_role("option", name="v2")).click()
    page.locator("#chat-settings-open-modal").click()
    page.locator("#chat-settings").get_by_role("combobox", name="in_stock").click()
    page.get_by_role("option", name="Yes").click()
    page.locator("#confirm").click()
    expect(strip).to_contain_text("in_stock")
    tab.ask("/search silver")
    expect(page.locator(ANSWER)).to_contain_text("2 rows for “silver”", timeout=SLOW_MS)
    expect(page.locator(ANSWER)).to_contain_text("in_stock")
    tab.ask("/row row-1")
    expect(page.locator(ANSWER).last).to_contain_text("Deleted since", ignore_case=True)
    tab.ask("/nonsense")
    expect(page.locator(ANSWER).last).to_contain_text("There is no command /nonsense")
    tab.picture("asked-scripted")


def test_another_user_cannot_open_it(tmp_path: Path, open_tab: OpenTab) -> None:
    (tmp_path / "go").touch()
    for name in ("ann", "bob"):
        command = [sys.executable, "-m", "rag", "user", "add", name, "--stdin"]
        command += ["--admin"] if name == "ann" else []
        password = f"{name}s secret\n"
        subprocess.run(command, cwd=tmp_path, input=password, text=True, check=True)
    with serving(APP, tmp_path) as url:
        ann = open_tab(url, login="ann")
        assert ann.login_faults == []
        ann.ask("What helps against a werewolf?")
        ann.until_done()
        ann.page.wait_for_url("**/thread/**")
        bob = open_tab(url, login="bob")
        bob.expected.append("404")
        bob.page.goto(ann.page.url)
        expect(bob.page.locator(ANSWER)).to_have_count(0)
        expect(bob.page.locator("#thread-history")).not_to_contain_text("werewolf")
        expect(bob.page.get_by_test_id("sync")).to_be_hidden()
        for tab in (ann, bob):
            tab.page.close()


# --- the real thing --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the working directory of the real chat."""
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def real(real_folder: Path) -> Iterator[str]:
    """Serve the real demo with the real models; it prepares itself on the first start."""
    with serving(ROOT / "app.py", real_folder) as url:
        yield url


@pytest.mark.model
def test_the_werewolf_question_from_start_to_row(real: str, open_tab: OpenTab) -> None:
    tab = open_tab(real)
    page = tab.page
    assert page.title() == "Fantasy Shop"
    expect(page.locator("#starters button")).to_have_count(4)
    tab.picture("welcome")
    tab.ask("What do I need against a werewolf?")
    strip = page.locator("#rag-strip")
    expect(strip.locator(".rag-busy, .rag-fresh")).to_be_visible()  # no index yet is no problem
    chip = page.locator(CHIP).first
    expect(chip).to_be_visible(timeout=600_000)
    tab.until_done()
    expect(strip).to_contain_text("up to date")
    tab.picture("answer")
    chip.click()
    passage = page.get_by_test_id("passage")
    expect(passage).to_contain_text("werewolf", ignore_case=True)
    expect(passage).to_contain_text("you should use")
    assert passage.locator("mark").count() > 0
    columns = page.get_by_test_id("columns")
    for name in ("Scenario", "Advice", "row_id", "creature", "price_gold", "in_stock", "added_on"):
        expect(columns.get_by_role("rowheader", name=name, exact=True)).to_be_visible()
    expect(page.get_by_test_id("origin")).to_have_text(
        re.compile(r"^fantasy-library · version \d+ · row \S+$")
    )
    tab.picture("row")


@pytest.mark.model
def test_a_question_that_no_row_answers_is_refused(real: str, open_tab: OpenTab) -> None:
    tab = open_tab(real)
    tab.ask("How do I file my tax return in Ohio?")
    tab.until_done()
    expect(tab.page.locator(ANSWER)).to_contain_text("holds nothing on this")
    assert tab.page.locator(CHIP).count() == 0
    expect(tab.page.get_by_test_id("sources")).to_contain_text("Nearest rows")
    tab.picture("refusal")


@pytest.mark.model
def test_the_table_moves_on(real: str, real_folder: Path, open_tab: OpenTab) -> None:
    tab = open_tab(real)
    page = tab.page
    strip = page.locator("#rag-strip")
    expect(strip).to_contain_text("fantasy-library", timeout=SLOW_MS)
    table = DeltaTable(real_folder / "data" / "fantasy-library")
    before = table.version()
    table.update({"price_gold": "99.5"}, predicate="row_id = 'fs-001'")
    page.reload()
    expect(strip).to_contain_text(f"table is at v{before + 1}", timeout=SLOW_MS)
    tab.picture("behind")
    page.get_by_test_id("sync").click()
    expect(strip).to_contain_text(f"v{before + 1}", timeout=SLOW_MS)
    expect(page.get_by_test_id("sync")).to_be_hidden(timeout=SLOW_MS)
    tab.ask("/row fs-001")
    page.get_by_test_id("card-1").click()
    expect(page.get_by_test_id("columns")).to_contain_text("99.5", timeout=SLOW_MS)
    page.keyboard.press("Escape")
    page.locator("#mode-picker-trigger-asof").click()
    page.get_by_text(re.compile(rf"^v{before}( ·.*)?$")).click()
    tab.ask("What do I need against a werewolf?")
    expect(page.locator(CHIP)).to_be_visible(timeout=SLOW_MS)
    tab.until_done()
    page.locator(CHIP).click()
    expect(page.get_by_test_id("origin")).to_contain_text(f"version {before}")
    panel = page.get_by_test_id("source")
    expect(panel).to_contain_text("Changed since")
    expect(panel).to_contain_text("99.5")
    tab.picture("changed")


@pytest.mark.model
@pytest.mark.parametrize(
    ("size", "theme"),
    [(WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")],
    ids=["wide-dark", "narrow-light", "narrow-dark"],
)
def test_dark_and_narrow(real: str, open_tab: OpenTab, size: dict[str, int], theme: str) -> None:
    name = f"{'wide' if size is WIDE else 'narrow'}-{theme}"
    tab = open_tab(real, size=size, theme=theme)
    page = tab.page
    tab.picture(f"welcome-{name}")
    tab.ask("What do I need against a werewolf?")
    expect(page.locator(CHIP).first).to_be_visible(timeout=SLOW_MS)
    tab.until_done()
    tab.picture(f"answer-{name}")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.get_by_test_id("card-1").click()
    expect(page.get_by_test_id("passage")).to_be_visible()
    tab.picture(f"row-{name}")


@pytest.mark.model
def test_stop_stops_the_real_model(real: str, open_tab: OpenTab) -> None:
    tab = open_tab(real)
    page = tab.page
    answer = page.locator(f"{ANSWER} .message-content")
    stopped = answer.last.get_by_text("(stopped)")
    for n in range(4):  # a fast machine may be done before the button is hit
        tab.ask("What do I need against a werewolf?")
        expect(answer).to_have_count(n + 1, timeout=SLOW_MS)
        with contextlib.suppress(PlaywrightTimeout):
            page.locator("#stop-button").click(timeout=5000)
        tab.until_done()
        with contextlib.suppress(AssertionError):  # the mark follows the end by a moment
            expect(stopped).to_be_visible(timeout=3000)
            break
    expect(stopped).to_be_visible()
    frozen = answer.last.inner_text()
    page.wait_for_timeout(1000)
    assert answer.last.inner_text() == frozen
