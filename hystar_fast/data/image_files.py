"""Find image files below a folder by their names; no file is opened."""

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
# Images in formats that are not supported: they are counted as skipped.
UNSUPPORTED_SUFFIXES = frozenset(
    {
        *(".arw", ".cr2", ".dng", ".eps", ".exr", ".heic", ".heif"),
        *(".jxl", ".nef", ".psd", ".svg", ".svgz", ".xcf"),
    }
)


def list_images(directory: Path) -> tuple[list[Path], list[Path]]:
    """List the images below a folder, and those in unsupported formats; paths are relative to it and sorted.

    Links to folders are followed, except a link to a folder that contains it. Hidden files (macOS writes ``._a.jpg``
    beside ``a.jpg``) and ``__MACOSX`` are ignored.

    Raises:
        OSError: a folder cannot be listed.
    """
    images: list[Path] = []
    unsupported: list[Path] = []
    for path in _files(str(directory), ()):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(Path(path).relative_to(directory))
        elif suffix in UNSUPPORTED_SUFFIXES:
            unsupported.append(Path(path).relative_to(directory))
    return sorted(images), sorted(unsupported)


def find_images(directory: str | Path) -> tuple[list[Path], list[Path]]:
    """List the images below a folder as `list_images` does, and require that there is one.

    Raises:
        ValueError: the folder is missing or holds no image.
        OSError: a folder in it cannot be listed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"directory must be a folder of images, but {directory} does not exist or is not a folder")
    images, unsupported = list_images(directory)
    if not images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"directory must hold images ({suffixes}), but {directory} holds none")
    return images, unsupported


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name does not belong to a data set."""
    return name.startswith(".") or name == "__MACOSX"


def unsupported_reason(path: PurePath) -> str:
    """Return the reason why a file of `UNSUPPORTED_SUFFIXES` is skipped."""
    return f"an image in an unsupported format, {path.suffix.lower()}"


def _files(folder: str, parents: tuple[str, ...]) -> Iterator[str]:
    """Walk a folder; `parents` are the real paths of the folders that hold the links followed so far."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, parents)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                target, chain = Path(os.path.realpath(entry.path)), (*parents, os.path.realpath(folder))
                if not any(Path(parent).is_relative_to(target) for parent in chain):
                    yield from _files(entry.path, chain)
            else:
                yield entry.path
