"""A run that is killed and resumed ends bit-identical to an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods.suite import create_hystar, tiny_config
from hystar_fast.terminal.console import LOG_FILE
from hystar_fast.train.loop import train
from hystar_fast.train.metrics_log import MetricsLog
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.run import run_training
from hystar_fast.train.settings import Settings, read_settings
from tests.support.cli import run
from tests.support.linear_method import RATES, Linear
from tests.support.picture_trees import pairs

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


def arguments(folder: Path, *more: str) -> list[str]:
    config = folder.parent / "settings.toml"
    config.write_text(SETTINGS)
    return ["train", str(config), "--output", str(folder), *more]


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own, of one thread."""
    code = "from hystar_fast.cli.main import app; app()"
    command = [sys.executable, "-c", code, *arguments(folder, *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(folder: Path, *more: str) -> None:
    """Run to the end in this process, with one thread too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = run(*arguments(folder, *more))
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output


def kill_after(process: subprocess.Popen[bytes], log: Path, lines: int, delay: float) -> None:
    """Kill the process (SIGKILL) `delay` seconds after its log has `lines` lines."""
    until = time.monotonic() + 300
    while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None and time.monotonic() < until, "the run ended before it could be killed"
        time.sleep(0.002)
    time.sleep(delay)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def bit_identical(a: Any, b: Any) -> bool:
    """Compare nested values and tensors exactly."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(bit_identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(bit_identical, a, b))
    return bool(a == b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(folder)
    return folder


@pytest.mark.slow
def test_a_run_killed_twice_ends_as_an_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    folder, moment = tmp_path / "run", random.Random(20)
    log = folder / "metrics.jsonl"
    kill_after(start(folder), log, moment.randint(5, 12), moment.random() * 0.2)
    with log.open("ab") as file:  # a line that was being written
        file.write(b'{"step": 99, "ki')
    lines = log.read_bytes().count(b"\n")
    kill_after(start(folder, "--resume"), log, min(lines + 3, STEPS), moment.random() * 0.2)
    finish(folder, "--resume")

    resumed, expected = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, uninterrupted))
    assert resumed["parameters"].keys() == {"static", "dynamic"}
    assert bit_identical(resumed["parameters"], expected["parameters"])
    assert resumed["optimizer"]["state"] and bit_identical(resumed["optimizer"], expected["optimizer"])
    resumed["progress"]["settings"]["run"].pop("output"), expected["progress"]["settings"]["run"].pop("output")
    assert bit_identical(resumed["progress"], expected["progress"]) and resumed["progress"]["best"] is not None
    assert log.read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    kinds = [(line["step"], line["kind"]) for line in map(json.loads, log.read_text().splitlines())]
    assert len(set(kinds)) == len(kinds) == STEPS + STEPS // 6
    for name in ("adapter.safetensors", "config.json"):
        assert (folder / "adapter" / name).read_bytes() == (uninterrupted / "adapter" / name).read_bytes()


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path) -> None:
    def files() -> dict[Path, bytes]:
        found = [path for path in uninterrupted.rglob("*") if path.is_file() and path.name != LOG_FILE]
        return {path: path.read_bytes() for path in found}

    before = files()
    finish(uninterrupted, "--resume")
    assert files() == before


def test_tensorboard_receives_the_metrics_and_missing_extras_are_reported(
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


def test_wandb_receives_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    MetricsLog(tmp_path, wandb="project", step=1).close()  # resumes the same wandb run
    MetricsLog(tmp_path, wandb="project").close()
    assert sent[0] == sent[3] and sent[0][0] == sent[5][0] == "project" and sent[0] != sent[5]


def test_a_log_shorter_than_its_checkpoint_is_rejected_and_a_longer_one_truncated(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(1, "train", {"loss": 1.0, "deep": {"x": float("inf")}})
    size, sha256 = log.sync()
    log.write(2, "train", {"loss": 2.0})
    log.close()
    again = MetricsLog(tmp_path, size=size, sha256=sha256, step=1)
    again.write(2, "train", {"loss": 3.0})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "kind": "train", "loss": 1.0, "deep": {"x": "inf"}},
        {"step": 2, "kind": "train", "loss": 3.0},
    ]
    with pytest.raises(ValueError, match="restore the log to resume the run, or delete the checkpoint to start again"):
        MetricsLog(tmp_path, size=10_000, sha256=sha256)
    content = bytearray(log.path.read_bytes())
    content[9] ^= 1
    log.path.write_bytes(content)
    with pytest.raises(ValueError, match=f"must begin with the {size} bytes that its checkpoint records"):
        MetricsLog(tmp_path, size=size, sha256=sha256)


