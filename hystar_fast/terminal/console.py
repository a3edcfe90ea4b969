"""The console of the commands, which prints every name as it is and whole."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

LOG_FILE = "log.txt"
_WIDE = 100_000  # columns: nothing is wrapped


class Console(RichConsole):
    """A console whose strings cannot control the terminal, and that has no markup which a name could imitate.

    Lines are left to the terminal to wrap. A table that would break a word at the terminal's width, or that goes into
    a pipe or a file, is printed without a frame, one line a row.
    """

    _log: Path | None = None

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        if len(objects) == 1 and isinstance(objects[0], Table):
            self._print_table(objects[0])
            return
        super().print(*objects, **{"soft_wrap": True, **options})
        if all(isinstance(entry, str | Text) for entry in objects):
            self.write_log(" ".join(printable(str(entry)) for entry in objects))

    def log_to(self, folder: str | Path) -> None:
        """Also write everything that is printed, with the time, to ``log.txt`` in a folder; it is created if needed."""
        if not self.quiet:
            self._log = Path(folder) / LOG_FILE

    def write_log(self, text: str) -> None:
        """Write lines to the log file only, each with the time; a file that cannot be written is given up."""
        if self._log is None:
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S ")
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as file:
                file.writelines(f"{now}{line}\n" for line in text.splitlines())
        except OSError as error:
            self._log = None
            self.print(f"the log is not continued: {error}")

    def _print_table(self, table: Table) -> None:
        title, table.title = table.title, None  # rich would wrap it at the table's width
        if title is not None:
            self.print(title)
        plain = plain_table(table)
        fits = Measurement.get(self, self.options.update(width=_WIDE), table).minimum <= self.width
        if self.is_terminal and fits:
            super().print(table)
        else:
            super().print(plain, soft_wrap=True)
        self.write_log(plain)


def create_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """Return a console that takes brackets and colons for text, and never fails on what its stream cannot encode."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return Console(markup=False, emoji=False, highlight=False, quiet=quiet, stderr=stderr)


def create_table(*headings: str, title: str = "", right: tuple[str, ...] = ()) -> Table:
    """Return a table with a title above it whose cells are text and are never cut."""
    table = Table(title=title or None)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def print_json(content: Any) -> None:
    """Print a value as JSON to stdout."""
    print(json.dumps(content, indent=1))


def plain_table(table: Table) -> str:
    """Return a table without a frame and without colours, with two spaces between its columns and nothing wrapped."""
    box, table.box = table.box, None
    edges = table.show_edge, table.pad_edge, table.padding
    table.show_edge, table.pad_edge, table.padding = False, False, (0, 2, 0, 0)
    wide = Console(file=io.StringIO(), width=_WIDE, color_system=None, markup=False, emoji=False, highlight=False)
    with wide.capture() as captured:
        RichConsole.print(wide, table)
    table.box, (table.show_edge, table.pad_edge, table.padding) = box, edges
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def printable(text: str) -> str:
    """Return a text with control characters, and bytes of names that are not UTF-8, as backslash escapes.

    Example:
        >>> printable("a\\x1b[31m[red].png")
        'a\\\\x1b[31m[red].png'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
