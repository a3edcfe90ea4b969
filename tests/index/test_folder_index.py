"""One call that indexes a folder: made, brought up to date, replaced on request, never destroyed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hystar_fast.index import folder_index, open_index
from hystar_fast.index.folder_index import index_folder
from hystar_fast.index.local import LocalEngine
from hystar_fast.methods.suite import create_hystar, create_method, tiny_config
from tests.support.picture_trees import damaged, picture


@pytest.fixture(scope="module")
def frozen():
    return create_method("frozen", tiny_config(None))


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    for i in range(5):
        picture(tmp_path / "pics" / f"{i}.png", seed=i)
    return tmp_path / "pics"


def known(folder: Path) -> list[str]:
    with LocalEngine(folder) as engine:
        assert engine.verify() == []
        return sorted(engine.known())


def test_unreadable_pictures_are_skipped_and_a_folder_of_them_makes_no_index(tmp_path, pics, frozen):
    damaged(pics / "1.png")
    (pics / "4.png").write_text("no picture")
    done: list[tuple[int, int]] = []
    report = index_folder(pics, frozen, tmp_path / "out", progress=lambda *counts: done.append(counts))
    assert report.added == 3 and [entry.path for entry in report.skipped] == ["1.png", "4.png"]
    assert report.skipped[0].reason.startswith("path must be a whole image file") and done[-1] == (5, 5)
    assert known(tmp_path / "out") == ["0.png", "2.png", "3.png"]
    for name in ("0.png", "2.png", "3.png"):
        damaged(pics / name)
    with pytest.raises(ValueError, match=r"folder must hold readable pictures, got .* with none of 5, the first"):
        index_folder(pics, create_hystar(tiny_config(None)), tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.db*")) and not (tmp_path / "other" / "adapter").exists()


def test_a_second_call_brings_the_index_up_to_date(tmp_path, pics, frozen):
    index_folder(pics, frozen, tmp_path / "out")
    picture(pics / "new.png", seed=9)
    (pics / "0.png").unlink()
    report = index_folder(pics, frozen, tmp_path / "out")
    assert (report.added, report.unchanged, report.removed) == (1, 4, 1)
    assert known(tmp_path / "out") == ["1.png", "2.png", "3.png", "4.png", "new.png"]


def test_an_index_of_other_pictures_is_replaced_on_request_and_stays_if_that_fails(tmp_path, pics, frozen, monkeypatch):
    other = tmp_path / "other"
    for i in range(40):
        picture(other / f"{i}.png", seed=100 + i)
    index_folder(pics, frozen, tmp_path / "out")
    with pytest.raises(ValueError, match=r"got .*/out with the index of .*/pics; --overwrite replaces it"):
        index_folder(other, frozen, tmp_path / "out")
    calls = 0
    real = folder_index.add

    def stop(*arguments, progress=None, **options):
        def counted(done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            raise KeyboardInterrupt

        return real(*arguments, progress=counted, **options)

    monkeypatch.setattr(folder_index, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        index_folder(other, frozen, tmp_path / "out", overwrite=True)
    assert calls == 1 and len(known(tmp_path / "out")) == 5, "the old index is there until the new one is whole"
    monkeypatch.setattr(folder_index, "add", real)
    report = index_folder(other, frozen, tmp_path / "out", overwrite=True)
    assert (report.added, report.unchanged) == (8, 32), "the second call goes on"
    assert len(known(tmp_path / "out")) == 40
    with LocalEngine(tmp_path / "out") as engine:
        assert [entry.number for entry in engine.generations()] == [2], "a search in the old one must not find these"
        with pytest.raises(ValueError, match="generation must be one of 2, got 1"):
            engine.search("frozen", torch.ones(1, 192), 1, generation=1)
        assert engine.create_generation(engine.stamps(), {}) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.db"]


def test_what_was_left_for_other_pictures_is_not_continued(tmp_path, pics, frozen, monkeypatch):
    other = picture(tmp_path / "other" / "a.png", seed=50).parent
    third = picture(tmp_path / "third" / "b.png", seed=51).parent
    index_folder(pics, frozen, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(open_index, "_took_over", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            index_folder(other, frozen, tmp_path / "out", overwrite=True)
    index_folder(third, frozen, tmp_path / "out", overwrite=True)
    assert known(tmp_path / "out") == ["b.png"]


def test_a_damaged_index_is_replaced_on_request(tmp_path, pics, frozen):
    index_folder(pics, frozen, tmp_path / "out")
    (tmp_path / "out" / "index.db").write_bytes(b"SQLite format 3\0" + b"x" * 4000)
    with pytest.raises(ValueError, match=r"index\.db is damaged"):
        index_folder(pics, frozen, tmp_path / "out")
    index_folder(pics, frozen, tmp_path / "out", overwrite=True)
    assert len(known(tmp_path / "out")) == 5
