"""Work on an index in child processes that are killed: it is imported by a fork server, so that a child starts fast."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hystar_fast.index import copy_index, postgres_address
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.reembed import fill_generation
from hystar_fast.index.sync import add, sync
from hystar_fast.methods.pixels import Pixels
from tests.support.counting_encoder import STAMPS, Counting

BATCH = 8
SIDE = 5  # of the pixels of the second generation
postgres_address.psycopg()  # loaded before a child is
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class _Logged(list):  # type: ignore[type-arg]
    """Names of encoded pictures, each in a file at once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def extend(self, names: Any) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{name}\n" for name in names)
        time.sleep(0.02)  # an encoder takes its time


def encoder(log: Path, side: int = 16) -> Counting:
    """Return an encoder that writes what it encodes into a file."""
    torch.set_num_threads(1)
    return Counting({"adapted": Pixels(side)}, BATCH, _Logged(log))


def add_pictures(folder: Path, pictures: Path, log: Path) -> None:
    """Add a folder of pictures to an index, which is made if it is not there."""
    try:
        engine = LocalEngine(folder)
    except ValueError:
        engine = LocalEngine.create(folder, STAMPS)
    with engine:
        add(engine, [pictures], lambda: encoder(log))


def sync_pictures(folder: Path, pictures: Path, log: Path) -> None:
    """Bring an index up to date."""
    with LocalEngine(folder) as engine:
        sync(engine, lambda: encoder(log))


def fill_second(folder: Path, pictures: Path, log: Path) -> None:
    """Fill the second generation of an index."""
    with LocalEngine(folder) as engine:
        fill_generation(engine, 2, lambda: encoder(log, SIDE))


def copy(source: str, target: str) -> None:
    """Copy an index, a batch at a time that takes its time."""
    copy_index.PART = BATCH
    copy_index.copy_index(source, target, progress=lambda done, total: time.sleep(0.002))


def killed(work: Callable[..., None], *arguments: Path | str, after: float) -> bool:
    """Start work in a child and kill it after some seconds; return whether it was still running.

    The seconds count from the moment when the work begins.
    """
    begun = _CONTEXT.Event()
    child = _CONTEXT.Process(target=_run, args=(begun, work, arguments))
    child.start()
    begun.wait(60)
    child.join(after)
    child.kill()
    child.join()
    if child.exitcode not in (0, -9):
        raise AssertionError(f"the child ended with status {child.exitcode}")
    return child.exitcode == -9


def _run(begun: Any, work: Callable[..., None], arguments: tuple[Path | str, ...]) -> None:
    begun.set()
    work(*arguments)
