"""The door of the command line: one line, status 2, the user's words, and a traceback in a file for faults of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from hystar_fast.cli import errors
from hystar_fast.cli.errors import clear_errors, one_line
from tests.support import picture_trees as trees
from tests.support.cli import refused


def line_of(error: BaseException, capsys: pytest.CaptureFixture[str], status: int = 2, **names: str) -> str:
    with pytest.raises(typer.Exit) as exit, one_line(names, "go on with {command}"):
        raise error
    assert exit.value.exit_code == status
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    return shown.strip()


@pytest.mark.parametrize("error", [ZeroDivisionError("a [red] fault\nof two lines"), AssertionError(), KeyError("x")])
def test_a_fault_of_ours_is_one_line_with_the_file_of_its_traceback(error, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    shown = line_of(error, capsys)
    [file] = tmp_path.iterdir()
    assert shown.startswith(f"error: {type(error).__name__}: ") and str(file) in shown
    assert "please report it at https://github.com/" in shown
    text = file.read_text()
    assert "Traceback (most recent call last)" in text and "raise error" in text


def test_a_traceback_that_cannot_be_written_leaves_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path / "missing"))
    assert 'test_errors.py", line' in line_of(ZeroDivisionError("x"), capsys)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory (MemoryError): take a smaller batch"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"),
            "not enough memory (CUDA out of memory",
        ),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory ("),
        (
            OSError(28, "No space left on device", "/full/x"),
            "the disk is full ([Errno 28] No space left on device: '/full",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory (libtorch"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "the disk is full (Pyto"),
        (ValueError("first\n  second"), "error: first; second"),
        (ValueError(), "error: ValueError"),
        (ValueError(f"blocks must lie within 1..6, got {'1, ' * 10**5}"), ", 1, …"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_known_reasons_say_what_to_do(error, words, capsys):
    assert words in line_of(error, capsys)


@pytest.mark.parametrize(("names", "is_named"), [({"output": "--output"}, True), ({"name": "NAME"}, False)])
def test_another_place_is_advised_where_the_command_has_an_option_for_it(names, is_named, capsys):
    shown = line_of(OSError(28, "No space left on device", "/full/x"), capsys, **names)
    assert shown.endswith("free some space, or write elsewhere with --output" if is_named else "free some space")


@pytest.mark.parametrize(
    ("message", "names", "shown"),
    [
        ("directory must hold x, got directory", {"directory": "--adapter"}, "--adapter must hold x, got directory"),
        (
            "mine.toml: pretrained must be a tag or None",
            {"set_": "--set"},
            "mine.toml: model.pretrained must be a tag or",
        ),
        (
            "pretrained must be a file or None, got 'x'",
            {"pretrained": "--weights"},
            '--weights must be a file or "random",',
        ),
        ("device must be cpu, got 'x'", {"set_": "--set"}, "run.device must be cpu, got 'x'"),
        ("run.output must be new", {"set_": "--set", "output": "--output"}, "--output must be new"),
        ("run.device must be cpu", {"set_": "--set", "output": "--output"}, "run.device must be cpu"),
        ("a/config.json: backbone must be x", {"backbone": "--backbone"}, "a/config.json: backbone must be x"),
        ("device must be cpu, got 'x'", {}, "device must be cpu, got 'x'"),
        ("blocks must be in 1..4 or None", {"set_": "--set"}, 'model.blocks must be in 1..4 or "default"'),
        ("my directory must exist", {"directory": "--adapter"}, "my directory must exist"),
    ],
)
def test_errors_name_the_users_options_and_settings(message, names, shown, capsys):
    assert line_of(ValueError(message), capsys, **names).startswith(f"error: {shown}")


def test_the_options_of_a_command_are_found_by_themselves():
    app = typer.Typer()

    @app.command()
    @clear_errors(directory="--adapter")
    def command(gallery_style: str = typer.Option("x"), directory: str = typer.Option("y")) -> None:
        raise ValueError(f"{gallery_style} must be another, got {directory}")

    found = CliRunner().invoke(app, ["--gallery-style", "directory"])
    assert found.exit_code == 2 and "error: --adapter must be another, got y" in found.output


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/venv/bin/hystar-fast", "train", "my file.toml"])
    shown = line_of(KeyboardInterrupt(), capsys, status=130)
    assert shown == "stopped; go on with hystar-fast train 'my file.toml'"


def test_an_interrupted_training_ends_with_130_and_can_be_resumed(tmp_path):
    trees.matching(tmp_path / "DIR")
    command = [sys.executable, "-m", "hystar_fast", "train", "--data", "DIR", "--set", "optim.batch_size=4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    # a shell ignores SIGINT in what it starts in the background, and a child inherits that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    signal.signal(signal.SIGINT, before)
    log = tmp_path / "runs/train/metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    wanted = "stopped; continue with hystar-fast train --data DIR --set optim.batch_size=4 --resume"
    assert shown.decode().splitlines()[-1] == wanted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "--adapter", "a", "--method", "frozen"), "--method must be left out if --adapter is given"),
        (("eval", "--method", "pixels", "--metrics", "R@1,"), "--metrics must be names with commas between"),
        (("eval", "--method", "pixels", "--metrics", ""), "--metrics must be names with commas between"),
        (("eval", "--method", "pixels", "--categories", "empty"), "--categories must be a text file with one"),
        (("eval", "--method", "pixels", "--device", "meta"), "--device must be auto, cpu or cuda, got 'meta'"),
        (("eval", "--method", "pixels", "--output", "empty/x"), "--output must be a folder that can be written, got "),
        (("eval", "--method", "pixels", "--data", "nowhere"), "--data must be emoji"),
        (("eval", "--method", "pixels", "--split", "all"), "--split must be val or test for emoji"),
        (("embed", "DIR/photos", "--output", "empty"), "--output must be a folder, got the file "),
        (("embed", "nowhere"), "SOURCE must be a folder of pictures, but nowhere does not exist"),
        (("embed", "DIR/photos", "--device", "tape"), "--device must be auto, cpu or cuda"),
        (("embed", "DIR/photos", "--adapter", "DIR"), "--adapter must hold config.json and adapter.safetensors"),
        (("search", "--query", "DIR/photos/00.jpg", "--picture", "a.unknown"), "--picture must end in one of .avif"),
        (("search", "--query", "DIR/photos/00.jpg", "--picture", "empty/a.png"), "can be written, got empty/a.png"),
        (("search", "--query", "empty", "--index", "nowhere"), "--index must be a folder that `hystar-fast embed`"),
        (("demo", "--output", "empty"), "--output must be a folder, got the file "),
        (("demo", "--seed", str(2**64)), "--seed"),
        (("train", "--data", "nowhere"), "--data must be emoji"),
        (("train", "DIR"), "config must be a TOML file, got the folder DIR: hystar-fast train --data DIR"),
        (("search",), "must be given, got neither: hystar-fast search --query"),
        (("search", "--query", "DIR/photos/00.jpg", "--picture", "DIR/photos/00.jpg"), "--picture must be another"),
        (("train", "--output", "empty"), "--output must be a folder, got the file "),
        (("train", "--set", f"run.seed={2**64}"), "run.seed must fit into 64 bits"),
        (("train", "--set", f"run.seed={2**40}"), "run.seed must be at most"),
        (("train", "--set", f"optim.static_lr={10**400}"), "optim.static_lr must be finite"),
        (("train", "--set", "run.device=meta"), "run.device must be auto, cpu or cuda, got 'meta'"),
        (("train", "deep.toml"), "deep.toml is not TOML"),
        (("train", "--set", f"model.blocks={'[' * 5000}"), "model.blocks must be"),
        (("train", "--set", "model.blocks=[99]"), 'model.blocks must lie within 1..8'),
        (("experiments", "compare", "hystar+gamma=80"), "unexpected extra argument"),
        (("experiments", "compare", "--set", 'training.methods=["hystar+gamma=80"]'), "the same as 'hystar'"),
        (("experiments", "compare", "--set", 'training.methods=["hystar+gamma=-1"]'), "gamma=-1': gamma must be"),
        (("experiments", "tune", "--output", "empty"), "--output must be a folder, got the file "),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_bad_options_are_refused_before_any_work(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.matching(tmp_path / "DIR", n=4)
    (tmp_path / "empty").touch()
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    assert words in refused(*arguments)
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_an_evaluation_without_a_readable_query_is_refused(tmp_path):
    root = trees.matching(tmp_path / "DIR", n=1)
    trees.damaged(root / "sketches/00.png")
    message = refused("eval", "--method", "pixels", "--data", root, "--output", tmp_path / "out")
    assert "--data must have a query that can be answered, got none: skipped 1 of 2 pictures" in message
    assert "sketches/00.png" in message and not (tmp_path / "out/results.json").exists()
