"""An encoder of small grey pictures that counts what it encodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.data.images import load_image
from hystar_fast.index.encode_files import Report
from hystar_fast.index.engine import Engine
from hystar_fast.index.generation_methods import Encoder
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.sync import add, sync
from hystar_fast.methods.pixels import Pixels

DIMENSION = 256
STAMPS = {"adapted": Stamp({"model": "pixels", "dimension": DIMENSION})}


@dataclass(frozen=True)
class Counting(Encoder):
    """Grey pixels; `names` gets the names of all pictures that were encoded."""

    names: list[str] = field(default_factory=list)

    def encode(self, pixels: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        self.names.extend(names)
        return super().encode(pixels, names)


class Library:
    """An index of pixels in a folder."""

    def __init__(self, folder: Path, ids: str = "path") -> None:
        self.engine: Engine = LocalEngine.create(folder, STAMPS, settings={"ids": ids})
        self.encoded: list[str] = []
        self._names: list[str] = []
        self.opened = 0

    def add(self, *places: Path, **options: object) -> Report:
        return self._counted(add(self.engine, places, self._open, **options))  # type: ignore[arg-type]

    def sync(self, **options: object) -> Report:
        return self._counted(sync(self.engine, self._open, **options))  # type: ignore[arg-type]

    def _open(self) -> Encoder:
        self.opened += 1
        return Counting({"adapted": Pixels()}, 4, self._names)

    def _counted(self, report: Report) -> Report:
        self.encoded, self._names = self._names, []
        return report

    def check(self) -> None:
        """Check that every item has the vector of its file, and that nothing is damaged."""
        assert self.engine.verify() == []
        settings = self.engine.settings()
        for items, vectors in self.engine.scan():
            for item, vector in zip(items, vectors["adapted"], strict=True):
                place = Path(settings["sources"][item.source]["folder"]) / item.path
                state = place.stat()
                assert (item.size, item.mtime_ns) == (state.st_size, state.st_mtime_ns), item
                loaded = Pixels().resize(load_image(place))
                assert torch.allclose(Pixels().encode_image(loaded[None])[0], vector, atol=1e-6), item
