"""The shards of a plan: files with the vectors of some pictures, and with those that could not be read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.data.whole_files import write_whole
from hystar_fast.index.shard_plan import Plan

_NAME = re.compile(r"shard-(\d{6,})\.safetensors")
_ROWS = "rows"  # the tensor with the pictures and the skipped files, as JSON
_FORMAT = "1"


@dataclass(frozen=True)
class Header:
    """How a shard came about.

    Attributes:
        plan: the SHA-256 of its plan.
        number: of the shard.
        process: that wrote it.
        started, ended: in seconds since 1970, by the clock of that process's machine.
        pictures, skipped: their numbers.
        encoded: pictures that were encoded for it the last time.
        tries: 1, and one more for each time that its skipped files were tried again.
    """

    plan: str
    number: int
    process: str
    started: float
    ended: float
    pictures: int
    skipped: int
    encoded: int
    tries: int = 1

    @property
    def rate(self) -> float:
        """Pictures a second that were encoded the last time."""
        return self.encoded / max(self.ended - self.started, 1e-3)


@dataclass(frozen=True)
class Row:
    """A picture of a shard: its path, the state of its file when it was read, and words about it."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    caption: str = ""


@dataclass(frozen=True)
class Left:
    """A file that could not be read, and its state then."""

    path: str
    reason: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Shard:
    """The content of a shard.

    Attributes:
        rows: its pictures.
        left: files that could not be read.
        vectors: view -> unit vectors [n, D] of the pictures.
    """

    rows: Sequence[Row]
    left: Sequence[Left]
    vectors: Mapping[str, Tensor]


def shard_path(out: Path, number: int) -> Path:
    """Return where a shard lies."""
    return out / f"shard-{number:06}.safetensors"


def write_shard(out: Path, header: Header, shard: Shard) -> None:
    """Write a shard, whole or not at all."""
    lists: dict[str, Sequence[Row | Left]] = {"rows": shard.rows, "left": shard.left}
    rows = json.dumps({name: [[*asdict(entry).values()] for entry in found] for name, found in lists.items()})
    content = torch.from_numpy(np.frombuffer(rows.encode(), np.uint8).copy())
    vectors = {view: found.detach().float().cpu().contiguous() for view, found in shard.vectors.items()}
    described = json.dumps(asdict(header))
    metadata = {"format": _FORMAT, "header": described, "sha256": _sha256(described, content, vectors)}
    write_whole(shard_path(out, header.number), save({_ROWS: content, **vectors}, metadata))


def read_shard(out: Path, number: int, plan: Plan) -> tuple[Header, Shard]:
    """Read a shard and compare its checksum.

    Raises:
        ValueError: it is damaged, or belongs to another plan.
        OSError: it cannot be read.
    """
    path = shard_path(out, number)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = tensors.pop(_ROWS)
        if metadata["sha256"] != _sha256(metadata["header"], content, tensors):
            raise ValueError("its content does not have its checksum")
        header = Header(**parse_json(metadata["header"]))
        if (header.plan, header.number) != (plan.sha256, number):
            raise ValueError("it belongs to another plan")
        rows = parse_json(content.numpy().tobytes().decode())
        found = [Row(*row) for row in rows["rows"]], [Left(*entry) for entry in rows["left"]]
        return header, Shard(*found, {view: tensors[view] for view in plan.stamps})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: {error}; remove it, and embed it again with `hystar-fast embed --shards`"
        ) from error


def _sha256(header: str, content: Tensor, vectors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted({_ROWS: content, **vectors}.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@dataclass
class ShardFolder:
    """The shards of a plan that are there; a header is read once for each file.

    Attributes:
        out: the folder.
        plan: of the shards.
    """

    out: Path
    plan: Plan
    _held: dict[int, tuple[int, Header | None]] = field(default_factory=dict)

    def headers(self) -> dict[int, Header]:
        """Return number -> header of each shard of the plan; one that cannot be read is as if it were not there."""
        found = {}
        with os.scandir(self.out) as entries:
            for entry in entries:
                matched = _NAME.fullmatch(entry.name)
                if matched is None:
                    continue
                number = int(matched.group(1))
                if number not in self._held or self._held[number][0] != entry.inode():  # a new file in its place
                    self._held[number] = entry.inode(), self._header(entry.path)
                header = self._held[number][1]
                if header is not None and (header.plan, header.number) == (self.plan.sha256, number):
                    found[number] = header
        return dict(sorted(found.items()))

    def _header(self, path: str) -> Header | None:
        try:
            with safe_open(path, "pt") as file:
                values: Any = parse_json(file.metadata()["header"])
            return Header(**values)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
