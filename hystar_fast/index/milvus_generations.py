"""The generations of an index in Milvus: a collection each, and an alias for the live one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hystar_fast.index.engine import Generation
from hystar_fast.index.engine_checks import check_cosine, check_has_views, check_not_live, check_whole
from hystar_fast.index.local_rows import view_columns
from hystar_fast.index.milvus_connection import Connection, NotThere
from hystar_fast.index.milvus_meta import COLUMNS_OF_META, Meta
from hystar_fast.index.milvus_rows import COLUMNS_OF_A_GENERATION, WIDEST, schema
from hystar_fast.index.milvus_table import Table, differences
from hystar_fast.index.stamp import Stamp


class Generations:
    """Makes, finds, switches and drops generations.

    Args:
        connection: to the server.
        meta: where their stamps are.
        table: their rows.
    """

    def __init__(self, connection: Connection, meta: Meta, table: Table) -> None:
        self._connection, self._meta, self._table = connection, meta, table
        self._form = re.compile(re.escape(connection.name) + r"__([0-9]+)")
        self._columns: dict[str, set[str]] = {}  # of collections, which never change

    def name(self, number: int) -> str:
        """Return the collection of a generation."""
        return f"{self._connection.name}__{number}"

    def live(self) -> int:
        """Return the number of the live generation.

        Raises:
            NotThere: there is no index.
            ValueError: the alias leads to a collection of another program.
        """
        found = self._connection.call("describe_alias", self._connection.name)["collection_name"]
        match = self._form.fullmatch(found)
        if match is None:
            raise ValueError(f"index must be one of hystar_fast, but {self._connection.uri} is an alias of {found}")
        return int(match[1])

    def is_there(self) -> bool:
        """Return whether there is an index."""
        try:
            self.live()
        except NotThere:
            return False
        return True

    def collections(self) -> dict[int, str]:
        """Return number -> name of all collections, also of generations that are not whole; none of other programs."""
        found = self._numbered().items()
        return {number: name for number, name in found if self._columns_of(name) == {*COLUMNS_OF_A_GENERATION}}

    def _numbered(self) -> dict[int, str]:
        """Return number -> name of all collections with names as those of generations."""
        found = map(self._form.fullmatch, self._connection.call("list_collections"))
        return {int(match[1]): match[0] for match in found if match}

    def _columns_of(self, name: str) -> set[str]:
        if name not in self._columns:
            found = self._connection.call("describe_collection", name)
            self._columns[name] = {field["name"] for field in found["fields"]}
        return self._columns[name]

    def remove_unfinished(self) -> None:
        """Remove what a creation of the index left that was killed.

        Raises:
            ValueError: a name that the index would have is taken by another program.
        """
        meta, mine = self._meta.collection, [*self.collections().values()]
        names = [*self._connection.call("list_collections")]
        if meta in names and self._columns_of(meta) == {*COLUMNS_OF_META}:
            mine.append(meta)
        reserved = {self._connection.name, meta, *self._numbered().values()}
        taken = [name for name in names if name in reserved and name not in mine]
        if taken:
            raise ValueError(
                f"NAME must be free in Milvus, but {self._connection.uri} has {taken[0]}, a collection of another "
                "program"
            )
        for name in mine:
            self._table.drop(name)

    def others(self, live: int) -> list[str]:
        """Return the collections of all generations but the live one."""
        return [name for number, name in self.collections().items() if number != live]

    def all(self) -> list[Generation]:
        """Return all generations, in the order of their numbers."""
        live = self.live()
        return [
            Generation(number, stamps, notes, number == live, self._table.count(self.name(number)))
            for number, (stamps, notes) in self._meta.generations().items()
        ]

    def number(self, generation: int | None, *, fresh: bool = False) -> int:
        """Return the number of a generation; None for the live one.

        Args:
            generation: its number.
            fresh: ask the server whether it is there, although it was.

        Raises:
            ValueError: there is none of this number.
        """
        if generation is None:
            return self.live()
        found = self._meta.generations() if fresh else self._meta.known(generation)
        if generation not in found:
            raise ValueError(f"generation must be one of {', '.join(map(str, found))}, got {generation}")
        return generation

    def stamps(self, number: int) -> Mapping[str, Stamp]:
        """Return the stamps of a generation."""
        return self._meta.known(number)[number][0]

    def view(self, view: str, generation: int | None) -> tuple[int, int, int]:
        """Return the generation, and where the view's vector begins and ends among those of an item.

        Raises:
            ValueError: it is not there, or has no such view.
        """
        number = self.number(generation)
        return number, *view_columns(view, self.stamps(number))

    @contextmanager
    def reading(self, generation: int | None) -> Iterator[None]:
        """Raise ValueError if a generation, which was there, has gone while it is read."""
        try:
            yield
        except NotThere:
            if generation is not None:
                self.number(generation, fresh=True)
            raise

    def create_first(self, stamps: Mapping[str, Stamp], notes: Mapping[str, Any], fill: Callable[[], object]) -> None:
        """Make the first generation, which makes the index.

        Args:
            stamps, notes: of the generation.
            fill: writes what else is to be there.
        """
        self._create(1, stamps, notes)
        fill()
        self._connection.call("create_alias", self.name(1), self._connection.name)

    def create(self, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> int:
        """Make an empty generation and return its number."""
        there = self._meta.generations()
        for number, name in self.collections().items():
            if number not in there:  # a call of this or of `drop` was killed
                self._table.drop(name)
        number = self._meta.next_number(max(self._numbered(), default=0))
        self._create(number, stamps, notes)
        return number

    def _create(self, number: int, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> None:
        check_has_views(stamps)
        check_cosine(stamps, "Milvus")
        width = sum(stamp.dimension for stamp in stamps.values())
        if width > WIDEST:
            raise ValueError(f"views must have at most {WIDEST} numbers together in Milvus, got {width}")
        self._columns.pop(self.name(number), None)
        self._table.create(self.name(number), schema(width))
        self._table.load([self._meta.collection, self.name(number)])
        self._meta.put_generation(number, stamps, notes)
        self._meta.changed()

    def missing(self, generation: int) -> list[str]:
        """Return the keys of the items that have no vector in a generation."""
        other = self.name(self.number(generation, fresh=True))
        parts = self._table.compared(self.name(self.live()), other)
        return [key for live, held in parts for key in differences(live, held).missing]

    def switch(self, generation: int) -> None:
        """Make a generation live, with copies of the items as they are now; see `Engine.switch`."""
        name, live = self.name(self.number(generation, fresh=True)), self.live()
        if generation != live:
            lost = 0
            for items, held in self._table.compared(self.name(live), name):
                found = differences(items, held)
                lost += len(found.missing)
                self._table.copy(items, name, found.old)
            check_whole(generation, lost)
            self._connection.call("alter_alias", name, self._connection.name)
        self._meta.changed()  # also in a rerun, as it may have been killed before

    def drop(self, generation: int) -> None:
        """Remove a generation with its vectors, see `Engine.drop`."""
        check_not_live(generation, is_live=self.number(generation, fresh=True) == self.live())
        self._meta.delete_generation(generation)
        self._table.drop(self.name(generation))
        self._meta.changed()
