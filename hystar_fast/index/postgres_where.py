"""Filters as SQL for an index in PostgreSQL; every value is a bound parameter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hystar_fast.index.engine import encode_name
from hystar_fast.index.where import FIELDS, Where, value_text


def escaped(text: str) -> str:
    """Return a text in ASCII: jsonb holds neither NUL nor a byte that is not UTF-8. A prefix remains a prefix."""
    return json.dumps(text)[1:-1]


def filter_json(attributes: Mapping[str, Any]) -> str:
    """Return the texts by which a filter compares attributes, as a JSON object."""
    return json.dumps({escaped(name): escaped(value_text(value)) for name, value in attributes.items()})


def where_sql(where: Where) -> tuple[str, list[Any]]:
    """Return the condition on the table of items, and its parameters."""
    parts, parameters = ["true"], list[Any]()
    for condition in where.conditions:
        values: list[Any]
        if condition.field in FIELDS:
            values, column, kind = [encode_name(value) for value in condition.values], condition.field, "bytea"
        else:
            values, column, kind = [escaped(value) for value in condition.values], "filters ->> %s::text", "text"
            parameters.append(escaped(condition.field))
        if condition.prefix:
            parts.append(f"substr({column}, 1, %s::integer) = %s::{kind}")
            parameters += [len(values[0]), values[0]]
        else:
            parts.append(f"{column} = ANY(%s::{kind}[])")
            parameters.append(values)
    return " AND ".join(f"({part})" for part in parts), parameters
