"""SIGKILL at random moments: a rerun ends as if there had been none, and encodes at most one batch again for a kill."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from hystar_fast.data.images import load_image
from hystar_fast.index.copy_index import copy_index
from hystar_fast.index.engine import Engine
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.open_index import open_engine
from hystar_fast.index.stamp import Stamp
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.device import BATCH_ON_CPU
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support import index_kills as work
from tests.support.cli import run
from tests.support.counting_encoder import STAMPS
from tests.support.index_kills import BATCH, killed
from tests.support.picture_trees import picture

PICTURES, KILLS = 400, 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PICTURES):
        picture(folder / f"{i % 7}" / f"{i}.png", seed=i)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Return an index of all pictures that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    work.add_pictures(folder, pictures, folder.parent / "log")
    return folder


def content(folder: Path, generation: int = 1) -> dict[str, torch.Tensor]:
    with LocalEngine(folder) as engine:
        assert engine.verify() == []
        return vectors_of(engine, generation)


def vectors_of(engine: Engine, generation: int) -> dict[str, torch.Tensor]:
    return {
        item.id: vector
        for items, found in engine.scan(generation)
        for item, vector in zip(items, found["adapted"], strict=True)
    }


def is_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.allclose(found[i], expected[i], atol=1e-6) for i in found)


def encoded(log: Path) -> Counter[str]:
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def test_add_is_killed_twenty_times(tmp_path, pictures, whole):
    folder, log, chosen = tmp_path / "index", tmp_path / "log", random.Random(0)
    kills = 0
    for _ in range(KILLS):
        kills += killed(work.add_pictures, folder, pictures, log, after=chosen.uniform(0, 0.08))
        if (folder / "index.db").exists() and chosen.random() < 0.2:
            try:
                with LocalEngine(folder) as engine:
                    assert engine.verify() == [], "what is there is whole at any moment"
            except ValueError as error:
                assert "index must be one of hystar_fast" in str(error), "killed before there was a table"
    work.add_pictures(folder, pictures, log)
    assert kills >= KILLS // 2
    assert is_same(content(folder), content(whole))
    again = sum(encoded(log).values()) - PICTURES
    assert 0 <= again <= kills * BATCH
    assert len(encoded(log)) == PICTURES


def test_a_second_generation_is_killed_while_it_is_filled(tmp_path, pictures, whole):
    folder, log, chosen = tmp_path / "index", tmp_path / "log", random.Random(1)
    shutil.copytree(whole, folder)
    with LocalEngine(folder) as engine:
        assert engine.create_generation({"adapted": Stamp({"model": "small", "dimension": work.SIDE**2})}, {}) == 2
    before = content(folder)
    kills = sum(
        killed(work.fill_second, folder, pictures, log, after=chosen.uniform(0, 0.08)) for _ in range(KILLS // 2)
    )
    assert kills >= 3
    with LocalEngine(folder) as engine:
        lost = len(engine.missing(2))
        if lost:
            with pytest.raises(ValueError, match=f"where {lost} are missing"):
                engine.switch(2)
    work.fill_second(folder, pictures, log)
    again = sum(encoded(log).values()) - PICTURES
    assert 0 <= again <= kills * BATCH
    assert is_same(content(folder), before), "the live generation is untouched"
    with LocalEngine(folder) as engine:
        engine.switch(2)
        engine.drop(1)
    assert content(folder, 2).keys() == before.keys()


@pytest.mark.slow
def test_the_command_reembed_is_killed_between_its_batches(tmp_path, whole, pictures):
    method = create_method("hystar", tiny_config(None), seed=5)
    save_method(method, tmp_path / "adapter")
    folder = shutil.copytree(whole, tmp_path / "index")
    with LocalEngine(folder) as engine:
        engine.remove(engine.keys()[3 * BATCH_ON_CPU :])
    before = content(folder)
    reembed = ("index", "reembed", str(folder), "--adapter", str(tmp_path / "adapter"))
    child = work.started(work.command, *reembed)
    while missing(folder) == len(before):
        assert child.is_alive()
        time.sleep(0.05)
    child.kill()
    child.join()
    left = missing(folder)
    assert child.exitcode == -9 and left in (BATCH_ON_CPU, 2 * BATCH_ON_CPU), "whole batches are kept"
    assert is_same(content(folder), before), "the live generation is untouched"
    assert f"embedded {left} pictures for generation 2, 0 are missing" in run(*reembed).output
    images = torch.stack([method.resize(load_image(pictures / name)) for name in before])
    with torch.inference_mode():
        expected = dict(zip(before, method.encode_image(images), strict=True))
    assert is_same(content(folder, 2), expected)


def missing(folder: Path) -> int:
    """Return how many vectors the second generation lacks; all if there is none."""
    with LocalEngine(folder) as engine:
        numbers = [entry.number for entry in engine.generations()]
        return len(engine.missing(2)) if 2 in numbers else engine.count()


def test_sync_is_killed_while_files_move_change_and_go(tmp_path, whole, pictures):
    chosen = random.Random(2)
    mine = shutil.copytree(pictures, tmp_path / "pictures")
    folder, log = tmp_path / "index", tmp_path / "log"
    work.add_pictures(folder, mine, tmp_path / "first")
    (mine / "0").rename(mine / "moved")
    for path in sorted((mine / "1").iterdir()):
        path.unlink()
    for i, path in enumerate(sorted((mine / "2").iterdir())):
        picture(path, seed=1000 + i)
    kills = sum(killed(work.sync_pictures, folder, mine, log, after=chosen.uniform(0, 0.08)) for _ in range(KILLS // 2))
    work.sync_pictures(folder, mine, log)
    fresh = tmp_path / "fresh"
    work.add_pictures(fresh, mine, tmp_path / "second")
    assert is_same(content(folder), content(fresh))
    changed = len([*(mine / "2").iterdir()])
    assert changed <= sum(encoded(log).values()) <= changed + kills * BATCH


IN_POSTGRES = pytest.mark.xdist_group("postgres")
COPIES = ("to postgres", "from postgres", "to a folder", "to milvus", "from milvus")  # Milvus Lite


@pytest.mark.parametrize(
    "direction", [pytest.param(name, marks=IN_POSTGRES) if "postgres" in name else name for name in COPIES]
)
def test_a_copy_is_killed_and_goes_on(tmp_path, whole, request, direction):
    chosen = random.Random(3)
    shutil.copytree(whole, tmp_path / "index")
    source = str(tmp_path / "index")
    with LocalEngine(source) as engine:
        second = engine.create_generation({"adapted": Stamp({"model": "small", "dimension": 3})}, {})
        items = [*engine.fetch(engine.keys()[:100]).values()]
        engine.upsert(items, {"adapted": torch.eye(3)[torch.arange(100) % 3]}, second)
        engine.put_style("a", torch.arange(3.0))
        settings = engine.settings()
    others = [f"milvus:{tmp_path}/{name}.db" for name in ("copy", "timed")]
    if "postgres" in direction:
        others = [request.getfixturevalue("postgres").new_uri() for _ in range(2)]
    target, timed = str(tmp_path / "copy"), str(tmp_path / "timed")
    if direction.startswith("from"):
        copy_index(source, source := others[0])
    elif direction != "to a folder":
        target, timed = others
    started = time.perf_counter()
    copy_index(source, timed)
    within = max(0.3, (time.perf_counter() - started) / 2)  # a process needs a moment to begin
    kills, unfinished = 0, 0
    for _ in range(KILLS // 3):
        kills += killed(work.copy, source, target, after=chosen.uniform(0, within))
        try:
            open_engine(target).close()
        except ValueError as error:  # stopped at any moment, it is not taken for the whole
            unfinished += "was stopped: go on with `hystar-fast index copy" in str(error)
        else:
            break
    assert kills >= 3 and unfinished >= 2
    done = copy_index(source, target)
    assert done.unchanged + done.written == PICTURES + 100 and done.removed == 0
    with open_engine(source) as old, open_engine(target) as new:
        for one in old.generations():
            [other] = [entry for entry in new.generations() if entry.stamps == one.stamps]
            assert (other.live, other.count) == (one.live, one.count)
            assert is_same(vectors_of(new, other.number), vectors_of(old, one.number))
        keys = old.keys()
        assert new.keys() == keys and new.fetch(keys) == old.fetch(keys)
        assert new.settings() == settings and new.verify() == []
        assert {name: z.tolist() for name, z in new.styles().items()} == {"a": [0, 1, 2]}
        before = new.version()
    again = copy_index(source, target)
    assert (again.written, again.unchanged) == (0, PICTURES + 100)
    with open_engine(target) as new:
        assert new.version() == before, "a copy of what is there writes nothing"


def test_an_index_whose_creation_was_killed_is_made_again(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.db").touch()  # killed before the tables were written
    with pytest.raises(ValueError, match=r"index must be one of hystar_fast, but .*db is empty"):
        LocalEngine(tmp_path / "b")
    with LocalEngine.create(tmp_path / "b", STAMPS) as engine:
        assert engine.count() == 0 and engine.verify() == []
    with pytest.raises(ValueError, match="index must be new"):
        LocalEngine.create(tmp_path / "b", STAMPS)
