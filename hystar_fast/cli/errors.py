"""Errors a user can act on, in one line and without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what the library says about bad input into ``error: ...`` on stderr and exit status 2."""
    try:
        yield
    except (ValueError, TypeError, ModuleNotFoundError, FloatingPointError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error
