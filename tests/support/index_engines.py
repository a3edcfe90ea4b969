"""Engines to be tested by one contract, and items with vectors to fill them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.stamp import Stamp
from tests.support.milvus_server import MilvusServer

DIMENSION = 24
STAMPS = {"adapted": Stamp({"model": "one", "dimension": DIMENSION})}
OTHER = {"adapted": Stamp({"model": "two", "dimension": 7})}
Start = Callable[[Path, Mapping[str, Stamp]], Engine]


class MilvusIndexes:
    """Indexes on a Milvus server, made several at once: it loads many in the seconds that it takes for one.

    Args:
        server: that runs.
    """

    AT_ONCE = 8

    def __init__(self, server: MilvusServer) -> None:
        self.server = server
        self._names = (f"milvus:{server.url}/test_{number}" for number in count())
        self._ready: list[str] = []
        self._of: dict[Path, str] = {}

    def create(self, folder: Path, stamps: Mapping[str, Stamp]) -> MilvusEngine:
        """Return a new index, which `open` finds by a folder."""
        if stamps != STAMPS:
            self._of[folder] = next(self._names)
            return MilvusEngine.create(self._of[folder], stamps, secret=self.server.secret)
        if not self._ready:
            self._ready = [next(self._names) for _ in range(self.AT_ONCE)]
            with ThreadPoolExecutor(self.AT_ONCE) as pool:
                for _ in pool.map(self._make, self._ready):
                    pass
        self._of[folder] = self._ready.pop()
        return self.open(folder)

    def open(self, folder: Path) -> MilvusEngine:
        """Open an index again."""
        return MilvusEngine(self._of[folder], self.server.secret)

    def _make(self, uri: str) -> None:
        MilvusEngine.create(uri, STAMPS, secret=self.server.secret).close()


MILVUS: list[MilvusIndexes] = []
"""The indexes of the server, if it was started."""


@contextmanager
def start_milvus() -> Iterator[MilvusServer]:
    """Start a Milvus server, for the engine "milvus"; stop it in the end."""
    server = MilvusServer(Path(tempfile.mkdtemp(prefix="milvus")))
    try:
        server.start()
        MILVUS.append(MilvusIndexes(server))
        yield server
    finally:
        server.remove()


def _lite(folder: Path) -> str:
    return f"milvus:{folder}/index.db"


OPEN: dict[str, Callable[[Path], Engine]] = {
    "local": LocalEngine,
    "milvus-lite": lambda folder: MilvusEngine(_lite(folder)),
    "milvus": lambda folder: MILVUS[0].open(folder),
}
CREATE: dict[str, Start] = {
    "local": lambda folder, stamps: LocalEngine.create(folder, stamps),
    "milvus-lite": lambda folder, stamps: MilvusEngine.create(_lite(folder), stamps),
    "milvus": lambda folder, stamps: MILVUS[0].create(folder, stamps),
}


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
