"""Experiments in this process with one step, a random tiny backbone, and few learning rates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from hystar_fast.experiments.learning_rates import LARGE_GRID, TINY_GRID
from tests.support.cli import refused, run

QUICK: dict[str, Any] = {
    "model.pretrained": "random",
    "training.steps": 1,
    "training.seeds": 1,
    "training.tuning_seeds": 1,
    "run.device": "cpu",
}


def shrink_grids(monkeypatch: pytest.MonkeyPatch, trials: int = 1) -> None:
    """Keep only the first learning rates of every grid."""
    for grids in (TINY_GRID, LARGE_GRID):
        for name, rates in grids.items():
            monkeypatch.setitem(grids, name, rates[:trials])


def arguments(command: str, output: Path, words: tuple[object, ...], changes: Mapping[str, Any]) -> list[object]:
    """Return the command line of an experiment with `QUICK` and other settings."""
    found: list[object] = ["experiments", command, *words, "--output", output]
    for key, value in {**QUICK, **changes}.items():
        found += ["--set", f"{key}={json.dumps(value)}"]
    return found


def run_experiment(command: str, output: Path, *words: object, **sections: Mapping[str, Any]) -> Result:
    """Run ``hystar-fast experiments <command>`` with keyword sections, as in ``data={"limit": 6}``."""
    return run(*arguments(command, output, words, _flat(sections)))


def done(command: str, output: Path, *words: object, **sections: Mapping[str, Any]) -> str:
    """Run an experiment that must succeed and return its output with single spaces."""
    result = run_experiment(command, output, *words, **sections)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused_experiment(command: str, output: Path, *words: object, **sections: Mapping[str, Any]) -> str:
    """Run an experiment that must be refused and return its output."""
    return refused(*arguments(command, output, words, _flat(sections)))


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
