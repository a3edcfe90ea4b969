"""The door of the command line: every error becomes one line on stderr, and names the user's options."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typer
from rich.text import Text
from typer.models import OptionInfo

import hystar_fast
from hystar_fast.index.address import without_password
from hystar_fast.terminal.console import create_console

ISSUES = "https://github.com/hystar-fast/hystar-fast/issues"
BAD_INPUT, INTERRUPTED = 2, 130
_EXPECTED = (ValueError, TypeError, ModuleNotFoundError, FloatingPointError, OSError)
_NO_MEMORY = re.compile(
    r"not enough memory|can(?:'t|not) allocate memory|out of memory|bad_alloc|failed to map segment", re.IGNORECASE
)
_NO_SPACE = re.compile(r"No space left on device|PytorchStreamWriter failed|file write failed", re.IGNORECASE)
_FIRST_NAME = re.compile(r"^((?:[^:\s]+: )?)([\w.]+)(?= must | contains )")
_LONGEST = 2000  # characters of a message
_SETTINGS, _CONFIG = "--set", "--config"
Command = TypeVar("Command", bound=Callable[..., Any])


def clear_errors(*, stopped: str = "", **names: str) -> Callable[[Command], Command]:
    """Decorate a command so that it runs in `one_line`, and errors name its options.

    Args:
        stopped: what to do after Ctrl-C, with ``{command}`` for the command as it was typed.
        names: the user's word for an argument of the library, such as ``directory="--adapter"``. An argument with the
            name of an option of the command needs none.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*arguments: Any, **options: Any) -> Any:
            with one_line({**_options_of(command), **names}, stopped):
                return command(*arguments, **options)

        return run  # type: ignore[return-value]

    return decorate


@contextmanager
def one_line(names: Mapping[str, str], stopped: str = "") -> Iterator[None]:
    """Print an error as ``error: ...`` on stderr and exit with status 2; after Ctrl-C with status 130.

    The traceback of an error that is no fault of the input goes into a file, which the line names.

    Args:
        names: the user's word for an argument of the library with which an error may begin.
        stopped: what to do after Ctrl-C.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt as error:
        create_console(stderr=True).print("stopped" + (f"; {stopped.format(command=typed())}" if stopped else ""))
        raise typer.Exit(INTERRUPTED) from error
    except Exception as error:
        create_console(stderr=True).print(Text("error:", "bold red"), _line(error, names))
        raise typer.Exit(BAD_INPUT) from error


def typed() -> str:
    """Return the command as it was typed, without passwords."""
    arguments = [without_password(argument) for argument in sys.argv[1:]]
    return shlex.join([Path(sys.argv[0]).name if "hystar-fast" in sys.argv[0] else "hystar-fast", *arguments])


def _options_of(command: Callable[..., Any]) -> dict[str, str]:
    """Return the long option of each parameter of a command that is one."""
    found = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        option = next((entry for entry in getattr(hint, "__metadata__", ()) if isinstance(entry, OptionInfo)), None)
        if option is not None:
            given = (option.default, *(option.param_decls or ()))  # within Annotated the first name is in `default`
            named = (word for word in given if isinstance(word, str) and word.startswith("--"))
            found[name] = next(named, f"--{name.replace('_', '-')}")
    return found


def _line(error: Exception, names: Mapping[str, str]) -> str:
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    text = without_password(text if len(text) <= _LONGEST else text[:_LONGEST] + " …")
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return (
            f"not enough memory ({text}): take a smaller batch (train: --set optim.chunk_size=16), fewer pictures "
            "(--limit) or a smaller backbone"
        )
    if _NO_SPACE.search(text):
        elsewhere = ", or write elsewhere with --output" if "--output" in names.values() else ""
        return f"the disk is full ({text}): free some space{elsewhere}"
    if isinstance(error, RecursionError):
        return "a JSON or TOML file is nested too deeply to be read: " + _kept(error)
    if isinstance(error, _EXPECTED):
        return _renamed(text, names)
    kept = _kept(error)
    return f"{type(error).__name__}: {text}. This is a fault of hystar-fast: please report it at {ISSUES} {kept}"


def _kept(error: Exception) -> str:
    """Write the traceback into a file and return the words that name it."""
    lines = traceback.format_exception(error)
    try:
        handle, path = tempfile.mkstemp(prefix="hystar-fast-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"hystar-fast {hystar_fast.__version__}\n{typed()}\n\n{''.join(lines)}")
    except OSError:
        return f"({lines[-2].strip().splitlines()[0]})"
    return f"with {path}, which holds the traceback"


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Give the first name of a message, which is an argument of the library, the word that the user knows it by."""
    found = _FIRST_NAME.match(text)
    if found is None:
        return text
    before, word = found.groups()
    known, none_word = _word_of(word, names, is_in_file=bool(before))
    rest = text[found.end() :]
    if none_word:
        rest = re.sub(r"\bNone\b", f'"{none_word}"', rest)
    return f"{before}{known}{rest}"


def _word_of(word: str, names: Mapping[str, str], *, is_in_file: bool) -> tuple[str, str]:
    """Return an option or a setting for an argument's name, and the word that stands for None there.

    A setting such as "run.output" that has an option of its own, ``--output``, is called by it. What stands in a file
    is no option.
    """
    from hystar_fast.train.settings import KEYS, NONE_WORDS

    if is_in_file and _SETTINGS not in names.values():
        return word, ""
    nothing = NONE_WORDS.get(word if "." in word else f"model.{word}", "")
    option = None if is_in_file else names.get(word.rpartition(".")[2])
    known: list[str] = []
    if _SETTINGS in names.values():
        known = [*KEYS]
        if _CONFIG in names.values():  # experiments have settings of their own
            from hystar_fast.experiments.experiment_settings import KEYS as OF_EXPERIMENTS

            known = [*OF_EXPERIMENTS]
    keys = [key for key in known if key.partition(".")[2] == word]
    return option or (keys[0] if len(keys) == 1 else word), nothing
