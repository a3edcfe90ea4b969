"""The tables of an index in PostgreSQL, one schema for each index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.index import local_rows as rows
from hystar_fast.index.engine import IndexDamaged, Item, decode_name
from hystar_fast.index.postgres_database import PostgresDatabase, extension_schema
from hystar_fast.index.postgres_where import filter_json
from hystar_fast.index.stamp import Stamp

APPLICATION, FORMAT = "hystar_fast", 1
EXTENSION = "vector"
LARGEST_DIMENSION = 16_000  # of pgvector's type
_MAKING = 0x48595354  # "HYST", the number of a lock
_IN_A_PAGE = 2000  # dimensions of a vector that is stored in its row, beside the other values
_SCHEMA = """
CREATE TABLE {}state (
    application text NOT NULL, format integer NOT NULL, version bigint NOT NULL, items bigint NOT NULL,
    live integer NOT NULL, last integer NOT NULL, settings text NOT NULL);
CREATE TABLE {}generations (
    number integer PRIMARY KEY, stamps text NOT NULL, notes text NOT NULL, items bigint NOT NULL);
CREATE TABLE {}items (
    key text COLLATE "C" PRIMARY KEY, number bigint GENERATED ALWAYS AS IDENTITY UNIQUE, id bytea NOT NULL,
    source bytea NOT NULL, path bytea NOT NULL, caption bytea NOT NULL, attributes text NOT NULL, size bigint NOT NULL,
    sha256 bytea NOT NULL, mtime_ns bigint NOT NULL, filters jsonb NOT NULL);
