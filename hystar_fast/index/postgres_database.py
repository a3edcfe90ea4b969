"""The connections of an index in PostgreSQL: transactions, and errors in our words."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hystar_fast.index.engine import EngineFull, EngineUnavailable, IndexDamaged
from hystar_fast.index.local_rows import number_of
from hystar_fast.index.postgres_address import PostgresAddress, psycopg

WAIT = 5.0  # seconds for another writer
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_FULL = ("53100",)
_DAMAGED = ("XX001", "XX002")
_BUSY = ("55P03",)  # the lock of another writer
_READ_ONLY = ("25006",)  # a standby, as after a failover
_NO_RIGHT = ("42501",)
_GONE = ("3F000", "42P01", "42703", "42704", "42883")  # a schema, table, column, type or operator
_AGAIN = ("28", "3D", "40", "53", "57", "58")  # classes: login, no database, rolled back, resources, operator, system


class PostgresDatabase:
    """The tables of one index, read through one snapshot at a time and written in transactions.

    Every thread that is in a block has a connection of its own; those that are not used wait for the next. One that
    has died, because the server was restarted, is replaced when a block begins. Nothing is set on a connection beyond
    a transaction, so that a pooler may stand before the server.

    Args:
        address: of the index.
    """

    def __init__(self, address: PostgresAddress) -> None:
        self.address = address
        self._driver = psycopg()
        self._idle: list[Any] = []
        self._lock, self._mine = threading.Lock(), threading.local()
        self._is_closed = False
        self.extension: str | None = None  # the schema of pgvector

    def table(self, name: str) -> str:
        """Return the name of a table, as a statement takes it."""
        return f'"{self.address.schema}".{name}'

    def rows_of(self, connection: Any, table: str, columns: str, keys: Sequence[str]) -> list[Any]:
        """Return the rows of a table that have these keys.

        Raises:
            ValueError: one is no key.
        """
        for key in keys:
            number_of(key)
        query = f"SELECT {columns} FROM {self.table(table)} WHERE key = ANY(%s)"
        return list(connection.cursor(binary=True).execute(query, ([*keys],)).fetchall())

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Give one state of the index for several statements."""
        with self._block(_READ, is_writing=False) as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Give a transaction that writes; blocks within it belong to it."""
        with self._block(_WRITE, is_writing=True) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """Give a transaction that no other writer of the index is in; the version of the index grows."""
        is_first = getattr(self._mine, "held", None) is None
        with self.transaction() as connection:
            if is_first:
                connection.execute(f"SET LOCAL lock_timeout = '{int(WAIT * 1000)}ms'")
                connection.execute(f"UPDATE {self.table('state')} SET version = version + 1")
            yield connection

    @contextmanager
    def _block(self, begin: str, *, is_writing: bool) -> Iterator[Any]:
        held = getattr(self._mine, "held", None)
        with self.errors():
            if held is not None:
                if is_writing and not held[1]:
                    raise RuntimeError("a block of writing must not begin within one of reading")
                yield held[0]
                return
            connection = self._begun(begin)
            self._mine.held = connection, is_writing
            try:
                yield connection
                connection.commit()
            except BaseException as error:
                if getattr(error, "sqlstate", None) in _READ_ONLY:  # look for the server that can be written
                    connection.close()
                with suppress(self._driver.Error):
                    connection.rollback()
                raise
            finally:
                self._mine.held = None
                self._give_back(connection)

    def _begun(self, begin: str) -> Any:
        """Return a connection in a new transaction."""
        while True:
            with self._lock:
                if self._is_closed:
                    raise EngineUnavailable(f"{self.address.uri} is closed")
                idle = self._idle.pop() if self._idle else None
            connection = idle or self._connected()
            try:
                connection.execute(begin)
                return connection
            except BaseException as error:
                connection.close()
                if idle is None or not isinstance(error, self._driver.OperationalError):
                    raise

    def _connected(self) -> Any:
        from pgvector.psycopg.vector import register_vector_info

        driver = self._driver
        # a pooler may give the next transaction to another session, which knows no prepared statement of this one
        connection = driver.Connection.connect(**self.address.parameters, autocommit=True, prepare_threshold=None)
        try:
            self.extension = extension_schema(connection)
            if self.extension is not None:
                kind = driver.types.TypeInfo.fetch(connection, f'"{self.extension}".vector')
                register_vector_info(connection, kind)
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: Any) -> None:
        is_whole = not connection.closed and connection.info.transaction_status == 0
        with self._lock:
            if is_whole and not self._is_closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close every connection that is not in use, and the others when their blocks end."""
        with self._lock:
            self._is_closed, idle, self._idle = True, self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the errors of the server as ours."""
        try:
            yield
        except self._driver.Error as error:
            raise self._told(error) from error

    def _told(self, error: Any) -> Exception:
        uri, state = self.address.uri, error.sqlstate or ""
        said = " ".join(str(error).split()).removeprefix("connection failed: ")
        if state in _FULL:
            return EngineFull(f"No space left on device for {uri}; it holds what it held before")
        if state in _DAMAGED:
            return IndexDamaged(f"{uri} is damaged: {said}")
        if state in _BUSY:
            return EngineUnavailable(
                f"{uri} is in use by another command, and did not become free in {WAIT:g} s: try again"
            )
        if state in _NO_RIGHT:
            return EngineUnavailable(f"{uri} cannot be used with the rights of this user: {said}")
        if state in _READ_ONLY:
            return EngineUnavailable(f"{uri} cannot be written: the server is read-only")
        has_no_type = not state and self.extension is None and isinstance(error, self._driver.ProgrammingError)
        if state in _GONE or has_no_type:
            return ValueError(f"index must have all of its tables and the extension, but {uri} has lost one: {said}")
        if state[:2] in _AGAIN or (isinstance(error, self._driver.OperationalError) and state[:2] in ("", "08")):
            return EngineUnavailable(f"{uri} cannot be reached: {said}")
        return error


def extension_schema(connection: Any) -> str | None:
    """Return the schema of the extension pgvector; None if the database has it not."""
    found = connection.execute(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    ).fetchone()
    return None if found is None else str(found[0])
