"""Members of tar files, read where they lie; nothing is unpacked. The path of a member continues that of its tar."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock

TAR_SUFFIX = ".tar"
_CACHED = 64  # lists of members, of some megabytes each
_LOCK = Lock()


@dataclass(frozen=True)
class Member:
    """A file within a tar: where its bytes begin, and their number."""

    offset: int
    size: int


def list_members(tar: str | Path) -> dict[str, Member]:
    """Return name -> member of the files in a tar that is not compressed, in its order.

    If two have one name, the later one counts, as in any tar.

    Raises:
        OSError: the tar cannot be read.
        tarfile.TarError: it is none, is cut off, or is damaged.
    """
    found = {}
    with tarfile.open(tar, "r:") as opened:
        for entry in opened:
            if entry.isfile():
                found[entry.name] = Member(entry.offset_data, entry.size)
        with open(tar, "rb") as file:
            file.seek(opened.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops there without a word
                raise tarfile.ReadError(f"it is cut off or damaged at byte {opened.offset}")
    return found


def read_member(tar: str | Path, member: Member) -> bytes:
    """Return the content of a member.

    Raises:
        OSError: the tar cannot be read.
    """
    with open(tar, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def find_member(place: str | Path) -> tuple[Path, Member]:
    """Return the tar and the member of a path that goes through a tar, such as ``photos/a.tar/x/1.jpg``.

    Raises:
        OSError: there is no such tar, or no such member in it, or it cannot be read.
    """
    place = Path(place)
    tar = next((parent for parent in place.parents if parent.is_file()), None)
    if tar is None:
        raise FileNotFoundError(f"the file {place} does not exist")
    try:
        state = tar.stat()
        with _LOCK:  # so that threads which want the same list wait for it
            member = _by_path(str(tar), state.st_size, state.st_mtime_ns).get(str(place.relative_to(tar)))
    except tarfile.TarError as error:
        raise OSError(f"{tar} is no tar that can be read: {error}") from error
    if member is None:
        raise FileNotFoundError(f"{tar} has no member {place.relative_to(tar)}")
    return tar, member


def member_path(name: str) -> str:
    """Return the path of a member below its tar: ``./a//b.jpg`` and ``/a/b.jpg`` are ``a/b.jpg``."""
    return str(PurePosixPath(name.lstrip("/")))


@lru_cache(maxsize=_CACHED)
def _by_path(tar: str, size: int, mtime_ns: int) -> dict[str, Member]:
    """Return `member_path` -> member; kept until the tar has another size or time of change."""
    return {member_path(name): member for name, member in list_members(tar).items()}
