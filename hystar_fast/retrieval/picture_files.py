"""Which files below a folder are pictures: by their names alone, nothing is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
# Pictures, too, but in formats that are not read: they are counted as left out.
UNREAD_SUFFIXES = frozenset(
    {
        *(".arw", ".cr2", ".dng", ".eps", ".exr", ".heic", ".heif"),
        *(".jxl", ".nef", ".psd", ".svg", ".svgz", ".xcf"),
    }
)


def picture_files(directory: Path) -> tuple[list[Path], list[Path]]:
    """The pictures below a folder, and those in formats that are not read; relative to the folder and sorted.

    Links to folders are followed, except to one that the link itself is in. Hidden names (the ``._a.jpg`` that macOS
    writes beside ``a.jpg``) and ``__MACOSX`` are passed over.

    Raises:
        OSError: a folder that cannot be listed.
    """
    read: list[Path] = []
    unread: list[Path] = []
    for place in _files(str(directory), ()):
        suffix = os.path.splitext(place)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            read.append(Path(place).relative_to(directory))
        elif suffix in UNREAD_SUFFIXES:
            unread.append(Path(place).relative_to(directory))
    return sorted(read), sorted(unread)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of a data set's own."""
    return name.startswith(".") or name == "__MACOSX"


def not_read(path: PurePath) -> str:
    """Why a file of `UNREAD_SUFFIXES` is left out."""
    return f"a picture in a format that is not read, {path.suffix.lower()}"


def _files(folder: str, holders: tuple[str, ...]) -> Iterator[str]:
    """`holders` are the real places of the folders whose links have led here."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, holders)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                target, chain = Path(os.path.realpath(entry.path)), (*holders, os.path.realpath(folder))
                if not any(Path(holder).is_relative_to(target) for holder in chain):
                    yield from _files(entry.path, chain)
            else:
                yield entry.path
