"""An index in PostgreSQL: its address, rights, other programs' tables, and vectors of any dimension."""

from __future__ import annotations

import sys
import threading
from urllib.parse import quote

import pytest
import torch

from hystar_fast.index import postgres_tables
from hystar_fast.index.engine import EngineUnavailable, Item
from hystar_fast.index.open_index import has_index, open_engine
from hystar_fast.index.postgres import PostgresEngine
from hystar_fast.index.postgres_address import PostgresAddress
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import Where
from tests.support.index_engines import STAMPS, items, units
from tests.support.postgres_server import PASSWORD, PostgresServer, schema

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture
def engine(in_postgres: PostgresEngine) -> PostgresEngine:
    return in_postgres


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
        ("postgresql://me:sec ret@db/x", "got postgresql://me@db/x"),
        ("postgresql:/me:secret@db/x", "index must be a folder or local:PATH, got postgresql:/me@db/x"),
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


def test_an_extension_that_was_removed_under_us_is_named(postgres, empty):
    with PostgresEngine.create(postgres.uri("photos", empty), STAMPS) as engine:
        engine.upsert(items(3), {"adapted": units(3)})
        postgres.execute("DROP EXTENSION vector CASCADE", empty)
        with pytest.raises(ValueError, match=r"and the extension, but .* has lost one"):
            engine.search("adapted", units(1), 1)
    with PostgresEngine(postgres.uri("photos", empty)) as engine:
        with pytest.raises(ValueError, match=r"and the extension, but .* has lost one"):
            engine.search("adapted", units(1), 1)


def test_an_index_that_was_removed_under_us_is_named(postgres, engine):
    postgres.execute(f"DROP SCHEMA {schema(engine)} CASCADE")
    with pytest.raises(ValueError, match=r"index must have all of its tables and the extension, but .* has lost one"):
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


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_the_encoding_of_a_database_does_not_matter(postgres, encoding):
    name = f"in_{encoding.lower()}"
    postgres.execute(f"CREATE DATABASE {name} ENCODING {encoding} LOCALE 'C' TEMPLATE template0")
    try:
        with PostgresEngine.create(postgres.uri("photos", name), STAMPS, settings={"x": "é\udce9"}) as engine:
            wild = [Item(text, path=text, attributes={"a": text}) for text in ("é😀", "caf\udce9", "\0")]
            engine.upsert(wild, {"adapted": units(3)})
            assert engine.settings()["x"] == "é\udce9" and [*engine.known()] == [item.id for item in wild]
            assert engine.keys(Where.parse("a^=é and path='é😀'")) == [wild[0].key] and engine.verify() == []
            assert engine.search("adapted", units(1), 10**20)[0].shape == (1, 3)
    finally:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


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


def test_the_driver_that_is_missing_is_named(monkeypatch, uri):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs psycopg, .*pip install 'hystar-fast\[pgvector\]'"):
        PostgresEngine(uri)
