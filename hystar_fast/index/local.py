"""The index engine that needs nothing: one SQLite file, and its vectors in memory for exact search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.index import local_rows as rows
from hystar_fast.index.engine import (
    LARGEST_BATCH,
    Engine,
    Generation,
    Item,
    Known,
    decode_name,
    encode_name,
)
from hystar_fast.index.engine_checks import (
    check_batch,
    check_fields,
    check_has_views,
    check_not_live,
    check_similarity,
    check_vectors,
    check_whole,
    first_settings,
)
from hystar_fast.index.local_graph import Graph, Graphs
from hystar_fast.index.local_vectors import VectorTables, table_of
from hystar_fast.index.local_where import where_sql
from hystar_fast.index.local_write import remove_rows, write_items
from hystar_fast.index.memory import Matrix
from hystar_fast.index.sqlite_file import SqliteFile, checksum
from hystar_fast.index.stamp import Stamp, list_stamps, stamps_from
from hystar_fast.index.verify_local import verify_file
from hystar_fast.index.where import Where
from hystar_fast.methods.similarity import COSINE, Similarity

INDEX_FILE = "index.db"


class LocalEngine(Engine):
    """An index in a folder: ``index.db``, with the adapters of its generations beside it.

    Any number of processes may read it while one writes; a second writer waits five seconds. Every row has a checksum.

    Args:
        folder: of the index.

    Raises:
        ValueError: the folder holds no index of this format; IndexDamaged if it cannot be read.

    Example:
        >>> import tempfile
        >>> from hystar_fast.index.engine import Item
        >>> folder = Path(tempfile.mkdtemp())
        >>> index = LocalEngine.create(folder, {"adapted": Stamp({"dimension": 3})})
        >>> index.upsert([Item("a"), Item("b")], {"adapted": torch.eye(3)[:2]})
        >>> scores, keys = index.search("adapted", torch.tensor([[0.6, 0.8, 0.0]]), k=1)
        >>> index.fetch(keys[0])[keys[0][0]].id
        'b'
    """

    def __init__(self, folder: str | Path) -> None:
        self._open(Path(folder))
        self.health()

    def _open(self, folder: Path) -> None:
        self.folder, self.uri = folder, str(folder)
        self._file = SqliteFile(folder / INDEX_FILE)
        self._vectors, self.graphs = VectorTables(self._file), Graphs(folder)

    @classmethod
    def for_repair(cls, folder: Path) -> LocalEngine:
        """Open an index without looking at its content, for `verify`."""
        engine = cls.__new__(cls)
        engine._open(folder)
        return engine

    @classmethod
    def create(
        cls,
        folder: str | Path,
        stamps: Mapping[str, Stamp],
        notes: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> LocalEngine:
        """Make an empty index with one generation in a folder, which is created if needed.

        Args:
            folder: of the index.
            stamps, notes: of the generation, see `create_generation`.
            settings: see `settings`.

        Raises:
            ValueError: the folder holds an index.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        engine = cls.__new__(cls)
        engine.folder, engine.uri = Path(folder), str(folder)
        engine._fill(SqliteFile(Path(folder) / INDEX_FILE, create=True), stamps, notes or {}, settings or {})
        return engine

    def _fill(
        self, file: SqliteFile, stamps: Mapping[str, Stamp], notes: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self._file, self._vectors, self.graphs = file, VectorTables(file), Graphs(Path(self.uri))
        with file.writing():
            self.put_settings(first_settings(settings))
            self.create_generation(stamps, notes)

    @classmethod
    def in_memory(
        cls, folder: Path, stamps: Mapping[str, Stamp], notes: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> LocalEngine:
        """Make an index in memory alone, for content of a folder that is kept there in another form."""
        engine = cls.__new__(cls)
        engine.folder, engine.uri = folder, str(folder)
        engine._fill(SqliteFile(None), stamps, notes, settings)
        return engine

    def make_read_only(self) -> None:
        """Refuse every later write through this object."""
        self._file.writable = False

    def take_over(self, other: LocalEngine) -> None:
        """Replace everything in this index by what another holds, in one transaction; readers see it at once.

        Its generations get numbers that this index never had: a search in an earlier one must not find their vectors.
        """
        with self._file.lock, other._file.lock, self._file.errors():
            last = self._file.connection.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'generations'"
            ).fetchone()
            with other._file.writing(counts=False):
                other._file.put_meta("version", str(self.version() + 1).encode())
                other._renumber(int(last[0]))
            other._file.connection.backup(self._file.connection)

    def _renumber(self, added: int) -> None:
        """Add a number to those of all generations."""
        connection = self._file.connection
        for entry in reversed(self.generations()):
            number = entry.number + added
            row = connection.execute(
                "SELECT stamps, notes FROM generations WHERE number = ?", (entry.number,)
            ).fetchone()
            change = (number, checksum(number, *row), entry.number)
            connection.execute("UPDATE generations SET number = ?, checksum = ? WHERE number = ?", change)
            self._vectors.rename(entry.number, number)
            if entry.live:
                self._file.put_meta("live", str(number).encode())
        connection.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'generations'", (added,))

    # content

    def upsert(
        self, items: Sequence[Item], vectors: Mapping[str, Tensor] | None = None, generation: int | None = None
    ) -> None:
        packed = [rows.pack(item) for item in items]
        check_batch([row[0] for row in packed])
        if not packed:
            return
        with self._file.writing():
            entry, others = self.generation(generation), [n for n in self._numbers() if n != self._live()]
            content = None if vectors is None else rows.join_views(vectors, entry.stamps, len(packed))
            write_items(self._file, self._vectors, packed, content, entry, others)

    def remove(self, keys: Iterable[str]) -> int:
        wanted = [*dict.fromkeys(rows.number_of(key) for key in keys)]
        with self._file.writing():
            found = [row for (row,) in self._file.select("SELECT row FROM items", "key", wanted)]
            remove_rows(self._file, found, self._numbers())
        return len(found)

    def fetch(self, keys: Sequence[str]) -> dict[str, Item]:
        with self._file.reading():
            found = self._file.select(rows.SELECT, "key", [rows.number_of(key) for key in keys])
            held = {rows.key_text(self._file, row[1]): rows.unpack(self._file, row) for row in found}
        return {key: held[key] for key in keys if key in held}

    def vectors(self, keys: Sequence[str], view: str, generation: int | None = None) -> Tensor:
        with self._file.reading():
            entry = self.generation(generation)
            number, (start, end) = entry.number, rows.view_columns(view, entry.stamps)
            found = self._file.select("SELECT key, row FROM items", "key", [rows.number_of(key) for key in keys])
            row_of = {rows.key_text(self._file, key): row for key, row in found}
            content = self._vectors.get(number, row_of.values())
        check_vectors(keys, {key for key, row in row_of.items() if row in content}, number)
        wanted = [np.frombuffer(content[row_of[key]], "<f4")[start:end] for key in keys]
        return torch.from_numpy(np.stack(wanted) if wanted else np.empty((0, end - start), np.float32))

    def known(self) -> dict[str, Known]:
        with self._file.reading() as connection:
            found: dict[str, Known] = {}
            total = 0
            for row in connection.execute(rows.SELECT):
                item = rows.unpack(self._file, row)
                total += row[-1]
                key = rows.key_text(self._file, row[1])
                found[item.id] = Known(key, item.source, item.path, item.size, item.mtime_ns, item.sha256)
            if (len(found), total) != self._file.sums("items"):
                raise self._file.damaged("items are missing, or are there twice")
            return found

    def scan(self, generation: int | None = None) -> Iterator[tuple[list[Item], dict[str, Tensor]]]:
        entry, last = self.generation(generation), 0
        while True:
            with self._file.reading() as connection:
                found = connection.execute(
                    f"{rows.SELECT} WHERE row > ? ORDER BY row LIMIT {LARGEST_BATCH}", (last,)
                ).fetchall()
                items = {row[0]: rows.unpack(self._file, row) for row in found}
                content = self._vectors.get(entry.number, items)
            if not found:
                return
            last = found[-1][0]
            if content:
                batch = [item for row, item in items.items() if row in content]
                whole = np.stack([np.frombuffer(content[row], "<f4") for row in items if row in content])
                yield batch, rows.split_views(torch.from_numpy(whole), entry.stamps)

    def missing(self, generation: int) -> list[str]:
        with self._file.reading() as connection:
            number = self.generation(generation).number
            query = f"SELECT key FROM items WHERE row NOT IN (SELECT row FROM {table_of(number)}) ORDER BY row"
            return [rows.key_text(self._file, key) for (key,) in connection.execute(query)]

    def count(self, where: Where | None = None) -> int:
        with self._file.reading():
            return self._file.sums("items")[0] if where is None else len(self._rows_where(where, "row"))

    def keys(self, where: Where | None = None) -> list[str]:
        with self._file.reading():
            return [rows.key_text(self._file, key) for key in self._rows_where(where or Where(()), "key")]

    def _rows_where(self, where: Where, column: str) -> list[int]:
        condition, values = where_sql(where)
        query = f"SELECT {column} FROM items WHERE {condition} ORDER BY row"
        found = [row for (row,) in self._file.connection.execute(query, values)]
        if not found:
            check_fields(
                where, lambda: self._file.sums("items")[0] > 0, lambda name: rows.has_attribute(self._file, name)
            )
        return found

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
        matrix, graph = self._matrix(view, where, generation, similarity)
        found = matrix.search(queries, k, similarity=similarity) if graph is None else graph.search(matrix, queries, k)
        scores, keys = found
        return scores, [[rows.key_text(self._file, key) for key in found] for found in keys.tolist()]

    def log_sum(
        self, view: str, queries: Tensor, scale: float, where: Where | None = None, generation: int | None = None
    ) -> Tensor:
        return self._matrix(view, where, generation)[0].log_sum(queries, scale)

    def build_graph(self, view: str, progress: Callable[[int, int], object] | None = None) -> None:
        """Build the graph of a view of the live generation, by which searches without a filter find candidates.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            ValueError: the view does not exist, or the index is empty.
        """
        number = self.generation().number
        matrix, _ = self._matrix(view, Where(()), number)
        self.graphs.put(number, view, self._file.meta("content"), Graph.build(matrix, progress))

    def _matrix(
        self, view: str, where: Where | None, generation: int | None, similarity: Similarity = COSINE
    ) -> tuple[Matrix, Graph | None]:
        """Return the vectors of a view, and their graph if there is one for this search."""
        with self._file.reading():
            entry = self.generation(generation)
            number, (start, end) = entry.number, rows.view_columns(view, entry.stamps)
            check_similarity(entry.stamps[view].metric, similarity, self.uri)
            matrix = self._vectors.matrix(number, view, start, end, is_live=number == self._live())
            if where is None:
                return matrix, self.graphs.get(number, view, self._file.meta("content"))
            return matrix.keep_only(np.array(self._rows_where(where, "row"), np.int64)), None

    # generations

    def generations(self) -> list[Generation]:
        with self._file.reading() as connection:
            live, found = self._live(), []
            for number, stamps, notes, stored in connection.execute("SELECT * FROM generations ORDER BY number"):
                if stored != checksum(number, stamps, notes):
                    raise self._file.damaged(f"generation {number} does not have its checksum")
                by_view = stamps_from(parse_json(stamps.decode()))
                count = self._file.sums(table_of(number))[0]
                found.append(Generation(number, by_view, parse_json(notes.decode()), number == live, count))
            return found

    def create_generation(self, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> int:
        check_has_views(stamps)
        with self._file.writing() as connection:
            content = rows.to_bytes(list_stamps(stamps))
            described = rows.to_bytes(dict(notes))
            cursor = connection.execute(
                "INSERT INTO generations (stamps, notes, checksum) VALUES (?, ?, 0)", (content, described)
            )
            number = int(cursor.lastrowid or 0)
            stored = checksum(number, content, described)
            connection.execute("UPDATE generations SET checksum = ? WHERE number = ?", (stored, number))
            self._vectors.create(number)
            if connection.execute("SELECT count(*) FROM generations").fetchone()[0] == 1:
                self._file.put_meta("live", str(number).encode())
        return number

    def switch(self, generation: int) -> None:
        with self._file.writing():
            entry = self.generation(generation)
            check_whole(generation, self._file.sums("items")[0] - entry.count)
            self._file.put_meta("live", str(entry.number).encode())

    def drop(self, generation: int) -> None:
        with self._file.writing() as connection:
            check_not_live(generation, is_live=self.generation(generation).live)
            connection.execute("DELETE FROM generations WHERE number = ?", (generation,))
            self._vectors.drop(generation)
        self.graphs.drop(generation)

    def _live(self) -> int:
        return int(self._file.meta("live"))

    def _numbers(self) -> list[int]:
        return [int(number) for (number,) in self._file.connection.execute("SELECT number FROM generations")]

    # small things

    def settings(self) -> dict[str, Any]:
        with self._file.reading():
            found = parse_json(self._file.meta("settings").decode())
            return dict(found)

    def put_settings(self, settings: Mapping[str, Any]) -> None:
        with self._file.writing():
            self._file.put_meta("settings", rows.to_bytes(dict(settings)))

    def update_settings(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        with self._file.writing():
            super().update_settings(change)

    def put_style(self, name: str, vector: Tensor) -> None:
        row = (encode_name(name), rows.style_bytes(vector))
        with self._file.writing() as connection:
            self._file.delete("styles", "name", [encode_name(name)])
            connection.execute("INSERT INTO styles VALUES (?, ?, ?)", (*row, checksum(*row)))
            self._file.add_to_sums("styles", [checksum(*row)])

    def styles(self) -> dict[str, Tensor]:
        with self._file.reading() as connection:
            found = {}
            for name, content, stored in connection.execute("SELECT * FROM styles"):
                if stored != checksum(name, content):
                    raise self._file.damaged(f"the style {decode_name(name)!r} does not have its checksum")
                found[decode_name(name)] = torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32))
            return found

    def delete_style(self, name: str) -> bool:
        with self._file.writing():
            found = self._file.select("SELECT name FROM styles", "name", [encode_name(name)])
            self._file.delete("styles", "name", [encode_name(name)])
        return bool(found)

    def version(self) -> int:
        with self._file.reading():
            return int(self._file.meta("version"))

    def health(self) -> None:
        with self._file.reading():
            self.settings()
            self.version()
            self.generation()

    def verify(self, *, repair: bool = False) -> list[str]:
        return verify_file(self._file, repair=repair)

    def close(self) -> None:
        self._file.close()
