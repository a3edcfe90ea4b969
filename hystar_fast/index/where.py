"""Filters on the items of an index: ``year=2024 and kind in (cat, dog) and path^=trips/``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FIELDS = ("id", "source", "path", "caption", "sha256")
"""Fields of an item; every other field is one of its attributes."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VALUE = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,()'"]+)""", re.DOTALL)
_FORM = "field=value, field in (a, b) or path^=prefix, joined by 'and'; a value with a space or comma stands in quotes"


@dataclass(frozen=True)
class Condition:
    """One condition: the field is one of `values`, or begins with the only value if `prefix` is true."""

    field: str
    values: tuple[str, ...]
    prefix: bool = False


@dataclass(frozen=True)
class Where:
    """A filter: all of its conditions hold.

    Example:
        >>> Where.parse("kind in (cat, 'a dog') and path^=trips/").conditions[0].values
        ('cat', 'a dog')
    """

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> Where:
        """Parse a filter.

        Raises:
            ValueError: the text is no filter; the message shows the rest that is not understood.
        """
        conditions, place = [], 0
        while True:
            condition, place = _condition(text, place)
            conditions.append(condition)
            joined = re.compile(r"\s+and\s+", re.IGNORECASE).match(text, place)
            if joined is None:
                break
            place = joined.end()
        if text[place:].strip():
            raise _error(text, place)
        return cls(tuple(conditions))

    def matches(self, fields: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
        """Return whether an item with these fields of `FIELDS` and these attributes is kept."""
        for condition in self.conditions:
            found = fields[condition.field] if condition.field in FIELDS else attributes.get(condition.field)
            text = None if found is None else value_text(found)
            if text is None or not (
                text.startswith(condition.values[0]) if condition.prefix else text in condition.values
            ):
                return False
        return True


def value_text(value: Any) -> str:
    """Return the text by which a filter compares an attribute: ``true``, ``2024``, ``1.5`` or the string itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _condition(text: str, place: int) -> tuple[Condition, int]:
    start = len(text) - len(text[place:].lstrip())
    name = _NAME.match(text, start)
    if name is None:
        raise _error(text, place)
    form = re.compile(r"\s*(\^=|=|in\s*\()", re.IGNORECASE).match(text, name.end())
    if form is None:
        raise _error(text, place)
    if form.group(1) in ("=", "^="):
        value, end = _value(text, form.end())
        return Condition(name.group(), (value,), prefix=form.group(1) == "^="), end
    values, end = [], form.end()
    while True:
        value, end = _value(text, end)
        values.append(value)
        after = re.compile(r"\s*([,)])").match(text, end)
        if after is None:
            raise _error(text, end)
        end = after.end()
        if after.group(1) == ")":
            return Condition(name.group(), tuple(values)), end


def _value(text: str, place: int) -> tuple[str, int]:
    found = _VALUE.match(text, place)
    if found is None:
        raise _error(text, place)
    word = found.group(1)
    if word[0] in "\"'":
        word = re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL)
    return word, found.end()


def _error(text: str, place: int) -> ValueError:
    return ValueError(f"where must be {_FORM}, got {text[place:].strip()!r} in {text!r}")
