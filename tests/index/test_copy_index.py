"""A copy of an index: what it takes over, and what it refuses. Its kills are in test_index_kill.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hystar_fast.index.copy_index import copy_index
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.open_index import COPY_OF, open_engine
from hystar_fast.index.stamp import StampMismatch
from tests.support.index_engines import OTHER, STAMPS, items, units


@pytest.fixture
def source(tmp_path: Path):
    with LocalEngine.create(tmp_path / "source", STAMPS, settings={"sources": {"photos": {"folder": "/p"}}}) as engine:
        engine.upsert(items(20), {"adapted": units(20)})
        yield engine


def stop(target: Path, source: LocalEngine) -> None:
    """Bring a copy into the state of one that was stopped."""
    with LocalEngine(target) as engine:
        engine.put_settings({**source.settings(), COPY_OF: source.uri})


def test_a_second_copy_takes_over_what_is_new_and_what_has_changed(source, tmp_path):
    target = tmp_path / "target"
    assert copy_index(source.uri, target).written == 20
    changed = replace(items(1)[0], caption="new words")
    source.upsert([changed])
    source.upsert(items(2, first=20), {"adapted": units(2, seed=1)})
    done = copy_index(source.uri, target)
    assert (done.written, done.unchanged, done.removed) == (3, 19, 0)
    with LocalEngine(target) as copy:
        assert copy.fetch([changed.key])[changed.key] == changed and copy.count() == 22
        assert copy.settings() == source.settings() and copy.verify() == []


def test_a_copy_that_was_stopped_loses_what_its_source_has_lost(source, tmp_path):
    target = tmp_path / "target"
    new = source.create_generation(OTHER, {})
    source.upsert(items(5), {"adapted": units(5, dimension=7)}, new)
    copy_index(source.uri, target)
    stop(target, source)
    with pytest.raises(ValueError, match=r"index must be whole, but the copy of .*source to .*target was stopped"):
        open_engine(target)
    source.remove([items(20)[3].key])
    source.drop(new)
    done = copy_index(source.uri, target)
    assert (done.written, done.unchanged, done.removed) == (0, 19, 1)
    with open_engine(target) as copy:
        assert [entry.number for entry in copy.generations()] == [1] and copy.count() == 19


def test_a_whole_index_with_other_pictures_is_left_alone(source, tmp_path):
    target = tmp_path / "target"
    copy_index(source.uri, target)
    with LocalEngine(target) as copy:
        copy.upsert(items(1, first=99), {"adapted": units(1)})
        before = copy.version()
    with pytest.raises(
        ValueError, match=r"target must hold no other pictures than the source, but .* holds 1, such as"
    ):
        copy_index(source.uri, target)
    with LocalEngine(target) as copy:
        assert copy.version() == before


def test_an_index_of_another_model_and_no_index_are_refused(source, tmp_path):
    LocalEngine.create(tmp_path / "other", OTHER).close()
    with pytest.raises(StampMismatch, match="other must have vectors of one model, got dimension 7 in it and 24 now"):
        copy_index(source.uri, tmp_path / "other")
    with pytest.raises(ValueError, match="target must be another index than the source"):
        copy_index(source.uri, source.uri)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "index.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"file.index\.db is damaged"):
        copy_index(source.uri, tmp_path / "file")
    assert (tmp_path / "file" / "index.db").read_bytes() == b"no database" * 1000


def test_a_source_that_is_written_meanwhile_is_said(source, tmp_path):
    target = tmp_path / "target"
    with pytest.raises(ValueError, match="source must not be written while it is copied, but generation 1 has 19"):
        copy_index(source.uri, target, progress=lambda done, total: source.remove([items(1)[0].key]))
    with pytest.raises(ValueError, match="was stopped"):
        open_engine(target)
    assert copy_index(source.uri, target).removed == 1
    with open_engine(target) as copy:
        assert copy.count() == 19
