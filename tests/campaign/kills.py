"""SIGKILL at random moments of training, tuning and embedding: started again, each ends as one that was not killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hystar_fast.index.local import LocalEngine
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.terminal.console import LOG_FILE
from tests.campaign.rows import Row, fault
from tests.support.picture_trees import picture

KILLS = 12  # of a command
_SETTINGS = ("model.pretrained=random", "data.limit=8", "optim.batch_size=4", "optim.steps=8", "run.validate_every=2",
             "run.checkpoint_every=3", "data.validation=val")  # fmt: skip
_TUNING = ("model.pretrained=random", "data.limit=6", "training.steps=1", "training.tuning_seeds=1",
           "training.methods=['ssf']", "run.device=cpu")  # fmt: skip


def kills(share: float = 1.0) -> list[Row]:
    """Kill each command a share of the times, at moments that depend only on the number of the kill."""
    number = max(1, round(share * KILLS))
    with tempfile.TemporaryDirectory() as folder:
        return [row for name in ("train", "tune", "embed") for row in _kill(name, Path(folder), number)]


def _kill(name: str, folder: Path, number: int) -> Iterator[Row]:
    command, read = _commands(folder)[name]
    whole = folder / f"{name}-whole"
    start = time.perf_counter()
    _finish(_start(command, whole))
    seconds = time.perf_counter() - start
    expected, killed = read(whole), 0
    for kill in range(number):
        moment = random.Random(f"{name} {kill}").uniform(0, seconds)
        output = folder / f"{name}-{kill}"
        process = _start(command, output)
        time.sleep(moment)
        process.kill()
        killed += process.wait() != 0
        try:
            _finish(_start(command, output, resumes=True))
            if read(output) != expected:
                raise AssertionError("it ended with other files")
        except Exception as problem:
            yield fault("kills", f"{name} after {moment:.2f} of {seconds:.2f} s", problem)
        shutil.rmtree(output, ignore_errors=True)
    yield Row("kills", name, "passed", f"{killed} of {number} runs killed within {seconds:.1f} s")


def _commands(folder: Path) -> Mapping[str, tuple[tuple[str, ...], Callable[[Path], Any]]]:
    adapter, photos = folder / "adapter", folder / "photos"
    if not adapter.exists():
        Hystar(HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=None)).save_pretrained(adapter)
        for i in range(40):
            picture(photos / f"{i}.png")
    return {
        "train": (("train", *_set(_SETTINGS)), _files),
        "tune": (("experiments", "tune", *_set(_TUNING)), _trials),
        "embed": (("embed", str(photos), "--adapter", str(adapter)), _items),
    }


def _set(values: tuple[str, ...]) -> Iterator[str]:
    for value in values:
        yield from ("--set", value)


def _start(command: tuple[str, ...], output: Path, *, resumes: bool = False) -> subprocess.Popen[bytes]:
    words = [*command, "--output", str(output), *(["--resume"] if resumes and command[0] == "train" else [])]
    code = "from hystar_fast.cli.main import app; app()"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=-1, stderr=subprocess.STDOUT, env=environment)


def _finish(process: subprocess.Popen[bytes]) -> None:
    printed, _ = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"status {process.returncode}: {printed.decode().strip()[-200:]}")


def _files(folder: Path) -> dict[str, bytes]:
    differ = ("checkpoint.pt", LOG_FILE)  # by the times in them
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in differ]
    return {path.relative_to(folder).as_posix(): path.read_bytes().replace(str(folder).encode(), b"") for path in paths}


def _items(folder: Path) -> dict[str, list[float]]:
    with LocalEngine(folder) as engine:
        if engine.verify():
            raise AssertionError("the index is damaged")
        return {
            item.id: [round(value, 5) for value in vector]
            for items, vectors in engine.scan()
            for item, vector in zip(items, vectors["adapted"].tolist(), strict=True)
        }


def _trials(folder: Path) -> Any:
    found = json.loads((folder / "tuning.json").read_text())
    return found["chosen"], [{**trial, "seconds": 0} for trial in found["trials"]]
