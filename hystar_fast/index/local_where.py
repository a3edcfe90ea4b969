"""Filters as SQL for a local index; every value is a bound parameter."""

from __future__ import annotations

import sqlite3

from hystar_fast.data.text_files import parse_json
from hystar_fast.index.engine import encode_name
from hystar_fast.index.where import FIELDS, Where, value_text

# SQLite writes a real number with 15 digits, takes a whole one beyond 64 bits for a real one, and ends texts at NUL
_ATTRIBUTE = (
    "CAST(CASE json_type(attributes, ?) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE "
    "CASE WHEN typeof(json_extract(attributes, ?)) = 'real' OR instr(attributes, '\\u0000') "
    "THEN attribute_text(attributes, ?) ELSE CAST(json_extract(attributes, ?) AS TEXT) END END AS BLOB)"
)


def add_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the function that `where_sql` uses."""
    connection.create_function("attribute_text", 2, _attribute_text, deterministic=True)


def _attribute_text(attributes: str, path: str) -> bytes | None:
    """Return the bytes of `value_text` of an attribute; `path` is ``$.NAME``."""
    value = parse_json(attributes).get(path[2:])
    return None if value is None else _bytes(value_text(value))


def _bytes(text: str) -> bytes:
    """Return a text as SQLite has it, with lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def where_sql(where: Where) -> tuple[str, list[str | bytes | int]]:
    """Return the condition on the table of items, and its parameters."""
    parts, parameters = ["1"], list[str | bytes | int]()
    for condition in where.conditions:
        is_field = condition.field in FIELDS
        column = condition.field if is_field else _ATTRIBUTE
        if not is_field:
            parameters += [f"$.{condition.field}"] * _ATTRIBUTE.count("?")
        values = [encode_name(v) if is_field else _bytes(v) for v in condition.values]
        if condition.prefix:
            parts.append(f"substr({column}, 1, ?) = ?")
            parameters += [len(values[0]), values[0]]
        else:
            parts.append(f"{column} IN ({','.join('?' * len(values))})")
            parameters += values
    return " AND ".join(f"({part})" for part in parts), parameters
