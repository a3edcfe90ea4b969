"""Damage of any kind to a local index is found and named; what is not damaged can be saved."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.index.engine import IndexDamaged
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.stamp import Stamp
from tests.support.index_engines import STAMPS, items, units

COUNT = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with LocalEngine.create(folder, STAMPS, {"adapter": "adapter"}) as engine:
        engine.upsert(items(COUNT), {"adapted": units(COUNT)})
        engine.remove([items(1)[0].key])
        engine.put_style("mine", torch.ones(3))
        engine.put_settings({"ids": "path", "sources": {"photos": {"folder": "/photos"}}})
    return folder


def sql(statement: str, *values: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(statement, values)
        connection.close()

    return damage


def from_other_run(path: Path) -> None:
    """Take the vectors of an index of the same pictures by another model."""
    other = path.with_name("other")
    with LocalEngine.create(other, {"adapted": Stamp({"model": "other", "dimension": 24})}) as engine:
        engine.upsert(items(COUNT), {"adapted": units(COUNT, seed=9)})
        engine.remove([items(1)[0].key])
    with sqlite3.connect(path) as connection:
        connection.execute("ATTACH ? AS other", (str(other / "index.db"),))
        connection.execute("DELETE FROM vectors_1")
        connection.execute("INSERT INTO vectors_1 SELECT * FROM other.vectors_1")
    connection.close()


def write(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content(path.read_bytes())) and None


flipped = "CAST(substr({0}, 1, 5) || char(1) || substr({0}, 7) AS BLOB)".format
KINDS: dict[str, Callable[[Path], None]] = {
    "a bit of a vector": sql(f"UPDATE vectors_1 SET vectors = {flipped('vectors')} WHERE row = 9"),
    "a short vector": sql("UPDATE vectors_1 SET vectors = substr(vectors, 1, 80) WHERE row = 9"),
    "an empty vector": sql("UPDATE vectors_1 SET vectors = x'' WHERE row = 9"),
    "a vector that is text": sql("UPDATE vectors_1 SET vectors = 'text' WHERE row = 9"),
    "two vectors exchanged": sql(
        "UPDATE vectors_1 SET (vectors, checksum) = (SELECT vectors, checksum FROM vectors_1 v WHERE v.row = "
        "19 - vectors_1.row) WHERE row IN (9, 10)"
    ),
    "vectors of another run": from_other_run,
    "a lost vector": sql("DELETE FROM vectors_1 WHERE row = 9"),
    "a vector twice": sql("INSERT INTO vectors_1 SELECT 900, key, vectors, checksum FROM vectors_1 WHERE row = 9"),
    "a lost item": sql("DELETE FROM items WHERE row = 9"),
    "a bit of an id": sql(f"UPDATE items SET id = {flipped('id')} WHERE row = 9"),
    "reversed ids": sql("UPDATE items SET id = (SELECT id FROM items i WHERE i.row = 62 - items.row)"),
    "keys exchanged": sql("UPDATE items SET key = CASE row WHEN 9 THEN 1 ELSE 2 END WHERE row IN (9, 10)"),
    "a caption": sql(f"UPDATE items SET caption = {flipped('caption')} WHERE row = 9"),
    "a caption that is a number": sql("UPDATE items SET caption = 5 WHERE row = 9"),
    "attributes": sql("UPDATE items SET attributes = '{}' WHERE row = 9"),
    "attributes that are no JSON": sql("UPDATE items SET attributes = CAST(x'ff' AS TEXT) WHERE row = 9"),
    "a path": sql("UPDATE items SET path = x'2e2e2f78' WHERE row = 9"),
    "a size": sql("UPDATE items SET size = size + 1 WHERE row = 9"),
    "a hash": sql("UPDATE items SET sha256 = x'00' WHERE row = 9"),
    "a checksum": sql("UPDATE items SET checksum = checksum + 1 WHERE row = 9"),
    "settings": sql("UPDATE meta SET value = CAST('{\"sources\": {}}' AS BLOB) WHERE name = 'settings'"),
    "no settings": sql("DELETE FROM meta WHERE name = 'settings'"),
    "another live generation": sql("UPDATE meta SET value = x'32' WHERE name = 'live'"),
    "a stamp": sql("UPDATE generations SET stamps = replace(stamps, 'one', 'two')"),
    "the notes": sql("UPDATE generations SET notes = x'7b7d'"),
    "the sums": sql("UPDATE sums SET total = total + 1 WHERE name = 'vectors_1'"),
    "no sums": sql("DELETE FROM sums"),
    "a style": sql("UPDATE styles SET vector = x'0000803f'"),
    "a lost table": sql("DROP TABLE items"),
    "a renamed column": sql("ALTER TABLE items RENAME COLUMN caption TO words"),
    "the format": sql("PRAGMA user_version = 3"),
    "another application": sql("PRAGMA application_id = 0"),
    "a cut file": write(lambda content: content[: len(content) // 2]),
    "the end": write(lambda content: content[:-40000]),
    "an empty file": write(lambda content: b""),
    "the header": write(lambda content: b"\0" * 100 + content[100:]),
    "a text file": write(lambda content: b"what a text\n" * 99),
}


def answers(folder: Path) -> Any:
    """Return everything that an index says."""
    with LocalEngine(folder) as engine:
        scores, keys = engine.search("adapted", units(4, seed=3), 12)
        held = engine.fetch(sorted({key for row in keys for key in row}))
        if len(held) < len({key for row in keys for key in row}):  # as the searcher does
            raise IndexDamaged("index.db is damaged: vectors belong to no item")
        rest = (engine.known(), engine.settings(), engine.generations(), engine.count(), engine.missing(1))
        styles = {name: vector.tolist() for name, vector in engine.styles().items()}
        return scores.tolist(), keys, held, rest, styles


def test_an_index_is_read_as_it_was_written(whole, tmp_path):
    again = shutil.copytree(whole, tmp_path / "again")
    assert answers(again) == answers(whole)
    with LocalEngine(again) as engine:
        assert engine.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_when_it_is_read_and_by_verify(kind, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "index")
    KINDS[kind](folder / "index.db")
    with pytest.raises(ValueError, match=r"index\.db (is damaged|is another SQLite file|has format|is empty)"):
        answers(folder)
    try:
        with LocalEngine.for_repair(folder) as engine:
            assert engine.verify() != []
    except ValueError as error:
        assert "index.db" in str(error)


@pytest.mark.parametrize(
    "kind",
    [
        *("a bit of a vector", "two vectors exchanged", "a lost vector", "a lost item", "a bit of an id", "a caption"),
        *("the sums", "a style", "a vector twice", "a caption that is a number", "attributes that are no JSON"),
    ],
)
def test_what_is_whole_is_saved_and_the_rest_can_be_added_again(kind, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "index")
    KINDS[kind](folder / "index.db")
    with LocalEngine.for_repair(folder) as engine:
        assert engine.verify(repair=True) != []
        assert engine.verify() == []
        left = engine.count()
    assert COUNT - 3 <= left <= COUNT - 1
    answers(folder)
    with LocalEngine(folder) as engine:
        known = engine.known()
        lost = [item for item in items(COUNT)[1:] if item.id not in known]
        vectors = {item.id: vector for item, vector in zip(items(COUNT), units(COUNT), strict=True)}
        if lost:
            engine.upsert(lost, {"adapted": torch.stack([vectors[item.id] for item in lost])})
        assert engine.verify() == [] and engine.count() == COUNT - 1
        assert {item.id: item for item in engine.fetch(engine.keys()).values()} == {i.id: i for i in items(COUNT)[1:]}


def test_no_flipped_bit_changes_an_answer_unseen(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "index")
    path, expected = folder / "index.db", answers(whole)
    content = path.read_bytes()
    used = [place for place, byte in enumerate(content) if byte] + [*range(100)]
    chosen, found, harmless = random.Random(0), 0, 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[chosen.choice(used)] ^= 1 << chosen.randrange(8)
        for log in folder.glob("index.db-*"):
            log.unlink()
        path.write_bytes(damaged)
        try:
            assert answers(folder) == expected
            harmless += 1
        except (ValueError, OSError) as error:
            assert "index.db" in str(error)
            found += 1
    assert found > 200, (found, harmless)


def test_damage_under_an_open_index_is_an_error_of_the_reader(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "index")
    with LocalEngine(folder) as engine:
        engine.search("adapted", units(1), 3)
        with LocalEngine(folder) as writer:
            writer.upsert([replace(items(1)[0], id="new")], {"adapted": units(1)})
        KINDS["a bit of a vector"](folder / "index.db")
        with pytest.raises(IndexDamaged, match="row 9 do not have their checksum"):
            engine.vectors([items(10)[8].key, items(10)[9].key], "adapted")
