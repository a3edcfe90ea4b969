"""Every command in a shell block of the documentation parses: its program, its options and its paths are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hystar_fast.cli.main import app
from hystar_fast.cli.options import numbers
from hystar_fast.experiments.reproduce import table_numbers
from hystar_fast.experiments.variants import Variant
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.train.settings import KEYS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
SHELL = ("sh", "bash", "shell", "console")
OURS = re.compile(r"^\s*(\$ )?(\S*hystar-fast|make|python\d?|pytest|torchrun)\s|hystar_fast\.|\bhf\.", re.MULTILINE)
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
# programs whose arguments are not ours to check
OTHERS = ("git", "cd", "pip", "pre-commit", ".", "npm", "tar")
COMMAND_LINE = ("-m", "hystar_fast.cli.main")


def known_key(change: str) -> None:
    if change.partition("=")[0] not in KEYS:
        raise ValueError(f"no setting {change}")


# what is only a word to the command line, but can be wrong all the same
VALUES: dict[str, Callable[[Any], object]] = {
    "reproduce tables": table_numbers,
    "compare methods": lambda names: [Variant.parse(name.strip()) for name in (names or "frozen").split(",")],
    "fewshot methods": lambda names: [Variant.parse(name.strip()) for name in names.split(",")],
    "eval metrics": lambda names: [Metric.parse(name) for name in (names or "R@1").split(",")],
    "train set_": lambda changes: [known_key(change) for change in changes or ()],
    **{f"{command} blocks": numbers for command in ("tune", "compare", "fewshot", "reproduce", "figure")},
}


def commands(block: str) -> Iterator[list[str]]:
    """The words of every command of a block: continued lines are one, comments are cut, &&, ; and | part two."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=";&|")
        words.whitespace_split = True
        command: list[str] = []
        for word in (*words, "&&"):
            if word not in ("&&", ";", "|"):
                command.append(word)
            elif command:
                yield command
                command = []


def wrong(command: list[str]) -> str | None:
    """What is wrong with a command, None if nothing is."""
    while re.fullmatch(r"[A-Z_]+=.*", command[0]):
        command = command[1:]
    program, *arguments = command
    name = Path(program).name if program != "." else program
    if name == "hystar-fast":
        return wrong_arguments(arguments)
    if name in ("torchrun", "python", "python3") and "-m" in arguments and arguments[-1] != "-m":
        place = arguments.index("-m")
        if tuple(arguments[place : place + 2]) == COMMAND_LINE:
            return wrong_arguments(arguments[place + 2 :])
        name, arguments = arguments[place + 1], arguments[place + 2 :]
    if name == "make":
        missing = [word for word in arguments if "=" not in word and word not in TARGETS]
        return f"the Makefile has no target {missing[0]}" if missing else None
    if name in ("python", "python3", "pytest", "bash"):
        paths = arguments[:1]
        if name == "pytest":
            paths = [word.partition("::")[0] for word in arguments if not word.startswith("-") and "/" in word]
        missing = [path for path in paths if not any(ROOT.glob(path))]
        return f"there is no {missing[0]}" if missing else None
    return None if name in OTHERS else f"{program} is no program that is known here"


def wrong_arguments(arguments: list[str]) -> str | None:
    """What the real command line says of arguments of ``hystar-fast``; nothing is run."""
    group: Any = typer.main.get_command(app)
    name, *rest = arguments or [""]
    if name in {"--help", *(word for option in group.params for word in option.opts)}:
        return None
    if name not in group.commands:
        return f"there is no command {name!r}"
    try:
        with group.commands[name].make_context(name, rest) as parsed:
            for key, value in parsed.params.items():
                VALUES.get(f"{name} {key}", str)(value)
    except Exception as error:  # a usage error, what a check of a value raises, or the exit of --help
        said = getattr(error, "format_message", error.__str__)()
        return None if getattr(error, "exit_code", 1) == 0 else said or type(error).__name__
    return None


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(kind, text) for _, kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_could_be_run(page):
    found = [command for kind, text in blocks(page) if kind in SHELL for command in commands(text)]
    faults = {shlex.join(command): fault for command in found if (fault := wrong(command)) is not None}
    assert faults == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_hides_commands_or_code_behind_a_missing_language(page):
    assert [text for kind, text in blocks(page) if not kind and OURS.search(text)] == []


def test_there_are_commands_to_check():
    found = [command for page in PAGES for kind, text in blocks(page) if kind in SHELL for command in commands(text)]
    assert len(found) > 40
    assert {Path(command[0]).name for command in found} >= {"hystar-fast", "make", "python", "torchrun"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("hystar-fast compare --metods frozen", "No such option"),
        ("hystar-fast compare --seeds none", "--seeds"),
        ("hystar-fast compare --steps 0", "--steps"),
        ("hystar-fast embed --output x", "Missing argument"),
        ("hystar-fast compar", "there is no command 'compar'"),
        ("hystar-fast info extra", "unexpected extra argument"),
        ("hystar-fast reproduce table99", "tables must be"),
        ("hystar-fast compare --methods hystra", "methods must be some of"),
        ("hystar-fast compare --blocks 4,7", "blocks must be numbers"),
        ("hystar-fast eval --metrics mAP@200", "must name its definition"),
        ("hystar-fast train --set optim.batchsize=3", "no setting optim.batchsize=3"),
        ("torchrun --nproc-per-node 4 -m hystar_fast.cli.main train a.toml b.toml", "unexpected extra argument"),
        ("make demo nothing", "no target nothing"),
        ("python bench/nothing.py --adapter x", "there is no bench/nothing.py"),
        ("OMP_NUM_THREADS=1 python -m pytest tests/test_nothing.py::test", "there is no tests/test_nothing.py"),
        ("pytest benches/", "there is no benches/"),
        ("hystar-fast", "there is no command ''"),
        ("bash bench/nothing.sh", "there is no bench/nothing.sh"),
        ("hystr-fast demo", "hystr-fast is no program"),
    ],
)
def test_a_wrong_line_is_found(line, fault):
    [command] = commands(line)
    assert fault in (wrong(command) or "nothing")


@pytest.mark.parametrize(
    "line",
    [
        ".venv/bin/hystar-fast search --query FOLDER/a.png",
        "hystar-fast compare --output FOLDER --methods frozen,hystar+gamma=10 --no-tune-variants --train-data emoji",
        "hystar-fast --version",
        "hystar-fast compare --help",
        "make demo VENV=other",
        "python -m pytest bench",
        "python bench/demo_evidence.py adapt clip [--steps 300]",
        "pytest tests/test_svd_linear*.py",
    ],
)
def test_a_right_line_is_not(line):
    [command] = commands(line)
    assert wrong(command) is None


def test_a_block_is_read_as_a_shell_reads_it():
    block = "# first\n$ hystar-fast compare \\\n  --methods 'a b'  # two\n\nmake demo && make test; make lint\n"
    assert list(commands(block)) == [
        ["hystar-fast", "compare", "--methods", "a b"],
        ["make", "demo"],
        ["make", "test"],
        ["make", "lint"],
    ]
