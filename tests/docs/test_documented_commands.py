"""Every command in a shell block of the documents is valid: its program, options, settings and paths exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hystar_fast.cli.main import app
from hystar_fast.experiments.experiment_settings import read_experiment
from hystar_fast.experiments.figures import FIGURES
from hystar_fast.experiments.published_tables import split_names
from hystar_fast.experiments.variants import Variant
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.train.settings import read_settings
from hystar_fast.train.settings_file import shipped_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
SHELL = ("sh", "bash", "shell", "console")
OURS = re.compile(r"^\s*(\$ )?(\S*hystar-fast|make|python\d?|pytest|torchrun)\s|hystar_fast\.|\bhf\.", re.MULTILINE)
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
# Programs whose arguments are not checked.
OTHERS = ("git", "cd", "pip", "pre-commit", ".", "npm", "tar", "curl", "apt-get", "dpkg-deb")
COMMAND_LINE = ("-m", "hystar_fast.cli.main")
SHIPPED = ("emoji", "paper")


def check_train(values: Mapping[str, Any]) -> None:
    config = values["config"]
    shipped = shipped_files("hystar_fast.train")
    read_settings(config if config in shipped else "emoji", values["set_"] or ())


def check_experiment(values: Mapping[str, Any]) -> None:
    config = values["config"]
    settings = read_experiment(config if config in (*SHIPPED, "lean") else "emoji", values["set_"] or ())
    for name in (*settings.training.methods, *settings.few_shot.methods):
        Variant.parse(name)
    if "tables" in values:
        split_names(values["tables"])
    unknown = set(values.get("numbers", ())) - set(FIGURES)
    if unknown:
        raise ValueError(f"there is no figure {min(unknown)}")


def check_metrics(values: Mapping[str, Any]) -> None:
    for name in (values["metrics"] or "R@1").split(","):
        Metric.parse(name)


# Checks of values that the command line itself takes as any string.
CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "train": check_train,
    "eval": check_metrics,
    **{f"experiments {name}": check_experiment for name in ("tune", "compare", "reproduce", "figure", "fewshot")},
}


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of every command: continued lines are joined, comments cut, and &&, ; and | separate commands."""
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


def fault_of(command: list[str]) -> str | None:
    """Return the fault of a command, or None."""
    while re.fullmatch(r"[A-Z_]+=.*", command[0]):
        command = command[1:]
    program, *arguments = command
    name = Path(program).name if program != "." else program
    if name == "hystar-fast":
        return fault_of_arguments(arguments)
    if name == "torchrun" and "--no-python" in arguments:
        return fault_of(arguments[arguments.index("--no-python") + 1 :])
    if name in ("torchrun", "python", "python3") and "-m" in arguments and arguments[-1] != "-m":
        place = arguments.index("-m")
        if tuple(arguments[place : place + 2]) == COMMAND_LINE:
            return fault_of_arguments(arguments[place + 2 :])
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
    return None if name in OTHERS else f"{program} is not a known program"


