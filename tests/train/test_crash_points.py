"""A state that any crash can leave is resumed to the same bits: the folder is copied around every renaming."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hystar_fast.experiments.experiment_settings import read_experiment
from hystar_fast.experiments.tune import tune
from hystar_fast.train.run import run_training
from hystar_fast.train.settings import read_settings

CHANGES = ("model.pretrained=random", "data.limit=8", "optim.batch_size=4", "optim.steps=6", "run.validate_every=2",
           "run.checkpoint_every=3", "data.validation=val")  # fmt: skip


def states(folder: Path, copies: Path, work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return what a SIGKILL just before or just after every renaming in `folder` would have left of it."""
    found: list[Path] = []
    replace = os.replace

    def copy() -> None:
        found.append(Path(shutil.copytree(folder, copies / str(len(found)))))

    def watched(source: Any, target: Any) -> None:
        copy()
        replace(source, target)
        copy()

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched)
        work()
    return found


def content(folder: Path) -> dict[str, bytes]:
    names = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "checkpoint.pt")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def test_training_is_resumed_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    settings = read_settings("emoji", [*CHANGES, f"run.output={folder}"])
    killed = states(folder, tmp_path / "killed", lambda: run_training(settings), monkeypatch)
    expected = content(folder)
    assert {"adapter/adapter.safetensors", "adapter/config.json", "metrics.jsonl", "config.toml"} == expected.keys()
    assert len(killed) >= 12
    inside = next(state for state in killed if list(state.glob("adapter/.*.partial")))
    for state in (inside, *random.Random(0).sample(killed, 2)):
        shutil.rmtree(folder)
        shutil.copytree(state, folder)
        run_training(settings, resume=True)
        assert content(folder) == expected, f"killed at {state.name} of {len(killed)}"


def test_tuning_continues_with_the_trials_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    changes = ["model.pretrained=random", "data.limit=6", "training.steps=1", "training.tuning_seeds=1"]
    settings = read_experiment("emoji", [*changes, "run.device=cpu", f"run.output={folder}"])
    grid = {"ssf": [{"ssf": rate} for rate in (0.01, 0.1, 0.3)]}

    def trials() -> list[dict[str, Any]]:
        found = json.loads((folder / "tuning.json").read_text())
        return [{**trial, "seconds": 0} for trial in found["trials"]]

    console = Console(quiet=True)
    killed = states(folder, tmp_path / "killed", lambda: tune(settings, console, grid), monkeypatch)
    expected, chosen = trials(), json.loads((folder / "tuning.json").read_text())["chosen"]
    assert len(expected) == 3
    for state in random.Random(1).sample(killed, 2):
        shutil.rmtree(folder)
        shutil.copytree(state, folder)
        assert tune(settings, console, grid) == chosen
        assert trials() == expected
        assert not list(folder.glob(".*"))
