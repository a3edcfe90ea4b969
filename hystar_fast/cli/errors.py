"""Errors that a user can correct, in one line and without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print errors about bad input as ``error: ...`` on stderr and exit with status 2."""
    try:
        yield
    except (ValueError, TypeError, ModuleNotFoundError, FloatingPointError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error