def fault_of_arguments(arguments: list[str]) -> str | None:
    """Parse arguments of ``hystar-fast`` with its own parser, without running anything, and return the fault."""
    command: Any = typer.main.get_command(app)
    words: list[str] = []
    if set(arguments[:1]) & {"--help", *(word for option in command.params for word in option.opts)}:
        return None
    rest = arguments
    while hasattr(command, "commands"):
        name, *rest = rest or [""]
        words.append(name)
        if name not in command.commands:
            return f"there is no command {' '.join(words)!r}"
        command = command.commands[name]
    try:
        with command.make_context(" ".join(words), rest) as parsed:
            CHECKS.get(" ".join(words), lambda values: None)(parsed.params)
    except Exception as error:  # a usage error, what a check of a value raises, or the exit of --help
        message = getattr(error, "format_message", error.__str__)()
        return None if getattr(error, "exit_code", 1) == 0 else message or type(error).__name__
    return None


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(kind, text) for _, kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def shell_commands(page: Path) -> list[list[str]]:
    return [command for kind, text in blocks(page) if kind in SHELL for command in commands(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_valid(page):
    assert {shlex.join(c): fault for c in shell_commands(page) if (fault := fault_of(c)) is not None} == {}


INLINE = re.compile(r"`hystar-fast ((?!-)[^`\n…]+)`")


def unknown_command(words: list[str]) -> str | None:
    """Return the fault of the command that the words begin with, whatever options follow; None if it exists."""
    level: Any = typer.main.get_command(app)
    for word in words:
        if word.isupper() or not hasattr(level, "commands"):  # COMMAND stands for any of them
            break
        if word not in level.commands:
            return f"there is no command {word!r}"
        level = level.commands[word]
    return None


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_command_within_a_sentence_exists(page):
    found = [shlex.split(text) for text in INLINE.findall(page.read_text(encoding="utf-8"))]
    assert {" ".join(words): fault for words in found if (fault := unknown_command(words)) is not None} == {}


def test_an_unknown_command_within_a_sentence_is_found():
    assert [shlex.split(text) for text in INLINE.findall("see `hystar-fast compare`")] == [["compare"]]
    assert unknown_command(["compare"]) == "there is no command 'compare'"
    assert unknown_command(["experiments", "compare", "--output", "runs"]) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_commands_or_code_has_a_language(page):
    assert [text for kind, text in blocks(page) if not kind and OURS.search(text)] == []


def test_the_pages_have_commands_of_every_kind():
    found = [command for page in PAGES for command in shell_commands(page)]
    assert len(found) > 40
    assert {Path(command[0]).name for command in found} >= {"hystar-fast", "make", "python", "torchrun"}
    ours = {tuple(command[1:3]) for command in found if Path(command[0]).name == "hystar-fast"}
    assert {words[0] for words in ours} >= {"demo", "search", "info", "train", "eval", "embed", "index", "experiments"}
    assert {words[1] for words in ours if words[0] == "experiments"} >= {"compare", "reproduce", "figure", "fewshot"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("hystar-fast experiments compare --metods frozen", "No such option"),
        ("hystar-fast demo --seed none", "--seed"),
        ("hystar-fast demo --steps -1", "--steps"),
        ("hystar-fast embed --output x", "Missing argument"),
        ("hystar-fast experiment", "there is no command 'experiment'"),
        ("hystar-fast compare", "there is no command 'compare'"),
        ("hystar-fast experiments compar", "there is no command 'experiments compar'"),
        ("hystar-fast experiments", "there is no command 'experiments '"),
        ("hystar-fast info extra", "unexpected extra argument"),
        ("hystar-fast experiments reproduce table99", "tables must be"),
        ("hystar-fast experiments figure 4", "there is no figure 4"),
        ("""hystar-fast experiments compare --set 'training.methods=["hystra"]'""", "methods must be some of"),
        ("hystar-fast experiments compare --set model.blocks=4,7", "model.blocks must be"),
        ("hystar-fast experiments tune --set training.step=3", "did you mean training.steps?"),
        ("hystar-fast eval --metrics mAP@200", "must name its definition"),
        ("hystar-fast train --set optim.batchsize=3", "unknown key optim.batchsize"),
        ("hystar-fast train my.toml --set optim.batch_size=many", "must be an integer"),
        ("torchrun --nproc-per-node 4 -m hystar_fast.cli.main train a.toml b.toml", "unexpected extra argument"),
        ("torchrun --nproc-per-node 4 --no-python hystar-fast embed a --shard b", "No such option"),
        ("make demo nothing", "no target nothing"),
        ("python bench/nothing.py --adapter x", "there is no bench/nothing.py"),
        ("OMP_NUM_THREADS=1 python -m pytest tests/test_nothing.py::test", "there is no tests/test_nothing.py"),
        ("pytest benches/", "there is no benches/"),
        ("hystar-fast", "there is no command ''"),
        ("bash bench/nothing.sh", "there is no bench/nothing.sh"),
        ("hystr-fast demo", "hystr-fast is not a known program"),
    ],
)
def test_a_wrong_line_is_found(line, fault):
    [command] = commands(line)
    assert fault in (fault_of(command) or "nothing")


@pytest.mark.parametrize(
    "line",
    [
        ".venv/bin/hystar-fast search --query FOLDER/a.png",
        "hystar-fast experiments compare --output FOLDER --config my.toml --set training.tune_variants=false",
        """hystar-fast experiments compare --set 'training.methods=["frozen", "hystar+gamma=10"]'""",
        "hystar-fast --version",
        "hystar-fast experiments compare --help",
        "make demo VENV=other",
        "python -m pytest bench",
        "python bench/demo_evidence.py adapt clip [--steps 300]",
        "pytest tests/ops/test_svd_linear*.py",
    ],
)
def test_a_right_line_is_not(line):
    [command] = commands(line)
    assert fault_of(command) is None


def test_a_block_is_read_as_a_shell_reads_it():
    block = "# first\n$ hystar-fast demo \\\n  --output 'a b'  # two\n\nmake demo && make test; make lint\n"
    assert list(commands(block)) == [
        ["hystar-fast", "demo", "--output", "a b"],
        ["make", "demo"],
        ["make", "test"],
        ["make", "lint"],
    ]
