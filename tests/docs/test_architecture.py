"""The walks of ARCHITECTURE.md: their files exist, each is named once, and no call goes up the order of the imports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hystar_fast"
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
ORDER = ("csrc", "ops", "nn", "data", "models", "methods", "retrieval", "index", "serve", "train", "experiments", "cli")
WALKS = [
    pytest.param(heading, block, id=heading)
    for heading, block in re.findall(r"^### (.+?)\n\n```text\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)
]


def calls(block: str) -> list[tuple[str, str | None]]:
    """Return each file of a walk with the file that calls it: the nearest line above it that is indented less."""
    above: list[tuple[int, str]] = []
    found: list[tuple[str, str | None]] = []
    for line in block.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        above = [(depth, caller) for depth, caller in above if depth < indent]
        found.append((name, above[-1][1] if above else None))
        above.append((indent, name))
    return found


def test_there_are_four_walks() -> None:
    assert len(WALKS) == 4


@pytest.mark.parametrize(("heading", "block"), WALKS)
def test_a_walk_names_files_that_exist_once_and_goes_down(heading: str, block: str) -> None:
    named = [name for name, _ in calls(block)]
    assert [name for name in named if not (PACKAGE / name).is_file() and not (ROOT / name).is_file()] == []
    assert [name for name in named if named.count(name) > 1] == []
    for name, caller in calls(block):
        if caller is not None:
            assert ORDER.index(name.split("/")[0]) <= ORDER.index(caller.split("/")[0]), f"{caller} calls {name}"


def test_a_walk_that_goes_up_is_found() -> None:
    assert calls("a/b.py   x\n    c/d.py\n        e.py\n    f.py\n") == [
        ("a/b.py", None),
        ("c/d.py", "a/b.py"),
        ("e.py", "c/d.py"),
        ("f.py", "a/b.py"),
    ]


def test_every_folder_of_the_package_is_in_the_tree() -> None:
    folders = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file() and path.name != "kernels"]
    assert [name for name in folders if f"| `hystar_fast/{name}/` |" not in TEXT] == []


def test_the_order_of_the_imports_is_the_one_of_the_walks() -> None:
    (line,) = re.findall(r"^ref, kernels, _C  ->  (.+)$", TEXT, re.MULTILINE)
    assert tuple(re.split(r"  ->  |, ", line)) == ORDER[1:]
