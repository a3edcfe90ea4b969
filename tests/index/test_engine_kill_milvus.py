"""SIGKILL of a Milvus server during writes: nothing acknowledged is lost, and an open engine goes on by itself."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch

from hystar_fast.index.engine import Engine, EngineUnavailable, Item
from hystar_fast.index.milvus import MilvusEngine
from tests.support.index_engines import STAMPS, items, units

pytestmark = [pytest.mark.xdist_group("milvus"), pytest.mark.slow]
BATCH, KILLS, SECONDS = 64, 2, 90  # KILLS on an index each
T = TypeVar("T")


def in_time(read: Callable[[], T]) -> T:
    """Return what is read, once the server answers again."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            return read()
        except EngineUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


class Writer(threading.Thread):
    """Adds items, changes some of them and removes others until the server is gone.

    Attributes:
        held: key -> item and its vector, of all that was acknowledged; None for one that was removed.
        unsure: keys of the call that was not acknowledged.
        error: what ended it.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        super().__init__()
        self.engine, self.seed = engine, seed
        self.held: dict[str, tuple[Item, torch.Tensor] | None] = {}
        self.unsure: list[str] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for number in range(10_000):
                batch = items(BATCH, first=(self.seed * 10_000 + number) * BATCH)
                self._put(batch, units(BATCH, seed=number))
                self._put([replace(item, sha256="f" * 64) for item in batch[:8]], -units(8, seed=number))
                self.unsure = [item.key for item in batch[60:]]
                self.engine.remove(self.unsure)
                self.held |= dict.fromkeys(self.unsure)
        except Exception as error:
            self.error = error

    def _put(self, batch: list[Item], vectors: torch.Tensor) -> None:
        self.unsure = [item.key for item in batch]
        self.engine.upsert(batch, {"adapted": vectors})
        self.held |= {item.key: (item, vector) for item, vector in zip(batch, vectors, strict=True)}


@pytest.mark.parametrize("seed", range(KILLS))
def test_nothing_acknowledged_is_lost_and_the_engine_goes_on(milvus, seed):
    """Kill the server once an index: after more kills it may leave out rows that it has, see docs/milvus.md."""
    uri = milvus.new_uri()
    engine = MilvusEngine.create(uri, STAMPS)
    writer = Writer(engine, seed)
    writer.start()
    time.sleep(random.Random(seed).uniform(0.5, 1.5))
    milvus.kill()
    writer.join()
    assert isinstance(writer.error, EngineUnavailable) and len(writer.held) >= BATCH
    says_that_it_is_gone(engine)
    milvus.start()
    in_time(engine.health)
    engine.remove(writer.unsure)  # may be there, in part
    written = writer.held | dict.fromkeys(writer.unsure)
    held = {key: pair for key, pair in written.items() if pair is not None}
    assert engine.fetch([*written]) == {key: item for key, (item, _) in held.items()}
    assert torch.equal(engine.vectors([*held], "adapted"), torch.stack([vector for _, vector in held.values()]))
    assert engine.count() == len(held) and engine.verify() == []
    key, (_, vector) = next(iter(held.items()))
    engine.close()
    with MilvusEngine(uri) as reader:
        assert reader.search("adapted", vector[None], 1)[1] == [[key]]


def says_that_it_is_gone(engine: Engine) -> None:
    for read in (engine.health, engine.version, lambda: engine.search("adapted", units(1), 1)):
        start = time.monotonic()
        with pytest.raises(EngineUnavailable, match=r"^milvus:http://\S+ cannot be used now: [^\n]*$"):
            read()
        assert time.monotonic() - start < 15
