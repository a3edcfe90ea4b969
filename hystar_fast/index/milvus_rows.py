"""Items and vectors as the rows of a collection of Milvus, and filters as its expressions."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.index import local_rows
from hystar_fast.index.engine import Item, decode_name, encode_name
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import FIELDS, Where, value_text

LONGEST = 65535
"""Bytes of a text in Milvus."""
COLUMNS = {"id": "item_id", "source": "source", "path": "path", "caption": "caption", "sha256": "sha256"}
"""Field of an item -> the column of its name; ``words`` has the attributes as texts, for filters."""
ITEM = ["key", *COLUMNS.values(), "attributes", "size", "mtime_ns"]
"""The columns of an item without its vectors."""
COLUMNS_OF_A_GENERATION = [*ITEM, "words", "vectors", "checksum"]
WIDEST = 32_768
"""Numbers of a vector in Milvus."""
_SAFE = "/ "
_CALL = 16 << 20  # bytes of rows that are sent together; a server takes 64 MB
_KEYS = 1 << 64


def encode(text: str) -> str:
    """Return a name, of any bytes, in ASCII without quotes, backslashes, ``~`` and control characters.

    Every byte has its own code and none begins another, so equal names stay equal and prefixes stay prefixes. A name in
    an expression can therefore end no string in it.
    """
    return quote_from_bytes(encode_name(text), safe=_SAFE).replace("~", "%7E")


def decode(text: str) -> str:
    """Return the name of `encode`."""
    return decode_name(unquote_to_bytes(text))


def schema(dimension: int) -> Any:
    """Return the schema of a generation: a row is an item with the vectors of all its views, one after the other."""
    import pymilvus

    kind = pymilvus.DataType
    made = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    made.add_field("key", kind.VARCHAR, is_primary=True, max_length=16)
    made.add_field("vectors", kind.FLOAT_VECTOR, dim=dimension)
    for column in (*COLUMNS.values(), "attributes"):
        made.add_field(column, kind.VARCHAR, max_length=LONGEST)
    made.add_field("words", kind.JSON)
    for column in ("size", "mtime_ns", "checksum"):
        made.add_field(column, kind.INT64)
    return made


def pack(item: Item) -> dict[str, Any]:
    """Return the row of an item, without vectors and checksum.

    Raises:
        ValueError: a value cannot be stored.
    """
    local_rows.pack(item)  # checks it
    row: dict[str, Any] = {"key": item.key, "attributes": item.attributes_json}
    row |= {column: encode(getattr(item, name)) for name, column in COLUMNS.items()}
    row["words"] = {encode(name): encode(value_text(value)) for name, value in item.attributes.items()}
    for name, value in (*row.items(), ("attributes", json.dumps(row["words"]))):
        if isinstance(value, str) and len(value) > LONGEST:
            raise ValueError(
                f"{name} must be at most {LONGEST} bytes in Milvus, where one that is no ASCII letter or digit may "
                f"take three, got {len(value)} of {item.id!r}"
            )
    return {**row, "size": item.size, "mtime_ns": item.mtime_ns}


def seal(row: Mapping[str, Any], vectors: np.ndarray) -> dict[str, Any]:
    """Return a row with its vectors [D] and the checksum of all."""
    vectors = np.ascontiguousarray(vectors, "<f4")
    return {**row, "vectors": vectors, "checksum": checksum(row, vectors)}


def join(vectors: Mapping[str, Tensor], stamps: Mapping[str, Stamp], count: int) -> list[np.ndarray]:
    """Return the vectors [D] of all views of each item, one after the other; errors as `local_rows.join_views`."""
    return [np.frombuffer(row, "<f4") for row in local_rows.join_views(vectors, stamps, count)]


def checksum(row: Mapping[str, Any], vectors: np.ndarray) -> int:
    """Return the CRC-32 of an item with its vectors."""
    return zlib.crc32(vectors.tobytes(), zlib.crc32(repr([row[column] for column in ITEM]).encode()))


def with_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of `ITEM` of a row that was read, with its words."""
    words = {encode(name): encode(value_text(value)) for name, value in parse_json(row["attributes"]).items()}
    return {**{column: row[column] for column in ITEM}, "words": words}


def unpack(row: Mapping[str, Any]) -> Item:
    """Return the item of a row."""
    names = {name: decode(row[column]) for name, column in COLUMNS.items()}
    return Item(**names, attributes=parse_json(row["attributes"]), size=int(row["size"]), mtime_ns=int(row["mtime_ns"]))


def vectors_of(row: Mapping[str, Any]) -> np.ndarray:
    """Return the vectors [D] of a row that was read."""
    return np.asarray(row["vectors"], "<f4")


def in_calls(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield rows in parts that a server takes in one call."""
    part: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        own = row["vectors"].nbytes + sum(2 * len(value) for value in row.values() if isinstance(value, str))
        if part and size + own > _CALL:
            yield part
            part, size = [], 0
        part.append(row)
        size += own
    if part:
        yield part


def any_key(keys: Sequence[str]) -> str:
    """Return the expression that keeps rows of these keys."""
    return f"key in {json.dumps([*keys])}"


def parts_of_keys(count: int, size: int) -> Iterator[str]:
    """Yield expressions that divide all rows by their keys into parts of about one size: keys are hashes.

    Args:
        count: of the rows.
        size: rows of a part.
    """
    parts = max(1, -(-count // size))
    edges = [f"{_KEYS * i // parts:016x}" for i in range(parts)]
    for start, end in zip(edges, [*edges[1:], "g"], strict=True):
        yield f'key >= "{start}" and key < "{end}"'


def where_expression(where: Where | None) -> str:
    """Return a filter as an expression, "" for none; names and values in it are encoded."""
    parts = []
    for condition in () if where is None else where.conditions:
        is_field = condition.field in FIELDS
        column = COLUMNS[condition.field] if is_field else f'words["{condition.field}"]'
        values = [encode(value) for value in condition.values]
        if condition.prefix:  # "~" is greater than every character of a code
            parts.append(f'({column} >= "{values[0]}" and {column} < "{values[0]}~")')
        elif is_field:
            parts.append(f"{column} in {json.dumps(values)}")
        else:
            parts.append("(" + " or ".join(f'{column} == "{value}"' for value in values) + ")")
    return " and ".join(parts)
