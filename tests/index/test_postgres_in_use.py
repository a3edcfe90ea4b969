"""An index in PostgreSQL in use: several writers, restarts, errors of the server, changes by other programs."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
import torch

from hystar_fast.index import postgres_database
from hystar_fast.index.engine import EngineFull, EngineUnavailable, IndexDamaged, Item
from hystar_fast.index.postgres import PostgresEngine
from hystar_fast.index.where import Where
from tests.support.index_engines import OTHER, check_readers_see_whole_states, items, units
from tests.support.postgres_server import schema

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture
def engine(in_postgres: PostgresEngine) -> PostgresEngine:
    return in_postgres


def test_a_second_writer_waits_and_then_says_so_in_one_line(engine, uri, monkeypatch):
    monkeypatch.setattr(postgres_database, "WAIT", 0.2)
    with PostgresEngine(uri) as second:
        with engine._database.writing():
            with pytest.raises(EngineUnavailable, match="is in use by another command, and did not become free"):
                second.remove([items(1)[0].key])
            assert second.count() == 20, "reading goes on"
        assert second.remove([items(1)[0].key]) == 1


def test_two_writers_at_once_lose_nothing(engine, uri):
    def write(first: int) -> None:
        with PostgresEngine(uri) as mine:
            for start in range(first, first + 50, 5):
                mine.upsert(items(5, first=start), {"adapted": units(5, seed=start)})

    threads = [threading.Thread(target=write, args=(first,)) for first in (100, 125)]  # half of them in common
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.count() == 20 + 75 == engine.generation().count and engine.verify() == []


def test_readers_in_threads_see_whole_states_while_one_writes(engine, uri):
    again = partial(PostgresEngine, uri)
    check_readers_see_whole_states(engine, again, lambda reader: reader._database.reading(), writes=10)


def test_a_restart_between_two_calls_is_not_seen(postgres, engine):
    before = engine.search("adapted", units(3), 5)
    walk = engine.scan()
    with engine._database.reading() as first:  # a second connection, which also dies
        thread = threading.Thread(target=engine.count)
        thread.start()
        thread.join()
        assert first is not None
    postgres.restart()
    after = engine.search("adapted", units(3), 5)
    assert after[1] == before[1] and torch.equal(after[0], before[0])
    engine.upsert(items(1, first=77), {"adapted": units(1)})
    assert len(next(walk)[0]) == 21


def test_a_restart_within_a_transaction_is_unavailable_and_writes_nothing(postgres, engine):
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        with engine._database.writing():
            engine.remove([items(1)[0].key])
            postgres.restart()
            engine.remove([items(2)[1].key])
    assert engine.count() == 20 and engine.verify() == []


def test_a_server_that_is_down_is_unavailable_until_it_is_up(postgres, engine):
    postgres.kill()
    for call in (engine.health, engine.version, lambda: engine.put_style("x", torch.ones(2))):
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            call()
    postgres.start()
    engine.health()
    assert engine.count() == 20


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        ("53100", EngineFull, "No space left on device for .*; it holds what it held before"),
        ("XX001", IndexDamaged, "is damaged: "),
        ("25006", EngineUnavailable, "cannot be written: the server is read-only"),
        ("57014", EngineUnavailable, "cannot be reached"),
        ("53300", EngineUnavailable, "cannot be reached"),
    ],
)
def test_errors_of_the_server_are_ours(postgres, engine, state, kind, message):
    name, before = schema(engine), engine.version()
    postgres.execute(
        f"CREATE FUNCTION {name}.fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{state}'; END $$; "
        f"CREATE TRIGGER fail BEFORE INSERT ON {name}.vectors_1_0 EXECUTE FUNCTION {name}.fail()"
    )
    with pytest.raises(kind, match=message):
        engine.upsert(items(5, first=50), {"adapted": units(5)})
    postgres.execute(f"DROP TRIGGER fail ON {name}.vectors_1_0")
    assert engine.count() == 20 and engine.version() == before and engine.verify() == []


def test_a_dropped_generation_is_named(engine, uri):
    new = engine.create_generation(OTHER, {})
    engine.upsert(items(20), {"adapted": units(20, dimension=7)}, new)
    with PostgresEngine(uri) as reader, reader._database.reading():
        assert reader.generation().number == 1  # the state that this block sees
        engine.switch(new)
        engine.drop(1)
        with pytest.raises(ValueError, match="has lost one"):
            reader.search("adapted", units(1), 1)


def test_no_transaction_and_no_connection_is_left_open(postgres, engine):
    with pytest.raises(ValueError, match="of length 1"):
        engine.upsert(items(1), {"adapted": units(1) * 2})
    engine.search("adapted", units(1), 1)
    query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    assert postgres.execute(query) == [(0,)]
    engine.close()
    query, end = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hystar-fast'", time.monotonic() + 10
    while postgres.execute(query) != [(0,)]:
        assert time.monotonic() < end


def test_rows_that_another_program_changed_are_found_and_removed(postgres, engine):
    name, chosen = schema(engine), items(20)
    new = engine.create_generation(OTHER, {})
    engine.upsert(chosen, {"adapted": units(20, dimension=7)}, new)
    key = [item.key for item in chosen]
    for statement in (
        f"UPDATE {name}.items SET id = 'other' WHERE key = '{key[0]}'",
        f"UPDATE {name}.items SET attributes = '{{' WHERE key = '{key[1]}'",
        f"UPDATE {name}.items SET filters = '{{}}' WHERE key = '{key[2]}'",
        f"DELETE FROM {name}.vectors_1_0 WHERE key = '{key[3]}'",
        f"UPDATE {name}.vectors_1_0 SET vector = vector + vector WHERE key = '{key[4]}'",
        f"UPDATE {name}.vectors_2_0 SET vector = vector + vector WHERE key = '{key[5]}'",
        f"DELETE FROM {name}.items WHERE key = '{key[6]}'",
    ):
        postgres.execute(statement)
    with pytest.raises(IndexDamaged, match=f"the item {key[1]} is none"):
        engine.fetch(key)
    expected = [
        "the item 'other' is damaged",
        f"the item '{chosen[1].id}' is damaged",
        f"the item '{chosen[2].id}' is damaged",
        f"the vectors of '{chosen[4].id}' in generation 1 are damaged",
        f"'{chosen[3].id}' has no vectors",
        f"the vectors of '{chosen[5].id}' in generation 2 are damaged",
        "generation 1 has 18 items, and not 20, as were counted when they were written",
        "generation 2 has 19 items, and not 20, as were counted when they were written",
        "the index has 19 items, and not 20, as were counted when they were written",
    ]
    assert engine.verify() == expected
    assert engine.verify(repair=True) == expected and engine.verify() == []
    assert engine.count() == 14 and [entry.count for entry in engine.generations()] == [14, 13]
    assert engine.missing(new) == [key[5]]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {}.state SET settings = '{{'",
        "UPDATE {}.generations SET stamps = '['",
        "UPDATE {}.generations SET notes = ''",
        "DELETE FROM {}.state",
    ],
)
def test_settings_and_stamps_that_were_changed_are_damage(postgres, engine, statement):
    postgres.execute(statement.format(schema(engine)))
    with pytest.raises(IndexDamaged, match=r"^postgresql://.* is damaged: "):
        engine.health()


def test_any_text_is_an_attribute(engine):
    wild = ["\0", "\udce9", "\\u0000", '"', "é", "😀", "%", " "]
    named = [Item(f"x{i}", attributes={"a": text, "n\0": 1.5}) for i, text in enumerate(wild)]
    engine.upsert(named, {"adapted": units(len(wild))})
    assert engine.fetch([item.key for item in named]) == {item.key: item for item in named}
    for item in named:
        quoted = item.attributes["a"].replace("\\", "\\\\").replace('"', '\\"')
        assert engine.keys(Where.parse(f'a="{quoted}"')) == [item.key]
    assert engine.verify() == []


def test_a_large_file_is_kept_in_parts(engine):
    content = bytes(range(256)) * 10_000
    engine.put_file("adapter/x", content)
    engine.put_file("adapter/empty", b"")
    assert engine.file("adapter/x") == content and engine.file("adapter/empty") == b""
    engine.put_file("adapter/x", b"short")
    assert engine.file("adapter/x") == b"short"
    engine.delete_file("adapter/x")
    assert engine.file("adapter/x") is None
