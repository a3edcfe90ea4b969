"""A complete check of a local index, and the removal of what is damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from hystar_fast.index import local_rows as rows
from hystar_fast.index.engine import IndexDamaged, decode_name, key_of
from hystar_fast.index.local_vectors import table_of
from hystar_fast.index.local_write import note_removed
from hystar_fast.index.sqlite_file import SqliteFile, checksum, vector_checksum

_LINES = 100  # of SQLite's own check


def verify_file(file: SqliteFile, *, repair: bool = False) -> list[str]:
    """Read every row and compare it with its checksum; return a line for each damage.

    Args:
        file: of the index.
        repair: remove damaged rows, and items without vectors, so that a sync embeds their pictures again. Settings
            and stamps cannot be made good: the pictures must be indexed again.

    Raises:
        IndexDamaged: the tables themselves cannot be read.
    """
    with file.writing() if repair else file.reading() as connection:
        found = [f"SQLite: {line.decode(errors='replace')}" for line in _integrity(connection)]
        found += _bad_parts(file)
        numbers = [number for (number,) in connection.execute("SELECT number FROM generations ORDER BY number")]
        live = int(file.meta("live"))
        bad_items, lines = _bad_items(file)
        found += lines
        lost: set[int] = set()
        for number in numbers:
            bad, lines = _bad_vectors(file, number)
            found += lines
            query = f"SELECT row, id FROM items WHERE row NOT IN (SELECT row FROM {table_of(number)})"
            without = dict(connection.execute(query)) if number == live else {}
            found += [f"{_name(item)} has no vectors" for row, item in without.items() if row not in bad_items]
            strays = f"SELECT row FROM {table_of(number)} WHERE row NOT IN (SELECT row FROM items)"
            orphans = {row for (row,) in connection.execute(strays)}
            found += [f"vectors in row {row} of generation {number} belong to no item" for row in sorted(orphans)]
            if repair:
                _delete(connection, table_of(number), bad | orphans)
            if number == live:
                lost |= bad | {*without}
        if repair:
            for table in ("items", *map(table_of, numbers)):
                _delete(connection, table, bad_items | lost)
        found += _bad_styles(file, repair=repair)
        found += _wrong_sums(file, ["items", "styles", *map(table_of, numbers)], repair=repair)
        return found


def _integrity(connection: sqlite3.Connection) -> Iterator[bytes]:
    for (line,) in connection.execute(f"PRAGMA integrity_check({_LINES})"):
        if line != b"ok":
            yield line


def _bad_parts(file: SqliteFile) -> list[str]:
    """Check the small values and the stamps."""
    found = []
    for name in ("settings", "version", "content", "live"):
        try:
            file.meta(name)
        except IndexDamaged as error:
            found.append(str(error).partition("; ")[0])
    for number, stamps, notes, stored in file.connection.execute("SELECT * FROM generations"):
        if stored != checksum(number, stamps, notes):
            found.append(f"the stamps of generation {number} are damaged")
    return found


def _bad_items(file: SqliteFile) -> tuple[set[int], list[str]]:
    bad, found = set(), []
    for row in file.connection.execute(rows.SELECT):
        try:
            item = rows.unpack(file, row)
            if key_of(item.id) != rows.key_text(file, row[1]):
                raise IndexDamaged
        except IndexDamaged:
            bad.add(row[0])
            found.append(f"the item in row {row[0]}, {_name(row[2])}, is damaged")
    return bad, found


def _bad_vectors(file: SqliteFile, number: int) -> tuple[set[int], list[str]]:
    bad, found = set(), []
    joined = f"{table_of(number)} v LEFT JOIN items i USING (row)"
    query = f"SELECT v.row, v.key, v.vectors, v.checksum, i.id, i.key FROM {joined}"
    for row, key, vectors, stored, item, item_key in file.connection.execute(query):
        if vector_checksum(row, key, vectors) != stored or (item is not None and item_key != key):
            bad.add(row)
            found.append(f"the vectors of {_name(item)} in generation {number} are damaged")
    return bad, found


def _wrong_sums(file: SqliteFile, tables: list[str], *, repair: bool) -> list[str]:
    found = []
    for table in tables:
        counted = file.connection.execute(f"SELECT count(*), coalesce(sum(checksum), 0) FROM {table}").fetchone()
        stored = file.connection.execute("SELECT rows, total FROM sums WHERE name = ?", (table,)).fetchone()
        if stored is None or tuple(counted) != tuple(stored):
            found.append(f"{table} has {counted[0]} rows, and not those that were counted when they were written")
        if repair:
            file.connection.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?)", (table, *counted))
    return found


def _bad_styles(file: SqliteFile, *, repair: bool) -> list[str]:
    stored = file.connection.execute("SELECT name, vector, checksum FROM styles").fetchall()
    bad = [name for name, vector, sealed in stored if sealed != checksum(name, vector)]
    if repair:
        file.delete("styles", "name", bad)
    return [f"the style {_name(name)} is damaged" for name in bad]


def _delete(connection: sqlite3.Connection, table: str, wanted: set[int]) -> None:
    connection.executemany(f"DELETE FROM {table} WHERE row = ?", [(row,) for row in wanted])
    if table == "items":
        note_removed(connection, wanted)


def _name(item: object) -> str:
    return repr(decode_name(item)) if isinstance(item, bytes) else "an item that is not there"
