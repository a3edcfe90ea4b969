"""The page in Chromium, against a real server with embedded drawings."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from playwright.sync_api import Browser, Locator, expect

from hystar_fast.data.emoji import load_emoji
from hystar_fast.index.engine import Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.stamp import stamp_of
from hystar_fast.methods.suite import create_hystar, create_method, tiny_config
from hystar_fast.serve.app import PAGE
from tests.support import served
from tests.support.browsing import NARROW, WIDE, Visit, chromium
from tests.support.served import Served
from tests.support.tracing import Stroke, strokes

pytestmark = pytest.mark.xdist_group("page")
DRAWINGS = load_emoji("test")
LINE: list[Stroke] = [[(0.1, 0.2), (0.5, 0.25), (0.9, 0.2)]]
MARKUP = "<img src=x onerror=console.error(1)>"
RECORD_STYLES = """() => {
  const [sent, real] = [window.sent = [], window.fetch];
  window.fetch = (path, options) => {
    if (path === "v1/search") sent.push(options.body.get("style"));
    return real(path, options);
  };
}"""


def outline(caption: str) -> list[Stroke]:
    """Return the strokes of the outline drawing of a held-out concept."""
    return strokes(DRAWINGS.read(next(one for one in DRAWINGS.of_style("outline") if one.caption == caption)))


def picture(caption: str) -> bytes:
    """Return the PNG of a picture of the index."""
    return served.encoded(DRAWINGS.read(next(one for one in DRAWINGS.gallery if one.caption == caption)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve embedded drawings with two views: an adapter with small random offsets, and the frozen backbone."""
    adapted, frozen = create_hystar(tiny_config()), create_method("frozen", tiny_config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.trained_parameters().values():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    methods = {"adapted": adapted, "frozen": frozen}
    with torch.inference_mode():
        vectors = {}
        for view, method in methods.items():
            images = torch.stack([method.resize(DRAWINGS.read(one)) for one in DRAWINGS.gallery])
            vectors[view] = torch.cat([method.encode_image(batch) for batch in images.split(32)])
    folder = tmp_path_factory.mktemp("page")
    stamps = {view: stamp_of(method, vectors[view].shape[1], None) for view, method in methods.items()}
    engine = LocalEngine.create(folder / "index", stamps, settings={"sources": {"noto": {"emoji": "noto"}}})
    captions = [one.caption if one.caption != "pizza" else MARKUP for one in DRAWINGS.gallery]
    items = [
        Item(one.instance, "noto", caption=caption) for one, caption in zip(DRAWINGS.gallery, captions, strict=True)
    ]
    engine.upsert(items, vectors)
    with served.serve(engine, folder, lambda engine, generation: methods) as running:
        yield running


@pytest.fixture
def visit(browser: Browser, drawings: Served) -> Iterator[Visit]:
    """Visit the page, and look afterwards whether it asked others for anything or complained."""
    visit = Visit(browser, drawings.server.url)
    yield visit
    visit.context.close()
    assert visit.complaints == []
    assert [line for line in visit.requests if not line.split()[1].startswith((drawings.server.url, "blob:"))] == []


def test_the_page_is_small_and_names_no_other_site() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    assert sum(len(text.encode()) for text in files.values()) < 60_000
    for name, text in files.items():
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, name  # the namespace of SVG


def test_a_drawing_finds_its_picture_as_one_draws(visit: Visit) -> None:
    teapot = outline("teapot")
    with visit.answered():
        visit.draw(teapot[:1], size=0.45)
    first = visit.captions()
    with visit.answered():
        visit.draw(teapot[1:], size=0.45)
    assert "teapot" in visit.captions()[:5]
    assert visit.captions() != first and len(first) == 24
    assert [float(width.removesuffix("%")) for width in bars(visit)] == sorted(map(percent, bars(visit)), reverse=True)
    expect(visit.page.locator("#status")).to_have_text(re.compile(r"24 best of 310, \d+ ms\s*\. First: .+"))
    visit.shoot("drawn_1280")


def bars(visit: Visit) -> list[str]:
    return visit.page.locator(".score").evaluate_all("bars => bars.map(bar => bar.style.getPropertyValue('--score'))")


def percent(width: str) -> float:
    return float(width.removesuffix("%"))


def test_where_and_how_large_a_drawing_stands_does_not_matter(visit: Visit) -> None:
    teapot = outline("teapot")
    with visit.answered():
        visit.draw(teapot, size=0.95)
    large = visit.captions()
    visit.page.locator("#do-clear").click()
    with visit.answered():
        visit.draw([[(0.4 * x, 0.4 * y) for x, y in stroke] for stroke in teapot], size=0.9)
    assert large[0] == visit.captions()[0] == "teapot"


def test_strokes_are_undone_erased_and_cleared_and_outlive_a_new_size(visit: Visit) -> None:
    undo, clear, hint = (visit.page.locator(name) for name in ("#do-undo", "#do-clear", "#hint"))
    expect(undo).to_be_disabled()
    expect(hint).to_be_visible()
    with visit.answered():
        visit.draw(LINE)
    thin = visit.darkness()
    visit.page.locator("#width").fill("24")
    with visit.answered():
        visit.draw([[(x, y + 0.4) for x, y in LINE[0]]])
    thick = visit.darkness()
    assert thick > 3 * thin > 0
    visit.page.set_viewport_size({"width": 700, "height": 700})
    visit.page.wait_for_timeout(100)
    assert visit.darkness() == pytest.approx(thick, rel=0.1)
    visit.page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    visit.page.wait_for_timeout(100)
    visit.page.locator("#use-eraser").click()
    with visit.answered():
        visit.draw([[(x, y + 0.4) for x, y in LINE[0]]])
    assert visit.darkness() == pytest.approx(thin, rel=0.1)
    with visit.answered():
        undo.click()
    assert visit.darkness() == pytest.approx(thick, rel=0.1)
    with visit.answered():
        visit.page.keyboard.press("Control+z")
    assert visit.darkness() == pytest.approx(thin, rel=0.1)
    clear.click()
    expect(hint).to_be_visible()
    expect(visit.page.locator("#results")).to_contain_text("Draw, and the pictures")
    expect(clear).to_be_disabled()
    with visit.answered():
        undo.click()
    assert visit.darkness() == pytest.approx(thin, rel=0.1)


def test_a_picture_is_dropped_pasted_or_chosen(visit: Visit) -> None:
    with visit.answered():
        visit.give("drop", "#paper", picture("teapot"))
    assert visit.captions()[0] == "teapot"
    with visit.answered():
        visit.give("paste", "body", picture("dolphin"))
    assert visit.captions()[0] == "dolphin"
    content = {"name": "a.png", "mimeType": "image/png", "buffer": picture("pizza")}
    with visit.answered(), visit.page.expect_file_chooser() as chooser:
        visit.page.locator("#choose").click()
        chooser.value.set_files([content])
    assert visit.captions()[0] == MARKUP  # captions are text
    with visit.answered():
        visit.page.locator("#do-undo").click()
    assert visit.captions()[0] == "dolphin"
    with visit.answered():  # strokes over a picture are a part of it
        visit.draw(LINE)
    assert visit.darkness() > 0
    visit.give("drop", "#paper", b"no picture")
    expect(visit.page.locator("#notice")).to_contain_text("no picture that the browser can read")


def test_words_and_words_with_a_drawing(visit: Visit) -> None:
    with visit.answered():
        visit.page.locator("#words-field").fill("red circle")
    assert "red circle" in visit.captions()[:5]
    assert visit.page.locator(".number svg").count() == 0
    with visit.answered():
        visit.draw(outline("teapot"))
    assert {"red circle", "teapot"} & {*visit.captions()[:5]}
    parts = visit.page.locator(".number use").evaluate_all("uses => uses.map(use => use.getAttribute('href'))")
    assert len(parts) == 24 and {*parts} <= {"#pen", "#words"}
    assert visit.page.locator("#words-field").input_value() == "red circle"


def test_frozen_and_adapted_stand_side_by_side(visit: Visit) -> None:
    with visit.answered():
        visit.draw(outline("dolphin"))
    with visit.answered():
        visit.page.locator("#compare").check()
    assert visit.page.locator("#results h2").all_inner_texts() == ["Frozen", "Adapted"]
    frozen, adapted = visit.captions("div:nth-child(1) > .rows"), visit.captions("div:nth-child(2) > .rows")
    assert len(frozen) == len(adapted) == 10 and frozen != adapted
    shown = visit.page.locator("div:nth-child(2) > .rows .change")
    for place, caption in enumerate(adapted):
        mark = shown.nth(place)
        moved = 0 if caption not in frozen else frozen.index(caption) - place
        kind = "gain" if moved > 0 else "loss" if moved < 0 else None
        if caption in frozen:
            expect(mark).to_have_text(re.compile(rf"^{abs(moved) or '='} \(place {place + 1 + moved} in frozen\)$"))
            assert mark.get_attribute("class") == ("change" if kind is None else f"change {kind}")
        else:
            expect(mark).to_have_class("change gain")
    assert any(caption in frozen and frozen.index(caption) != place for place, caption in enumerate(adapted))
    visit.shoot("compared_1280")


def test_a_style_is_kept_used_and_forgotten(visit: Visit, drawings: Served) -> None:
    keep, style = visit.page.locator("#keep"), visit.page.locator("#style")
    expect(keep).to_be_disabled()
    with visit.answered():
        visit.draw(LINE)
    own = visit.captions()
    keep.click()
    with visit.answered():
        visit.page.keyboard.press("Enter")  # the name that is proposed
    expect(style).to_have_value("style-1")
    assert drawings.client.get("v1/index").json()["styles"] == ["style-1"]
    assert visit.captions() == own  # its own style
    visit.page.locator("#do-clear").click()
    visit.page.evaluate(RECORD_STYLES)
    with visit.answered():
        visit.draw(LINE, size=0.9)
    assert {*visit.page.evaluate("sent")} == {"style-1"}
    with visit.answered():
        visit.page.locator("#forget").click()
    expect(style).to_have_value("")
    assert visit.page.evaluate("sent").pop() is None
    assert drawings.client.get("v1/index").json()["styles"] == []


def test_a_result_is_opened_and_closed(visit: Visit) -> None:
    with visit.answered():
        visit.give("drop", "#paper", picture("teapot"))
    visit.page.locator(".hit").first.click()
    viewer = visit.page.locator("#viewer")
    expect(viewer).to_contain_text("teapot")
    expect(visit.page.locator("#viewer-picture")).to_have_js_property("naturalWidth", 64)
    with visit.context.expect_page() as opened:
        visit.page.locator("#viewer-file").click()
    assert re.search(r"/v1/items/[0-9a-f]{16}/picture$", opened.value.url)
    visit.page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()


def test_everything_is_reached_with_the_keyboard(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    with visit.answered():
        visit.draw(LINE)  # so that every control is enabled
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
        if reached[-1] == "hit":
            break
    wanted = [
        "use-pen",
        "use-eraser",
        "width",
        "do-undo",
        "do-clear",
        "choose",
        "words-field",
        "style",
        "keep",
        "compare",
        "hit",
    ]
    assert [name for name in reached if name in wanted] == wanted
    page.locator("#words-field").focus()
    page.keyboard.type("red circle")
    with visit.answered():
        page.keyboard.press("Enter")
    page.locator("#compare").focus()
    with visit.answered():
        page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".hit").first).to_be_focused()
    unnamed = [name(control) for control in page.locator("button, input, select, a").all() if not name(control)]
    assert unnamed == []


