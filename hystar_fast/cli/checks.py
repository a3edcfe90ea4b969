"""Checks of options before any work: folders that can be written, pictures that can be drawn, results that stay."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from hystar_fast.data.image_files import IMAGE_SUFFIXES


def check_folder(folder: Path, option: str = "--output") -> None:
    """Raise ValueError unless `folder` is, or can become, a folder that this user may write."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} must be a folder, got the file {folder}")
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not place.is_dir():
        raise ValueError(f"{option} must be a folder, got {folder}, but {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{option} must be a folder that can be written, got {folder}: no permission for {place}")


def check_picture(path: Path, option: str) -> None:
    """Raise ValueError unless a picture can be written to `path`."""
    formats = Image.registered_extensions()
    writable = sorted(suffix for suffix in IMAGE_SUFFIXES if formats.get(suffix) in Image.SAVE)
    if path.suffix.lower() not in writable:
        raise ValueError(f"{option} must end in one of {', '.join(writable)}, got {path}")
    if path.is_dir():
        raise ValueError(f"{option} must be a picture file, got the folder {path}")
    check_folder(path.parent, f"the folder of {option}")


def set_aside(path: Path) -> Path | None:
    """Give a file of an earlier run the next free name, ``results-1.json``, and return it; None if there is no file."""
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    return kept