SMALL = ("model.pretrained=random", "data.limit=4", "data.validation=none", "optim.batch_size=2")


def test_a_cosine_schedule_is_not_given_another_end(tmp_path: Path) -> None:
    def settings(*changes: str) -> Settings:
        return read_settings("emoji", [*SMALL, f"run.output={tmp_path}", "optim.schedule=cosine", *changes])

    run_training(settings("optim.steps=4"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"must give the 4 steps of the run in .*, got 8: its cosine schedule ends"):
        run_training(settings("optim.steps=8"), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run_training(settings("optim.epochs=2", "optim.steps=0"), resume=True).progress.step == 4  # the same number


def test_a_run_is_not_resumed_with_other_data_or_another_recipe(tmp_path: Path) -> None:
    names = [(f"s/{i}.png", f"p/{i}.png") for i in range(6)]
    table = pairs(tmp_path / "data", names)
    changes = ["model.backbone=tiny", "model.pretrained=random", "model.style=clip", f"data.source={table}",
               "data.validation=none", "optim.batch_size=2", "optim.steps=2", f"run.output={tmp_path}/run",
               "model.blocks=default"]  # fmt: skip
    run_training(read_settings("paper", changes))
    pairs(tmp_path / "data", [*names, ("s/6.png", "p/6.png")])
    with pytest.raises(ValueError, match=r"to resume it, got pairs = '7 pictures, \w+' \(was '6 pictures, \w+'\)"):
        run_training(read_settings("paper", [*changes, "optim.steps=3"]), resume=True)

    images, recipe = load_emoji("train").select(limit=8), Recipe(RATES, steps=2, batch_size=4, schedule="constant")
    checkpoint = tmp_path / "linear.pt"
    train(Linear(), images, recipe, checkpoint=checkpoint)
    assert len(train(Linear(), images, replace(recipe, steps=3), checkpoint=checkpoint, resume=True)) == 3
    for other in (replace(recipe, seed=1), replace(recipe, jitter=0.0), replace(recipe, schedule="cosine")):
        with pytest.raises(ValueError, match=r"the run must be that of .*linear\.pt to resume it, got"):
            train(Linear(), images, replace(other, steps=4), checkpoint=checkpoint, resume=True)

    rates = dict.fromkeys(("static", "dynamic"), 0.01)
    recipe = replace(recipe, learning_rates=rates, batch_size=2, steps=1)
    train(create_hystar(tiny_config(None)), images, recipe, checkpoint=tmp_path / "hystar.pt")
    with pytest.raises(ValueError, match=r"to resume it, got frozen weights = \{'backbone': '\w+'"):
        train(create_hystar(tiny_config()), images, replace(recipe, steps=2), checkpoint=tmp_path / "hystar.pt",
              resume=True)  # fmt: skip


def test_errors_of_a_run_that_cannot_be_resumed_give_advice_that_works(tmp_path: Path) -> None:
    small = (*SMALL, "optim.schedule=constant")

    def settings(*changes: str) -> Settings:
        return read_settings("emoji", [*small, f"run.output={tmp_path}", *changes])

    checkpoint = tmp_path / "checkpoint.pt"
    run_training(settings("optim.steps=2"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"must give at least the 2 steps that the run in .* has done, got 1"):
        run_training(settings("optim.steps=1"), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run_training(settings("optim.steps=3"), resume=True).progress.step == 3
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="restore the log to resume the run, or delete the checkpoint to start again"):
        run_training(settings("optim.steps=4"), resume=True)
    with pytest.raises(ValueError, match=rf"--resume continues its run.*or delete {re.escape(str(checkpoint))}"):
        run_training(settings("optim.steps=2"))
    checkpoint.unlink()
    assert run_training(settings("optim.steps=2")).progress.step == 2
