"""Completeness of docs/commands.md: every option of every command once, and no others."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import typer.main

from hystar_fast.cli.main import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
OPTION = re.compile(r"^\| `(--[\w-]+)`", re.MULTILINE)
GROUP = "experiments"
SHARED = "Options of several commands"


def commands() -> dict[str, Any]:
    """Return every command by the words that call it."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {word}": sub for word, sub in inner.items()}
    return found


COMMANDS = commands()


def documented() -> list[tuple[str, str]]:
    """Return (command, option) of every row of the page; a group of commands stands for all of its commands.

    The first table names the commands in a column, the others in the heading above them.
    """
    text = PAGE.read_text(encoding="utf-8").partition(f"## {SHARED}\n")[2]
    shared, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    rows = [
        (command.strip(), name)
        for name, named in re.findall(r"^\| `(--[\w-]+)` \| ([a-z, -]+) \|", shared, re.MULTILINE)
        for command in named.split(",")
    ]
    assert len(OPTION.findall(shared)) == len(re.findall(r"^\| `(--[\w-]+)` \| [a-z, -]+ \|", shared, re.MULTILINE))
    for section in sections:
        command = section.split("\n", 1)[0].strip()
        rows += [(command, name) for name in OPTION.findall(section)]
    return [(command, name) for word, name in rows for command in commands_of(word)]


def commands_of(word: str) -> list[str]:
    return [name for name in COMMANDS if name.startswith(f"{GROUP} ")] if word == GROUP else [word]


def test_every_option_of_every_command_is_documented_once():
    existing = {
        (name, option.opts[0])
        for name, command in COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option" and option.name != "help"
    }
    counted = Counter(documented())
    assert sorted(existing - set(counted)) == [], "options missing from the page"
    assert sorted(set(counted) - existing) == [], "rows for options that do not exist"
    assert [row for row, count in counted.items() if count > 1] == []


def test_every_command_is_listed():
    text = PAGE.read_text(encoding="utf-8").partition(f"## {SHARED}\n")[0]
    assert [name for name in COMMANDS if f"`{name.split()[-1]}`" not in text] == []
