"""The difference between an index and the files of its sources; as few files as possible are opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from hystar_fast.data.image_set import Skipped
from hystar_fast.data.read_ahead import read_ahead
from hystar_fast.index.engine import Engine, Known
from hystar_fast.index.picture_files import sha256_of
from hystar_fast.index.sources import File, Found, folder_of, is_of_tars, list_known, list_source

PATH, CONTENT = "path", "content"
"""The two kinds of ids: the path of the file, or the SHA-256 of its content."""
PassedOver: TypeAlias = Mapping[str, tuple[tuple[int, int], str]]
"""Place of a file -> its size and time of change, and the reason."""
_WINDOW = 64  # files that are hashed ahead


@dataclass
class Changes:
    """The work that has to be done so that an index holds some files.

    Attributes:
        unchanged: files that are in the index as they are.
        new: files to be encoded.
        changed: files to be encoded in place of the items with these ids.
        touched: (file, id, sha256) with another time of change or path, but the same content.
        copied: (file, id of an item of the same content, sha256): the file has moved, or is a second one; the vectors
            of the item are copied.
        replaced: (file, id of its item) of those in `copied` that had another content before.
        removed: ids of items whose files have gone.
        skipped: files that cannot be read.
    """

    unchanged: int = 0
    new: list[File] = field(default_factory=list)
    changed: list[tuple[File, str]] = field(default_factory=list)
    touched: list[tuple[File, str, str]] = field(default_factory=list)
    copied: list[tuple[File, str, str]] = field(default_factory=list)
    replaced: list[tuple[File, str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def to_encode(self) -> int:
        return len(self.new) + len(self.changed)


def compare(
    engine: Engine,
    found: Found,
    *,
    passed_over: PassedOver,
    checksum: bool = False,
    known: Mapping[str, Known] | None = None,
) -> Changes:
    """Compare files with the items of an index.

    Args:
        engine: of the index.
        found: the files.
        passed_over: files that could not be read before; those that have not changed are skipped without being opened.
        checksum: read every file, although its size and time of change are those of its item.
        known: of the engine, if the caller has it.
    """
    known = engine.known() if known is None else known
    by_place = _by_place(engine, known)
    changes = Changes(skipped=[*found.skipped])
    uncertain: list[tuple[File, str | None]] = []  # may have the content of an item
    sizes = {entry.size for entry in known.values()}
    for file in found.files:
        item = by_place.get(file.place)
        state = (file.size, file.mtime_ns)
        if item is not None and not checksum and state == (known[item].size, known[item].mtime_ns):
            changes.unchanged += 1
        elif passed_over.get(file.place, ((), ""))[0] == state:
            changes.skipped.append(Skipped(file.path, passed_over[file.place][1]))
        elif file.size in sizes:
            uncertain.append((file, item))
        else:
            _encode(changes, file, item)
    _settle(changes, uncertain, known)
    return changes


def compare_sources(engine: Engine, *, passed_over: PassedOver, checksum: bool = False) -> Changes:
    """Compare all sources of an index with its items; items whose files have gone are to be removed.

    Raises:
        ValueError: the folder of a source is not there, as when its disk is not mounted.
    """
    known, settings = engine.known(), engine.settings()
    found = Found([], [])
    paths: dict[str, list[str]] = {}
    for entry in known.values():
        paths.setdefault(entry.source, []).append(entry.path)
    for name, entry in settings["sources"].items():
        folder = folder_of(settings, name)
        if folder is None:
            continue
        if entry["whole"]:
            more = list_source(name, folder, tars=is_of_tars(entry))
        else:
            more = list_known(name, folder, paths.get(name, []), tars=is_of_tars(entry))
        if not more.files and paths.get(name):
            raise ValueError(
                f"source must hold pictures, but {folder} ({name!r}) holds none of {len(paths[name])}: mount it, or "
                f"remove them with `hystar-fast index remove --where 'source={name}'`"
            )
        found.files.extend(more.files)
        found.skipped.extend(more.skipped)
    found = Found([*{file.place: file for file in found.files}.values()], found.skipped)
    changes = compare(engine, found, passed_over=passed_over, checksum=checksum, known=known)
    there = {file.place for file in found.files}
    changes.removed = [item for place, item in _by_place(engine, known).items() if place not in there]
    if settings["ids"] == CONTENT:  # the id of a moved file stays
        kept = {item for _, item, _ in changes.copied}
        changes.removed = [item for item in changes.removed if item not in kept]
    return changes


def _by_place(engine: Engine, known: Mapping[str, Known]) -> dict[str, str]:
    """Return place -> id of the items that have files."""
    settings = engine.settings()
    folders = {name: folder_of(settings, name) for name in settings["sources"]}
    found = {}
    for item, entry in known.items():
        folder = folders.get(entry.source)
        if folder is not None:
            found[os.path.join(folder, entry.path)] = item
    return found


def _settle(changes: Changes, uncertain: Sequence[tuple[File, str | None]], known: Mapping[str, Known]) -> None:
    """Hash the files that may have the content of an item."""
    by_content: dict[str, str] = {}
    for other, entry in known.items():
        if entry.sha256:
            by_content.setdefault(entry.sha256, other)
    hashes = _hashes(file for file, _ in uncertain)
    for (file, item), digest in zip(uncertain, hashes, strict=True):
        if isinstance(digest, Skipped):
            changes.skipped.append(digest)
        elif item is not None and known[item].sha256 == digest:
            if (file.size, file.mtime_ns) == (known[item].size, known[item].mtime_ns):
                changes.unchanged += 1
            else:
                changes.touched.append((file, item, digest))
        elif digest in by_content:
            changes.copied.append((file, by_content[digest], digest))
            if item is not None:
                changes.replaced.append((file, item))
        else:
            _encode(changes, file, item)


def _hashes(files: Iterable[File]) -> Iterable[str | Skipped]:
    def hashed(file: File) -> str | Skipped:
        try:
            return sha256_of(file.place)
        except OSError as error:
            return Skipped(file.path, str(error))

    return read_ahead(hashed, files, window=_WINDOW)


def _encode(changes: Changes, file: File, item: str | None) -> None:
    if item is None:
        changes.new.append(file)
    else:
        changes.changed.append((file, item))
