"""Work on an index in child processes that are killed: it is imported by a fork server, so that a child starts fast."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import milvus_lite.server_manager  # noqa: F401  # loaded before a child is
import pymilvus  # noqa: F401
import torch

from hystar_fast.cli import index_work  # noqa: F401
from hystar_fast.cli import main as cli
from hystar_fast.index import copy_index, postgres_address
from hystar_fast.index.claims import Claims
from hystar_fast.index.embed_shards import CLAIMS, agree_on_plan, embed_shards
from hystar_fast.index.generation_methods import Made
from hystar_fast.index.load_shards import LoadReport, load_shards, plan_in
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.reembed import fill_generation
from hystar_fast.index.sync import add, sync
from hystar_fast.methods.pixels import Pixels
from tests.support.counting_encoder import STAMPS, Counting

BATCH = 8
SHARD = 60  # pictures
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


def command(*arguments: str) -> None:
    """Run ``hystar-fast`` with arguments."""
    torch.set_num_threads(1)
    cli.app(arguments)


def made_in(out: Path) -> Made:
    """Return what `embed_shards` asks of the model; there is no adapter to write."""
    return Made(STAMPS, {})


def copy(source: str, target: str) -> None:
    """Copy an index, a batch at a time that takes its time."""
    copy_index.PART = BATCH
    copy_index.copy_index(source, target, progress=lambda done, total: time.sleep(0.02))


def claims_in(out: Path) -> Claims:
    """Return claims that are stolen soon."""
    return Claims(out / CLAIMS, beat=0.02, stolen_after=0.4)


def embed_into_shards(out: Path, pictures: Path, log: Path, retry_skipped: bool = False) -> None:
    """Embed pictures into shards, together with other processes."""
    claims = claims_in(out)
    plan = agree_on_plan(pictures, out, STAMPS, made_in, claims, shard_size=SHARD)
    embed_shards(plan, pictures, out, lambda: encoder(log), claims, retry_skipped=retry_skipped)


def load_all(folder: Path, out: Path) -> LoadReport:
    """Load shards into an index, which is made if it is not there."""
    try:
        engine = LocalEngine(folder)
    except ValueError:
        engine = LocalEngine.create(folder, STAMPS)
    with engine:
        return load_shards(engine, out, plan_in(out))


def started(work: Callable[..., object], *arguments: Any) -> Any:
    """Start work in a child and return it when the work begins."""
    begun = _CONTEXT.Event()
    child = _CONTEXT.Process(target=_run, args=(begun, work, arguments))
    child.start()
    begun.wait(60)
    return child


def killed(work: Callable[..., object], *arguments: Path | str, after: float) -> bool:
    """Start work in a child and kill it after some seconds; return whether it was still running.

    The seconds count from the moment when the work begins.
    """
    child = started(work, *arguments)
    child.join(after)
    child.kill()
    child.join()
    if child.exitcode not in (0, -9):
        raise AssertionError(f"the child ended with status {child.exitcode}")
    return child.exitcode == -9


def _run(begun: Any, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    begun.set()
    work(*arguments)
