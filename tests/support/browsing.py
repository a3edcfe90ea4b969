"""The page of a running server in Chromium, and a hand that draws on it."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.tracing import Stroke

_PATIENCE = 20_000  # milliseconds
WIDE, NARROW = (1280, 860), (390, 844)  # pixels
_SHOTS = Path(__file__).resolve().parents[2] / "build" / "page"  # pictures for a person to look at
_DECODE = """() => Promise.all([...document.querySelectorAll(".hit img")]
  .filter((image) => image.getBoundingClientRect().top < innerHeight).map((image) => image.decode()))"""
_GIVE = """([name, target, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "a.png", { type: "image/png" }));
  const init = { bubbles: true, cancelable: true };
  const event = name === "paste"
    ? new ClipboardEvent(name, { ...init, clipboardData: data })
    : new DragEvent(name, { ...init, dataTransfer: data });
  document.querySelector(target).dispatchEvent(event);
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; without it the test fails and says how to get it."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("the page is tested in Chromium, which is not installed: make browser", pytrace=False)
    expect.set_options(timeout=_PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A visit to the page.

    Attributes:
        page: in the browser.
        requests: "METHOD URL" of everything that it asked for.
        complaints: errors and warnings of its console.
    """

    def __init__(self, browser: Browser, url: str, size: tuple[int, int] = WIDE, **options: Any) -> None:
        width, height = size
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(_PATIENCE)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(f"{request.method} {request.url}"))
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def draw(self, strokes: Sequence[Stroke], size: float = 0.6) -> None:
        """Draw with the mouse in the middle of the paper; `size` is a part of its side."""
        for stroke in strokes:
            points = [self._place(x, y, size) for x, y in stroke]
            self.page.mouse.move(*points[0])
            self.page.mouse.down()
            for point in points[1:]:
                self.page.mouse.move(*point)
            self.page.mouse.up()

    def touch(self, strokes: Sequence[Stroke], size: float = 0.6) -> None:
        """Draw with a finger."""
        session = self.context.new_cdp_session(self.page)
        for stroke in strokes:
            for number, (x, y) in enumerate(stroke):
                x, y = self._place(x, y, size)
                kind = "touchMove" if number else "touchStart"
                session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
            session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def _place(self, x: float, y: float, size: float) -> tuple[float, float]:
        box = self.page.locator("#paper").bounding_box()
        assert box is not None
        margin = (1 - size) / 2
        return box["x"] + (margin + size * x) * box["width"], box["y"] + (margin + size * y) * box["height"]

    def give(self, event: str, target: str, content: bytes) -> None:
        """Drop or paste a PNG."""
        self.page.evaluate(_GIVE, [event, target, base64.b64encode(content).decode()])

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Do something, and wait until its answer is shown."""
        with self.page.expect_response("**/v1/search") as response:
            yield
        assert response.value.ok, response.value.text()
        expect(self.page.locator("#results")).to_have_attribute("aria-busy", "false")

    def captions(self, part: str = "#results") -> list[str]:
        """Return the captions of the results in their order."""
        return self.page.locator(f"{part} .caption").all_inner_texts()

    def darkness(self) -> float:
        """Return the part of the paper that is ink."""
        shot = Image.open(io.BytesIO(self.page.locator("#paper").screenshot())).convert("L")
        return float((np.asarray(shot) < 128).mean())

    def shoot(self, name: str) -> None:
        """Keep a picture of the page."""
        _SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(2, 2)
        self.page.evaluate(_DECODE)
        self.page.screenshot(path=_SHOTS / f"{name}.png")
