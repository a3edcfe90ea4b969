"""Writes to Milvus that end between any two of its calls: nothing disagrees, and a rerun makes all good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from hystar_fast.index.engine import Engine, Item
from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.milvus_connection import Connection
from hystar_fast.index.stamp import Stamp
from tests.support.index_engines import OTHER, STAMPS, items, units

WRITES = ("upsert", "delete", "create_collection", "drop_collection", "create_alias", "alter_alias")
ITEMS = items(6)
CHANGED = replace(ITEMS[1], sha256="e" * 64)
DESCRIBED = replace(ITEMS[2], caption="new words")
Work = Callable[[Engine], object]


class Killed(BaseException):
    """The process ended here."""


def vectors(chosen: Sequence[Item], stamps: dict[str, Stamp] = STAMPS) -> dict[str, torch.Tensor]:
    """Return vectors that tell of which content they are."""
    dimension = stamps["adapted"].dimension
    return {"adapted": torch.cat([units(1, int(item.sha256[-8:], 16), dimension) for item in chosen])}


def filled(uri: str) -> MilvusEngine:
    """Return an index with a live generation, and another one that has the vectors of all items but the last."""
    engine = MilvusEngine.create(uri, STAMPS)
    engine.upsert(ITEMS, vectors(ITEMS))
    engine.upsert(ITEMS[:5], vectors(ITEMS[:5], OTHER), engine.create_generation(OTHER, {}))
    return engine


def is_killed(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], writes: int) -> bool:
    """Do work until it has made some calls that write; return whether there was one more."""
    left, call = writes, Connection.call

    def counted(self: Connection, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        if method in WRITES:
            if left == 0:
                raise Killed
            left -= 1
        return call(self, method, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "call", counted)
        try:
            work()
        except Killed:
            return True
    return False


def content(engine: Engine) -> dict[str, Any]:
    """Return all that an index holds; every vector must be that of its item's content."""
    found: dict[str, Any] = {"settings": engine.settings(), "styles": [*engine.styles()]}
    for entry in engine.generations():
        held = {}
        for batch, read in engine.scan(entry.number):
            assert torch.equal(read["adapted"], vectors(batch, dict(entry.stamps))["adapted"])
            held |= {item.id: item for item in batch}
        assert entry.count == len(held) == engine.count() - len(engine.missing(entry.number))
        found["live" if entry.live else "other"] = (dict(entry.stamps), held)
    return found


def whole(engine: Engine) -> None:
    engine.upsert(ITEMS[5:], vectors(ITEMS[5:], OTHER), 2)


WORK: dict[str, Work] = {
    "new and changed": lambda engine: engine.upsert(
        [*items(1, first=9), CHANGED, DESCRIBED], vectors([*items(1, first=9), CHANGED, DESCRIBED])
    ),
    "described": lambda engine: engine.upsert([DESCRIBED]),
    "another generation": whole,
    "remove": lambda engine: engine.remove([ITEMS[0].key, ITEMS[3].key]),
    "settings": lambda engine: engine.put_settings({"ids": "content", "sources": {}}),
    "style": lambda engine: engine.put_style("x", torch.ones(3)),
    "switch": lambda engine: (whole(engine), engine.switch(2)),
    "drop": lambda engine: engine.drop(2),
}


@pytest.mark.parametrize("name", WORK)
def test_a_write_that_ends_after_any_of_its_calls_is_ended_by_a_rerun(tmp_path, monkeypatch, name):
    work = WORK[name]
    with filled(f"milvus:{tmp_path}/whole.db") as engine:
        work(engine)
        assert engine.verify() == []
        expected = content(engine)
    for writes in range(12):
        with filled(f"milvus:{tmp_path}/{writes}.db") as engine:
            was_killed = is_killed(monkeypatch, lambda engine=engine: work(engine), writes)
            with MilvusEngine(engine.uri) as again:
                content(again)
                assert all("old caption" in line or "belongs to no generation" in line for line in again.verify())
                with suppress(ValueError):  # the generation to drop has gone
                    work(again)
                again.verify(repair=True)
                assert again.verify() == [] and content(again) == expected
        if not was_killed:
            break
    assert 1 < writes < 11


def test_a_copy_of_an_item_that_was_left_old_is_made_new_by_a_switch(tmp_path, monkeypatch):
    with filled(f"milvus:{tmp_path}/x.db") as engine:
        whole(engine)
        assert is_killed(monkeypatch, lambda: engine.upsert([DESCRIBED]), 1)
        assert engine.verify() == [f"{DESCRIBED.id!r} in generation 2 has an old caption or path"]
        engine.switch(2)
        assert engine.fetch([DESCRIBED.key]) == {DESCRIBED.key: DESCRIBED}


def test_an_index_whose_creation_ended_early_is_made_again(tmp_path, monkeypatch):
    for writes in range(12):
        uri = f"milvus:{tmp_path}/{writes}.db"
        was_killed = is_killed(monkeypatch, lambda uri=uri: MilvusEngine.create(uri, STAMPS).close(), writes)
        if not was_killed:
            break
        assert not MilvusEngine.exists(uri)
        with pytest.raises(ValueError, match=f"index must exist, but {uri} has none"):
            MilvusEngine(uri)
        with MilvusEngine.create(uri, STAMPS) as engine:
            assert engine.verify() == [] and [entry.number for entry in engine.generations()] == [1]
    assert 3 < writes < 11
    with pytest.raises(ValueError, match=f"index must be new, but {uri} has one"):
        MilvusEngine.create(uri, STAMPS)


def test_a_generation_whose_creation_ended_early_is_whole_or_not_there(tmp_path, monkeypatch):
    with filled(f"milvus:{tmp_path}/x.db") as engine:
        engine.drop(2)
        last = 2
        for writes in range(9):
            was_killed = is_killed(monkeypatch, lambda: engine.create_generation(OTHER, {}), writes)
            new = [entry.number for entry in engine.generations() if not entry.live]
            assert len(new) <= 1 and all(number > last for number in new), "a number is not used again"
            for number in new:
                engine.upsert(ITEMS, vectors(ITEMS, OTHER), number)
                engine.drop(number)
                last = number
            if not was_killed:
                break
        assert 4 < writes < 8 and len(new) == 1 and engine.verify() == []
