"""Filters as SQL for a local index; every value is a bound parameter."""

from __future__ import annotations

from hystar_fast.index.engine import encode_name
from hystar_fast.index.where import FIELDS, Where

_ATTRIBUTE = (
    "CASE json_type(attributes, ?) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' "
    "ELSE CAST(json_extract(attributes, ?) AS TEXT) END"
)


def where_sql(where: Where) -> tuple[str, list[str | bytes | int]]:
    """Return the condition on the table of items, and its parameters."""
    parts, parameters = ["1"], list[str | bytes | int]()
    for condition in where.conditions:
        is_field = condition.field in FIELDS
        column = condition.field if is_field else _ATTRIBUTE
        if not is_field:
            parameters += [f"$.{condition.field}"] * 2
        values: list[str | bytes] = [encode_name(v) if is_field else v for v in condition.values]
        if condition.prefix:
            value = values[0]
            parts.append(f"substr({column}, 1, ?) = ?")
            parameters += [len(value), value]
        else:
            parts.append(f"{column} IN ({','.join('?' * len(values))})")
            parameters += values
    return " AND ".join(f"({part})" for part in parts), parameters
