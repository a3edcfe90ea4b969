"""The files of adapters in Milvus: rows of parts, which the row of a name makes a file."""

from __future__ import annotations

import base64
import hashlib

from hystar_fast.data.read_ahead import in_batches
from hystar_fast.index.engine import IndexDamaged
from hystar_fast.index.milvus_meta import Meta
from hystar_fast.index.milvus_rows import decode, encode

_PART = 45_000  # bytes; 60,000 in base64, where a row takes 65,535
_AT_ONCE = 64  # parts of one call
_FILE, _PARTS = "file/", "part/"


class Files:
    """Keeps files whole or not at all: parts are named by the content, and the row of the file is written last.

    Args:
        meta: where the rows are.
    """

    def __init__(self, meta: Meta) -> None:
        self._meta = meta

    def put(self, name: str, content: bytes) -> None:
        """Keep a file under a name, in place of an earlier one."""
        digest = hashlib.sha256(content).hexdigest()
        names = _part_names(digest, len(content))
        for part in in_batches(range(len(names)), _AT_ONCE):
            rows = {names[i]: base64.b64encode(content[i * _PART : (i + 1) * _PART]).decode() for i in part}
            self._meta.put(rows)
        self._meta.put({_FILE + encode(name): f"{digest} {len(content)}"})
        self.tidy()

    def get(self, name: str) -> bytes | None:
        """Return a file; None if there is none.

        Raises:
            IndexDamaged: it does not have its checksum.
        """
        wanted = _FILE + encode(name)
        found = self._meta.get([wanted]).get(wanted)
        if found is None:
            return None
        digest, size = found.split()
        content = b""
        for names in in_batches(_part_names(digest, int(size)), _AT_ONCE):
            parts = self._meta.get(names)
            content += b"".join(base64.b64decode(parts.get(name, "")) for name in names)
        if hashlib.sha256(content).hexdigest() != digest:
            raise IndexDamaged(f"{self._meta.uri} is damaged: the file {name} does not have its checksum")
        return content

    def names(self) -> list[str]:
        """Return the names of all files."""
        return [decode(name) for name in self._meta.all(_FILE)]

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._meta.delete([_FILE + encode(name)])
        self.tidy()

    def tidy(self) -> None:
        """Remove parts that belong to no file: of one that was replaced or removed, or not written to its end."""
        used = {value.split()[0] for value in self._meta.all(_FILE).values()}
        for names in in_batches(self._meta.names(_PARTS), _AT_ONCE):
            lost = [name for name in names if name.split("/")[1] not in used]
            if lost:
                self._meta.delete(lost)


def _part_names(digest: str, size: int) -> list[str]:
    return [f"{_PARTS}{digest}/{number}" for number in range(-(-size // _PART))]
