"""The index engine on Milvus: a server, or Milvus Lite for a small index.

Milvus has no transactions. The order of the writes makes up for them, as long as one process writes at a time:

- An item and its vectors are one row of the live generation, so they cannot disagree. That generation is the list of
  the items; a row of another one has a copy of its item.
- A write removes from the other generations what would be wrong there, then writes the live one, then copies what has
  changed. Killed in between, another generation lacks vectors, which `missing` reports and ``reembed`` makes good, or
  has an old caption, which `switch` and `verify` make good. It never has a vector of another content.
- Of a batch that was killed some rows may be there; the rerun of ``add`` or ``sync`` finds them and writes the rest.
- A generation is there when its stamps are, which are written last and deleted first; a collection without stamps is
  removed when the next generation is made. The alias of the live one, written last of all, makes the index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hystar_fast.data.read_ahead import in_batches
from hystar_fast.index import milvus_rows as rows
from hystar_fast.index.engine import LARGEST_BATCH, Engine, Generation, Item, Known
from hystar_fast.index.engine_checks import (
    check_batch,
    check_fields,
    check_held,
    check_id,
    check_similarity,
    check_vectors,
    first_settings,
)
from hystar_fast.index.local_rows import number_of, split_views
from hystar_fast.index.memory import unit_queries
from hystar_fast.index.milvus_address import MilvusAddress
from hystar_fast.index.milvus_connection import Connection
from hystar_fast.index.milvus_files import Files
from hystar_fast.index.milvus_generations import Generations
from hystar_fast.index.milvus_meta import Meta
from hystar_fast.index.milvus_search import MOST, search_exactly
from hystar_fast.index.milvus_table import Rows, Table, differences
from hystar_fast.index.milvus_verify import verify_index
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import Where
from hystar_fast.methods.similarity import COSINE, COSINE_NAME, Similarity

_writing: dict[str, threading.RLock] = {}  # by address, for the writes of this process


class MilvusEngine(Engine):
    """An index in Milvus: exact search, each generation a collection.

    Any number of processes may read the index of a server while one writes.

    Args:
        uri: ``milvus:FILE.db`` or ``milvus:http://HOST:PORT/NAME``, see `MilvusAddress`.

    Raises:
        ValueError: there is no index, or the server refuses the secret.
        EngineUnavailable: the server cannot be reached, or another process has the file of Milvus Lite open.
        ModuleNotFoundError: the extra `milvus` is not installed.
    """

    def __init__(self, uri: str) -> None:
        self._open(uri)
        try:
            if not self._generations.is_there():
                raise ValueError(f"index must exist, but {uri} has none: `hystar-fast index create` makes it")
            self._table.load([self._meta.collection, *self._generations.collections().values()])
        except BaseException:
            self.close()
            raise

    def _open(self, uri: str, *, create: bool = False) -> None:
        self.uri, self.folder = uri, None
        self._writing = _writing.setdefault(uri, threading.RLock())
        self._connection = Connection(MilvusAddress.parse(uri), create=create)
        self._table = Table(self._connection)
        self._meta = Meta(self._connection, self._table)
        self._generations = Generations(self._connection, self._meta, self._table)
        self._files = Files(self._meta)

    @classmethod
    def create(
        cls,
        uri: str,
        stamps: Mapping[str, Stamp],
        notes: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> MilvusEngine:
        """Make an empty index with one generation.

        Args:
            uri: see the class.
            stamps, notes: of the generation, see `create_generation`.
            settings: see `settings`.
            files: of its adapter, see `put_file`.

        Raises:
            ValueError: there is an index.
        """
        engine = cls.__new__(cls)
        engine._open(uri, create=True)
        try:
            if engine._generations.is_there():
                raise ValueError(f"index must be new, but {uri} has one")
            engine._generations.remove_unfinished()
            engine._meta.create()
            engine._meta.put_settings(first_settings(settings))
            engine._generations.create_first(stamps, notes or {}, lambda: engine._put_files(files or {}))
        except BaseException:
            engine.close()
            raise
        return engine

    def _put_files(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self._files.put(name, content)

    @classmethod
    def exists(cls, uri: str) -> bool:
        """Return whether there is an index; errors as the class, but for that."""
        file = MilvusAddress.parse(uri).file
        if file is not None and not file.is_dir():
            return False
        engine = cls.__new__(cls)
        engine._open(uri)
        with engine:
            return engine._generations.is_there()

    # content

    def upsert(
        self, items: Sequence[Item], vectors: Mapping[str, Tensor] | None = None, generation: int | None = None
    ) -> None:
        packed: Rows = {item.key: rows.pack(item) for item in items}
        check_batch([item.key for item in items])
        if not packed:
            return
        with self._writing:
            live = self._generations.live()
            number = live if vectors is None or generation is None else self._generations.number(generation, fresh=True)
            content = None
            if vectors is not None:
                content = rows.join(vectors, self._generations.stamps(number), len(packed))
            held = self._table.rows(self._generations.name(live), packed, vectors=content is None)
            for key, row in held.items():
                check_id(rows.decode(packed[key]["item_id"]), rows.decode(row["item_id"]))
            if content is None or number != live:
                for key, row in packed.items():
                    sha256 = held[key]["sha256"] if key in held else None
                    check_held(rows.decode(row["item_id"]), row["sha256"], sha256, is_same_file=content is not None)
            if number == live:
                content = [rows.vectors_of(row) for row in held.values()] if content is None else content
                self._write_live(packed, content, held, live)
            else:  # with the items as they are
                copies = [rows.with_words(row) for row in held.values()]
                self._table.write(self._generations.name(number), copies, content or [])
            self._meta.changed()

    def _write_live(self, packed: Rows, content: Sequence[np.ndarray], held: Rows, live: int) -> None:
        """Write items into the live generation, between the two steps in the others; see the module."""
        found, others = differences(packed, held), self._generations.others(live)
        for name in others:
            self._table.delete(name, found.stray)
        self._table.write(self._generations.name(live), [*packed.values()], content)
        for name in others:
            self._table.copy(packed, name, found.old)

    def remove(self, keys: Iterable[str]) -> int:
        with self._writing:
            live = self._generations.live()
            found = [*self._table.rows(self._generations.name(live), _checked(keys))]
            for name in (*self._generations.others(live), self._generations.name(live)):  # that order: see the module
                self._table.delete(name, found)
            if found:
                self._meta.changed()
        return len(found)

    def fetch(self, keys: Sequence[str]) -> dict[str, Item]:
        found = self._table.rows(self._name(), _checked(keys))
        return {key: rows.unpack(row) for key, row in found.items()}

    def vectors(self, keys: Sequence[str], view: str, generation: int | None = None) -> Tensor:
        number, start, end = self._generations.view(view, generation)
        with self._generations.reading(generation):
            found = self._table.rows(self._generations.name(number), _checked(keys), vectors=True)
        check_vectors(keys, found, number)
        wanted = [rows.vectors_of(found[key])[start:end] for key in keys]
        return torch.from_numpy(np.stack(wanted) if wanted else np.empty((0, end - start), np.float32))

    def known(self) -> dict[str, Known]:
        items = (rows.unpack(row) for part in self._table.parts(self._name()) for row in part)
        return {
            item.id: Known(item.key, item.source, item.path, item.size, item.mtime_ns, item.sha256) for item in items
        }

    def scan(self, generation: int | None = None) -> Iterator[tuple[list[Item], dict[str, Tensor]]]:
        number = self._generations.number(generation, fresh=True)
        stamps = self._generations.stamps(number)
        for part in self._table.parts(self._generations.name(number), vectors=True):
            for batch in in_batches(part, LARGEST_BATCH):
                items = self.fetch([row["key"] for row in batch])
                found = [rows.vectors_of(row) for row in batch if row["key"] in items]
                if found:
                    yield [*items.values()], split_views(torch.from_numpy(np.stack(found)), stamps)

    def missing(self, generation: int) -> list[str]:
        return self._generations.missing(generation)

    def count(self, where: Where | None = None) -> int:
        found = self._table.count(self._name(), rows.where_expression(where))
        if not found:
            self._check_fields(where)
        return found

    def keys(self, where: Where | None = None) -> list[str]:
        found = [row["key"] for part in self._table.parts(self._name(), rows.where_expression(where)) for row in part]
        if not found:
            self._check_fields(where)
        return found

    def _check_fields(self, where: Where | None) -> None:
        """Raise ValueError if a filter names an attribute that no item has."""
        check_fields(
            where,
            lambda: bool(self.count()),
            lambda name: bool(self._table.count(self._name(), f'exists words["{name}"]')),
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
        number, start, end = self._generations.view(view, generation)
        check_similarity(COSINE_NAME, similarity, self.uri)
        if not 1 <= k < MOST:
            raise ValueError(f"k must be at least 1 and less than {MOST} in Milvus, got {k}")
        units = unit_queries(queries, end - start)
        width = sum(stamp.dimension for stamp in self._generations.stamps(number).values())
        whole = torch.zeros(len(units), width)  # zeros take the other views out of the scores
        whole[:, start:end] = units
        name, expression = self._generations.name(number), rows.where_expression(where)
        with self._generations.reading(generation):
            scores, keys = search_exactly(self._connection, name, whole, k, expression)
        if not scores.numel():
            self._check_fields(where)
        return scores, keys

    # generations

    def generations(self) -> list[Generation]:
        return self._generations.all()

    def stamps(self, generation: int | None = None) -> Mapping[str, Stamp]:
        return self._generations.stamps(self._generations.number(generation))

    def create_generation(self, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> int:
        with self._writing:
            return self._generations.create(stamps, notes)

    def switch(self, generation: int) -> None:
        with self._writing:
            self._generations.switch(generation)

    def drop(self, generation: int) -> None:
        with self._writing:
            self._generations.drop(generation)

    def _name(self) -> str:
        """Return the collection of the live generation."""
        return self._generations.name(self._generations.live())

    # small things

    def settings(self) -> dict[str, Any]:
        return self._meta.settings()

    def put_settings(self, settings: Mapping[str, Any]) -> None:
        with self._writing:
            self._meta.put_settings(settings)
            self._meta.changed()

    def update_settings(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Replace the settings by what a function makes of them; no other write of this process comes between."""
        with self._writing:
            self.put_settings(change(self.settings()))

    def put_style(self, name: str, vector: Tensor) -> None:
        with self._writing:
            self._meta.put_style(name, vector)
            self._meta.changed()

    def styles(self) -> dict[str, Tensor]:
        return self._meta.styles()

    def delete_style(self, name: str) -> bool:
        with self._writing:
            found = self._meta.delete_style(name)
            if found:
                self._meta.changed()
        return found

    def put_file(self, name: str, content: bytes) -> None:
        """Keep a file of an adapter, in place of an earlier one.

        Args:
            name: such as "adapter/config.json".
            content: up to some hundred megabytes.
        """
        with self._writing:
            self._files.put(name, content)
            self._meta.changed()

    def file(self, name: str) -> bytes | None:
        """Return a file that `put_file` kept; None if there is none."""
        return self._files.get(name)

    def delete_file(self, name: str) -> None:
        """Remove a file that `put_file` kept, if it is there."""
        with self._writing:
            self._files.delete(name)
            self._meta.changed()

    def version(self) -> int:
        return self._meta.version()

    def health(self) -> None:
        self._table.query(self._name(), 'key == ""', ["key"])

    def verify(self, *, repair: bool = False) -> list[str]:
        with self._writing:
            found = verify_index(self._generations, self._meta, self._table, self._files, repair=repair)
            if found and repair:
                self._meta.changed()
        return found

    def close(self) -> None:
        self._connection.close()


def _checked(keys: Iterable[str]) -> list[str]:
    """Return different keys, in their order.

    Raises:
        ValueError: one is no key.
    """
    wanted = [*dict.fromkeys(keys)]
    for key in wanted:
        number_of(key)
    return wanted
