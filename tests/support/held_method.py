"""A method whose first call waits, and that records its calls."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import Tensor

from hystar_fast.methods.interface import Method


class Held(Method):
    """A method that records (name, rows, has a style) of each call; the first call waits for `go_on`.

    Args:
        method: does the work.
        is_held: whether the first call waits.
    """

    def __init__(self, method: Method, *, is_held: bool = True) -> None:
        self.method, self.name, self.resize = method, method.name, method.resize
        self.config, self.modules = method.config, method.modules
        self.computes_style_in_encode = method.computes_style_in_encode
        self.began, self.go_on = threading.Event(), threading.Event()
        self.calls: list[tuple[str, int, bool]] = []
        if not is_held:
            self.go_on.set()

    def _record(self, name: str, rows: int, has_style: bool = False) -> None:
        self.calls.append((name, rows, has_style))
        self.began.set()
        assert self.go_on.wait(30)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        self._record("encode_image", len(images), style is not None)
        return self.method.encode_image(images, style)

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        self._record("encode_text", len(texts))
        return self.method.encode_text(texts)

    def style(self, images: Tensor) -> Tensor | None:
        self._record("style", len(images))
        return self.method.style(images)
