"""The tutorials run as written; small data and weights of the same form replace public data and published weights."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from tests.support import authors_checkpoint
from tests.support import picture_trees as trees
from tests.support.cli import run

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
PAGES = sorted(
    path for path in FOLDER.glob("*.md") if path.stem not in ("serve", "postgresql")
)  # have tests of their own
BLOCK = re.compile(r"^```(python|sh|toml)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def replaced(command: str, folder: Path) -> str:
    """Return a command with public data and published weights replaced."""
    for data in ("DSR", "DomainNet"):
        command = command.replace(f"/data/{data}", str(folder / data))
    return command.replace("open_clip:ViT-L-14 --weights openai", "tiny --weights random")


def publish_small_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a small ``best.pt`` in the authors' layout, and make its backbone the published one."""
    _, _, small = authors_checkpoint.write(folder)
    published = Hystar.from_authors_checkpoint
    config = HystarConfig(backbone=small.backbone, pretrained="folder", style="clip")
    monkeypatch.setattr(Hystar, "from_authors_checkpoint", partial(published, config=config))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_its_first_block_to_its_last(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trees.dsr(tmp_path / "DSR", n=30)
    trees.domainnet(tmp_path / "DomainNet")
    publish_small_weights(tmp_path, monkeypatch)
    names: dict[str, object] = {"__name__": page.stem}
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, page.name, "exec"), names)
        elif kind == "toml":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        else:
            for command in text.splitlines():
                program, *arguments = shlex.split(replaced(command, tmp_path))
                assert program == "hystar-fast"
                result = run(*arguments)
                assert result.exit_code == 0, f"{command}\n{result.output}"
