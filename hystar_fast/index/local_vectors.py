"""The vectors of a local index: a table for each generation, and a matrix in memory for each view that is searched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hystar_fast.index.memory import Matrix
from hystar_fast.index.sqlite_file import SqliteFile, vector_checksum

_ROWS = 2048  # read at a time


def table_of(number: int) -> str:
    """Return the table of a generation."""
    return f"vectors_{int(number)}"


@dataclass
class _Held:
    """A matrix, and the state of the file that it has."""

    matrix: Matrix
    content: bytes  # a name of the whole index
    version: int = -1
    removed: int = 0  # number of the last removal that it has
    total: int = 0  # sum of the checksums of the rows that were read


class VectorTables:
    """Writes the vectors of items, and keeps those that are searched in memory.

    Rows of the live generation are only ever added with greater numbers or removed, so a reader takes what is new.

    Args:
        file: of the index; every call is made within a block of `reading` or `writing` of it.
    """

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._held: dict[tuple[int, str], _Held] = {}

    def create(self, number: int) -> None:
        """Make the table of a generation."""
        self._file.connection.execute(
            f"CREATE TABLE {table_of(number)} "
            "(row INTEGER PRIMARY KEY, key INTEGER NOT NULL, vectors BLOB NOT NULL, checksum INTEGER NOT NULL)"
        )
        self._file.connection.execute("INSERT INTO sums VALUES (?, 0, 0)", (table_of(number),))

    def drop(self, number: int) -> None:
        """Remove the table of a generation."""
        self._file.connection.execute(f"DROP TABLE {table_of(number)}")
        self._file.connection.execute("DELETE FROM sums WHERE name = ?", (table_of(number),))

    def rename(self, old: int, new: int) -> None:
        """Give a generation another number."""
        self._held = {of: held for of, held in self._held.items() if of[0] != old}
        self._file.connection.execute(f"ALTER TABLE {table_of(old)} RENAME TO {table_of(new)}")
        self._file.connection.execute("UPDATE sums SET name = ? WHERE name = ?", (table_of(new), table_of(old)))

    def put(self, number: int, rows: Sequence[int], keys: Sequence[int], vectors: Sequence[bytes]) -> None:
        """Write the vectors of rows that have none."""
        sealed = [(r, k, v, vector_checksum(r, k, v)) for r, k, v in zip(rows, keys, vectors, strict=True)]
        self._file.connection.executemany(f"INSERT INTO {table_of(number)} VALUES (?, ?, ?, ?)", sealed)
        self._file.add_to_sums(table_of(number), [row[3] for row in sealed])

    def get(self, number: int, rows: Iterable[int]) -> dict[int, bytes]:
        """Return row -> vectors of those rows that have them."""
        head = f"SELECT row, key, vectors, checksum FROM {table_of(number)}"
        found = self._file.select(head, "row", rows)
        self._check(found)
        return {row: vectors for row, _, vectors, _ in found}

    def matrix(self, number: int, view: str, start: int, end: int, *, is_live: bool) -> Matrix:
        """Return the vectors of a view, the values from `start` to `end` of each row, as they are now."""
        version, content = int(self._file.meta("version")), self._file.meta("content")
        held = self._held.get((number, view))
        if held is not None and held.content != content:  # the whole index was replaced
            self._held, held = {}, None
        if held is not None and held.version == version:
            return held.matrix.frozen()
        if held is None or not is_live or held.matrix.has_many_masked or not self._refresh(held, number, start, end):
            self._let_go(number, view)
            held = _Held(Matrix(end - start), content, removed=self._last_removed())
            self._append(held, number, start, end)
            if (held.matrix.size, held.total) != self._file.sums(table_of(number)):
                raise self._file.damaged("vectors are missing, or are there twice")
        held.version = version
        self._held[number, view] = held
        return held.matrix.frozen()

    def _let_go(self, number: int, view: str) -> None:
        """Free the matrix that is to be read again, those of dropped generations, and all but the last of the others.

        One other is kept, because requests of both generations cross in the moments after a switch.
        """
        there = {found for (found,) in self._file.connection.execute("SELECT number FROM generations")}
        others = [of[0] for of in self._held if of[0] in there and of[0] != number]
        kept = {number, *others[-1:]}
        self._held = {of: held for of, held in self._held.items() if of[0] in kept and of != (number, view)}

    def _refresh(self, held: _Held, number: int, start: int, end: int) -> bool:
        """Take what was written since; return whether all vectors are there now."""
        last = self._last_removed()
        query = "SELECT row FROM removed WHERE number > ? ORDER BY row"
        gone = [row for (row,) in self._file.connection.execute(query, (held.removed,))]
        if len(gone) != last - held.removed:  # the oldest notes have gone
            return False
        if gone:
            held.matrix.mask(np.array(gone, np.int64))
        held.removed = last
        self._append(held, number, start, end)
        return held.matrix.count == self._file.sums(table_of(number))[0]

    def _append(self, held: _Held, number: int, start: int, end: int) -> None:
        matrix = held.matrix
        last = int(matrix.numbers[matrix.size - 1]) if matrix.size else 0
        cursor = self._file.connection.execute(
            f"SELECT row, key, vectors, checksum FROM {table_of(number)} WHERE row > ? ORDER BY row", (last,)
        )
        width = None
        while found := cursor.fetchmany(_ROWS):
            self._check(found)
            rows, keys, vectors, stored = zip(*found, strict=True)
            held.total += sum(stored)
            whole = np.frombuffer(b"".join(vectors), "<f4")
            width = width or len(whole) // len(found)
            if len(whole) != width * len(found) or width < end:
                raise self._file.damaged("vectors have another dimension than its generation says")
            matrix.append(np.array(rows, np.int64), np.array(keys, np.int64), whole.reshape(-1, width)[:, start:end])

    def _check(self, found: Sequence[tuple[int, int, bytes, int]]) -> None:
        for row, key, vectors, stored in found:
            if vector_checksum(row, key, vectors) != stored:
                raise self._file.damaged(f"the vectors in row {row} do not have their checksum")

    def _last_removed(self) -> int:
        return int(self._file.connection.execute("SELECT coalesce(max(number), 0) FROM removed").fetchone()[0])
