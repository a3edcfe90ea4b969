"""Errors that a user can correct, in one line and without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.text import Text

from hystar_fast.cli.console import create_console


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print errors about bad input as ``error: ...`` on stderr and exit with status 2."""
    try:
        yield
    except (ValueError, TypeError, ModuleNotFoundError, FloatingPointError, OSError) as error:
        create_console(stderr=True).print(Text("error:", "bold red"), str(error))
        raise typer.Exit(2) from error
