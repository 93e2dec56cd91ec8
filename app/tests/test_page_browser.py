"""The page in a real browser: what it draws, how it keeps current, and whether everybody can use it.

With ``PAGE_SCREENSHOTS`` set to a directory, the pictures for the documentation are written there; with
``PAGE_URL`` and ``PAGE_PASSWORD`` too, they are a real fleet's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from page_servers import PASSWORD, Fleet, Page, Prometheus, shown

from servers import need

# A root user has no sandbox of its own, and nothing may be fetched from anywhere.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
REPORT = "<!doctype html><title>r</title><p id=said>quiet</p><script>said.textContent='ran'</script>"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def page(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), fleet)
    prometheus.start()
    page = Page(tmp_path_factory.mktemp("page"), prometheus.url)
    (page.reports / "r-6.html").write_text(REPORT)
    page.start()
    shown(page, page.cookie(), "the figures are there")
    yield page
    page.kill()
    prometheus.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=need("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, page: Page) -> Iterator[Open]:
    """Logs in as a person does; fails the test for an error on the console."""
    contexts, problems = [], []

    def open(size: dict[str, int] = DESKTOP, scheme: str = "light") -> Any:
        context = browser.new_context(viewport=size, color_scheme=scheme, timezone_id="UTC")
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: problems.append(dialog.message))
        tab.on("console", lambda said: said.type == "error" and problems.append(said.text))
        # So that a test can let time pass.
        tab.clock.install()
        tab.goto(os.environ.get("PAGE_URL", page.url))
        tab.get_by_label("Name").fill("desk")
        tab.get_by_label("Password").fill(os.environ.get("PAGE_PASSWORD", PASSWORD))
        tab.get_by_role("button", name="Log in").click()
        tab.locator("figure svg path").first.wait_for(state="attached")
        return tab

    yield open
    for context in contexts:
        context.close()
    # What a test cuts off is said by the browser, too.
    assert [text for text in problems if "net::ERR_CONNECTION_REFUSED" not in text] == []


def findings(tab: Any) -> list[str]:
    """What axe calls serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab).response["violations"]
    return [
        f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_every_plot_is_drawn_with_its_legend_its_axes_and_the_marks(opened: Open) -> None:
    tab = opened()
    plots = tab.locator("figure")
    assert plots.count() == 12
    for number in range(plots.count()):
        plot = plots.nth(number)
        name = plot.locator("h3").inner_text()
        assert plot.locator(".plot svg path:not(.limit)").count() >= 1, name
        assert plot.locator(".keys li").count() >= 1, name
        assert plot.locator("line.grid").count() >= 2, name
        assert plot.locator("line.mark").count() == 3, name
    assert [text.split(" ", 1)[1] for text in tab.locator("#marks li").all_inner_texts()] == [
        "0.2.0-abcdef starts in green",
        "Rollout shadow",
        "Rollout 5%",
    ]
    glance = tab.locator("#glance").inner_text()
    assert "0.1.0" in glance
    assert "5%" in glance


def test_text_from_labels_stays_text_and_only_a_web_address_becomes_a_link(opened: Open) -> None:
    tab = opened()
    tab.locator("#alerts b", has_text="Account <script>").wait_for()
    assert tab.title() == "Trading Bot"
    assert tab.locator("#alerts img, #alerts script").count() == 0
    assert tab.locator("#alerts a").all_inner_texts() == ["Runbook"]
    assert tab.locator("#alerts a").get_attribute("href") == "https://runbook.example.com/Hostile.md"


def test_it_keeps_itself_current_and_says_when_its_server_is_away(
    opened: Open, fleet: Fleet, page: Page
) -> None:
    tab = opened()
    tab.evaluate("window.mine = true")
    fleet.cut, fleet.rollout = 2000, {"id": "r-7", "stage": "20%"}
    try:
        tab.locator("#glance").get_by_text("20%", exact=True).wait_for(timeout=60_000)
        assert tab.evaluate("window.mine") is True
    finally:
        fleet.cut, fleet.rollout = 500, {"id": "r-7", "stage": "5%"}
    tab.route("**/view.json*", lambda route: route.abort("connectionrefused"))
    away = tab.get_by_role("alert").get_by_text("This page's server does not answer")
    away.wait_for(timeout=60_000)
    assert "What is shown is of" in away.inner_text()
    tab.unroute("**/view.json*")
    away.wait_for(state="detached", timeout=60_000)
    tab.close()


def test_a_hidden_page_asks_for_nothing_until_somebody_looks(opened: Open) -> None:
    tab = opened()
    asked: list[str] = []
    tab.evaluate(
        """() => { Object.defineProperty(document, "hidden", { configurable: true, get: () => window.away });
        window.away = true; document.dispatchEvent(new Event("visibilitychange")); }"""
    )
    tab.on("request", lambda request: asked.append(request.url))
    tab.clock.run_for(60_000)
    assert asked == []
    with tab.expect_request("**/view.json*"):
        tab.evaluate("() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')); }")


def test_the_keyboard_reaches_the_spans_the_plots_and_their_tables(opened: Open) -> None:
    tab = opened()
    tab.get_by_role("radio", name="1 h").focus()
    with tab.expect_request("**/view.json?span=6h"):
        tab.keyboard.press("ArrowRight")
    plot = tab.locator("figure", has_text="Leverage")
    plot.locator(".plot").focus()
    tab.keyboard.press("End")
    assert "worst account: 1.5 ×" in plot.locator(".tip").inner_text()
    assert "worst account: 1.5 ×" in plot.locator("[aria-live]").inner_text()
    tab.keyboard.press("Escape")
    assert plot.locator(".tip").is_hidden()
    plot.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert plot.get_by_role("columnheader").all_inner_texts() == ["Time", "worst account, ×"]
    assert "1.5" in plot.get_by_role("cell").all_inner_texts()


def test_a_report_opens_runs_its_script_and_sees_nothing_of_the_page(opened: Open) -> None:
    tab = opened()
    tab.get_by_role("link", name="r-6").click()
    tab.wait_for_load_state()
    assert tab.locator("#said").inner_text() == "ran"
    assert tab.evaluate("location.origin === 'null' || self.origin === 'null'")


def test_logging_out_leads_back_to_the_login(opened: Open) -> None:
    tab = opened()
    tab.get_by_role("button", name="Log out").click()
    tab.get_by_label("Password").wait_for()
    assert tab.url.endswith("/login")
    assert tab.context.cookies() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_everybody_can_use_it_and_nothing_is_wider_than_the_screen(
    opened: Open, name: str, size: dict[str, int], scheme: str
) -> None:
    tab = opened(size, scheme)
    tab.locator("#alerts > *").first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert findings(tab) == []
    tab.locator("summary").first.click()
    assert findings(tab) == []
    tab.locator("summary").first.click()
    if scheme == "light" and os.environ.get("PAGE_SCREENSHOTS"):
        tab.get_by_text("15 min").click()
        tab.locator(".plot text", has_text=re.compile(":..:")).first.wait_for()
        tab.evaluate("scrollTo(0, 0)")
        # A phone's page is long: as much as shows how it goes on.
        clip = {"x": 0, "y": 0, "width": size["width"], "height": 2000} if name == "phone" else None
        target = Path(os.environ["PAGE_SCREENSHOTS"]) / f"page-{name}.png"
        tab.screenshot(path=target, full_page=True, clip=clip)
    tab.get_by_role("button", name="Log out").click()
    tab.get_by_label("Password").wait_for()
    assert findings(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
