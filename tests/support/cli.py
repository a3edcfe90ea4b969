"""Calls of the command line in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from hystar_fast.cli.main import app


def run(*arguments: object) -> Result:
    """Run the command and return its exit code and output."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def refused(*arguments: object) -> str:
    """Run a command that must end with status 2 and without a traceback; return its output with single spaces."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())
