"""Calls of the command line in this process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner, Result

from hystar_fast.cli.main import app

_ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def _away_from_the_sources() -> Iterator[None]:
    """Leave the folder of the sources, where two tests at once would write the same default output ``runs/``."""
    if Path.cwd() != _ROOT:
        yield
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def run(*arguments: object) -> Result:
    """Run the command and return its exit code and output."""
    with _away_from_the_sources():
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def refused(*arguments: object) -> str:
    """Run a command that must end with status 2 and without a traceback; return its output with single spaces."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())
