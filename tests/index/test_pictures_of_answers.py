"""The picture of a search: every answer is shown, even where its file has gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from hystar_fast.index import searcher as module
from hystar_fast.index.engine import Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.searcher import Query, Searcher
from hystar_fast.index.stamp import Stamp
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support import picture_trees as trees


def test_a_picture_that_has_gone_or_is_transparent_is_drawn_with_its_name_and_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.picture(tmp_path / "a.png", seed=1)
    Image.new("RGBA", (40, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    names = ["a.png", "clear.png", "gone.png"]
    source = {"sources": {"in": {"folder": str(tmp_path), "whole": True, "prefix": ""}}}
    engine = LocalEngine.create(tmp_path / "index", {"adapted": Stamp({"dimension": 3})}, settings=source)
    engine.upsert([Item(name, "in", name, name) for name in names], {"adapted": torch.eye(3)})
    searcher = Searcher(engine, engine.generation(), "adapted", create_method("pixels", tiny_config(None)))
    monkeypatch.setattr(Searcher, "encode_pictures", lambda self, queries: torch.eye(3)[:1])
    query = Query(tmp_path / "a.png")
    shown = []
    page = module.answer_page
    monkeypatch.setattr(module, "answer_page", lambda *args: shown.extend(args[2]) or page(*args))
    drawn = searcher.draw(searcher.search([query], 3)[0], query)
    assert [answer.image is None for answer in shown] == [answer.caption == "gone.png" for answer in shown]
    assert shown[0].caption == "a.png" and sorted(a.caption for a in shown) == names
    assert [answer.score for answer in shown] == pytest.approx([1.0, 0.0, 0.0])
    clear = next(answer.image for answer in shown if answer.caption == "clear.png")
    assert clear is not None and int(clear.min()) == 255, "transparent is not white"
    assert drawn.width > 400 and drawn.height > 300
    none = searcher.draw([], Query(text="a red heart"))
    assert none.height < drawn.height
