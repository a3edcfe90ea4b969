"""Figures of bench_serve.py that need no load: exact search, a sync of nothing, a command that asks a server."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hystar_fast.index.memory import Matrix

VECTORS, DIMENSION, PICTURES, SIDE = 100_000, 512, 2000, 64
_REPEATED = 5


def search_milliseconds(queries: int) -> float:
    """Return the CPU milliseconds of an exact search of the ten best among 100,000 vectors, the least of five."""
    generator = np.random.default_rng(0)
    matrix = Matrix(DIMENSION)
    for start in range(0, VECTORS, 10_000):
        numbers = np.arange(start, start + 10_000)
        vectors = generator.standard_normal((10_000, DIMENSION), np.float32)
        matrix.append(numbers, numbers, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    asked = torch.from_numpy(generator.standard_normal((queries, DIMENSION), np.float32))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    least = min(_seconds(lambda: matrix.search(asked, 10), time.process_time) for _ in range(_REPEATED))
    torch.set_num_threads(threads)
    return 1000 * least


def sync_seconds(folder: Path) -> float:
    """Return the CPU seconds of ``hystar-fast index sync`` of 2,000 pictures of which none has changed."""
    pictures, index = folder / "many", folder / "many-index"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        colours = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(colours).save(pictures / f"{number:04}.png")
    _command("embed", str(pictures), "--output", str(index), "--device", "cpu")
    return _least(lambda: _command("index", "sync", str(index), "--device", "cpu"))


def asking_seconds(picture: Path, url: str) -> float:
    """Return the CPU seconds of ``hystar-fast index search --server``."""
    return _least(lambda: _command("index", "search", "--query", str(picture), "--server", url))


def _least(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the processes that `work` starts, the least of three."""
    return min(_seconds(work, _of_children) for _ in range(3))


def _command(*arguments: str) -> None:
    _python("-m", "hystar_fast", *arguments)


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def rows(folder: Path, picture: Path, url: str) -> Iterator[tuple[str, float, str, float | None]]:
    """Yield the name, value, unit and limit of each figure; None for no limit."""
    yield "exact search of 100,000 x 512, one query", search_milliseconds(1), "cpu-ms", 20
    yield "exact search of 100,000 x 512, 64 queries", search_milliseconds(64), "cpu-ms", 150
    yield f"`index sync` of {PICTURES:,} unchanged pictures", sync_seconds(folder), "cpu-s", 1.5
    yield "of which `import torch`, by itself", _least(lambda: _python("-c", "import torch")), "cpu-s", None
    yield "`index search --server`", asking_seconds(picture, url), "cpu-s", 0.5
