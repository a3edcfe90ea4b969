"""Checks of options before any work."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from hystar_fast.data.image_files import IMAGE_SUFFIXES


def check_picture(path: Path, option: str) -> None:
    """Raise ValueError unless a picture can be written to `path`."""
    formats = Image.registered_extensions()
    writable = sorted(suffix for suffix in IMAGE_SUFFIXES if formats.get(suffix) in Image.SAVE)
    if path.suffix.lower() not in writable:
        raise ValueError(f"{option} must end in one of {', '.join(writable)}, got {path}")
    if path.is_dir():
        raise ValueError(f"{option} must be a picture file, got the folder {path}")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "allows no writing" if place.is_dir() else "is a file"
        raise ValueError(f"{option} must be in a folder that can be written, got {path}, but {place} {why}")
