"""Engines to be tested by one contract, and items with vectors to fill them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
SERVERS: dict[str, str] = {}
"""Address of each server that was started, by the name of its engine."""


@contextmanager
def start_milvus() -> Iterator[MilvusServer]:
    """Start a Milvus server, for the engine "milvus"; stop it in the end."""
    server = MilvusServer(Path(tempfile.mkdtemp(prefix="milvus")))
    try:
        server.start()
        SERVERS["milvus"] = server.url
        yield server
    finally:
        server.remove()


def _lite(folder: Path) -> str:
    return f"milvus:{folder}/index.db"


def _milvus(folder: Path) -> str:
    return f"milvus:{SERVERS['milvus']}/test_{hashlib.sha256(bytes(folder)).hexdigest()[:16]}"


OPEN: dict[str, Callable[[Path], Engine]] = {
    "local": LocalEngine,
    "milvus-lite": lambda folder: MilvusEngine(_lite(folder)),
    "milvus": lambda folder: MilvusEngine(_milvus(folder)),
}
CREATE: dict[str, Start] = {
    "local": lambda folder, stamps: LocalEngine.create(folder, stamps),
    "milvus-lite": lambda folder, stamps: MilvusEngine.create(_lite(folder), stamps),
    "milvus": lambda folder, stamps: MilvusEngine.create(_milvus(folder), stamps),
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
