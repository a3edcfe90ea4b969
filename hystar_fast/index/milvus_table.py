"""The collections of generations in Milvus: read and write their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hystar_fast.data.read_ahead import in_batches
from hystar_fast.index.engine import LARGEST_BATCH
from hystar_fast.index.milvus_connection import LOAD, Connection
from hystar_fast.index.milvus_rows import ITEM, any_key, in_calls, parts_of_keys, seal, vectors_of, with_words

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = dict[str, Row]
"""Rows by their keys."""
_PART, _NAMES = 2000, 10_000  # rows that are read at once, with vectors and without
_LOG = 2000  # rows of Lite's log, which is searched row by row: 5,000 rows take 0.22 cpu-s, in a file 0.02


@dataclass(frozen=True)
class Differences:
    """The keys at which another generation differs from the live one.

    Attributes:
        missing: items whose vectors it lacks.
        old: items of which it has another copy, of the same content.
        stray: of its rows that belong to no item of their content.
    """

    missing: list[str]
    old: list[str]
    stray: list[str]


def differences(live: Rows, other: Rows) -> Differences:
    """Compare the rows of the live generation with those of another."""
    same = {key for key in live.keys() & other.keys() if live[key]["sha256"] == other[key]["sha256"]}
    old = [key for key in live if key in same and any(live[key][column] != other[key][column] for column in ITEM)]
    return Differences([key for key in live if key not in same], old, [key for key in other if key not in same])


class Table:
    """Reads and writes rows; every read sees every write that has ended, wherever it was made.

    Args:
        connection: to the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._logged: Counter[str] = Counter()  # rows of each collection

    def create(self, name: str, schema: Any) -> None:
        """Make a collection that is searched exactly, and begin to load it; see `load`."""
        import pymilvus

        self._connection.call("create_collection", name, schema=schema, consistency_level="Strong")
        index = pymilvus.MilvusClient.prepare_index_params()
        index.add_index("vectors", index_type="FLAT", metric_type="IP")  # of unit vectors; COSINE takes norms again
        self._connection.call("create_index", name, index, sync=False)
        self._connection.call("load_collection", name, timeout=LOAD, _async=True)

    def drop(self, name: str) -> None:
        """Remove a collection, if it is there."""
        self._connection.call("drop_collection", name)

    def load(self, names: Sequence[str]) -> None:
        """Have collections loaded, all at once; they must be before they are read."""
        for is_async in (True, False):
            for name in names:
                self._connection.call("load_collection", name, timeout=LOAD, _async=is_async)

    def query(self, name: str, expression: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return columns of the rows that an expression keeps."""
        options: dict[str, Any] = {"filter": expression, "output_fields": [*columns], "consistency_level": "Strong"}
        return [*self._connection.call("query", name, **options)]

    def count(self, name: str, expression: str = "") -> int:
        """Return the number of rows."""
        return int(self.query(name, expression, ["count(*)"])[0]["count(*)"])

    def rows(self, name: str, keys: Iterable[str], *, vectors: bool = False) -> Rows:
        """Return the rows of keys, in their order; those that are not there are left out."""
        wanted = [*keys]
        found: Rows = {}
        for part in in_batches(wanted, LARGEST_BATCH):
            read = self.query(name, any_key(part), [*ITEM, *(["vectors"] if vectors else [])])
            found |= {row["key"]: row for row in read}
        return {key: found[key] for key in wanted if key in found}

    def parts(self, name: str, expression: str = "", *, vectors: bool = False) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows that an expression keeps, a part at a time; with `vectors` also their checksums."""
        columns = [*ITEM, *(["vectors", "checksum"] if vectors else [])]
        for part in parts_of_keys(self.count(name, expression), _PART if vectors else _NAMES):
            found = self.query(name, f"{part} and ({expression})" if expression else part, columns)
            if found:
                yield found

    def compared(self, live: str, other: str) -> Iterator[tuple[Rows, Rows]]:
        """Yield the rows of two collections, without vectors, those of the same keys together."""
        for part in parts_of_keys(self.count(live), _NAMES):
            yield self._by_key(live, part), self._by_key(other, part)

    def _by_key(self, name: str, expression: str) -> Rows:
        return {row["key"]: row for row in self.query(name, expression, ITEM)}

    def write(self, name: str, items: Sequence[Row], content: Sequence[np.ndarray]) -> None:
        """Write items, as `pack` returns them, with their vectors, in place of those of the same keys."""
        for part in in_calls([seal(row, vectors) for row, vectors in zip(items, content, strict=True)]):
            self._connection.call("upsert", name, part)
            self._empty_log(name, len(part))

    def copy(self, live: Rows, name: str, keys: Sequence[str]) -> None:
        """Write items of the live generation into another, which keeps its vectors for them."""
        for part in in_batches(keys, LARGEST_BATCH):
            held = self.rows(name, part, vectors=True)
            self.write(name, [with_words(live[key]) for key in held], [vectors_of(row) for row in held.values()])

    def delete(self, name: str, keys: Sequence[str]) -> None:
        """Remove the rows of keys."""
        for part in in_batches(keys, LARGEST_BATCH):
            self._connection.call("delete", name, ids=part)
            self._empty_log(name, len(part))

    def _empty_log(self, name: str, added: int) -> None:
        """Have Milvus Lite write its log into files where it has become long; a server does so by itself."""
        self._logged[name] += added
        if self._connection.is_lite and self._logged[name] > _LOG:
            self._connection.call("flush", name, timeout=LOAD)
            self._logged[name] = 0
