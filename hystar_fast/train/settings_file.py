"""Settings as TOML: files, shipped files by name, and changes from the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hystar_fast.train.setting_keys import Key, check_sections


def shipped_files(package: str) -> dict[str, str]:
    """Return the content of the TOML files in the folder ``configs`` of a package, by name."""
    folder = files(package).joinpath("configs")
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in found}


def read_sections(
    config: str, changes: Sequence[str], keys: Mapping[str, Key], shipped: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Read the sections of a settings file with changes, and the name to blame in errors.

    Args:
        config: a TOML file, or the name of a shipped one.
        changes: "section.key=value", the value as in TOML; quotes around a word may be left out.
        keys: the known keys.
        shipped: name -> content of the shipped files.

    Raises:
        ValueError: no such file, not TOML, or an unknown section or key; the message names the file.
        TypeError: a value of the wrong type.
    """
    if Path(config).is_file():
        text = _text(Path(config))
    elif config in shipped:
        text = shipped[config]
    else:
        names = ", ".join(sorted(shipped))
        raise ValueError(f"config must be a TOML file or one of {names}, but there is no {config!r}")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{config} is not TOML: {error}") from error
    check_sections(values, keys, config)  # so that an error in the file names the file
    for change in changes:
        name, equals, raw = change.partition("=")
        section, dot, field = name.strip().partition(".")
        if not (equals and dot):
            raise ValueError(f"--set must be section.key=value, got {change!r}")
        values.setdefault(section, {})[field] = _value(keys.get(name.strip()), raw.strip())
    return values, "--set" if changes else config


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Write sections of keys as TOML that `read_sections` reads back unchanged."""
    blocks = []
    for section, entries in sections.items():
        lines = [f"{key} = {_written(value)}" for key, value in entries.items()]
        blocks.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _text(path: Path) -> str:
    """Read a text file without the byte order mark that some editors write."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not TOML: it must be saved as UTF-8, got another encoding ({error})") from error


def _value(key: Key | None, raw: str) -> Any:
    """Read a value of the command line; a key that takes only strings takes the word itself."""
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return raw
    return raw if key is not None and key.kinds == (str,) and not isinstance(value, str) else value


def _written(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