def name(control: Locator) -> str:
    """Return what a screen reader says of a control."""
    return str(
        control.evaluate("c => c.ariaLabel || c.labels?.[0]?.innerText || c.innerText || (c.hidden ? 'hidden' : '')")
    )


def test_a_phone_needs_no_sideways_scrolling_and_a_finger_draws(browser: Browser, drawings: Served) -> None:
    visit = Visit(browser, drawings.server.url, NARROW, has_touch=True, is_mobile=True, device_scale_factor=2)
    with visit.answered():
        visit.touch(outline("teapot"))
    assert "teapot" in visit.captions()[:5]
    visit.shoot("drawn_390")
    for state in ("grid", "rows"):
        assert visit.page.locator(f"ol.{state}").count() > 0
        assert visit.page.evaluate("document.documentElement.scrollWidth") == NARROW[0]
        with visit.answered():
            visit.page.locator("#compare").click()
    assert visit.page.evaluate("document.getElementById('paper').width") == pytest.approx(2 * 358, abs=4)
    with visit.answered():
        visit.page.locator("#compare").click()
    visit.page.locator("#results").scroll_into_view_if_needed()
    visit.shoot("compared_390")
    visit.context.close()
    assert visit.complaints == []


def test_the_page_is_dark_where_the_system_is(browser: Browser, drawings: Served) -> None:
    visit = Visit(browser, drawings.server.url, color_scheme="dark")
    with visit.answered():
        visit.draw(outline("dolphin"))
    channels = visit.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert max(channels) < 60
    visit.shoot("dark_1280")
    visit.context.close()
