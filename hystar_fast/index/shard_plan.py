"""The plan of a corpus that several processes embed: its pictures in shards, and the stamps of the model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hystar_fast.data.flat_folders import gallery_of_sketches
from hystar_fast.data.image_set import Skipped
from hystar_fast.data.tar_files import TAR_SUFFIX
from hystar_fast.data.whole_files import opened_json, sealed_json, write_whole
from hystar_fast.index.generation_methods import Made
from hystar_fast.index.picture_files import state_of
from hystar_fast.index.sources import File, Found, holds_tars, list_source, list_tars
from hystar_fast.index.stamp import Stamp, list_stamps, stamps_from

PLAN_FILE = "plan.json"
SHARD_SIZE = 4096
"""Pictures of a shard: a process that dies loses the work on one."""
_FORMAT = 1
_COMPARED = 16  # pictures by which another folder is recognised


@dataclass(frozen=True)
class Source:
    """The pictures that are to be embedded.

    Attributes:
        folder: of the source; the paths of the pictures are relative to it.
        whole: whether all pictures in the folder are meant; false for a single tar.
        tars: whether they are in tars.
    """

    folder: Path
    whole: bool
    tars: bool

    @classmethod
    def of(cls, place: Path) -> Source:
        """Return the source of a place that a user names: a folder of pictures or of tars, or a tar.

        Of a folder with photos and sketches of the same names the photos are meant.

        Raises:
            ValueError: it is none of these.
        """
        if place.is_dir():
            folder = (gallery_of_sketches(place) or place).resolve()
            return cls(folder, whole=True, tars=holds_tars(folder))
        if place.suffix.lower() != TAR_SUFFIX or not place.is_file():
            raise ValueError(f"SOURCE must be a folder of pictures or of tars, or a tar, got {place}")
        return cls(place.resolve().parent, whole=False, tars=True)


@dataclass(frozen=True)
class Plan:
    """A list of pictures in shards.

    Attributes:
        source: where they are, on the machine that made the plan.
        paths: of the pictures, relative to the folder of the source.
        captions: path -> words that come with a picture in a tar.
        skipped: files that were listed and cannot be read.
        shard_size: pictures a shard; the last one may have fewer.
        stamps, notes: of the model, as those of a generation.
        sha256: of the file of the plan; every shard names it.
    """

    source: Source
    paths: Sequence[str]
    captions: Mapping[str, str]
    skipped: Sequence[Skipped]
    shard_size: int
    stamps: Mapping[str, Stamp]
    notes: Mapping[str, Any]
    sha256: str

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-len(self.paths) // self.shard_size)

    def paths_of(self, shard: int) -> Sequence[str]:
        """Return the paths of the pictures of a shard."""
        return self.paths[shard * self.shard_size : (shard + 1) * self.shard_size]

    def files(self, paths: Sequence[str], folder: Path) -> list[File]:
        """Return files to be read, below the folder that the source has on this machine."""
        caption = self.captions.get
        return [File("", path, os.path.join(folder, path), 0, 0, caption(path, "")) for path in paths]

    def check_source(self, folder: Path) -> None:
        """Raise ValueError unless a folder, which may be another mount of that of the plan, holds its pictures.

        A few of them are looked for.
        """
        step = max(1, len(self.paths) // _COMPARED)
        chosen = self.paths[::step]
        lost = [path for path in chosen if state_of(os.path.join(folder, path)) is None]
        if 2 * len(lost) > len(chosen):
            raise ValueError(
                f"SOURCE must hold the pictures of {self.source.folder}, for which {PLAN_FILE} was made, but {folder} "
                f"has no {lost[0]}: give that folder, or another --shards"
            )


def write_plan(place: Path, out: Path, save: Callable[[Path], Made], *, shard_size: int) -> None:
    """List the pictures of a source and write the plan, whole or not at all.

    Args:
        place: see `Source.of`.
        out: the folder of the shards.
        save: writes the adapter into `out`, see `save_generation`.
        shard_size: pictures a shard.

    Raises:
        ValueError: there is no picture, or the source cannot be read.
    """
    source = Source.of(place)
    found = _listed(place, source)
    if not found.files:
        raise ValueError(f"SOURCE must hold pictures, but {place} holds none")
    made = save(out)
    content = {
        "format": _FORMAT,
        "folder": str(source.folder),
        "whole": source.whole,
        "tars": source.tars,
        "shard_size": shard_size,
        "stamps": list_stamps(made.stamps),
        "notes": dict(made.notes),
        "paths": [file.path for file in found.files],
        "captions": {file.path: file.caption for file in found.files if file.caption},
        "skipped": [[entry.path, entry.reason] for entry in found.skipped],
    }
    write_whole(out / PLAN_FILE, sealed_json(content))


def _listed(place: Path, source: Source) -> Found:
    if not source.whole:
        return list_tars("", source.folder, place.resolve())
    return list_source("", source.folder, tars=source.tars)


def read_plan(out: Path) -> Plan | None:
    """Return the plan in a folder; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = (out / PLAN_FILE).read_bytes()
    except FileNotFoundError:
        return None
    values = opened_json(content, str(out / PLAN_FILE))
    try:
        if values["format"] != _FORMAT:
            raise ValueError(f"{out / PLAN_FILE} must have format {_FORMAT}, got {values['format']}")
        return Plan(
            Source(Path(values["folder"]), values["whole"], values["tars"]),
            values["paths"],
            values["captions"],
            [Skipped(*entry) for entry in values["skipped"]],
            values["shard_size"],
            stamps_from(values["stamps"]),
            values["notes"],
            hashlib.sha256(content).hexdigest(),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / PLAN_FILE} is corrupt: it has no {error}") from error
