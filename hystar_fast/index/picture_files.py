"""Read the files of an index: their state, their hash, and their pixels as a model takes them."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from torch import Tensor

from hystar_fast.data.images import Resize, decode_image, least_side


def read_content(place: str | Path) -> tuple[os.stat_result, bytes, str]:
    """Return the state of a file when it was read, its content, and the SHA-256 of that.

    Raises:
        OSError: it cannot be read.
    """
    with open(place, "rb") as opened:
        state, content = os.fstat(opened.fileno()), opened.read()
    return state, content, hashlib.sha256(content).hexdigest()


def pixels_of(content: bytes, name: str, resize: Resize) -> Tensor:
    """Return a picture as a model takes it, from the content of its file; `name` stands for it in errors.

    Raises:
        ValueError: it cannot be decoded.
    """
    return resize(decode_image(io.BytesIO(content), name, least=least_side(resize)))


def reason_of(error: OSError | ValueError) -> str:
    """Return why a file is skipped, from the error that reading it raised."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
