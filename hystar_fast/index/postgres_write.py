"""Write items with their vectors into an index in PostgreSQL, within a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hystar_fast.index import local_rows as rows
from hystar_fast.index.engine import Generation, decode_name
from hystar_fast.index.engine_checks import check_held, check_id
from hystar_fast.index.postgres_database import PostgresDatabase
from hystar_fast.index.postgres_tables import put_items, put_vectors, table_of


def write_items(
    database: PostgresDatabase,
    connection: Any,
    packed: Sequence[rows.Row],
    content: Mapping[str, Tensor] | None,
    entry: Generation,
    others: Sequence[Generation],
) -> None:
    """Write items, see `Engine.upsert`.

    Args:
        database: of the index.
        connection: within a block of `writing`.
        packed: the items.
        content: view -> vectors [n, D]; None changes the items alone.
        entry: the generation of the vectors.
        others: all other generations.
    """
    keys = [row[0] for row in packed]
    found = database.rows_of(connection, "items", "key, id, sha256", keys)
    earlier = {key: (item_id, sha256) for key, item_id, sha256 in found}
    ids = {row[0]: decode_name(row[1]) for row in packed}
    for key, (item_id, _) in earlier.items():
        check_id(ids[key], decode_name(item_id))
    if content is None or not entry.live:
        for row in packed:
            held_sha256 = earlier[row[0]][1] if row[0] in earlier else None
            check_held(ids[row[0]], row[rows.SHA256], held_sha256, is_same_file=content is not None)
    if content is None or entry.live:
        put_items(database, connection, packed)
        _count(database, connection, "state", len(packed) - len(earlier))
    if content is None:
        return
    if entry.live:
        changed = [row[0] for row in packed if row[0] in earlier and earlier[row[0]][1] != row[rows.SHA256]]
        _remove_vectors(database, connection, changed, others)
    held = database.rows_of(connection, table_of(entry.number, 0), "key", keys)
    for place, view in enumerate(entry.stamps):
        put_vectors(database, connection, table_of(entry.number, place), keys, content[view])
    _count(database, connection, "generations", len(keys) - len(held), entry.number)


def remove_items(
    database: PostgresDatabase, connection: Any, keys: Iterable[str], generations: Sequence[Generation]
) -> int:
    """Remove items and their vectors from all generations; return how many there were."""
    wanted = [key for (key,) in database.rows_of(connection, "items", "key", [*keys])]
    _remove_vectors(database, connection, wanted, generations)
    connection.execute(f"DELETE FROM {database.table('items')} WHERE key = ANY(%s)", (wanted,))
    _count(database, connection, "state", -len(wanted))
    return len(wanted)


def _remove_vectors(
    database: PostgresDatabase, connection: Any, keys: Sequence[str], generations: Sequence[Generation]
) -> None:
    if not keys:
        return
    for entry in generations:
        removed = 0
        for place, _ in enumerate(entry.stamps):
            query = f"DELETE FROM {database.table(table_of(entry.number, place))} WHERE key = ANY(%s)"
            removed = connection.execute(query, ([*keys],)).rowcount
        _count(database, connection, "generations", -removed, entry.number)


def _count(database: PostgresDatabase, connection: Any, table: str, added: int, number: int | None = None) -> None:
    """Count items into the index (table "state"), or items with vectors into a generation."""
    where = "" if number is None else f" WHERE number = {number}"
    connection.execute(f"UPDATE {database.table(table)} SET items = items + %s{where}", (added,))
