"""What is particular to the engine on Milvus: addresses, secrets, Lite, files, damage, errors."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hystar_fast.index.engine import EngineFull, EngineUnavailable, Item, key_of
from hystar_fast.index.generation_methods import Made
from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.milvus_address import MilvusAddress
from hystar_fast.index.milvus_connection import Connection
from hystar_fast.index.open_index import create_engine, folder_of_uri, has_index, open_engine
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import Condition, Where
from tests.support.index_engines import OTHER, STAMPS, items, units
from tests.support.lite_writer import write_until_killed

needs_server = pytest.mark.xdist_group("milvus")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"milvus:{tmp_path}/folder/x.db"


@pytest.fixture
def engine(uri: str) -> Iterator[MilvusEngine]:
    with MilvusEngine.create(uri, STAMPS) as made:
        yield made


# addresses and secrets


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("milvus:", r"index must be milvus:FILE\.db for Milvus Lite or milvus:http://HOST:PORT/NAME"),
        ("milvus:index", r"index must be milvus:FILE\.db"),
        ("milvus:http://host:19530", "NAME must be letters, digits and single underscores, got ''"),
        ("milvus:http://host:19530/a__b", "single underscores, got 'a__b'"),
        ("milvus:http://host:19530/a/b", "got 'a/b'"),
        ("milvus:http://host:19530/a-b", "got 'a-b'"),
        ("milvus:ftp://host/a", "index must be milvus:FILE"),
        ("milvus:http:///a", "index must be milvus:FILE"),
        ("milvus:http://host:99999/a", "Port out of range"),
        ("milvus:http://host/a?token=x", "no more than .secret=FILE after it"),
        ("milvus:http://host/a?secret=/no/such", "secret must be a text file, but /no/such cannot be read"),
    ],
)
def test_an_address_of_another_form_is_refused(uri, message):
    with pytest.raises(ValueError, match=message):
        MilvusAddress.parse(uri)


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(ValueError, match=r"with USER:PASSWORD in a file: milvus:http://…/NAME\?secret") as caught:
        open_engine("milvus:http://root:Pa55word@host:19530/photos")
    assert "Pa55word" not in str(caught.value)


def test_the_secret_is_a_file_of_one_line_that_is_closed_to_others(tmp_path):
    secret = tmp_path / "secret"
    uri = f"milvus:https://host/photos?secret={secret}"
    for text, mode, message in [
        ("root:x", 0o644, "secret must be closed to other users, got .* with mode 0644: chmod 600"),
        ("", 0o600, "secret must be one line"),
        ("a\nb", 0o600, "secret must be one line"),
    ]:
        secret.write_text(text)
        secret.chmod(mode)
        with pytest.raises(ValueError, match=message):
            MilvusAddress.parse(uri)
    secret.write_text("root:Pa55word\n")
    address = MilvusAddress.parse(uri)
    assert (address.server, address.name, address.secret) == ("https://host", "photos", "root:Pa55word")
    assert "Pa55word" not in f"{address!r} {address.uri}"


@needs_server
def test_a_server_that_refuses_the_secret_is_no_server_that_is_away(milvus, tmp_path, capfd):
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("root:Pa55word")
    bare = milvus.new_uri().partition("?")[0]
    for uri, message in [
        (bare, f"secret must be USER:PASSWORD or a key of {bare}, got none"),
        (f"{bare}?secret={secret}", r"secret=\S+, got one that it refuses"),
    ]:
        with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
            MilvusEngine(uri)
        assert "Pa55word" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "pymilvus prints no traceback of its own"


def test_a_server_that_is_not_there_is_named_in_one_line(capfd):
    uri = "milvus:http://127.0.0.1:1/photos"
    for work in (open_engine, has_index, lambda uri: create_engine(uri, Made(STAMPS, {}))):
        with pytest.raises(EngineUnavailable, match=f"^{uri} cannot be used now: [^\n]*$"):
            work(uri)
    assert capfd.readouterr() == ("", "")


def test_a_name_of_an_index_leads_to_its_engine(uri):
    assert not has_index(uri)
    with pytest.raises(ValueError, match=r"index must exist, but there is no .*x\.db"):
        open_engine(uri)
    create_engine(uri, Made(STAMPS, {"a": 1}), {"ids": "content"}).close()
    assert has_index(uri)
    with open_engine(uri) as engine:
        assert engine.settings() == {"ids": "content", "sources": {}} and engine.generation().notes == {"a": 1}
        assert engine.uri == uri and engine.folder is None
    with pytest.raises(ValueError, match="index must be a folder"):
        folder_of_uri(uri)


@pytest.mark.parametrize("module", ["pymilvus", "milvus_lite"])
def test_the_extra_is_named_where_it_is_not_installed(uri, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {module}, .* pip install 'hystar-fast\[milvus\]'"):
        MilvusEngine.create(uri, STAMPS)


@pytest.mark.parametrize("taken", ["photos", "photos__meta", "photos__1"])
@needs_server
def test_collections_of_other_programs_are_left_alone(milvus, taken):
    photos = f"milvus:{milvus.url}/photos?secret={milvus.secret}"
    connection = Connection(MilvusAddress.parse(photos))
    connection.call("create_collection", taken, dimension=4)
    with pytest.raises(ValueError, match=f"NAME must be free in Milvus, but .* has {taken}, a collection of another"):
        MilvusEngine.create(photos, STAMPS)
    assert taken in connection.call("list_collections")
    connection.call("drop_collection", taken)
    connection.close()


def test_a_collection_of_another_program_beside_an_index_is_left_alone(engine):
    engine._connection.call("create_collection", "pictures__7", dimension=4)
    assert engine.verify(repair=True) == []
    assert engine.create_generation(OTHER, {}) == 8
    assert "pictures__7" in engine._connection.call("list_collections")
    engine._connection.call("create_collection", "other", dimension=4)
    engine._connection.call("alter_alias", "other", "pictures")
    with pytest.raises(ValueError, match=r"index must be one of hystar_fast, but .* is an alias of other"):
        engine.count()


# Lite


def test_one_process_may_open_lite_and_what_it_acknowledged_survives_its_death(tmp_path, uri):
    log = tmp_path / "log"
    child = multiprocessing.get_context("forkserver").Process(target=write_until_killed, args=(uri, log))
    child.start()
    try:
        while not log.exists() or log.read_text().count("\n") < 5:
            assert child.is_alive()
            time.sleep(0.01)
        with pytest.raises(EngineUnavailable, match=f"^{uri} is open in another process, and Milvus Lite allows one"):
            MilvusEngine(uri)
        assert child.is_alive()
    finally:
        child.kill()
        child.join()
    acknowledged = log.read_text().count("\n")
    with MilvusEngine(uri) as engine:
        chosen = items(10 * acknowledged)
        assert engine.fetch([item.key for item in chosen]) == {item.key: item for item in chosen}
        assert torch.equal(engine.vectors([item.key for item in chosen], "adapted"), units(10_000)[: len(chosen)])
        assert acknowledged * 10 <= engine.count() <= (acknowledged + 1) * 10 and engine.verify() == []


def test_a_file_of_another_kind_is_no_index(tmp_path):
    (tmp_path / "x.db").write_bytes(b"SQLite format 3")
    with pytest.raises(ValueError, match="index must be a file of Milvus Lite 3, which is a folder, but"):
        open_engine(f"milvus:{tmp_path}/x.db")
    (tmp_path / "y.db").mkdir()
    assert not has_index(f"milvus:{tmp_path}/y.db")


def test_threads_share_an_engine(engine):
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(5):
                batch = items(10, first=100 * number + 10 * i)
                engine.upsert(batch, {"adapted": units(10, seed=number)})
                assert engine.search("adapted", units(10, seed=number), 3)[0].shape == (10, 3)
                assert engine.fetch([item.key for item in batch]) == {item.key: item for item in batch}
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and engine.count() == 200 and engine.verify() == []


def test_writers_of_one_process_undo_nothing_of_each_other(engine, uri):
    def write(number: int) -> None:
        with MilvusEngine(uri) as mine:
            for i in range(4):
                mine.update_settings(lambda held, i=i: {**held, f"{number}/{i}": True})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.settings().keys() - {"ids", "sources"} == {f"{n}/{i}" for n in range(3) for i in range(4)}


# search and limits


def test_of_very_many_equal_scores_those_of_the_first_keys_are_taken(engine):
    twins = [Item(f"{i}") for i in range(900)]
    engine.upsert(twins, {"adapted": units(1).expand(900, -1)})
    engine.upsert(items(50), {"adapted": units(50, seed=3)})
    _, keys = engine.search("adapted", torch.cat([units(1), units(1, seed=9)]), 5)
    assert keys[0] == sorted(item.key for item in twins)[:5]


def test_a_prefix_keeps_names_of_any_characters(engine):
    names = ["a~b", "a%7Eb", 'a"b', "a\\b", "a_b", "a'b", "a\udcffb", "a", "b"]
    engine.upsert([Item(name, path=name, attributes={"x": name}) for name in names], {"adapted": units(len(names))})
    for field in ("path", "x"):
        for prefix in ("a", "a~", "a%", 'a"', "a_", "a\udcff", ""):
            where = Where((Condition(field, (prefix,), prefix=True),))
            expected = {key_of(name) for name in names if name.startswith(prefix)}
            assert {*engine.keys(where)} == expected, (field, prefix)


def test_what_milvus_cannot_hold_is_refused(engine):
    with pytest.raises(ValueError, match=r"caption must be at most 65535 bytes in Milvus, .* got 66000 of 'x'"):
        engine.upsert([Item("x", caption="é" * 11_000)], {"adapted": units(1)})
    with pytest.raises(ValueError, match="attributes must be at most 65535 bytes"):
        engine.upsert([Item("x", attributes={"a": "b" * 65_530})], {"adapted": units(1)})
    with pytest.raises(ValueError, match="settings must be at most 65535 bytes in Milvus"):
        engine.put_settings({"sources": {"x" * 70_000: {}}})
    with pytest.raises(ValueError, match="k must be at least 1 and less than 16384 in Milvus, got 16384"):
        engine.search("adapted", units(1), 16_384)
    with pytest.raises(ValueError, match="views must have at most 32768 numbers together in Milvus, got 32775"):
        engine.create_generation({"a": Stamp({"dimension": 32_768}), **OTHER}, {})
    assert engine.count() == 0 and engine.settings() == {"ids": "path", "sources": {}}


# files


def test_the_files_of_adapters_are_kept(engine, uri):
    content = torch.randint(256, (4_000_000,), dtype=torch.uint8).numpy().tobytes()
    assert engine.file("adapter/a") is None
    for new in (b"first", content, b""):
        engine.put_file("adapter/a", new)
        assert engine.file("adapter/a") == new
    engine.put_file("adapter/é", content)
    with MilvusEngine(uri) as reader:
        assert reader.file("adapter/é") == content
        engine.delete_file("adapter/é")
        assert reader.file("adapter/é") is None and reader.file("adapter/a") == b""
    assert engine._meta.names("part/") == [], "nothing of what was replaced or removed is left"
    engine.delete_file("nothing")


def test_a_file_without_its_checksum_is_refused(engine):
    engine.put_file("a", b"content")
    engine._meta.put(dict.fromkeys(engine._meta.names("part/"), "eA=="))
    with pytest.raises(ValueError, match="is damaged: the file a does not have its checksum"):
        engine.file("a")
    assert any("the file a" in line for line in engine.verify())


# damage


def test_damage_is_found_and_what_was_damaged_is_removed(engine):
    chosen = items(6)
    engine.upsert(chosen, {"adapted": units(6)})
    second = engine.create_generation(OTHER, {})
    engine.upsert(chosen, {"adapted": units(6, dimension=7)}, second)
    live, other = (engine._generations.name(number) for number in (1, second))
    held = {
        key: engine._table.rows(name, [chosen[0].key, chosen[1].key, chosen[2].key], vectors=True)
        for key, name in (("live", live), ("other", other))
    }

    def spoil(name: str, row: dict, **changes: object) -> None:
        engine._connection.call("upsert", name, [{**row, "checksum": 0, "words": {}, **changes}])

    spoil(live, held["live"][chosen[0].key], caption="changed")
    spoil(live, held["live"][chosen[1].key], vectors=units(1, seed=8)[0].numpy())
    spoil(other, held["other"][chosen[2].key])
    engine._table.delete(live, [chosen[3].key])
    assert sorted(engine.verify()) == sorted(
        [f"{chosen[i].id!r} is damaged in generation 1" for i in (0, 1)]
        + [f"{chosen[2].id!r} is damaged in generation 2", f"{chosen[3].id!r} in generation 2 belongs to no item"]
        + [f"{chosen[0].id!r} in generation 2 has an old caption or path"]
    )
    engine.verify(repair=True)
    assert engine.verify() == []
    assert {*engine.known()} == {chosen[i].id for i in (2, 4, 5)}
    assert {*engine.missing(second)} == {chosen[2].key}


def test_damaged_small_things_are_named(engine):
    for name, value, message in [
        ("settings", "{", "is damaged: its settings"),
        ("version", "x", "is damaged: its version"),
        ("style/a", "é", "is damaged: the style 'a'"),
    ]:
        engine._meta.put({name: value})
        assert any(message in line for line in engine.verify())
    with pytest.raises(ValueError, match="is damaged: its settings"):
        engine.settings()
    engine._meta.put({"generation/1": "[]"})
    with pytest.raises(ValueError, match="is damaged: the stamps of generation 1"):
        engine.generations()


# errors of Milvus


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("quota exceeded[reason=disk quota exceeded]\nmore", EngineFull, r"has no space left: quota exceeded\[reason"),
        ("[Errno 28] No space left on device", EngineFull, "has no space left"),
        (
            "auth check failure, please check password",
            ValueError,
            "secret must be USER:PASSWORD or a key of .* got none",
        ),
        ("permission deny to user", ValueError, "secret must be of a user who may read and write .*: permission deny"),
        ("channel not available\nstack", EngineUnavailable, "cannot be used now: channel not available$"),
    ],
)
def test_errors_of_milvus_become_ours(engine, monkeypatch, text, kind, message):
    from pymilvus import MilvusException

    def fail(*arguments: object, **options: object) -> None:
        raise MilvusException(1, text)

    monkeypatch.setattr(engine._connection._client, "upsert", fail)
    with pytest.raises(kind, match=message) as caught:
        engine.upsert(items(1), {"adapted": units(1)})
    assert type(caught.value) is kind
    assert engine.count() == 0


def test_a_secret_that_milvus_repeats_is_not_shown(engine, monkeypatch):
    from pymilvus import MilvusException

    def fail(*arguments: object, **options: object) -> None:
        raise MilvusException(1, "no rights for root:Pa55word here")

    monkeypatch.setattr(engine._connection._client, "query", fail)
    monkeypatch.setattr(engine._connection, "_secret", "root:Pa55word")
    with pytest.raises(EngineUnavailable, match="no rights for … here"):
        engine.count()
