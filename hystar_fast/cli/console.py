"""The console of the commands, which prints every name as it is."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text


class _Console(Console):
    """A console whose strings cannot control the terminal, and that has no markup which a name could imitate."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def create_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """Return a console that takes brackets and colons for text, and never fails on what its stream cannot encode."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return _Console(markup=False, emoji=False, highlight=False, soft_wrap=stderr, quiet=quiet, stderr=stderr)


def printable(text: str) -> str:
    """Return a text with control characters, and bytes of names that are not UTF-8, as backslash escapes.

    Example:
        >>> printable("a\\x1b[31m[red].png")
        'a\\\\x1b[31m[red].png'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
