"""The SQLite file of a local index: its tables, transactions, and errors in our words."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hystar_fast.index.engine import EngineFull, EngineUnavailable, IndexDamaged
from hystar_fast.index.local_where import add_functions

WAIT = 5.0  # seconds for another writer
_APPLICATION, _FORMAT = 0x48595354, 2  # "HYST"
_PAGE = 32768  # bytes
_CHUNK = 500  # values of one statement
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE sums (name TEXT PRIMARY KEY, rows INTEGER NOT NULL, total INTEGER NOT NULL);
CREATE TABLE generations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, stamps BLOB NOT NULL, notes BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE items (
    row INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL UNIQUE, id BLOB NOT NULL, source BLOB NOT NULL,
    path BLOB NOT NULL, caption BLOB NOT NULL, attributes TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, sha256 BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE removed (number INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL);
CREATE TABLE styles (name BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL);
INSERT INTO sums VALUES ('items', 0, 0), ('styles', 0, 0);
"""


def checksum(*values: Any) -> int:
    """Return the CRC-32 of a row's values, which are bytes and whole numbers."""
    return zlib.crc32(repr(values).encode())


def vector_checksum(row: Any, key: Any, vectors: Any) -> int:
    """Return the CRC-32 of the vectors of an item, which belong to its row and key; -1 for values of other types."""
    if not (isinstance(row, int) and isinstance(key, int) and isinstance(vectors, bytes)):
        return -1
    return zlib.crc32(vectors, (row ^ key) & 0xFFFFFFFF)


