"""Files that came over HTTP: what a kill leaves without an item is removed, and nothing that an item names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hystar_fast.index.added_files import source_of_added, sweep_added
from hystar_fast.index.engine import Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.sync import plan, sync
from tests.support.index_engines import STAMPS, units
from tests.support.served import drawing, encoded


@pytest.fixture
def engine(tmp_path):
    with LocalEngine.create(tmp_path / "index", STAMPS, settings={"sources": {}, "ids": "path"}) as made:
        (tmp_path / "index" / "added").mkdir()
        yield made


def written(engine: LocalEngine, number: int) -> tuple[Path, str]:
    """Write a picture as the server does; return its place and SHA-256."""
    content = encoded(drawing(number))
    digest = hashlib.sha256(content).hexdigest()
    place = Path(engine.folder) / "added" / f"{digest}.png"
    place.write_bytes(content)
    return place, digest


def test_sync_removes_files_without_an_item_and_no_others(engine):
    source = source_of_added(engine, Path(engine.folder).resolve() / "added")
    named, digest = written(engine, 0)
    state = named.stat()
    item = Item("one", source, named.name, "one", {}, state.st_size, state.st_mtime_ns, digest)
    engine.upsert([item], {"adapted": units(1)})
    orphan, _ = written(engine, 1)
    part = orphan.with_name(f".{'a1' * 6}.partial")
    part.write_bytes(b"half a pict")
    foreign = orphan.with_name("notes.txt")
    foreign.write_text("mine")
    plan(engine)
    assert orphan.exists() and part.exists(), "what sync would do changes nothing"
    report = sync(engine, lambda: pytest.fail("there is nothing to encode"))
    assert report.removed == 0 and engine.fetch([item.key]) == {item.key: item}
    assert {*named.parent.iterdir()} == {named, foreign}


@pytest.mark.parametrize("field", ["path", "sha256"])
def test_a_file_stays_that_an_item_of_another_source_has_by_name_or_content(engine, field):
    """An index that was moved names its files by the folder where it was; a file may have been changed in place."""
    kept, digest = written(engine, 2)
    orphan, _ = written(engine, 3)
    names = {"path": Item("one", "elsewhere", kept.name), "sha256": Item("one", "elsewhere", "a.png", sha256=digest)}
    engine.upsert([names[field]], {"adapted": units(1)})
    assert sweep_added(engine) == 1
    assert kept.exists() and not orphan.exists()


def test_more_files_than_one_query_names_are_all_looked_up(engine, monkeypatch):
    monkeypatch.setattr("hystar_fast.index.added_files._AT_ONCE", 3)
    files = [written(engine, number) for number in range(10)]
    items = [Item(str(i), ".added", place.name, sha256=digest) for i, (place, digest) in enumerate(files[::2])]
    engine.upsert(items, {"adapted": units(5)})
    assert sweep_added(engine) == 5 and sweep_added(engine) == 0
    assert {*(Path(engine.folder) / "added").iterdir()} == {place for place, _ in files[::2]}
