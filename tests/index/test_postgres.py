"""Particulars of the PostgreSQL engine: addresses, rights, other programs' tables, restarts, several writers."""

from __future__ import annotations

import sys
import threading
import time
from urllib.parse import quote

import pytest
import torch

from hystar_fast.index import postgres_database, postgres_tables
from hystar_fast.index.engine import EngineFull, EngineUnavailable, IndexDamaged, Item
from hystar_fast.index.open_index import has_index, open_engine
from hystar_fast.index.postgres import PostgresEngine
from hystar_fast.index.postgres_address import PostgresAddress
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import Where
from tests.support.index_engines import OTHER, STAMPS, items, units
from tests.support.postgres_server import PASSWORD, PostgresServer

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture
def uri(postgres: PostgresServer) -> str:
    return postgres.new_uri()


@pytest.fixture
def engine(uri: str):
    with PostgresEngine.create(uri, STAMPS) as made:
        made.upsert(items(20), {"adapted": units(20)})
        yield made


def schema(engine: PostgresEngine) -> str:
    return engine._database.address.schema


# addresses and passwords


def test_an_address_keeps_what_libpq_takes_and_shows_no_password():
    found = PostgresAddress.parse(
        "postgresql://me:p%40ss%2Fw@a:5432,b/db?index=photos&target_session_attrs=read-write&sslpassword=s3"
    )
    assert found.uri == "postgresql://me@a:5432,b/db?target_session_attrs=read-write&index=photos"
    assert (found.schema, found.parameters["password"], found.parameters["host"]) == ("hystar_photos", "p@ss/w", "a,b")
    assert found.parameters["sslpassword"] == "s3" and found.parameters["connect_timeout"] == 5
    assert "p@ss" not in repr(found) and "s3" not in repr(found)
    assert PostgresAddress.parse("postgres://db/x?connect_timeout=9").uri == "postgres://db/x?index=index".replace(
        "?", "?connect_timeout=9&"
    )
    assert PostgresAddress.parse("postgres://db/x?connect_timeout=9").parameters["connect_timeout"] == "9"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "postgresql://db/x?index=My-Photos",
            "index must have a name of at most 40 of a-z, 0-9 and _, got 'My-Photos'",
        ),
        ("postgresql://db/x?index=a&index=b", "got 'a and b'"),
        ("postgresql://db/x?index=", "got ''"),
        ("postgresql://db:port:x/x", "index must be postgresql://USER@HOST:PORT/DATABASE"),
        ("postgresql://db/x?no_such_option=1", "index must be postgresql://USER@HOST:PORT/DATABASE"),
        ("postgresql://me:sec@ret@db/x", "with special characters of a password as %XX, got postgresql://me@db/x"),
        ("postgresql://me:sec/ret@db/x?index=a", "got postgresql://me@db/x"),
        ("postgresql://me:sec?ret@db/x", "index must"),
        ("mysql://db/x", "index must be a folder or local:PATH"),
    ],
)
def test_a_wrong_address_is_refused_without_its_password(wrong, message):
    with pytest.raises(ValueError) as error:
        open_engine(wrong)
    assert message in str(error.value) and "sec" not in str(error.value) and "ret" not in str(error.value)


def test_a_wrong_password_and_a_server_that_is_not_there_are_one_line(postgres, engine):
    name = engine._database.address.index
    tcp = f"postgresql://postgres:{{}}@127.0.0.1:{postgres.port}/postgres?index={name}"
    with PostgresEngine(tcp.format(quote(PASSWORD))) as right:
        assert right.count() == 20 and PASSWORD not in right.uri
    with pytest.raises(EngineUnavailable, match=r"cannot be reached: .*password authentication failed") as error:
        PostgresEngine(tcp.format("wr0ng"))
    assert "wr0ng" not in str(error.value) and "\n" not in str(error.value)
    for place in (f"127.0.0.1:{postgres.port}/no_such_database", "127.0.0.1:1/x"):
        with pytest.raises(EngineUnavailable, match=r"cannot be reached: .*(does not exist|Connection refused)"):
            has_index(f"postgresql://postgres:{PASSWORD}@{place}")


