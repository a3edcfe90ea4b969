"""The page when the server is busy, slow, gone, or asks for a token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from hystar_fast.index.engine import Item
from hystar_fast.serve.service import Limits
from tests.support.browsing import Visit, chromium
from tests.support.held_method import Held
from tests.support.served import Served, drawing, encoded, method, vectors
from tests.support.tracing import Stroke

pytestmark = pytest.mark.xdist_group("page")
SHOWN = {
    "caf\udce9.png": "caf\\udce9.png",
    "new\nline.png": "new\nline.png",
    "\x1b[31mred\x07.png": "\\x1b[31mred\\x07.png",
    "\u202egnp.moon": "\\u202egnp.moon",
    "[red]a.png": "[red]a.png",
    "<b>&amp;\"'<i>.png": "<b>&amp;\"'<i>.png",
    "é" * 100 + ".png": "é" * 100 + ".png",
    "..a.png": "..a.png",
}
"""Name -> what the page shows."""
LINE: list[Stroke] = [[(0.1, 0.2), (0.5, 0.25), (0.9, 0.2)]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def test_a_newer_request_aborts_the_older(browser: Browser, held: Callable[..., tuple[Served, Held]]) -> None:
    running, slow = held()
    visit = Visit(browser, running.server.url)
    expect(visit.page.locator("#comparing")).to_be_hidden()  # there is one view
    with visit.page.expect_request("**/v1/search"):
        visit.draw(LINE)
    with visit.page.expect_event("requestfailed") as failed, visit.answered():
        visit.draw([[(0.2, 0.5), (0.8, 0.9)]])
        failed.value
        slow.go_on.set()
    assert "ERR_ABORTED" in failed.value.failure
    assert len(visit.captions()) == 24
    expect(visit.page.locator("#notice")).to_be_hidden()
    visit.context.close()


def test_a_busy_server_is_named_and_asked_again(browser: Browser, held: Callable[..., tuple[Served, Held]]) -> None:
    running, slow = held(limits=Limits(queue=1))
    visit = Visit(browser, running.server.url)
    visit.page.evaluate("void fetch('v1/search', {method: 'POST', body: new URLSearchParams({text: 'waits'})})")
    assert slow.began.wait(20)
    visit.draw(LINE)
    notice = visit.page.locator("#notice")
    expect(notice).to_contain_text("The server is busy.")
    expect(notice).to_contain_text("Next try in")
    visit.shoot("busy_1280")
    slow.go_on.set()
    visit.page.locator("#retry").click()
    visit.page.wait_for_selector(".hit")
    expect(notice).to_be_hidden()
    visit.context.close()


def test_a_server_that_stops_is_named_and_found_again(browser: Browser, start: Callable[..., Served]) -> None:
    running = start()
    visit = Visit(browser, running.server.url)
    visit.draw(LINE)
    visit.page.wait_for_selector(".hit")
    visit.page.route("**/v1/search", lambda route: route.abort("connectionrefused"))
    visit.draw([[(0.2, 0.5), (0.8, 0.9)]])
    notice = visit.page.locator("#notice")
    expect(notice).to_contain_text("The server does not answer.")
    assert visit.page.locator(".hit").count() > 0  # the last answer stays
    visit.page.unroute("**/v1/search")
    expect(notice).to_be_hidden()  # asked again by itself
    running.server.stop()
    visit.page.wait_for_timeout(500)
    visit.draw([[(0.8, 0.5), (0.2, 0.9)]])
    expect(notice).to_contain_text(re.compile("The server (does not answer|is stopping)"))
    visit.context.close()


def test_a_token_is_asked_for_once(browser: Browser, start: Callable[..., Served], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("write a-token-of-the-page\n")
    tokens.chmod(0o600)
    visit = Visit(browser, start(token_file=tokens).server.url)
    expect(visit.page.locator("#door")).to_be_visible()
    visit.page.keyboard.type("a-token-of-the-page")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#size")).to_have_text("24 pictures")
    with visit.answered():
        visit.draw(LINE)
    expect(visit.page.locator(".hit img").first).to_have_js_property("naturalWidth", 96)
    visit.page.reload()
    expect(visit.page.locator("#size")).to_have_text("24 pictures")
    visit.context.close()


def test_names_of_any_bytes_are_shown_as_text(browser: Browser, start: Callable[..., Served]) -> None:
    running = start()
    items = []
    for number, name in enumerate(SHOWN, start=60):
        (running.folder / name).write_bytes(encoded(drawing(number)))
        items.append(Item(name, "pictures", name, name, sha256=f"{number:064}"))
    running.engine.upsert(items, vectors({"adapted": method(1)}, running.folder, items))
    visit = Visit(browser, running.server.url)
    for number, shown in enumerate(SHOWN.values(), start=60):
        with visit.answered():
            visit.give("drop", "#paper", encoded(drawing(number)))
        first = visit.page.locator(".hit").first
        assert first.locator(".caption").text_content() == shown
        expect(first.locator("img")).to_have_js_property("naturalWidth", 96)
    visit.page.locator(".hit").first.click()
    expect(visit.page.locator("#viewer-caption")).to_have_text(shown)
    assert visit.page.locator("#viewer-id").text_content() == shown
    made = visit.page.locator(".caption *, #viewer-caption *, #viewer-id *")
    assert made.count() == 0, "markup in a name makes no element"
    assert visit.complaints == []
    visit.context.close()
