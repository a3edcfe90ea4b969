"""Files that are replaced as a whole, and checksums by which a damaged one is found.

Everything that this package writes goes through `write_whole`. A process that is killed at any moment leaves the old
file or the new one, and at most a hidden ``.<letters>.partial`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hystar_fast.data.text_files import decode_text, parse_json, to_json

CHECKSUM = "checksum"
PARTIAL = ".*.partial"
"""The pattern of the names of files that were being written."""


def write_whole(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, flush it to the disk and rename it; folders are created if needed.

    Args:
        path: of the file.
        content: its bytes, or a function that writes them into an open file.

    Raises:
        OSError: the file cannot be written; the old one is unchanged.
    """
    place = Path(os.path.realpath(path))  # a link stays a link
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a loss of power, too
    finally:
        os.close(folder)


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON with a checksum over all other entries, for `opened_json`."""
    values = json.loads(to_json({name: value for name, value in content.items() if name != CHECKSUM}))
    return (to_json({**values, CHECKSUM: _checksum(values)}) + "\n").encode()


def opened_json(content: bytes, name: str) -> Any:
    """Read JSON, and compare its checksum where it has one; `name` stands for the file in error messages.

    A file without a checksum was written by hand or by version 0.1.0, and is read as it is.

    Raises:
        ValueError: not UTF-8, not JSON, or another checksum.
    """
    try:
        values = parse_json(decode_text(content, name))
    except ValueError as error:
        raise ValueError(f"{name} is corrupt: {error}") from error
    stored = values.pop(CHECKSUM, None) if isinstance(values, dict) else None
    if stored is not None and stored != _checksum(values):
        raise ValueError(
            f"{name} is corrupt: its content does not have its checksum; if you changed it yourself, remove its "
            f'"{CHECKSUM}"'
        )
    return values


def _checksum(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