# what else may be in the database


@pytest.fixture
def empty(postgres: PostgresServer):
    """Make a database without the extension, and a user who owns nothing."""
    postgres.execute("CREATE DATABASE other")
    postgres.execute("CREATE USER guest")
    yield "other"
    postgres.execute("DROP DATABASE other WITH (FORCE)")
    postgres.execute("DROP USER guest")


def test_what_an_administrator_must_do_is_said(postgres, empty, monkeypatch):
    mine = postgres.uri("photos", empty, "guest")
    with pytest.raises(ValueError, match="an administrator run `CREATE EXTENSION vector` in it"):
        PostgresEngine.create(mine, STAMPS)
    postgres.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions", empty)
    postgres.execute("GRANT USAGE ON SCHEMA extensions TO guest", empty)
    with pytest.raises(ValueError, match='run `CREATE SCHEMA "hystar_photos"'):
        PostgresEngine.create(mine, STAMPS)
    with pytest.raises(ValueError, match=r"`hystar-fast index create` made, got .*hystar_photos"):
        PostgresEngine(mine)
    postgres.execute('CREATE SCHEMA "hystar_photos" AUTHORIZATION guest', empty)
    with PostgresEngine.create(mine, STAMPS) as made:
        made.upsert(items(3), {"adapted": units(3)})
        assert len(made.search("adapted", units(1), 2)[1][0]) == 2


def test_a_server_without_pgvector_is_named(postgres, empty, monkeypatch):
    monkeypatch.setattr(postgres_tables, "EXTENSION", "no_such_vector")
    with pytest.raises(ValueError, match="index must be on a server that has pgvector"):
        PostgresEngine.create(postgres.uri("photos", empty), STAMPS)


def test_a_user_who_may_only_read_searches_and_is_told_so(postgres, engine, uri, empty):
    guest = uri.replace("postgres@", "guest@")
    with pytest.raises(EngineUnavailable, match="cannot be used with the rights of this user: permission denied"):
        PostgresEngine(guest)
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema(engine)} TO guest")
    postgres.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema(engine)} TO guest")
    try:
        with PostgresEngine(guest) as reader:
            assert len(reader.search("adapted", units(1), 5, Where.parse("ok=true"))[1][0]) == 5
            assert reader.verify() == []
            with pytest.raises(EngineUnavailable, match="cannot be used with the rights of this user"):
                reader.remove([items(1)[0].key])
            assert reader.count() == 20
    finally:
        postgres.execute("DROP OWNED BY guest")


def test_tables_of_another_program_are_left_alone(postgres):
    for number, table in enumerate(("items (x int)", "state (x int)", "state (application text, format int)")):
        name = f"taken_{number}"
        postgres.execute(f"CREATE SCHEMA hystar_{name}; CREATE TABLE hystar_{name}.{table}")
        for use in (PostgresEngine, lambda uri: PostgresEngine.create(uri, STAMPS)):
            with pytest.raises(ValueError, match=r"tables of another program|has none of this name"):
                use(postgres.uri(name))
        assert len(postgres.execute(f"SELECT 1 FROM pg_tables WHERE schemaname = 'hystar_{name}'")) == 1


def test_another_format_is_refused(postgres, engine, uri):
    postgres.execute(f"UPDATE {schema(engine)}.state SET format = 0")
    with pytest.raises(ValueError, match=r"index must have format 1, but .* has format 0"):
        PostgresEngine(uri)
    with pytest.raises(ValueError, match=r"index must have format 1, but .* has format 0"):
        PostgresEngine.create(uri, STAMPS)


def test_an_index_that_is_there_is_not_made_again(engine, uri):
    with pytest.raises(ValueError, match=r"index must be new, but .* exists"):
        PostgresEngine.create(uri, STAMPS)
    assert engine.count() == 20


