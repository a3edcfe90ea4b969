"""Read the files of an index: their state, their hash, and their pixels as a model takes them.

A place is the path of a file, or of a member of a tar, which continues that of the tar. A member was changed when its
tar was: most writers of tars give all members one time.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from hystar_fast.data.images import Resize, decode_image, least_side
from hystar_fast.data.tar_files import find_member, read_member

_NOT_THERE = (errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG)


def state_of(place: str | Path) -> tuple[int, int] | None:
    """Return the size and time of change (in nanoseconds) of a file; None if it is not there.

    Raises:
        OSError: nobody knows whether it is there, as when its disk has an error: it must not be taken for a file that
            has gone.
    """
    try:
        state = os.stat(place)
    except NotADirectoryError:
        return _state_of_member(place)
    except ValueError:  # a NUL in its name
        return None
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    return state.st_size, state.st_mtime_ns


def _state_of_member(place: str | Path) -> tuple[int, int] | None:
    try:
        tar, member = find_member(place)
    except (OSError, ValueError):
        return None
    return member.size, tar.stat().st_mtime_ns


@contextmanager
def opened(place: str | Path) -> Iterator[tuple[BinaryIO, tuple[int, int]]]:
    """Open a file for reading, and give it with its size and time of change at this moment.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe has no end.
    """
    try:
        handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except NotADirectoryError:
        tar, member = find_member(place)
        yield io.BytesIO(read_member(tar, member)), (member.size, tar.stat().st_mtime_ns)
        return
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{place} is no regular file")
        yield file, (state.st_size, state.st_mtime_ns)


def sha256_of(place: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with opened(place) as (file, _):
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def read_content(place: str | Path) -> tuple[tuple[int, int], bytes, str]:
    """Return the size and time of change of a file when it was read, its content, and the SHA-256 of that.

    Raises:
        OSError: it cannot be read.
    """
    with opened(place) as (file, state):
        content = file.read()
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
