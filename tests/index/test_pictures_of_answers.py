"""The picture of a search: every answer is shown, even where its file has gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from hystar_fast.index import search
from hystar_fast.index.memory import MemoryIndex
from hystar_fast.index.search import Searcher
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support import picture_trees as trees


def test_a_picture_that_has_gone_or_is_transparent_is_drawn_with_its_name_and_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.picture(tmp_path / "a.png", seed=1)
    Image.new("RGBA", (40, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    names = ["a.png", "clear.png", "gone.png"]
    index = MemoryIndex(torch.eye(3), names, {"source": str(tmp_path), "captions": names})
    searcher = Searcher(index, create_method("pixels", tiny_config(None)))
    shown = []
    page = search.answer_page
    monkeypatch.setattr(search, "answer_page", lambda *args: shown.extend(args[2]) or page(*args))
    drawn = searcher.draw(searcher._hits(torch.eye(3)[:1], 3), query=tmp_path / "a.png", text="")
    assert [answer.image is None for answer in shown] == [answer.caption == "gone.png" for answer in shown]
    assert shown[0].caption == "a.png" and sorted(a.caption for a in shown) == names
    assert [answer.score for answer in shown] == pytest.approx([1.0, 0.0, 0.0])
    clear = next(answer.image for answer in shown if answer.caption == "clear.png")
    assert clear is not None and int(clear.min()) == 255, "transparent is not white"
    assert drawn.width > 400 and drawn.height > 300
    none = searcher.draw([], query=None, text="a red heart")
    assert none.height < drawn.height
