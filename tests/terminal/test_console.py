"""Names of files in the output of commands: brackets, colons, control characters, bytes that are not UTF-8."""

from __future__ import annotations

import io
import sys

import pytest
import typer
from rich.table import Table

from hystar_fast.cli.errors import one_line
from hystar_fast.terminal.console import Console, create_console, create_table, printable

NAMES = [
    "[red]",
    "[/old]",
    "a [link=x]b",
    ":cat:",
    "\x1b[31mred\x1b[0m",
    "line\rover",
    "caf\udce9.png",
    "日本.png",
    "\x07",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=f"title {name}", min_width=60)
    table.add_column("id", overflow="fold")
    table.add_row(name)
    console = create_console()
    console.print(table)
    console.print(f"wrote {name}")
    out = capsys.readouterr().out
    assert out.count(printable(name)) == 3
    assert "\x1b" not in out and "\r" not in out and "\x07" not in out


def test_escapes_keep_every_character_apart() -> None:
    assert printable("\x1b[0m\ud83d\n\t[b]é") == "\\x1b[0m\\ud83d\n\t[b]é"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_that_cannot_encode_a_name_prints_escapes(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    create_console().print("日本 é – caf\udce9")
    sys.stdout.flush()
    assert (
        raw.getvalue().decode(encoding).strip()
        == {
            "ascii": "\\u65e5\\u672c \\xe9 \\u2013 caf\\udce9",
            "latin-1": "\\u65e5\\u672c é \\u2013 caf\\udce9",
            "utf-8": "日本 é – caf\\udce9",
        }[encoding]
    )


def test_an_error_names_a_file_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), one_line({}):
        raise ValueError("path must be an image, got [/old]/[red].png\x1b[2J")
    assert capsys.readouterr().err == "error: path must be an image, got [/old]/[red].png\\x1b[2J\n"


LONG = "a/very/long/name/" + "x" * 90 + ".png"


def table() -> Table:
    found = create_table("", "id", title=f"answers to {LONG}", right=("",))
    found.add_row("1", LONG)
    found.add_row("12", "b.png")
    return found


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [20, 60])
def test_names_are_never_cut_or_broken_in_a_table(terminal: bool, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    console.print(table())
    console.print(f"wrote {LONG}")
    assert stream.getvalue().count(LONG) == 3 and "…" not in stream.getvalue()


def test_a_pipe_gets_lines_without_a_frame_and_a_wide_terminal_gets_one() -> None:
    plain, framed = io.StringIO(), io.StringIO()
    Console(file=plain, width=40).print(table())
    Console(file=framed, width=200, force_terminal=True, color_system=None).print(table())
    assert plain.getvalue().splitlines() == [f"answers to {LONG}", "    id", f" 1  {LONG}", "12  b.png"]
    assert "│" in framed.getvalue() and framed.getvalue().count(LONG) == 2
