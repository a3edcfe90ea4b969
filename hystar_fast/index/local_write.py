"""Write items with their vectors into a local index, within a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Connection
from typing import Any

from hystar_fast.index import local_rows as rows
from hystar_fast.index.engine import Generation, decode_name
from hystar_fast.index.engine_checks import check_held, check_id
from hystar_fast.index.local_vectors import VectorTables, table_of
from hystar_fast.index.sqlite_file import SqliteFile

LOGGED = 2**16
"""Removals that are noted; a reader that has missed more reads its vectors anew."""


def write_items(
    file: SqliteFile,
    tables: VectorTables,
    packed: Sequence[rows.Row],
    content: Sequence[bytes] | None,
    entry: Generation,
    others: Sequence[int],
) -> None:
    """Write items, see `Engine.upsert`.

    Args:
        file: of the index, within a block of `writing`.
        tables: its vectors.
        packed: the items.
        content: the vectors of each item; None changes the items alone.
        entry: the generation of the vectors.
        others: the numbers of the generations that are not live.
    """
    keys = [row[0] for row in packed]
    found = file.select("SELECT key, row, id, sha256 FROM items", "key", keys)
    earlier = {key: (row, item_id, sha256) for key, row, item_id, sha256 in found}
    ids = {row[0]: decode_name(row[1]) for row in packed}
    for key, (_, item_id, _) in earlier.items():
        check_id(ids[key], decode_name(item_id))
    if content is None or not entry.live:
        for row in packed:
            held = earlier[row[0]][2] if row[0] in earlier else None
            check_held(ids[row[0]], row[rows.SHA256], held, is_same_file=content is not None)
    if content is None:
        rows.update(file, {earlier[row[0]][0]: row for row in packed})
        return
    if entry.live:
        numbers = _replace(file, tables, packed, earlier, entry.number, others)
    else:
        numbers = [earlier[key][0] for key in keys]
        file.delete(table_of(entry.number), "row", numbers)
    tables.put(entry.number, numbers, keys, content)


def remove_rows(file: SqliteFile, found: Sequence[int], generations: Sequence[int]) -> None:
    """Remove items by their rows, and their vectors from the generations."""
    file.delete("items", "row", found)
    for number in generations:
        file.delete(table_of(number), "row", found)
    note_removed(file.connection, found)


def note_removed(connection: Connection, found: Iterable[int]) -> None:
    """Note removed rows for the readers that hold them in memory; the oldest notes go, see `LOGGED`."""
    connection.executemany("INSERT INTO removed (row) VALUES (?)", [(row,) for row in found])
    connection.execute("DELETE FROM removed WHERE number <= (SELECT max(number) FROM removed) - ?", (LOGGED,))


def _replace(
    file: SqliteFile,
    tables: VectorTables,
    packed: Sequence[rows.Row],
    earlier: Mapping[int, Any],
    live: int,
    others: Sequence[int],
) -> list[int]:
    """Write items into new rows and return these; vectors of the same content in other generations move along.

    Readers take new rows, and no vector of an earlier content belongs to one.
    """
    same = {row[0]: earlier[row[0]][0] for row in packed if earlier.get(row[0], (0, 0, None))[2] == row[rows.SHA256]}
    moving = {number: tables.get(number, same.values()) for number in others}
    remove_rows(file, [held[0] for held in earlier.values()], [live, *others])
    numbers = rows.insert(file, packed)
    for number, held in moving.items():
        moved = [(new, row[0], same[row[0]]) for new, row in zip(numbers, packed, strict=True) if row[0] in same]
        moved = [entry for entry in moved if entry[2] in held]
        tables.put(number, [m[0] for m in moved], [m[1] for m in moved], [held[m[2]] for m in moved])
    return numbers
