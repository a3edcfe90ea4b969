"""A complete check of an index in PostgreSQL, and the removal of what is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hystar_fast.index import local_rows as rows
from hystar_fast.index.engine import Generation, IndexDamaged, decode_name, key_of
from hystar_fast.index.postgres_database import PostgresDatabase
from hystar_fast.index.postgres_tables import SELECT, table_of, to_tensor, unpack
from hystar_fast.index.postgres_where import filter_json

_ROWS = 1000  # read at a time


def verify_tables(database: PostgresDatabase, generations: Sequence[Generation], *, repair: bool = False) -> list[str]:
    """Read every row; return a line for each that cannot be what was written.

    The server's own checksums (`SHOW data_checksums`) find flipped bits when a row is read; this finds rows that
    another program changed or removed.

    Args:
        database: of the index.
        generations: all of it.
        repair: remove damaged rows, and items without vectors, so that a sync embeds their pictures again.
    """
    with database.writing() if repair else database.reading() as connection:
        names, lost, found = {}, set[str](), list[str]()
        for row in _rows(connection, f"SELECT {SELECT}, filters FROM {database.table('items')} ORDER BY number"):
            names[row[0]] = repr(decode_name(row[1]))
            if not _is_whole(database.address.uri, row):
                lost.add(row[0])
                found.append(f"the item {names[row[0]]} is damaged")
        for entry in generations:
            bad, held = set[str](), []
            for place, stamp in enumerate(entry.stamps.values()):
                there = set[str]()
                for key, vector in _rows(connection, f"SELECT * FROM {database.table(table_of(entry.number, place))}"):
                    there.add(key)
                    if not rows.are_units(to_tensor([vector], stamp.dimension)):
                        bad.add(key)
                held.append(there)
            some, all_ = set.union(*held), set.intersection(*held)
            bad |= some - all_
            found += [
                f"the vectors of {names.get(key, key)} in generation {entry.number} are damaged" for key in sorted(bad)
            ]
            if entry.live:
                without = [key for key in names if key not in some]
                found += [f"{names[key]} has no vectors" for key in without]
                lost |= bad | {*without}
            if repair:
                for place, _ in enumerate(entry.stamps):
                    _delete(database, connection, table_of(entry.number, place), bad | lost)
            found += _wrong_count(database, connection, "generations", entry.number, len(some), entry.count, repair)
        if repair:
            _delete(database, connection, "items", lost)
        count = connection.execute(f"SELECT items FROM {database.table('state')}").fetchone()[0]
        return found + _wrong_count(database, connection, "state", None, len(names), count, repair)


def _rows(connection: Any, query: str) -> Iterator[Any]:
    with connection.cursor(name="verify") as cursor:
        cursor.itersize = _ROWS
        yield from cursor.execute(query, binary=True)


def _is_whole(uri: str, row: Any) -> bool:
    try:
        item = unpack(uri, row[:-1])
        return item.key == row[0] == key_of(item.id) and json.loads(filter_json(item.attributes)) == row[-1]
    except IndexDamaged:
        return False


def _delete(database: PostgresDatabase, connection: Any, table: str, keys: set[str]) -> None:
    connection.execute(f"DELETE FROM {database.table(table)} WHERE key = ANY(%s)", ([*keys],))


def _wrong_count(
    database: PostgresDatabase, connection: Any, of: str, number: int | None, there: int, stored: int, repair: bool
) -> list[str]:
    """Compare a stored count with that of the rows; with `repair`, count again."""
    where = "" if number is None else f" WHERE number = {number}"
    counted = "items" if number is None else table_of(number, 0)
    if repair:
        again = f"(SELECT count(*) FROM {database.table(counted)})"
        connection.execute(f"UPDATE {database.table(of)} SET items = {again}{where}")
    if there == stored:
        return []
    name = "the index" if number is None else f"generation {number}"
    return [f"{name} has {there} items, and not {stored}, as were counted when they were written"]
