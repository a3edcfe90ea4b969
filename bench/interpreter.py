"""A faster interpreter of Triton: its language is patched once a launch, and not at every call of a function in it."""

from __future__ import annotations

from typing import Any

from triton.runtime.interpreter import InterpretedFunction


def patch_once() -> None:
    """Skip the patch of the language at a call within a launch, but for the first from each module.

    The launch itself has patched `triton.language`. A function of Triton's own library patches `triton.language.core`,
    for which Triton keeps the patch. To look through both again took a quarter of the time of a kernel.
    """
    call = InterpretedFunction.__call__
    seen: set[str] = set()

    def call_unpatched(self: InterpretedFunction, *arguments: Any, **named: Any) -> Any:
        if self.fn.__module__ in seen:
            return self.rewrite()(*arguments, **named)
        seen.add(self.fn.__module__)
        return call(self, *arguments, **named)

    InterpretedFunction.__call__ = call_unpatched
