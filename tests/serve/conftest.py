"""A running server for the tests of a file, and one for a single test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import served
from tests.support.held_method import Held
from tests.support.served import Served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve two views of some drawings, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("served")
    engine = served.make_index(folder, {"adapted": served.method(1), "frozen": served.method(2)})
    with served.serve(engine, folder / "pictures") as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Return a function that serves an index of its own, with the settings of a server."""
    with ExitStack() as stack:

        def begin(**settings: Any) -> Served:
            engine = served.make_index(tmp_path, {"adapted": served.method(1)})
            return stack.enter_context(served.serve(engine, tmp_path / "pictures", **settings))

        yield begin


@pytest.fixture
def held(start: Callable[..., Served]) -> Callable[..., tuple[Served, Held]]:
    """Return a function that serves a method whose next call waits until it is told to go on."""

    def begin(**settings: Any) -> tuple[Served, Held]:
        method = Held(served.method(1), is_held=False)
        running = start(load=lambda engine, generation: {"adapted": method}, **settings)
        method.began.clear()
        method.go_on.clear()
        method.calls.clear()
        return running, method

    return begin
