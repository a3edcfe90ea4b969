"""Engines to be tested by one contract, and items with vectors to fill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.stamp import Stamp

DIMENSION = 24
STAMPS = {"adapted": Stamp({"model": "one", "dimension": DIMENSION})}
OTHER = {"adapted": Stamp({"model": "two", "dimension": 7})}
Start = Callable[[Path, Mapping[str, Stamp]], Engine]
OPEN: dict[str, Callable[[Path], Engine]] = {"local": LocalEngine}
CREATE: dict[str, Start] = {"local": lambda folder, stamps: LocalEngine.create(folder, stamps)}


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
