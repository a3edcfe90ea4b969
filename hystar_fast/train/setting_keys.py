"""Sections of typed keys with defaults, checked when they are read; every settings file consists of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Key:
    """One key of a settings file.

    Attributes:
        name: "section.key".
        kinds: the types it takes; None among them if it may be empty.
        default: its value if it is left out.
        none_word: the word that stands for None, which TOML does not have.
    """

    name: str
    kinds: tuple[Any, ...]
    default: Any
    none_word: str = ""

    @property
    def shown_default(self) -> Any:
        """The default as a settings file writes it."""
        return self.none_word if self.default is None else self.default

    def check(self, value: Any, where: str) -> Any:
        """Return a value of one of `kinds`.

        Raises:
            TypeError: it is of another type; ValueError: it is not finite. `where` begins the message.
        """
        if None in self.kinds and value == self.none_word:
            return None
        for kind in self.kinds:
            if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
                if (isinstance(value, int) and abs(value) >= 2**63) or not math.isfinite(value):
                    raise ValueError(f"{where}: {self.name} must be finite, got {value}")
                return float(value)
            if kind is int and isinstance(value, int) and not isinstance(value, bool):
                if not -(2**63) <= value < 2**63:
                    raise ValueError(f"{where}: {self.name} must fit into 64 bits, got {value}")
                return value
            if kind in (str, bool) and isinstance(value, kind):
                return value
            if get_origin(kind) is list and isinstance(value, list):
                of = get_args(kind)[0]
                if all(isinstance(entry, of) and not isinstance(entry, bool) for entry in value):
                    return value
        raise TypeError(f"{where}: {self.name} must be {' or '.join(self._needed())}, got {value!r}")

    def _needed(self) -> list[str]:
        words = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        needed = [words.get(kind) or f"a list of {get_args(kind)[0].__name__}" for kind in self.kinds if kind]
        if None in self.kinds:
            needed = [word for word in needed if word != "a string" or str in self.kinds]
            needed.append(f'"{self.none_word}"')
        return needed


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the kinds of a type hint: str, int, float, bool, list[str], list[int], and None for an optional one."""
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return tuple(kind for part in get_args(hint) for kind in kinds_of(part))
    if get_origin(hint) is Literal:
        return (str,)
    if get_origin(hint) in (tuple, list):
        return (list[int],) if int in get_args(hint) else (list[str],)
    return (None,) if hint is type(None) else (hint,)


def keys_of(sections: Mapping[str, type[Any]], none_words: Mapping[str, str] | None = None) -> dict[str, Key]:
    """Return the keys of sections that are dataclasses with defaults."""
    found = {}
    for section, settings in sections.items():
        hints = get_type_hints(settings)
        for entry in fields(settings):
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            name = f"{section}.{entry.name}"
            found[name] = Key(name, kinds_of(hints[entry.name]), default, (none_words or {}).get(name, ""))
    return found


def check_sections(
    values: Mapping[str, Any], keys: Mapping[str, Key], where: str = "settings"
) -> dict[str, dict[str, Any]]:
    """Check sections of keys, as a TOML file gives them, and fill in the defaults.

    Raises:
        ValueError: an unknown section or key; the message suggests the nearest one.
        TypeError: a value of the wrong type.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, key in keys.items():
        section, _, field = name.partition(".")
        found.setdefault(section, {})[field] = key.default
    for section, entries in values.items():
        if not isinstance(entries, Mapping):
            if section not in found:
                raise _unknown(section, keys, where)
            raise TypeError(f"{where}: {section} must be a section of keys, [{section}], got {entries!r}")
        for field, value in entries.items():
            name = f"{section}.{field}"
            if name not in keys:
                raise _unknown(name, keys, where)
            found[section][field] = keys[name].check(value, where)
    return found


def shown_values(sections: Mapping[str, Mapping[str, Any]], keys: Mapping[str, Key]) -> dict[str, dict[str, Any]]:
    """Return sections of values as a settings file writes them: lists for tuples, words for None."""
    return {
        section: {
            field: keys[f"{section}.{field}"].none_word
            if value is None
            else list(value)
            if isinstance(value, list | tuple)
            else value
            for field, value in entries.items()
        }
        for section, entries in sections.items()
    }


def _unknown(name: str, keys: Mapping[str, Key], where: str) -> ValueError:
    """Return the error for a section or key that does not exist, with the nearest one that does."""
    sections = list(dict.fromkeys(known.partition(".")[0] for known in keys))
    section, _, field = name.partition(".")
    if section not in sections:
        near = difflib.get_close_matches(section, sections, 1)
        hint = f"did you mean [{near[0]}]?" if near else f"there are {', '.join(f'[{s}]' for s in sections)}"
        return ValueError(f"{where}: unknown section [{section}]; {hint}")
    here = {known.partition(".")[2]: known for known in keys if known.startswith(section + ".")}
    anywhere = {known.partition(".")[2]: known for known in reversed([*keys])}  # of one name in two sections, the first
    near = difflib.get_close_matches(field, here, 1)
    if field in anywhere:
        hint = f"it belongs to another section: {anywhere[field]}"
    elif near:
        hint = f"did you mean {here[near[0]]}?"
    elif near := difflib.get_close_matches(field, anywhere, 1):
        hint = f"did you mean {anywhere[near[0]]}?"
    else:
        hint = f"[{section}] takes {', '.join(here)}"
    return ValueError(f"{where}: unknown key {name}; {hint}")
