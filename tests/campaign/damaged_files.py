"""Files of every format, cut or with a bit flipped thousands of times: read, or refused in one line that names them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.campaign.rows import Row, fault
from tests.support.damage import damaged
from tests.support.file_formats import PICTURES, TEXTS, Made, picture, read_damaged, shards, tensors

DAMAGES = 1000  # of a kind


def damaged_files(share: float = 1.0) -> list[Row]:
    """Damage each format a share of the times, at the same places for the same share."""
    writers: dict[str, Callable[[Path], Made]] = {
        **{write.__name__: write for write in (*TEXTS, shards)},
        **{kind: partial(picture, kind=kind) for kind in PICTURES},
        "safetensors": tensors,
    }
    rows: list[Row] = []
    for name, write in writers.items():
        number = int(share * (DAMAGES if name != "safetensors" else DAMAGES / 20))  # its file is of some megabytes
        with tempfile.TemporaryDirectory() as folder:
            rows += _damage(name, write, Path(folder), number)
    return rows


def _damage(name: str, write: Callable[[Path], Made], folder: Path, number: int) -> Iterator[Row]:
    path, read = write(folder)
    read_of, tried = 0, 0
    for content in damaged(path.read_bytes(), number, seed=number):
        tried += 1
        try:
            read_of += read_damaged(path, content, read)
        except Exception as problem:  # neither read nor refused properly
            yield fault("files", f"{name} {tried}", problem)
    yield Row("files", name, "passed", f"{tried} damages: {tried - read_of} refused by name, {read_of} still read")
