"""A lock on an output folder, so that two commands never write into one folder at the same time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from hystar_fast.data.whole_files import PARTIAL

LOCK = ".lock"
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Hold the lock of an output folder, which is created if needed and removed again if it stays empty.

    The lock is the kernel's, on the file ``.lock``: it ends with its process, however that ends, so no lock is ever
    stale. Within one locked block the same folder may be locked again. What an earlier process was writing when it was
    killed is removed.

    Args:
        folder: where a command writes.

    Raises:
        ValueError: `folder` is a file or may not be written, or another process or thread holds its lock.
        OSError: the folder cannot be created or written for another reason.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {folder}")
    if folder in _HELD.get():
        yield
        return
    created, lock = _acquire(folder)
    token = _HELD.set(_HELD.get() | {folder})
    try:
        for partial in _partial_files(folder):
            partial.unlink(missing_ok=True)
        yield
    finally:
        _HELD.reset(token)
        (folder / LOCK).unlink(missing_ok=True)
        os.close(lock)
        with contextlib.suppress(OSError):  # a folder with a file in it stays
            for place in created:
                place.rmdir()


def _partial_files(folder: Path) -> list[Path]:
    """List what was being written in a folder and in its adapters, but not in the folders of commands that run now."""
    found = [path for depth in ("", "*/", "*/*/") for path in folder.glob(depth + PARTIAL)]
    return [path for path in found if not any((p / LOCK).exists() for p in path.parents if folder in p.parents)]


def _acquire(folder: Path) -> tuple[list[Path], int]:
    """Return the folders that were created, the innermost first, and the open lock file."""
    created: list[Path] = []
    while True:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        created = created or missing
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another process has just removed the folder, which it had created
            continue
        except (NotADirectoryError, FileExistsError, PermissionError) as error:
            raise ValueError(f"output must be a folder that can be written, got {folder}: {error.strerror}") from error
        try:
            _lock(lock, folder)
            if _is_at(lock, folder / LOCK):
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return created, lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its last holder has removed the file since it was opened


def _lock(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 200, 0).decode("utf-8", "replace").strip() or "another process"
        raise ValueError(
            f"output must be a folder that no other command is writing, got {folder}, which {holder} has locked: wait "
            "until it ends, or give another folder"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks: see to it that no other command writes into this folder",
            stacklevel=4,
        )


def _is_at(lock: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), path.stat())
    return False
