"""Triton's interpreter with less to do: a call of a device function does not patch triton.language again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once() -> None:
    """Let a launch patch triton.language, and not every call of a device function in it: half of the time of a test.

    The interpreter looks at 2,000 members each time, and finds that the launch has replaced them.
    """
    patch: Callable[[Any], Any] = interpreter._patch_lang
    patched: set[str] = set()  # modules, during a launch

    def patch_new(function: Any) -> Any:
        used = {value.__name__ for value in function.__globals__.values() if value is tl or value is tl.core}
        if used and used <= patched:
            return None  # a device function, whose launch restores the modules
        is_launch = not patched
        scope = patch(function)
        patched.update(used)
        if is_launch:
            restore = scope.restore

            def end() -> None:
                patched.clear()
                restore()

            scope.restore = end
        return scope

    interpreter._patch_lang = patch_new
