"""Two processes embed one corpus: each picture once; one is killed, or the loading is, and nothing is lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from hystar_fast.index.local import LocalEngine
from tests.support import index_kills as work
from tests.support.picture_trees import picture

PICTURES = 400


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PICTURES):
        picture(folder / f"{i % 7}" / f"{i}.png", seed=i)
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Return the index that one process makes of all pictures."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    work.add_pictures(folder, pictures, folder.parent / "log")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, Path]:
    """Return the shards that two processes made, and the list of what they encoded."""
    root = tmp_path_factory.mktemp("shards")
    children = [work.started(work.embed_into_shards, root / "out", pictures, root / "log") for _ in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    return root / "out", root / "log"


def content(folder: Path) -> dict[str, torch.Tensor]:
    with LocalEngine(folder) as engine:
        assert engine.verify() == []
        return {
            item.id: vector
            for items, found in engine.scan()
            for item, vector in zip(items, found["adapted"], strict=True)
        }


def check_same(folder: Path, whole: Path) -> None:
    found, expected = content(folder), content(whole)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[i], expected[i], atol=1e-6) for i in found)


def encoded(log: Path) -> Counter[str]:
    return Counter(log.read_text().splitlines())


def test_two_processes_encode_each_picture_once_and_make_the_index_of_one(tmp_path, pictures, whole, shards):
    out, log = shards
    assert len(encoded(log)) == PICTURES and {*encoded(log).values()} == {1}
    assert not [*(out / "claims").iterdir()], "no claim is left"
    report = work.load_all(tmp_path / "index", out)
    assert (report.added, len(report.skipped), report.shards, report.missing) == (PICTURES, 1, 7, [])
    check_same(tmp_path / "index", whole)
    again = work.load_all(tmp_path / "index", out)
    assert (again.added, again.unchanged, again.shards, again.known) == (0, 0, 0, 7)
    with LocalEngine(tmp_path / "index") as engine, LocalEngine(whole) as expected:
        assert engine.settings()["sources"] == expected.settings()["sources"]
        assert engine.fetch(engine.keys()) == expected.fetch(engine.keys()), "captions, sizes and hashes too"
        assert (tmp_path / "index/skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()


def test_one_of_two_processes_is_killed_and_the_other_does_its_shard(tmp_path, pictures, whole):
    out, log = tmp_path / "out", tmp_path / "log"
    other = work.started(work.embed_into_shards, out, pictures, log)
    assert work.killed(work.embed_into_shards, out, pictures, log, after=0.35)
    other.join()
    assert other.exitcode == 0
    again = sum(encoded(log).values()) - PICTURES
    assert 0 <= again <= work.SHARD and len(encoded(log)) == PICTURES
    work.load_all(tmp_path / "index", out)
    check_same(tmp_path / "index", whole)


def test_processes_are_killed_again_and_again(tmp_path, pictures, whole):
    out, log, chosen = tmp_path / "out", tmp_path / "log", random.Random(0)
    kills = sum(
        work.killed(work.embed_into_shards, out, pictures, log, after=chosen.uniform(0, 0.3)) for _ in range(10)
    )
    work.embed_into_shards(out, pictures, log)
    assert kills >= 5 and len(encoded(log)) == PICTURES
    assert sum(encoded(log).values()) - PICTURES <= kills * work.SHARD
    work.load_all(tmp_path / "index", out)
    check_same(tmp_path / "index", whole)


def test_loading_is_killed_twenty_times(tmp_path, whole, shards):
    out, _ = shards
    chosen = random.Random(1)
    kills = sum(work.killed(work.load_all, tmp_path / "index", out, after=chosen.uniform(0, 0.03)) for _ in range(20))
    work.load_all(tmp_path / "index", out)
    assert kills >= 5
    check_same(tmp_path / "index", whole)
