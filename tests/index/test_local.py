"""Particulars of the local engine: its files, several processes, and disks that cannot be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hystar_fast.index import local_vectors, local_write, sqlite_file
from hystar_fast.index.engine import EngineFull, EngineUnavailable
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.memory import Matrix
from tests.support.index_engines import OTHER, STAMPS, check_readers_see_whole_states, items, units


@pytest.fixture
def engine(tmp_path: Path):
    with LocalEngine.create(tmp_path / "index", STAMPS) as made:
        made.upsert(items(20), {"adapted": units(20)})
        yield made


def test_its_file_can_be_read_by_other_users_and_the_rest_goes_when_it_is_closed(tmp_path):
    before = os.umask(0o022)
    try:
        with LocalEngine.create(tmp_path / "index", STAMPS) as engine:
            engine.upsert(items(2), {"adapted": units(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "index" / "index.db").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["index.db"]


def test_pages_log_and_synchronisation_are_as_documented(engine):
    connection = engine._file.connection
    names = ("page_size", "journal_mode", "synchronous")
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    assert found == [32768, b"wal", 2]


def test_a_second_writer_waits_and_then_says_so_in_one_line(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "WAIT", 0.2)
    with LocalEngine(tmp_path / "index") as second:
        with engine._file.writing():
            start = time.perf_counter()
            with pytest.raises(EngineUnavailable, match="is being written by another command, and did not"):
                second.remove([items(1)[0].key])
            assert 0.15 < time.perf_counter() - start < 3
            assert second.count() == 20, "reading goes on"
        assert second.remove([items(1)[0].key]) == 1


def test_a_writer_that_waits_long_enough_writes(engine, tmp_path):
    done = threading.Event()

    def write() -> None:
        with LocalEngine(tmp_path / "index") as second:
            second.remove([items(1)[0].key])
        done.set()

    with engine._file.writing():
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.3)
    thread.join(20)
    assert done.is_set() and engine.count() == 19


def test_readers_in_threads_see_whole_states_while_one_writes(engine, tmp_path):
    again = partial(LocalEngine, tmp_path / "index")
    check_readers_see_whole_states(engine, again, lambda reader: reader._file.reading(), writes=15)


def test_only_what_is_new_is_read_again(engine, tmp_path, monkeypatch):
    read: list[int] = []
    real = Matrix.append

    def append(self: Matrix, numbers: np.ndarray, *rest: np.ndarray) -> None:
        read.append(len(numbers))
        real(self, numbers, *rest)

    monkeypatch.setattr(Matrix, "append", append)
    with LocalEngine(tmp_path / "index") as reader:
        reader.search("adapted", units(1), 1)
        engine.upsert(items(3, first=20), {"adapted": units(3, seed=7)})
        engine.remove([items(1)[0].key])
        assert reader.search("adapted", units(3, seed=7), 22)[0].shape == (3, 22)
        engine.put_style("x", torch.ones(2))
        reader.search("adapted", units(1), 1)
    assert read == [20, 3]


def test_notes_of_removed_rows_do_not_grow_and_a_reader_that_missed_some_reads_anew(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(local_write, "LOGGED", 4)
    with LocalEngine(tmp_path / "index") as reader:
        reader.search("adapted", units(1), 1)
        for number in range(3):  # replaced, and with it removed and added
            engine.upsert(items(6), {"adapted": units(6, seed=number)})
            found = reader.search("adapted", units(6, seed=number), 1)[1]
            assert found == [[item.key] for item in items(6)]
        engine.remove([items(1)[0].key])
        assert reader.search("adapted", units(1), 20)[0].shape == (1, 19)
        with closing(sqlite3.connect(tmp_path / "index" / "index.db")) as connection:
            numbers = [number for (number,) in connection.execute("SELECT number FROM removed")]
    assert numbers == [16, 17, 18, 19] and engine.verify() == []


def test_a_matrix_with_many_removed_rows_is_read_again(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(local_vectors, "Matrix", lambda dimension: Matrix(dimension, block=4))
    with LocalEngine(tmp_path / "index") as reader:
        reader.search("adapted", units(1), 1)
        engine.remove([item.key for item in items(15)])
        for _ in range(2):
            assert reader.search("adapted", units(20), 20)[0].shape == (20, 5)
            engine.put_style("x", torch.ones(2))
        assert reader._vectors._held[1, "adapted"].matrix.size == 5


def test_a_dropped_generation_leaves_the_memory(engine):
    engine.search("adapted", units(1), 1)
    new = engine.create_generation(OTHER, {})
    engine.upsert(items(20), {"adapted": units(20, dimension=7)}, new)
    engine.switch(new)
    engine.search("adapted", units(1, dimension=7), 1)
    assert {of[0] for of in engine._vectors._held} == {1, new}, "requests of both cross after a switch"
    engine.drop(1)
    engine.upsert(items(1), {"adapted": units(1, dimension=7)})
    engine._vectors._held.clear()
    engine.search("adapted", units(1, dimension=7), 1)
    assert {of[0] for of in engine._vectors._held} == {new}


@pytest.mark.parametrize("is_made_anew", [True, False])
def test_an_index_that_was_removed_or_made_anew_is_neither_read_nor_written(engine, tmp_path, is_made_anew):
    folder = engine.folder
    folder.rename(tmp_path / "old")
    new = LocalEngine.create(folder, STAMPS) if is_made_anew else None
    for use in (engine.count, engine.version, engine.health, engine.known, lambda: engine.upsert(items(1), None)):
        with pytest.raises(EngineUnavailable, match="was removed or replaced while it was open: open the index again"):
            use()
    with LocalEngine(tmp_path / "old") as moved:
        assert moved.verify() == []
    if new is not None:
        assert new.count() == 0
        new.close()
    else:
        (tmp_path / "old").rename(folder)
        engine.health()


READ = """
import os, sys, torch
from pathlib import Path
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.engine import EngineUnavailable
from tests.support.index_engines import units, items
if os.geteuid() == 0:
    os.setuid(65534)
