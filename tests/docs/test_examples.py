"""The examples run: each script with few steps, and every cell of the notebook, which is stored without outputs."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "examples"
CELLS: list[dict[str, Any]] = json.loads((FOLDER / "hystar.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run_script(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(FOLDER / name), run_name="__main__")


def test_a_model_trains_with_the_layer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("train_any_model.py", monkeypatch, "--steps", "2")
    printed = capsys.readouterr().out
    assert "replaced 16 layers; 3,072 offsets to train" in printed
    assert "head alone: " in printed and "head and offsets: " in printed


@pytest.mark.parametrize("loop", ["trainer", "accelerate"])
def test_experts_train_from_mixed_batches(
    loop: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("train_experts.py", monkeypatch, "--steps", "40", "--loop", loop)
    printed = capsys.readouterr().out
    assert "3 experts in 22 KiB" in printed
    for task in ("up", "down", "triple"):
        found = re.search(rf"{task}: loss (.+) with no expert, (.+) with its own, (.+) with another's", printed)
        assert found is not None
        no_expert, own, other = map(float, found.groups())
        assert own < min(no_expert, other) - 0.1, "an expert has learnt its own task"


def test_a_folder_is_searched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("search_folder.py", monkeypatch, "--steps", "1", "--output", "out")
    printed = capsys.readouterr().out
    assert "indexed 100 pictures, skipped 0" in printed
    assert "1. 1f349.png" in printed, "the first answer to the outline of a watermelon is the watermelon"
    with Image.open("out/answers.png") as picture:
        assert picture.width > picture.height


def test_a_folder_of_the_user_needs_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="needs a --query"):
        run_script("search_folder.py", monkeypatch, "--folder", "pictures")


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "trainable: 447,168" in printed and "largest weight: " in printed


def test_the_notebook_is_stored_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_page_names_every_example() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(files) == 4 and [name for name in files if f"({name})" not in page] == []