CREATE TABLE {}styles (name bytea PRIMARY KEY, vector bytea NOT NULL);
CREATE TABLE {}files (name text COLLATE "C", part integer, content bytea NOT NULL, PRIMARY KEY (name, part));
INSERT INTO {}state VALUES ('hystar_fast', 1, 0, 0, 0, 0, '{{}}');
"""
_COLUMNS = (*rows.COLUMNS, "filters")
SELECT = ", ".join(rows.COLUMNS)
"""The columns of an item, as `unpack` takes them."""


def create_tables(database: PostgresDatabase, connection: Any) -> None:
    """Make the schema of an index with its tables, in a transaction.

    Raises:
        ValueError: there is one, or the extension is missing, or the user may not make it.
    """
    driver, address = database._driver, database.address
    name = address.uri
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))  # two commands may make one at a time
    found = connection.execute("SELECT oid FROM pg_namespace WHERE nspname = %s", (address.schema,)).fetchone()
    if found is not None and connection.execute("SELECT 1 FROM pg_class WHERE relnamespace = %s", found).fetchone():
        check_tables(database, connection)
        raise ValueError(f"index must be new, but {name} exists")
    try:
        if extension_schema(connection) is None:
            connection.execute(f"CREATE EXTENSION {EXTENSION}")
    except (driver.errors.FeatureNotSupported, driver.errors.UndefinedFile) as error:
        raise ValueError(
            f"index must be on a server that has pgvector, got {name}: install it there (Debian: "
            "postgresql-17-pgvector)"
        ) from error
    except driver.errors.InsufficientPrivilege as error:
        raise ValueError(
            f"index must be in a database with the extension vector, got {name}: let an administrator run "
            "`CREATE EXTENSION vector` in it"
        ) from error
    try:
        if found is None:
            connection.execute(f'CREATE SCHEMA "{address.schema}"')
        connection.execute(_SCHEMA.format(*[database.table("")] * _SCHEMA.count("{}")))
    except driver.errors.InsufficientPrivilege as error:
        raise ValueError(
            f"index must be in a database where its user may make a schema, got {name}: let an administrator run "
            f'`CREATE SCHEMA "{address.schema}" AUTHORIZATION` that user'
        ) from error


def check_tables(database: PostgresDatabase, connection: Any) -> None:
    """Raise ValueError unless the schema holds an index of this format."""
    driver, address = database._driver, database.address
    try:
        found = connection.execute(f"SELECT application, format FROM {database.table('state')}").fetchall()
    except (driver.errors.UndefinedTable, driver.errors.InvalidSchemaName) as error:
        raise ValueError(
            f"index must be one that `hystar-fast index create` made, got {address.uri}: its database has none of this "
            f"name (schema {address.schema})"
        ) from error
    except (driver.errors.UndefinedColumn, driver.errors.WrongObjectType):
        found = []
    if len(found) != 1 or found[0][0] != APPLICATION:
        raise ValueError(f"index must be one of hystar_fast, but {address.uri} holds tables of another program")
    if found[0][1] != FORMAT:
        raise ValueError(f"index must have format {FORMAT}, but {address.uri} has format {found[0][1]}")


def table_of(generation: int, view: int) -> str:
    """Return the table of the vectors of a view, by its place among those of a generation."""
    return f"vectors_{generation}_{view}"


def create_vectors(database: PostgresDatabase, connection: Any, generation: int, stamps: Mapping[str, Stamp]) -> None:
    """Make the tables of a generation: a search reads those of one view alone.

    A vector that fits a page is stored in its row: read from beside it, an exact search took 832 ms instead of 44.
    """
    schema = extension_schema(connection)
    for place, stamp in enumerate(stamps.values()):
        table, wide = database.table(table_of(generation, place)), stamp.dimension > _IN_A_PAGE
        if stamp.dimension > LARGEST_DIMENSION:
            raise ValueError(
                f"dimension must be at most {LARGEST_DIMENSION} in PostgreSQL, got vectors of {stamp.dimension}"
            )
        connection.execute(
            f'CREATE TABLE {table} (key text COLLATE "C" PRIMARY KEY REFERENCES {database.table("items")} '
            f'ON DELETE CASCADE, vector "{schema}".vector({stamp.dimension}) NOT NULL)'
        )
        connection.execute(f"ALTER TABLE {table} ALTER COLUMN vector SET STORAGE {'EXTERNAL' if wide else 'PLAIN'}")


def pack(item: Item) -> rows.Row:
    """Return the values of an item in the order of the columns.

    Raises:
        ValueError: a value cannot be stored.
    """
    return (item.key, *rows.pack(item)[1:], filter_json(item.attributes))


def put_items(database: PostgresDatabase, connection: Any, packed: Sequence[rows.Row]) -> None:
    """Write items, in place of those with their keys."""
    marks = ", ".join(["%s"] * len(_COLUMNS))
    changed = ", ".join(f"{name} = EXCLUDED.{name}" for name in _COLUMNS[1:])
    connection.cursor().executemany(
        f"INSERT INTO {database.table('items')} ({', '.join(_COLUMNS)}) VALUES ({marks}) "
        f"ON CONFLICT (key) DO UPDATE SET {changed}",
        packed,
    )


def put_vectors(database: PostgresDatabase, connection: Any, table: str, keys: Sequence[str], vectors: Tensor) -> None:
    """Write the vectors [n, D] of items, in place of those that they have."""
    connection.cursor().executemany(
        f"INSERT INTO {database.table(table)} VALUES (%s, %b) ON CONFLICT (key) DO UPDATE SET vector = EXCLUDED.vector",
        zip(keys, vectors.numpy(), strict=True),
    )


def unpack(uri: str, row: rows.Row) -> Item:
    """Return the item of a row of `SELECT`.

    Raises:
        IndexDamaged: it is none.
    """
    try:
        _, item_id, source, path, caption, attributes, size, sha256, mtime_ns = row
        names = (decode_name(item_id), decode_name(source), decode_name(path), decode_name(caption))
        return Item(*names, dict(parse_json(attributes)), size, mtime_ns, sha256.decode())
    except (ValueError, TypeError) as error:
        raise IndexDamaged(f"{uri} is damaged: the item {row[0]} is none") from error


def to_tensor(vectors: Sequence[Any], dimension: int) -> Tensor:
    """Return vectors of pgvector as float32 [n, D]."""
    if not vectors:
        return torch.empty(0, dimension)
    return torch.from_numpy(np.stack([vector.to_numpy() for vector in vectors]))
