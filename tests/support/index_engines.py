"""Engines to be tested by one contract, and items with vectors to fill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.postgres import PostgresEngine
from hystar_fast.index.stamp import Stamp
from tests.support.milvus_server import MilvusServer
from tests.support.repeating import repeating

DIMENSION = 24
STAMPS = {"adapted": Stamp({"model": "one", "dimension": DIMENSION})}
OTHER = {"adapted": Stamp({"model": "two", "dimension": 7})}
ENGINES = [
    "local",
    "milvus-lite",
    *(pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("milvus", "postgres")),
]
"""Every engine; the tests of one that needs a server are in one process, so that it is started once."""


@dataclass(frozen=True)
class Place:
    """Where one index of an engine is.

    Attributes:
        create: makes it, with the stamps of its first generation.
        open: opens it, as another process does.
    """

    create: Callable[[Mapping[str, Stamp]], Engine]
    open: Callable[[], Engine]


def place_of(engine: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    """Return a new place for an index of an engine; its server is started if there is none."""
    if engine == "postgres":
        uri = request.getfixturevalue("postgres").new_uri()
        return Place(lambda stamps: PostgresEngine.create(uri, stamps), lambda: PostgresEngine(uri))
    if engine == "milvus":
        index = _OnMilvus(request.getfixturevalue("milvus"))
        return Place(index.create, index.open)
    if engine == "milvus-lite":
        uri = f"milvus:{folder}/index.db"
        return Place(lambda stamps: MilvusEngine.create(uri, stamps), lambda: MilvusEngine(uri))
    return Place(lambda stamps: LocalEngine.create(folder, stamps), lambda: LocalEngine(folder))


class _OnMilvus:
    """An index on a Milvus server, which is made ahead if it has the stamps of most tests."""

    def __init__(self, server: MilvusServer) -> None:
        self._server, self._uri = server, ""

    def create(self, stamps: Mapping[str, Stamp]) -> Engine:
        if stamps == STAMPS:
            self._uri = self._server.new_index(STAMPS)
            return self.open()
        self._uri = self._server.new_uri()
        return MilvusEngine.create(self._uri, stamps)

    def open(self) -> Engine:
        return MilvusEngine(self._uri)


def items(count: int, first: int = 0) -> list[Item]:
    """Return items with different names, attributes and content."""
    return [
        Item(
            f"{'even' if i % 2 == 0 else 'odd'}/{i}.jpg",
            source="photos",
            path=f"{'even' if i % 2 == 0 else 'odd'}/{i}.jpg",
            caption=f"picture {i}",
            attributes={"year": 2000 + i % 10, "kind": ("cat", "a dog", "it's")[i % 3], "ok": i % 4 == 0},
            size=i,
            mtime_ns=10**18 + i,
            sha256=f"{i:064x}",
        )
        for i in range(first, first + count)
    ]


def units(count: int, seed: int = 0, dimension: int = DIMENSION) -> Tensor:
    """Return random unit vectors."""
    return F.normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def check_readers_see_whole_states(
    engine: Engine, again: Callable[[], Engine], reading: Callable[[Any], AbstractContextManager[Any]], writes: int
) -> None:
    """Read in two threads while every write exchanges the vectors of all 20 items for those of one seed.

    A mixture would be seen, as a vector would not find itself.

    Args:
        engine: writes.
        again: opens its index.
        reading: the block of an engine that shows one state.
        writes: their number.
    """

    def read(reader: Any) -> None:
        with reading(reader):
            vectors = reader.vectors(reader.keys(), "adapted")
            scores, found = reader.search("adapted", vectors, 1)
        assert torch.allclose(scores, torch.ones_like(scores), atol=1e-5) and len(found) == 20, (scores, found)

    with again() as one, again() as other, repeating(partial(read, one)), repeating(partial(read, other)):
        for seed in range(writes):
            engine.upsert(items(20), {"adapted": units(20, seed)})
