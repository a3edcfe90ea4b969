"""docs/commands.md has every option of every command, once, and no other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import typer.main

from hystar_fast.cli.main import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
OPTION = re.compile(r"^\| `(--[\w-]+)`", re.MULTILINE)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def documented() -> list[tuple[str, str]]:
    """(command, option) of every row: in the first table the row names the commands, later the heading does."""
    _, shared, *sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [
        (command.strip(), name)
        for name, commands in re.findall(r"^\| `(--[\w-]+)` \| ([a-z, ]+) \|", shared, re.MULTILINE)
        for command in commands.split(",")
    ]
    assert len(OPTION.findall(shared)) == len(re.findall(r"^\| `(--[\w-]+)` \| [a-z, ]+ \|", shared, re.MULTILINE))
    for section in sections:
        command = section.split("\n", 1)[0].strip()
        found += [(command, name) for name in OPTION.findall(section)]
    return found


def test_every_option_of_every_command_is_documented_once():
    there = {
        (name, option.opts[0])
        for name, command in COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option" and option.name != "help"
    }
    counted = Counter(documented())
    assert sorted(there - set(counted)) == [], "options that the page lacks"
    assert sorted(set(counted) - there) == [], "rows of options that no command has"
    assert [row for row, count in counted.items() if count > 1] == []


def test_every_command_is_named():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", text)] == []
