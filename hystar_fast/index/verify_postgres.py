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


def verify_tables(
    database: PostgresDatabase, connection: Any, generations: Sequence[Generation], *, repair: bool = False
) -> list[str]:
    """Read every row; return a line for each that cannot be what was written.

    The server's own checksums (`SHOW data_checksums`) find flipped bits when a row is read; this finds rows that
    another program changed or removed.

    Args:
        database: of the index.
        connection: within a block of `reading`, or of `writing` to repair.
        generations: all, as they are in that block.
        repair: remove damaged rows, and items without vectors, so that a sync embeds their pictures again.
    """
    names, lost, found = _check_items(database, connection)
    counts: dict[int | None, tuple[int, int]] = {}
    damaged: dict[str, set[str]] = {}
    for entry in generations:
        bad, some = _check_vectors(database, connection, entry)
        of = f"in generation {entry.number} are damaged"
        found += [f"the vectors of {names.get(key, key)} {of}" for key in sorted(bad)]
        if entry.live:
            without = [key for key in names if key not in some]
            found += [f"{names[key]} has no vectors" for key in without]
            lost |= bad | {*without}
        damaged |= dict.fromkeys(_tables(entry), bad)
        counts[entry.number] = len(some), entry.count
    stored = connection.execute(f"SELECT items FROM {database.table('state')}").fetchone()[0]
    counts[None] = len(names), stored
    found += [
        f"{'the index' if number is None else f'generation {number}'} has {there} items, and not {stored}, as were "
        "counted when they were written"
        for number, (there, stored) in counts.items()
        if there != stored
    ]
    if repair:
        for table, keys in {**damaged, "items": lost}.items():
            connection.execute(f"DELETE FROM {database.table(table)} WHERE key = ANY(%s)", ([*keys],))
        _count_again(database, connection, generations)
    return found


def _check_items(database: PostgresDatabase, connection: Any) -> tuple[dict[str, str], set[str], list[str]]:
    """Return the names of all items, the keys of those that are damaged, and a line for each of these."""
    names, lost, found = {}, set[str](), list[str]()
    for row in _rows(connection, f"SELECT {SELECT}, filters FROM {database.table('items')} ORDER BY number"):
        names[row[0]] = repr(decode_name(row[1]))
        if not _is_whole(database.address.uri, row):
            lost.add(row[0])
            found.append(f"the item {names[row[0]]} is damaged")
    return names, lost, found


def _check_vectors(database: PostgresDatabase, connection: Any, entry: Generation) -> tuple[set[str], set[str]]:
    """Return the keys of the damaged vectors of a generation, and of all; one that a view lacks is damaged."""
    bad, held = set[str](), list[set[str]]()
    for table, stamp in zip(_tables(entry), entry.stamps.values(), strict=True):
        there = set[str]()
        for key, vector in _rows(connection, f"SELECT key, vector FROM {database.table(table)}"):
            there.add(key)
            if not rows.are_units(to_tensor([vector], stamp.dimension)):
                bad.add(key)
        held.append(there)
    some = held[0].union(*held)
    return bad | (some - held[0].intersection(*held)), some


def _tables(entry: Generation) -> list[str]:
    return [table_of(entry.number, place) for place, _ in enumerate(entry.stamps)]


def _count_again(database: PostgresDatabase, connection: Any, generations: Sequence[Generation]) -> None:
    for entry in generations:
        count = f"(SELECT count(*) FROM {database.table(table_of(entry.number, 0))})"
        table = database.table("generations")
        connection.execute(f"UPDATE {table} SET items = {count} WHERE number = %s", (entry.number,))
    connection.execute(f"UPDATE {database.table('state')} SET items = (SELECT count(*) FROM {database.table('items')})")


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
