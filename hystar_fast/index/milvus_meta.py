"""The small things of an index in Milvus: its generations, settings, styles and version."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.index.engine import IndexDamaged
from hystar_fast.index.milvus_connection import Connection
from hystar_fast.index.milvus_rows import LONGEST, decode, encode
from hystar_fast.index.milvus_table import Table
from hystar_fast.index.stamp import Stamp

Described = tuple[dict[str, Stamp], dict[str, Any]]
"""The stamps and notes of a generation."""
_GENERATION, _STYLE = "generation/", "style/"


class Meta:
    """Named values in a collection of their own, each written whole or not at all.

    Args:
        connection: to the server.
        table: reads and writes its collections.
    """

    def __init__(self, connection: Connection, table: Table) -> None:
        self._connection, self._table, self.collection = connection, table, f"{connection.name}__meta"
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

    def _put(self, name: str, value: str) -> None:
        for what in (name, value):
            if len(what) > LONGEST:
                raise ValueError(f"{name[:60]} must be at most {LONGEST} bytes in Milvus, got {len(what)}")
        self._connection.call("upsert", self.collection, [{"name": name, "value": value, "vectors": [0.0, 0.0]}])

    def _all(self, start: str) -> dict[str, str]:
        """Return the values whose names begin so, by the rest of their names."""
        found = self._table.query(self.collection, f'name >= "{start}" and name < "{start}~"', ["name", "value"])
        return {row["name"].removeprefix(start): row["value"] for row in sorted(found, key=lambda row: row["name"])}

    def _get(self, name: str) -> str:
        try:
            return self._all(name)[""]
        except KeyError:
            raise IndexDamaged(f"{self._connection.uri} is damaged: {self.collection} has no {name!r}") from None

    # generations

    def generations(self) -> dict[int, Described]:
        """Return the stamps and notes of every generation, in the order of their numbers."""
        found = {int(number): self._described(value) for number, value in self._all(_GENERATION).items()}
        self._known |= found
        return dict(sorted(found.items()))

    def known(self, number: int) -> dict[int, Described]:
        """Return the generations, asking for them if one is not known yet; one that was dropped may be among them."""
        return self._known if number in self._known else self.generations()

    def _described(self, value: str) -> Described:
        try:
            content = parse_json(value)
            return {view: Stamp(values) for view, values in content["stamps"]}, dict(content["notes"])
        except (ValueError, KeyError, TypeError) as error:
            raise IndexDamaged(f"{self._connection.uri} is damaged: the stamps of a generation") from error

    def put_generation(self, number: int, stamps: Mapping[str, Stamp], notes: Mapping[str, Any]) -> None:
        """Keep the stamps and notes of a generation: from then on there is one."""
        views = [[view, dict(stamp.values)] for view, stamp in stamps.items()]
        self._put(f"{_GENERATION}{number}", json.dumps({"stamps": views, "notes": dict(notes)}))

    def delete_generation(self, number: int) -> None:
        """Forget a generation."""
        self._delete(f"{_GENERATION}{number}")

    def next_number(self, used: int) -> int:
        """Return a number for a generation that no other had, and none will have.

        Args:
            used: the greatest number in use.
        """
        number = max(used, int(self._all("last").get("", 0))) + 1
        self._put("last", str(number))
        return number

    # the rest

    def settings(self) -> dict[str, Any]:
        """Return the settings."""
        return dict(parse_json(self._get("settings")))

    def put_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace the settings."""
        self._put("settings", json.dumps(dict(settings)))

    def styles(self) -> dict[str, Tensor]:
        """Return name -> style vector [d]."""
        found = {}
        for name, value in self._all(_STYLE).items():
            try:
                vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
            except ValueError as error:
                raise IndexDamaged(f"{self._connection.uri} is damaged: the style {decode(name)!r}") from error
            found[decode(name)] = torch.from_numpy(vector.astype(np.float32))
        return found

    def put_style(self, name: str, vector: Tensor) -> None:
        """Keep a style vector [d] under a name."""
        content = vector.detach().float().cpu().contiguous()
        if content.ndim != 1 or not bool(content.isfinite().all()):
            raise ValueError(f"vector must be finite [d], got {tuple(content.shape)}")
        self._put(_STYLE + encode(name), base64.b64encode(content.numpy().astype("<f4").tobytes()).decode())

    def delete_style(self, name: str) -> bool:
        """Remove a style; return whether there was one."""
        wanted = _STYLE + encode(name)
        if "" not in self._all(wanted):
            return False
        self._delete(wanted)
        return True

    def version(self) -> int:
        """Return the version."""
        self._version = max(self._version, int(self._get("version")))
        return self._version

    def changed(self) -> None:
        """Give the index a greater version: nanoseconds of the clock, so that no write need read the one before."""
        self._version = max(self._version + 1, time.time_ns())
        self._put("version", str(self._version))

    def _delete(self, name: str) -> None:
        self._connection.call("delete", self.collection, ids=[name])
