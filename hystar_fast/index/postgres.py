"""The index engine on a PostgreSQL server with pgvector: exact search in its tables, for many readers and writers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.index import local_rows as rows
from hystar_fast.index import postgres_tables as tables
from hystar_fast.index.engine import (
    LARGEST_BATCH,
    Engine,
    Generation,
    IndexDamaged,
    Item,
    Known,
    decode_name,
    encode_name,
)
from hystar_fast.index.engine_checks import (
    check_batch,
    check_cosine,
    check_fields,
    check_has_views,
    check_not_live,
    check_similarity,
    check_vectors,
    check_view,
    check_whole,
    first_settings,
)
from hystar_fast.index.memory import unit_queries
from hystar_fast.index.postgres_address import PostgresAddress
from hystar_fast.index.postgres_database import PostgresDatabase
from hystar_fast.index.postgres_tables import table_of
from hystar_fast.index.postgres_where import escaped, where_sql
from hystar_fast.index.postgres_write import remove_items, write_items
from hystar_fast.index.stamp import Stamp, list_stamps, stamps_from
from hystar_fast.index.verify_postgres import verify_tables
from hystar_fast.index.where import Where
from hystar_fast.methods.similarity import COSINE, COSINE_NAME, Similarity

_MOST = 2**31  # answers
_ROWS = 5000  # read at a time
_FILE_PART = 2**20  # bytes of a row
_LEAST_EXPONENT = -700.0  # of a float64


class PostgresEngine(Engine):
    """An index in a PostgreSQL database: a schema of its own, with the adapters of its generations in a table.

    Every search is exact, whatever indexes the database has on the vectors. Writers wait for each other, at most five
    seconds; readers wait for nobody.

    Args:
        uri: ``postgresql://USER@HOST:PORT/DATABASE?index=NAME``, with any parameters of libpq. The password is best
            kept in ``~/.pgpass``.

    Raises:
        ValueError: the database has no index of this name and format. EngineUnavailable if it cannot be reached.
        ModuleNotFoundError: the extra `pgvector` is not installed.
    """

    def __init__(self, uri: str) -> None:
        self._open(uri)
        try:
            with self._database.reading() as connection:
                tables.check_tables(self._database, connection)
        except BaseException:
            self.close()
            raise

    def _open(self, uri: str) -> None:
        address = PostgresAddress.parse(uri)
        self.uri, self.folder = address.uri, None
        self._database = PostgresDatabase(address)

    @classmethod
    def create(
        cls,
        uri: str,
        stamps: Mapping[str, Stamp],
        notes: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> PostgresEngine:
        """Make an empty index with one generation, in one transaction; arguments and errors as `LocalEngine.create`.

        Args:
            files: of its adapter, see `put_file`.
        """
        engine = cls.__new__(cls)
        engine._open(uri)
        try:
            with engine._database.transaction() as connection:
                tables.create_tables(engine._database, connection)
                engine.put_settings(first_settings(settings))
                for name, content in (files or {}).items():
                    engine.put_file(name, content)
                engine.create_generation(stamps, notes or {})
        except BaseException:
            engine.close()
            raise
        engine.close()  # connections from before the extension was there
        return cls(uri)

    # content

    def upsert(
        self, items: Sequence[Item], vectors: Mapping[str, Tensor] | None = None, generation: int | None = None
    ) -> None:
        packed = [tables.pack(item) for item in items]
        keys = [row[0] for row in packed]
        check_batch(keys)
        if not packed:
            return
        with self._database.writing() as connection:
            entry = self.generation(generation)
            others = [other for other in self.generations() if other.number != entry.number]
            content = None if vectors is None else rows.checked_views(vectors, entry.stamps, len(packed))
            write_items(self._database, connection, packed, content, entry, others)

    def remove(self, keys: Iterable[str]) -> int:
        wanted = [*keys]
        with self._database.writing() as connection:
            return remove_items(self._database, connection, wanted, self.generations())

    def fetch(self, keys: Sequence[str]) -> dict[str, Item]:
        with self._database.reading() as connection:
            found = self._database.rows_of(connection, "items", tables.SELECT, keys)
        held = {row[0]: tables.unpack(self.uri, row) for row in found}
        return {key: held[key] for key in keys if key in held}

    def vectors(self, keys: Sequence[str], view: str, generation: int | None = None) -> Tensor:
        with self._database.reading() as connection:
            number, place, dimension = self._view(view, generation)
            held = dict(self._database.rows_of(connection, table_of(number, place), "key, vector", keys))
        check_vectors(keys, held, number)
        return tables.to_tensor([held[key] for key in keys], dimension)

    def known(self) -> dict[str, Known]:
        query = f"SELECT key, id, source, path, size, mtime_ns, sha256 FROM {self._table('items')} ORDER BY number"
        found: dict[str, Known] = {}
        with self._database.reading() as connection, connection.cursor(name="known") as cursor:
            cursor.itersize = _ROWS
            for key, item_id, source, path, size, mtime_ns, sha256 in cursor.execute(query):
                names = decode_name(source), decode_name(path)
                found[decode_name(item_id)] = Known(key, *names, size, mtime_ns, sha256.decode())
        return found

    def scan(self, generation: int | None = None) -> Iterator[tuple[list[Item], dict[str, Tensor]]]:
        entry, last = self.generation(generation), 0
        query = f"SELECT {tables.SELECT}, number FROM {self._table('items')} WHERE number > %s ORDER BY number LIMIT %s"
        while True:  # a transaction for each batch: it may take long, and the server may be restarted meanwhile
            with self._database.reading() as connection:
                found = connection.execute(query, (last, LARGEST_BATCH)).fetchall()
                if not found:
                    return
                last = found[-1][-1]
                keys = [row[0] for row in found]
                names = [table_of(entry.number, place) for place, _ in enumerate(entry.stamps)]
                held = [dict(self._database.rows_of(connection, name, "key, vector", keys)) for name in names]
            whole = [row for row in found if all(row[0] in vectors for vectors in held)]
            if whole:
                yield (
                    [tables.unpack(self.uri, row[:-1]) for row in whole],
                    {
                        view: tables.to_tensor([vectors[row[0]] for row in whole], stamp.dimension)
                        for (view, stamp), vectors in zip(entry.stamps.items(), held, strict=True)
                    },
                )

    def missing(self, generation: int) -> list[str]:
        with self._database.reading() as connection:
            table = self._table(table_of(self.generation(generation).number, 0))
            query = (
                f"SELECT key FROM {self._table('items')} i WHERE NOT EXISTS "
                f"(SELECT FROM {table} v WHERE v.key = i.key) ORDER BY number"
            )
            return [key for (key,) in connection.execute(query)]

    def count(self, where: Where | None = None) -> int:
        with self._database.reading() as connection:
            if where is None:
                return int(self._state(connection, "items"))
            condition, values = where_sql(where)
            query = f"SELECT count(*) FROM {self._table('items')} WHERE {condition}"
            found = int(connection.execute(query, values).fetchone()[0])
            if not found:
                self._check_fields(connection, where)
            return found

    def keys(self, where: Where | None = None) -> list[str]:
        condition, values = where_sql(where or Where(()))
        query = f"SELECT key FROM {self._table('items')} WHERE {condition} ORDER BY number"
        with self._database.reading() as connection:
            found = [key for (key,) in connection.execute(query, values)]
            if not found and where is not None:
                self._check_fields(connection, where)
            return found

    def _check_fields(self, connection: Any, where: Where) -> None:
        """Raise ValueError if a filter names an attribute that no item has."""
        query = f"SELECT 1 FROM {self._table('items')} WHERE filters ? %s LIMIT 1"
        check_fields(
            where,
            lambda: bool(self._state(connection, "items")),
            lambda name: connection.execute(query, (escaped(name),)).fetchone() is not None,
        )

    # search

    def search(
        self,
        view: str,
        queries: Tensor,
        k: int,
        where: Where | None = None,
        generation: int | None = None,
        *,
        similarity: Similarity = COSINE,
    ) -> tuple[Tensor, list[list[str]]]:
        check_similarity(COSINE_NAME, similarity, self.uri)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        with self._database.reading() as connection:
            scored, values, units = self._scored(view, queries, where, generation)
            # no operator of an index stands in the order, so that one which approximates is never used
            query = f"SELECT score, key FROM ({scored}) s ORDER BY score DESC, key LIMIT %s"
            found = [connection.execute(query, (unit, *values, min(k, _MOST))).fetchall() for unit in units.numpy()]
            if where is not None and found and not found[0]:
                self._check_fields(connection, where)
        scores = torch.tensor([[score for score, _ in row] for row in found], dtype=torch.float32)
        return scores.reshape(len(found), -1 if found else 0).clamp_(-1, 1), [[key for _, key in row] for row in found]

    def log_sum(
        self, view: str, queries: Tensor, scale: float, where: Where | None = None, generation: int | None = None
    ) -> Tensor:
        with self._database.reading() as connection:
            scored, values, units = self._scored(view, queries, where, generation)
            query = f"SELECT sum(exp(greatest(%s::float8 * (score - 1), {_LEAST_EXPONENT}))) FROM ({scored}) s"
            sums = [connection.execute(query, (scale, unit, *values)).fetchone()[0] for unit in units.numpy()]
        total = torch.tensor([[value or 0.0] for value in sums], dtype=torch.float64)
        return (total.log() + scale).float()

    def _scored(
        self, view: str, queries: Tensor, where: Where | None, generation: int | None
    ) -> tuple[str, list[Any], Tensor]:
        """Return a query of keys and scores, its parameters after the vector, and the unit vectors [N, D]."""
        number, place, dimension = self._view(view, generation)
        units = unit_queries(queries, dimension)
        vectors, product = self._table(table_of(number, place)), f'OPERATOR("{self._database.extension}".<#>)'
        head = f"SELECT v.key, -(v.vector {product} %b) AS score FROM {vectors} v"
        if where is None:
            return head, [], units
        condition, values = where_sql(where)
        return f"{head} WHERE v.key IN (SELECT key FROM {self._table('items')} WHERE {condition})", values, units

    # generations

    def generations(self) -> list[Generation]:
        with self._database.reading() as connection:
            live, found = self._state(connection, "live"), []
            query = f"SELECT number, stamps, notes, items FROM {self._table('generations')} ORDER BY number"
            for number, stamps, notes, count in connection.execute(query):
                by_view = stamps_from(self._json(stamps))
                found.append(Generation(number, by_view, self._json(notes), number == live, count))
            return found

    def create_generation(self, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> int:
        check_has_views(stamps)
        check_cosine(stamps, "PostgreSQL")
        content = rows.to_bytes(list_stamps(stamps)).decode()
        with self._database.writing() as connection:
            query = f"UPDATE {self._table('state')} SET last = last + 1 RETURNING last"
            number = int(connection.execute(query).fetchone()[0])
            row = (number, content, rows.to_bytes(dict(notes)).decode())
            connection.execute(f"INSERT INTO {self._table('generations')} VALUES (%s, %s, %s, 0)", row)
            tables.create_vectors(self._database, connection, number, stamps)
            if number == 1:
                connection.execute(f"UPDATE {self._table('state')} SET live = 1")
        return number

    def switch(self, generation: int) -> None:
        with self._database.writing() as connection:
            entry = self.generation(generation)
            check_whole(generation, self._state(connection, "items") - entry.count)
            connection.execute(f"UPDATE {self._table('state')} SET live = %s", (entry.number,))

    def drop(self, generation: int) -> None:
        with self._database.writing() as connection:
            entry = self.generation(generation)
            check_not_live(generation, is_live=entry.live)
            connection.execute(f"DELETE FROM {self._table('generations')} WHERE number = %s", (generation,))
            for place, _ in enumerate(entry.stamps):
                connection.execute(f"DROP TABLE {self._table(table_of(generation, place))}")

    def _view(self, view: str, generation: int | None) -> tuple[int, int, int]:
        """Return the generation, the place of a view among its views, and the view's dimension."""
        entry = self.generation(generation)
        check_view(view, entry.stamps)
        return entry.number, entry.views.index(view), entry.stamps[view].dimension

    # small things

    def settings(self) -> dict[str, Any]:
        with self._database.reading() as connection:
            return dict(self._json(self._state(connection, "settings")))

    def put_settings(self, settings: Mapping[str, Any]) -> None:
        with self._database.writing() as connection:
            content = rows.to_bytes(dict(settings)).decode()
            connection.execute(f"UPDATE {self._table('state')} SET settings = %s", (content,))

    def update_settings(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        with self._database.writing():
            super().update_settings(change)

    def put_style(self, name: str, vector: Tensor) -> None:
        content = rows.style_bytes(vector)
        query = f"INSERT INTO {self._table('styles')} VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET vector = %s"
        with self._database.writing() as connection:
            connection.execute(query, (encode_name(name), content, content))

    def styles(self) -> dict[str, Tensor]:
        with self._database.reading() as connection:
            found = connection.execute(f"SELECT name, vector FROM {self._table('styles')} ORDER BY name").fetchall()
        return {decode_name(name): torch.from_numpy(np.frombuffer(held, "<f4").astype("=f4")) for name, held in found}

    def delete_style(self, name: str) -> bool:
        with self._database.writing() as connection:
            query = f"DELETE FROM {self._table('styles')} WHERE name = %s"
            return bool(connection.execute(query, (encode_name(name),)).rowcount)

    def put_file(self, name: str, content: bytes) -> None:
        with self._database.writing() as connection:
            connection.execute(f"DELETE FROM {self._table('files')} WHERE name = %s", (name,))
            parts = [content[start : start + _FILE_PART] for start in range(0, max(1, len(content)), _FILE_PART)]
            query = f"INSERT INTO {self._table('files')} VALUES (%s, %s, %b)"
            connection.cursor().executemany(query, [(name, number, part) for number, part in enumerate(parts)])

    def file(self, name: str) -> bytes | None:
        query = f"SELECT content FROM {self._table('files')} WHERE name = %s ORDER BY part"
        with self._database.reading() as connection:
            found = connection.cursor(binary=True).execute(query, (name,)).fetchall()
        return b"".join(part for (part,) in found) if found else None

    def delete_file(self, name: str) -> None:
        with self._database.writing() as connection:
            connection.execute(f"DELETE FROM {self._table('files')} WHERE name = %s", (name,))

    def version(self) -> int:
        with self._database.reading() as connection:
            return int(self._state(connection, "version"))

    def health(self) -> None:
        with self._database.reading():
            self.settings()
            self.generation()

    def verify(self, *, repair: bool = False) -> list[str]:
        block = self._database.writing() if repair else self._database.reading()
        with block as connection:
            return verify_tables(self._database, connection, self.generations(), repair=repair)

    def close(self) -> None:
        self._database.close()

    def _table(self, name: str) -> str:
        return self._database.table(name)

    def _state(self, connection: Any, column: str) -> Any:
        found = connection.execute(f"SELECT {column} FROM {self._table('state')}").fetchone()
        if found is None:
            raise IndexDamaged(f"{self.uri} is damaged: it has no state")
        return found[0]

    def _json(self, text: str) -> Any:
        try:
            return parse_json(text)
        except ValueError as error:
            raise IndexDamaged(f"{self.uri} is damaged: its settings, stamps or notes are no JSON: {error}") from error
