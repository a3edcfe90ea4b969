"""The small things of an index in Milvus: the stamps of its generations, settings, styles and version."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.index.engine import IndexDamaged
from hystar_fast.index.local_rows import style_bytes
from hystar_fast.index.milvus_connection import Connection
from hystar_fast.index.milvus_rows import LONGEST, decode, encode
from hystar_fast.index.milvus_table import Table
from hystar_fast.index.stamp import Stamp, list_stamps, stamps_from

Described = tuple[dict[str, Stamp], dict[str, Any]]
"""The stamps and notes of a generation."""
COLUMNS_OF_META = ["name", "value", "vectors"]
_GENERATION, _STYLE, _SETTINGS, _VERSION, _LAST = "generation/", "style/", "settings", "version", "last"


class Meta:
    """Values by their names in a collection of their own, each written whole or not at all.

    Args:
        connection: to the server.
        table: reads and writes its collections.

    Attributes:
        uri: of the index.
        collection: its name.
    """

    def __init__(self, connection: Connection, table: Table) -> None:
        self._connection, self._table = connection, table
        self.uri, self.collection = connection.uri, f"{connection.name}__meta"
        self._known: dict[int, Described] = {}  # a generation never changes, and its number is never used again
        self._version = 0

    def create(self) -> None:
        """Make the collection; it must be loaded before it is read."""
        import pymilvus

        kind = pymilvus.DataType
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("name", kind.VARCHAR, is_primary=True, max_length=LONGEST)
        schema.add_field("value", kind.VARCHAR, max_length=LONGEST)
        schema.add_field("vectors", kind.FLOAT_VECTOR, dim=2)  # a collection must have one
        self._table.create(self.collection, schema)

    # values

    def put(self, values: Mapping[str, str]) -> None:
        """Write values, in place of those of the same names.

        Raises:
            ValueError: one is too long for Milvus.
        """
        for name, value in values.items():
            if max(len(name), len(value)) > LONGEST:
                what = decode(name[:60])
                raise ValueError(f"{what} must be at most {LONGEST} bytes in Milvus, got {max(len(name), len(value))}")
        rows = [{"name": name, "value": value, "vectors": [0.0, 0.0]} for name, value in values.items()]
        self._connection.call("upsert", self.collection, rows)

    def get(self, names: Sequence[str]) -> dict[str, str]:
        """Return the values of those names that are there."""
        found = self._table.query(self.collection, f"name in {json.dumps([*names])}", ["name", "value"])
        return {row["name"]: row["value"] for row in found}

    def all(self, start: str) -> dict[str, str]:
        """Return the values whose names begin so, by the rest of their names."""
        found = self._table.query(self.collection, _begins(start), ["name", "value"])
        return {row["name"].removeprefix(start): row["value"] for row in found}

    def names(self, start: str) -> list[str]:
        """Return the names that begin so."""
        return [row["name"] for row in self._table.query(self.collection, _begins(start), ["name"])]

    def delete(self, names: Iterable[str]) -> None:
        """Remove values, if they are there."""
        self._connection.call("delete", self.collection, ids=[*names])

    def _value(self, name: str) -> str:
        try:
            return self.get([name])[name]
        except KeyError:
            raise self._damaged(f"{self.collection} has no {name}") from None

    def _damaged(self, what: str) -> IndexDamaged:
        return IndexDamaged(f"{self.uri} is damaged: {what}")

    # generations

    def generations(self) -> dict[int, Described]:
        """Return the stamps and notes of every generation, in the order of their numbers."""
        found = {int(number): self._described(number, value) for number, value in self.all(_GENERATION).items()}
        self._known |= found
        return dict(sorted(found.items()))

    def known(self, number: int) -> dict[int, Described]:
        """Return the generations, asking for them if one is not known yet; one that was dropped may be among them."""
        return self._known if number in self._known else self.generations()

    def _described(self, number: str, value: str) -> Described:
        try:
            content = parse_json(value)
            return stamps_from(content["stamps"]), dict(content["notes"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"the stamps of generation {number}") from error

    def put_generation(self, number: int, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> None:
        """Keep the stamps and notes of a generation: from then on there is one."""
        content = {"stamps": list_stamps(stamps), "notes": dict(notes)}
        self.put({f"{_GENERATION}{number}": json.dumps(content)})

    def delete_generation(self, number: int) -> None:
        """Forget a generation."""
        self.delete([f"{_GENERATION}{number}"])

    def next_number(self, used: int) -> int:
        """Return a number for a generation that no other had, and none will have.

        Args:
            used: the greatest number in use.
        """
        number = max(used, int(self.get([_LAST]).get(_LAST, 0))) + 1
        self.put({_LAST: str(number)})
        return number

    # the rest

    def settings(self) -> dict[str, Any]:
        """Return the settings."""
        try:
            return dict(parse_json(self._value(_SETTINGS)))
        except (ValueError, TypeError) as error:
            raise self._damaged("its settings") from error

    def put_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace the settings."""
        self.put({_SETTINGS: json.dumps(dict(settings))})

    def styles(self) -> dict[str, Tensor]:
        """Return name -> style vector [d]."""
        found = {}
        for name, value in self.all(_STYLE).items():
            try:
                vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
            except ValueError as error:
                raise self._damaged(f"the style {decode(name)!r}") from error
            found[decode(name)] = torch.from_numpy(vector.astype(np.float32))
        return found

    def put_style(self, name: str, vector: Tensor) -> None:
        """Keep a style vector [d] under a name."""
        self.put({_STYLE + encode(name): base64.b64encode(style_bytes(vector)).decode()})

    def delete_style(self, name: str) -> bool:
        """Remove a style; return whether there was one."""
        wanted = [_STYLE + encode(name)]
        is_there = bool(self.get(wanted))
        if is_there:
            self.delete(wanted)
        return is_there

    def version(self) -> int:
        """Return the version."""
        try:
            self._version = max(self._version, int(self._value(_VERSION)))
        except ValueError as error:
            raise self._damaged("its version") from error
        return self._version

    def changed(self) -> None:
        """Give the index a greater version: nanoseconds of the clock, so that no write need read the one before."""
        self._version = max(self._version + 1, time.time_ns())
        self.put({_VERSION: str(self._version)})


def _begins(start: str) -> str:
    return f'name >= "{start}" and name < "{start}~"'
