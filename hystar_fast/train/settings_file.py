"""Settings as TOML: files, the shipped ones by name, changes from the command line, and the effective ones written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hystar_fast.train.settings import KEYS, Settings


def shipped() -> dict[str, str]:
    """The settings that come with the package, by name."""
    folder = files("hystar_fast.train").joinpath("configs")
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in found}


def read_settings(config: str, changes: Sequence[str] = ()) -> Settings:
    """Read settings.

    Args:
        config: a TOML file, or the name of one that is shipped.
        changes: "section.key=value", the value as in TOML; quotes around a word may be left out.

    Raises:
        ValueError: no such file, no TOML, an unknown section or key, or a value that cannot be; each says where.
        TypeError: a value of the wrong type.
    """
    known = shipped()
    if Path(config).is_file():
        text = _text(Path(config))
    elif config in known:
        text = known[config]
    else:
        raise ValueError(f"config must be a TOML file or one of {', '.join(sorted(known))}, but there is no {config!r}")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{config} is not TOML: {error}") from error
    Settings.of(values, config)  # so that a fault is blamed on the file that has it
    for change in changes:
        name, equals, raw = change.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise ValueError(f"--set {change!r} must be section.key=value")
        values.setdefault(section, {})[key] = _value(name.strip(), raw.strip())
    return Settings.of(values, "--set" if changes else config)


def _text(path: Path) -> str:
    """The content of a file, without the mark that some editors begin it with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not TOML: it must be saved as UTF-8, got another encoding ({error})") from error


def _value(name: str, raw: str) -> Any:
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw
    kinds = KEYS[name].kinds if name in KEYS else ()
    # --set run.wandb=2026 means the word
    return raw if kinds == (str,) and not isinstance(value, str) else value


def to_toml(settings: Settings | Mapping[str, Mapping[str, Any]]) -> str:
    """Every key of the settings as TOML that `read_settings` reads back as they are."""
    sections = settings.to_dict() if isinstance(settings, Settings) else settings
    blocks = []
    for section, entries in sections.items():
        lines = [f"{key} = {_written(value)}" for key, value in entries.items()]
        blocks.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