class SqliteFile:
    """An open index file.

    It is read through a snapshot at a time and written in transactions that are on the disk when they end. Where the
    file or its folder cannot be written, it is opened for reading alone.

    Args:
        path: of the file; None for one in memory, which is new.
        create: write the tables into a new file.

    Raises:
        ValueError: the file does not exist, or it exists although it is to be created, or is no index.
    """

    def __init__(self, path: Path | None, *, create: bool = False) -> None:
        self.path = path or Path("memory")
        self.lock = threading.RLock()
        self._opened: tuple[int, int] | None = None
        self._inode: tuple[int, int] | None = None
        self._is_writing = False
        if path is not None and not create and not path.is_file():
            raise ValueError(f"index must hold {path.name}, but {path} does not exist")
        with self.errors():
            if path is None:
                self._set_up(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
            else:
                self._connect(create)
            found = (self._pragma("application_id"), self._pragma("user_version"))
            if create or path is None:
                self._create(found)
            elif found[0] != _APPLICATION and self._is_empty():
                raise ValueError(f"index must be one of hystar_fast, but {path} is empty: it was not made to the end")
            elif found[0] != _APPLICATION:
                raise ValueError(f"index must be one of hystar_fast, but {path} is another SQLite file")
            elif found[1] != _FORMAT:
                raise ValueError(f"index must have format {_FORMAT}, but {path} has format {found[1]}")
        if path is not None:
            self._inode = _inode(path)

    def _set_up(self, connection: sqlite3.Connection, *, writable: bool = True) -> None:
        self.connection, self.writable = connection, writable
        connection.text_factory = bytes
        add_functions(connection)

    def _connect(self, create: bool) -> None:
        folder = self.path.parent
        writable = os.access(folder, os.W_OK) and (create or os.access(self.path, os.W_OK))
        log = self.path.with_name(self.path.name + "-wal")
        place = f"file:{quote(os.fsencode(self.path.absolute()))}"
        if writable:
            place += "?mode=rwc" if create else "?mode=rw"
        elif log.exists() and log.stat().st_size:
            place += "?mode=ro"
        else:  # no writer is at work, and SQLite cannot make the files by which it would see one
            place += "?mode=ro&immutable=1"
            state = self.path.stat()
            self._opened = (state.st_mtime_ns, state.st_size)
        connection = sqlite3.connect(place, uri=True, timeout=WAIT, isolation_level=None, check_same_thread=False)
        self._set_up(connection, writable=writable)
        if create:
            self.connection.execute(f"PRAGMA page_size={_PAGE}")
        if writable:
            if self.connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != b"wal":
                raise ValueError(f"index must be on a disk whose files can be shared by SQLite, got {self.path}")
            self.connection.execute("PRAGMA synchronous=FULL")

    def _create(self, found: tuple[int, int]) -> None:
        if found[0] and self.connection.execute("SELECT 1 FROM meta WHERE name = 'live'").fetchone():
            raise ValueError(f"index must be new, but {self.path} exists")
        if found[0]:  # its creation was cut short
            return
        if not self._is_empty():
            raise ValueError(f"index must be one of hystar_fast, but {self.path} is another SQLite file")
        with self.writing(counts=False):
            for statement in _SCHEMA.split(";\n"):
                self.connection.execute(statement)
            self.put_meta("version", b"0")
            self.put_meta("content", secrets.token_bytes(16))
            self.connection.execute(f"PRAGMA application_id={_APPLICATION}")
            self.connection.execute(f"PRAGMA user_version={_FORMAT}")

    def _is_empty(self) -> bool:
        return self.connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None

    def _pragma(self, name: str) -> int:
        return int(self.connection.execute(f"PRAGMA {name}").fetchone()[0])

    def close(self) -> None:
        with self.lock:
            self.connection.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the errors of SQLite as ours."""
        try:
            yield
        except UnicodeDecodeError as error:  # in a message about a damaged schema
            raise self.damaged(str(error.object)) from error
        except sqlite3.ProgrammingError as error:
            raise EngineUnavailable(f"{self.path} is closed: {error}") from error
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise EngineUnavailable(
                    f"{self.path} is being written by another command, and did not become free in {WAIT:g} s: try again"
                ) from error
            if code == sqlite3.SQLITE_FULL:
                raise EngineFull(f"No space left on device for {self.path}; it holds what it held before") from error
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
                raise EngineUnavailable(f"{self.path} cannot be used: {error}") from error
            raise self.damaged(str(error)) from error

    def damaged(self, what: str) -> IndexDamaged:
        """Return the error for damaged content."""
        return IndexDamaged(
            f"{self.path} is damaged: {what}; `hystar-fast index verify {self.path.parent}` says what can be saved"
        )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give one state of the index for several statements."""
        with self.lock, self.errors():
            if self.connection.in_transaction:  # within a block of reading or writing
                yield self.connection
                return
            self._follow()
            self.connection.execute("BEGIN")
            try:
                yield self.connection
            finally:
                self.connection.execute("COMMIT")

    @contextmanager
    def writing(self, *, counts: bool = True) -> Iterator[sqlite3.Connection]:
        """Give a transaction: all of it is on the disk at the end, or nothing. Blocks within it belong to it."""
        with self.lock, self.errors():
            if not self.writable:
                raise EngineUnavailable(f"{self.path} cannot be written: it, or its folder, is read-only")
            if self._is_writing:  # within another block of writing
                yield self.connection
                return
            if self.connection.in_transaction:
                raise RuntimeError("a block of writing must not begin within one of reading")
            self._follow()
            self.connection.execute("BEGIN IMMEDIATE")
            self._is_writing = True
            try:
                yield self.connection
                if counts:
                    self.put_meta("version", str(int(self.meta("version")) + 1).encode())
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                self._is_writing = False

    def _follow(self) -> None:
        """Refuse to go on with a file that was removed or exchanged; open it again if it was opened as one that nobody
        writes, and somebody has.

        Raises:
            EngineUnavailable: another file is in its place, or none: what it holds is not the index any more.
        """
        if self._inode is not None and _inode(self.path) != self._inode:
            raise EngineUnavailable(f"{self.path} was removed or replaced while it was open: open the index again")
        if self._opened is None:
            return
        state = self.path.stat()
        log = self.path.with_name(self.path.name + "-wal")
        if (state.st_mtime_ns, state.st_size) != self._opened or (log.exists() and log.stat().st_size):
            self.connection.close()
            self._opened = None
            self._connect(create=False)

    def meta(self, name: str) -> bytes:
        """Return a value by its name."""
        found = self.connection.execute("SELECT value, checksum FROM meta WHERE name = ?", (name,)).fetchone()
        if found is None:
            raise self.damaged(f"it has no {name}")
        if found[1] != checksum(name.encode(), found[0]):
            raise self.damaged(f"its {name} does not have its checksum")
        return bytes(found[0])

    def put_meta(self, name: str, value: bytes) -> None:
        row = (name, value, checksum(name.encode(), value))
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)

    def sums(self, table: str) -> tuple[int, int]:
        """Return the number of rows of a table and the sum of their checksums, as the writers counted them."""
        found = self.connection.execute("SELECT rows, total FROM sums WHERE name = ?", (table,)).fetchone()
        if found is None or not all(isinstance(value, int) for value in found):
            raise self.damaged(f"it has no sums of {table}")
        return int(found[0]), int(found[1])

    def add_to_sums(self, table: str, added: Iterable[int] = (), taken: Iterable[int] = ()) -> None:
        """Count rows with these checksums in and out."""
        plus, minus = [*added], [*taken]
        self.connection.execute(
            "UPDATE sums SET rows = rows + ?, total = total + ? WHERE name = ?",
            (len(plus) - len(minus), sum(plus) - sum(minus), table),
        )

    def select(self, head: str, column: str, values: Iterable[Any], tail: str = "") -> list[tuple[Any, ...]]:
        """Return the rows of ``head WHERE column IN values tail``, for any number of values."""
        wanted, rows = [*values], []
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            rows += self.connection.execute(f"{head} WHERE {column} IN ({marks}) {tail}", part).fetchall()
        return rows

    def delete(self, table: str, column: str, values: Iterable[Any]) -> None:
        """Delete rows by the values of a column, and take them out of the sums of the table."""
        wanted = [*values]
        taken = self.select(f"SELECT checksum FROM {table}", column, wanted)
        self.connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(value,) for value in wanted])
        self.add_to_sums(table, taken=[row[0] for row in taken])


def _inode(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others; None if it is not there."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino
