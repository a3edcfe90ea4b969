"""A run that is killed and goes on ends, to the bit, where one does that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hystar_fast.train.metrics_log import MetricsLog
from hystar_fast.train.run import run_training
from hystar_fast.train.settings import Settings, read_settings

STEPS = 24
SETTINGS = """
[model]
backbone = "tiny"
pretrained = "random"
style = "clip"
blocks = "default"
[data]
styles = ["sketch", "twemoji", "text"]
limit = 10
jitter = 0.06
[optim]
batch_size = 5
steps = 24
static_lr = 0.02
dynamic_lr = 0.002
schedule = "cosine"
chunk_size = 6
weight_decay = 0.01
[run]
seed = 3
checkpoint_every = 4
validate_every = 6
"""


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    config = folder.parent / "settings.toml"
    config.write_text(SETTINGS)
    code = "from hystar_fast.cli.main import app; app()"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "train", str(config), "--output", str(folder), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()


def kill_after(process: subprocess.Popen[bytes], log: Path, lines: int, delay: float) -> None:
    """SIGKILL some time after the log has so many lines."""
    until = time.monotonic() + 300
    while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None and time.monotonic() < until, "the run ended before it could be killed"
        time.sleep(0.002)
    time.sleep(delay)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, all the way down."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    finish(start(folder))
    return folder


@pytest.mark.slow
def test_a_run_killed_twice_ends_as_one_that_was_not(unbroken: Path, tmp_path: Path) -> None:
    folder, moment = tmp_path / "run", random.Random(20)
    log = folder / "metrics.jsonl"
    kill_after(start(folder), log, moment.randint(5, 12), moment.random() * 0.2)
    with log.open("ab") as file:  # a line that was being written
        file.write(b'{"step": 99, "ki')
    lines = log.read_bytes().count(b"\n")
    kill_after(start(folder, "--resume"), log, min(lines + 3, STEPS), moment.random() * 0.2)
    finish(start(folder, "--resume"))

    ours, theirs = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, unbroken))
    assert ours["parameters"].keys() == {"static", "dynamic"}
    assert same(ours["parameters"], theirs["parameters"])
    assert ours["optimizer"]["state"] and same(ours["optimizer"], theirs["optimizer"])
    ours["progress"]["settings"]["run"].pop("output"), theirs["progress"]["settings"]["run"].pop("output")
    assert same(ours["progress"], theirs["progress"]) and ours["progress"]["best"] is not None
    assert log.read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    kinds = [(line["step"], line["kind"]) for line in map(json.loads, log.read_text().splitlines())]
    assert len(set(kinds)) == len(kinds) == STEPS + STEPS // 6
    for name in ("adapter.safetensors", "config.json"):
        assert (folder / "adapter" / name).read_bytes() == (unbroken / "adapter" / name).read_bytes()


@pytest.mark.slow
def test_a_finished_run_that_goes_on_does_nothing(unbroken: Path) -> None:
    before = {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()}
    finish(start(unbroken, "--resume"))
    assert {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()} == before


def test_tensorboard_gets_the_figures_and_missing_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path, tensorboard=True)
    log.write(3, "train", {"loss": 1.5, "learning_rate": {"static": 0.25}})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {"train/loss": [(3, 1.5)], "train/learning_rate/static": [(3, 0.25)]}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"run\.tensorboard needs TensorBoard: pip install 'hystar-fast\[train\]'"
    ):
        MetricsLog(tmp_path, tensorboard=True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"run\.wandb needs wandb: pip install 'hystar-fast\[wandb\]'"):
        MetricsLog(tmp_path, wandb="project")


def test_wandb_gets_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    class Stub:
        @staticmethod
        def init(**options: Any) -> Any:
            sent.append((options["project"], options["id"]))
            return Stub

        @staticmethod
        def log(values: dict[str, float], step: int) -> None:
            sent.append((step, values))

        @staticmethod
        def finish() -> None:
            sent.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Stub)
    log = MetricsLog(tmp_path, wandb="project")
    log.write(1, "validation", {"score": 0.5, "R@1": {"sketch": 0.5}})
    log.close()
    assert sent[1:] == [(1, {"validation/score": 0.5, "validation/R@1/sketch": 0.5}), "finished"]
    MetricsLog(tmp_path, wandb="project", step=1).close()  # goes on in the same run of wandb
    MetricsLog(tmp_path, wandb="project").close()
    assert sent[0] == sent[3] and sent[0][0] == sent[5][0] == "project" and sent[0] != sent[5]


def test_a_log_shorter_than_its_checkpoint_is_refused_and_a_longer_one_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(1, "train", {"loss": 1.0, "deep": {"x": float("inf")}})
    size = log.sync()
    log.write(2, "train", {"loss": 2.0})
    log.close()
    again = MetricsLog(tmp_path, size=size, step=1)
    again.write(2, "train", {"loss": 3.0})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "kind": "train", "loss": 1.0, "deep": {"x": "inf"}},
        {"step": 2, "kind": "train", "loss": 3.0},
    ]
    with pytest.raises(ValueError, match="put the log back to go on, or delete the checkpoint to start anew"):
        MetricsLog(tmp_path, size=10_000)


def test_the_advice_for_a_run_that_cannot_be_resumed_works(tmp_path: Path) -> None:
    small = ("model.pretrained=random", "data.limit=4", "data.validation=none", "optim.batch_size=2")

    def settings(*changes: str) -> Settings:
        return read_settings("emoji", [*small, f"run.output={tmp_path}", *changes])

    checkpoint = tmp_path / "checkpoint.pt"
    run_training(settings("optim.steps=2"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"has done 2 steps: .* must give at least as many, got 1"):
        run_training(settings("optim.steps=1"), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run_training(settings("optim.steps=3"), resume=True).progress.step == 3
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="put the log back to go on, or delete the checkpoint to start anew"):
        run_training(settings("optim.steps=4"), resume=True)
    with pytest.raises(ValueError, match=rf"--resume continues it.*or delete {re.escape(str(checkpoint))}"):
        run_training(settings("optim.steps=2"))
    checkpoint.unlink()
    assert run_training(settings("optim.steps=2")).progress.step == 2
