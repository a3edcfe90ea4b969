"""Items and vectors as the rows of a local index."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hystar_fast.data.text_files import parse_json
from hystar_fast.index.engine import Item, decode_name, encode_name
from hystar_fast.index.engine_checks import check_view
from hystar_fast.index.sqlite_file import SqliteFile, checksum
from hystar_fast.index.stamp import Stamp
from hystar_fast.methods.similarity import COSINE_NAME

Row: TypeAlias = tuple[Any, ...]
"""key, id, source, path, caption, attributes, size, sha256 and so on, in the order of `COLUMNS`."""
COLUMNS = ("key", "id", "source", "path", "caption", "attributes", "size", "sha256", "mtime_ns")
SHA256 = COLUMNS.index("sha256")
SELECT = f"SELECT row, {', '.join(COLUMNS)}, checksum FROM items"
_HALF = 1 << 63
_UNIT = 1e-3  # largest difference of a vector's length from 1


def number_of(key: str) -> int:
    """Return the key as SQLite stores it: a whole number of 64 bits with a sign, in the order of the keys.

    Raises:
        ValueError: it is no key.
    """
    try:
        return int.from_bytes(bytes.fromhex(key), "big") - _HALF if len(key) == 16 else int("no key")
    except ValueError as error:
        raise ValueError(f"key must be 16 hexadecimal digits, got {key!r}") from error


def key_text(file: SqliteFile, number: Any) -> str:
    """Return the key of its number.

    Raises:
        IndexDamaged: the file holds something else instead.
    """
    if not isinstance(number, int):
        raise file.damaged("a key is no number")
    return (number + _HALF).to_bytes(8, "big").hex()


def pack(item: Item) -> Row:
    """Return the values of an item in the order of `COLUMNS`.

    Raises:
        ValueError: a value cannot be stored.
    """
    for name in ("id", "source", "path", "caption", "sha256"):
        if not isinstance(getattr(item, name), str):
            raise ValueError(f"{name} must be a string, got {getattr(item, name)!r}")
    if not item.id:
        raise ValueError("id must not be empty")
    for name, value in item.attributes.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float, bool)):
            raise ValueError(f"attributes must be strings, numbers or booleans by name, got {name!r}: {value!r}")
        if isinstance(value, float) and not math.isfinite(value):  # JSON has no such number
            raise ValueError(f"attributes must be finite, got {name!r}: {value!r}")
    names = [encode_name(getattr(item, name)) for name in ("id", "source", "path", "caption")]
    return (number_of(item.key), *names, item.attributes_json, item.size, encode_name(item.sha256), item.mtime_ns)


def unpack(file: SqliteFile, row: Row) -> Item:
    """Return the item of a row of `SELECT`.

    Raises:
        IndexDamaged: the row does not have its checksum.
    """
    if row[-1] != checksum(*row[:-1]):
        raise file.damaged(f"the item in row {row[0]} ({row[2]!r}) does not have its checksum")
    _, _, item_id, source, path, caption, attributes, size, sha256, mtime_ns, _ = row
    names = (decode_name(item_id), decode_name(source), decode_name(path), decode_name(caption))
    return Item(*names, {} if attributes == b"{}" else parse_json(attributes.decode()), size, mtime_ns, sha256.decode())


def _sealed(number: int, row: Row) -> tuple[Any, ...]:
    """Return the number of a row with its values and their checksum."""
    return (number, *row, checksum(number, *(value.encode() if isinstance(value, str) else value for value in row)))


def insert(file: SqliteFile, packed: Sequence[Row]) -> list[int]:
    """Write new items and return their rows, which are greater than all before."""
    last = file.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
    first = int(last[0]) + 1 if last else 1
    sealed = [_sealed(number, row) for number, row in enumerate(packed, first)]
    marks = ", ".join("?" * (len(COLUMNS) + 2))
    file.connection.executemany(f"INSERT INTO items (row, {', '.join(COLUMNS)}, checksum) VALUES ({marks})", sealed)
    file.add_to_sums("items", [row[-1] for row in sealed])
    return [row[0] for row in sealed]


def update(file: SqliteFile, changed: Mapping[int, Row]) -> None:
    """Write items (row -> values) in place of those in their rows; their vectors stay."""
    taken = file.select("SELECT checksum FROM items", "row", changed)
    sealed = [_sealed(number, row) for number, row in changed.items()]
    columns = ", ".join(f"{name} = ?" for name in (*COLUMNS, "checksum"))
    file.connection.executemany(f"UPDATE items SET {columns} WHERE row = ?", [(*row[1:], row[0]) for row in sealed])
    file.add_to_sums("items", [row[-1] for row in sealed], [row[0] for row in taken])


def checked_views(vectors: Mapping[str, Tensor], stamps: Mapping[str, Stamp], count: int) -> dict[str, Tensor]:
    """Return the vectors of all views as float32 on the CPU, in the order of the stamps.

    Raises:
        ValueError: a view is missing or unknown, or its vectors are not `count` finite rows of its dimension, of
            length 1 where they are compared by cosine.
    """
    if set(vectors) != set(stamps):
        raise ValueError(f"vectors must have the views {', '.join(stamps)}, got {', '.join(vectors) or 'none'}")
    checked = {}
    for view, stamp in stamps.items():
        part = vectors[view].detach().float().cpu()
        if part.shape != (count, stamp.dimension):
            raise ValueError(f"vectors of {view} must be [{count}, {stamp.dimension}], got {tuple(part.shape)}")
        if stamp.metric != COSINE_NAME and bool(part.isfinite().all()):
            checked[view] = part
            continue
        if not are_units(part):
            lengths = part.norm(dim=1)
            worst = float(lengths[int((lengths - 1).abs().nan_to_num(torch.inf).argmax())])
            raise ValueError(f"vectors of {view} must be finite and of length 1, got one of length {worst:g}")
        checked[view] = part
    return checked


def are_units(vectors: Tensor) -> bool:
    """Return whether vectors [n, D] are finite and of length 1."""
    return bool(((vectors.norm(dim=1) - 1).abs() < _UNIT).all())


def join_views(vectors: Mapping[str, Tensor], stamps: Mapping[str, Stamp], count: int) -> list[bytes]:
    """Return the vectors of all views of each item, one after the other; errors as `checked_views`."""
    parts = [part.numpy().astype("<f4") for part in checked_views(vectors, stamps, count).values()]
    return [row.tobytes() for row in np.concatenate(parts, axis=1)]


def view_columns(view: str, stamps: Mapping[str, Stamp]) -> tuple[int, int]:
    """Return where the vectors of a view begin and end in rows that `join_views` made.

    Raises:
        ValueError: there is no such view.
    """
    check_view(view, stamps)
    start = 0
    for name, stamp in stamps.items():
        if name == view:
            break
        start += stamp.dimension
    return start, start + stamps[view].dimension


def split_views(whole: Tensor, stamps: Mapping[str, Stamp]) -> dict[str, Tensor]:
    """Return the vectors of each view of rows that `join_views` made."""
    widths = [stamp.dimension for stamp in stamps.values()]
    return dict(zip(stamps, whole.split(widths, dim=1), strict=True))


def style_bytes(vector: Tensor) -> bytes:
    """Return a style vector [d] as float32.

    Raises:
        ValueError: it has another shape, or is not finite.
    """
    content = vector.detach().float().cpu().contiguous()
    if content.ndim != 1 or not bool(content.isfinite().all()):
        raise ValueError(f"vector must be finite [d], got {tuple(content.shape)}")
    return bytes(content.numpy().astype("<f4").tobytes())


def to_bytes(content: Any) -> bytes:
    """Return JSON in ASCII."""
    return json.dumps(content).encode()


def has_attribute(file: SqliteFile, name: str) -> bool:
    """Return whether some item has an attribute."""
    query = "SELECT 1 FROM items WHERE json_type(attributes, ?) IS NOT NULL LIMIT 1"
    return file.connection.execute(query, (f"$.{name}",)).fetchone() is not None