with LocalEngine(Path(sys.argv[1])) as engine:
    print(engine.count(), engine.search("adapted", units(20)[:1], 1)[1][0][0] == items(1)[0].key)
    try:
        engine.remove([items(1)[0].key])
    except EngineUnavailable as error:
        print(error)
    sys.stdout.flush()
    sys.stdin.readline()
    print(engine.count())
"""


def test_a_reader_without_the_right_to_write_sees_what_others_write(tmp_path):
    folder = Path("/tmp") / f"index-{os.getpid()}-{tmp_path.name}"
    with LocalEngine.create(folder, STAMPS) as engine:
        engine.upsert(items(20), {"adapted": units(20)})
    folder.chmod(0o555)
    child = subprocess.Popen([sys.executable, "-c", READ, str(folder)], text=True, stdout=-1, stdin=-1)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "20 True\n"
        assert "cannot be written: it, or its folder, is read-only" in child.stdout.readline()
        folder.chmod(0o755)
        with LocalEngine(folder) as writer:
            writer.upsert(items(1, first=20), {"adapted": units(1)})
        out, _ = child.communicate("\n", timeout=60)
        assert out == "21\n"
    finally:
        child.kill()
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_rolls_the_batch_back_in_one_line(engine, tmp_path):
    before = engine.version()
    size = (tmp_path / "index" / "index.db").stat().st_size // 32768
    engine._file.connection.execute(f"PRAGMA max_page_count={size + 1}")
    with pytest.raises(EngineFull, match=r"No space left on device for .*; it holds what it held before"):
        for start in range(20, 20_000, 500):
            engine.upsert(items(500, first=start), {"adapted": units(500)})
    assert engine.version() == before and engine.count() == 20 and engine.verify() == []
    assert len(engine.search("adapted", units(1), 5)[1][0]) == 5


def test_another_file_is_no_index(tmp_path):
    with pytest.raises(ValueError, match=r"index must hold index\.db, but .* does not exist"):
        LocalEngine(tmp_path)
    with sqlite3.connect(tmp_path / "index.db") as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(ValueError, match=r"index must be one of hystar_fast, but .* is another SQLite file"):
        LocalEngine(tmp_path)