def test_of_two_that_make_an_index_at_once_one_is_told(postgres, empty):
    place, found = postgres.uri("photos", empty), []

    def make() -> None:
        try:
            PostgresEngine.create(place, STAMPS).close()
        except ValueError as error:
            found.append(str(error))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all("index must be new, but" in line for line in found)


def test_an_index_that_was_removed_under_us_is_named(postgres, engine):
    postgres.execute(f"DROP SCHEMA {schema(engine)} CASCADE")
    with pytest.raises(ValueError, match=r"index must have all of its tables, but .* has lost one"):
        engine.search("adapted", units(1), 1)


# vectors


@pytest.mark.parametrize(("dimension", "storage"), [(2000, "p"), (2001, "e"), (16_000, "e")])
def test_a_vector_that_fits_a_page_lies_in_its_row(postgres, uri, dimension, storage):
    with PostgresEngine.create(uri, {"adapted": Stamp({"dimension": dimension})}) as engine:
        vectors = units(5, dimension=dimension)
        engine.upsert(items(5), {"adapted": vectors})
        assert engine.search("adapted", vectors, 1)[1] == [[item.key] for item in items(5)]
        assert torch.equal(engine.vectors([items(5)[3].key], "adapted"), vectors[3:4])
        query = (
            f"SELECT attstorage FROM pg_attribute WHERE attrelid = '{schema(engine)}.vectors_1_0'::regclass "
            "AND attname = 'vector'"
        )
        assert postgres.execute(query) == [(storage,)]


def test_more_dimensions_than_pgvector_has_are_refused_and_leave_nothing(postgres, uri):
    with pytest.raises(ValueError, match="dimension must be at most 16000 in PostgreSQL, got vectors of 16001"):
        PostgresEngine.create(uri, {"adapted": Stamp({"dimension": 16_001})})
    assert not has_index(uri)
    with PostgresEngine.create(uri, STAMPS):
        pass


def test_an_index_that_approximates_is_never_used(postgres, engine):
    """A table with an HNSW index, and a planner that must take any index it can."""
    engine.upsert(items(400), {"adapted": units(400)})
    before = engine.search("adapted", units(2, seed=3), 300)
    table = f"{schema(engine)}.vectors_1_0"
    postgres.execute(f"CREATE INDEX ON {table} USING hnsw (vector vector_ip_ops)")
    postgres.execute("ALTER ROLE postgres SET enable_seqscan = off")
    try:
        postgres.execute(f"ANALYZE {table}")
        plan = "EXPLAIN SELECT key FROM {0} ORDER BY vector <#> (SELECT vector FROM {0} LIMIT 1) LIMIT 9"
        assert "hnsw" in str(postgres.execute(plan.format(table))) or "vector_idx" in str(
            postgres.execute(plan.format(table))
        )
        with PostgresEngine(engine.uri) as reader:
            after = reader.search("adapted", units(2, seed=3), 300)
        assert after[1] == before[1] and torch.equal(after[0], before[0])
    finally:
        postgres.execute("ALTER ROLE postgres RESET enable_seqscan")


# writers, readers and restarts


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
    """Every write exchanges all vectors for those of one seed, so that a mixture would be seen."""
    stop, wrong = threading.Event(), []

    def read() -> None:
        with PostgresEngine(uri) as reader:
            while not stop.is_set():
                with reader._database.reading():
                    vectors = reader.vectors(reader.keys(), "adapted")
                    scores, found = reader.search("adapted", vectors, 1)
                if not torch.allclose(scores, torch.ones_like(scores), atol=1e-5) or len(found) != 20:
                    wrong.append((scores, found))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(10):
        engine.upsert(items(20), {"adapted": units(20, seed)})
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


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


# verify


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


def test_the_driver_that_is_missing_is_named(monkeypatch, uri):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs psycopg, .*pip install 'hystar-fast\[pgvector\]'"):
        PostgresEngine(uri)
