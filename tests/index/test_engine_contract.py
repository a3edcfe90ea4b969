"""The same contract for every index engine."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hystar_fast.index.combine import Found, combined
from hystar_fast.index.engine import Engine, Item, key_of
from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.sources import register
from hystar_fast.index.where import Condition, Where
from tests.support.index_engines import DIMENSION, ENGINES, OTHER, STAMPS, Place, items, place_of, units

BYTE_NAMES = [
    b"caf\xe9.jpg",
    b"new\nline.png",
    b"\x1b[31mred.png",
    b"[bold]x[/bold].jpg",
    b"..",
    b"a" * 255,
    b" ",
    b"\xff\xfe",
]


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place_of(request.param, request, tmp_path)


@pytest.fixture
def engine(place: Place):
    with place.create(STAMPS) as made:
        yield made


@pytest.fixture
def again(engine: Engine, place: Place) -> Callable[[], Engine]:
    """Return a function that opens the same index as another process does."""
    return place.open


def fill(engine: Engine, count: int, seed: int = 0) -> tuple[list[Item], torch.Tensor]:
    chosen, vectors = items(count), units(count, seed)
    for start in range(0, count, 1000):
        engine.upsert(chosen[start : start + 1000], {"adapted": vectors[start : start + 1000]})
    return chosen, vectors


def found_ids(engine: Engine, keys: list[str]) -> list[str]:
    held = engine.fetch(keys)
    return [held[key].id for key in keys]


def test_the_order_is_that_of_numpy_over_ten_thousand_items(engine):
    chosen, vectors = fill(engine, 10_000)
    queries = units(5, seed=1) * 3.7
    scores, keys = engine.search("adapted", queries, 20)
    exact = queries.double().numpy() / 3.7 @ vectors.double().numpy().T
    order = np.argsort(-exact, axis=1)[:, :20]
    assert scores.shape == (5, 20) and scores.dtype == torch.float32
    for row in range(5):
        assert found_ids(engine, keys[row]) == [chosen[i].id for i in order[row]]
        assert scores[row].tolist() == pytest.approx(exact[row][order[row]].tolist(), abs=1e-5)


def test_equal_scores_are_in_the_order_of_their_keys_and_within_one(engine):
    twins = [Item(f"{i}") for i in range(40)]
    engine.upsert(twins, {"adapted": units(1).expand(40, -1)})
    scores, keys = engine.search("adapted", units(1), 7)
    assert keys == [sorted(key_of(item.id) for item in twins)[:7]]
    assert float(scores.max()) <= 1.0


def test_an_empty_index_is_searched_counted_and_read(engine, again):
    with again() as reader:
        for count in (3, 0):  # new, and with its last item gone
            for where in (None, Where.parse("year=2003"), Where.parse("path^=even/ and kind in (cat, dog)")):
                scores, keys = reader.search("adapted", units(2), 5, where)
                assert scores.shape == (2, 0) and scores.dtype == torch.float32 and keys == [[], []]
                assert reader.count(where) == 0 and [*reader.keys(where)] == []
            assert reader.generation().count == 0 and [*reader.missing(reader.generation().number)] == []
            assert dict(reader.known()) == {} and [*reader.scan()] == [] and reader.fetch(["0" * 16]) == {}
            assert reader.remove(["0" * 16]) == 0 and reader.verify() == []
            chosen, _ = fill(engine, count)
            assert reader.count() == engine.remove([item.key for item in chosen]) == count


def test_what_was_written_is_read_here_and_elsewhere(engine, again):
    with again() as reader:
        chosen, vectors = fill(engine, 300)
        for where in (engine, reader):
            assert where.count() == 300
            scores, keys = where.search("adapted", vectors[7:8], 1)
            assert found_ids(where, keys[0]) == [chosen[7].id] and float(scores) == pytest.approx(1, abs=1e-6)
            assert where.fetch([chosen[9].key]) == {chosen[9].key: chosen[9]}
            assert torch.equal(where.vectors([c.key for c in chosen[3:5]], "adapted"), vectors[3:5])
        assert {item: known.sha256 for item, known in reader.known().items()} == {c.id: c.sha256 for c in chosen}
        read = [pair for batch, found in reader.scan() for pair in zip(batch, found["adapted"], strict=True)]
        read.sort(key=lambda pair: pair[0].size)
        assert [item for item, _ in read] == chosen and torch.equal(torch.stack([v for _, v in read]), vectors)


def test_readers_see_changed_and_removed_items(engine, again):
    chosen, vectors = fill(engine, 50)
    with again() as reader:
        reader.search("adapted", vectors[:1], 1)
        before = reader.version()
        engine.upsert([replace(chosen[3], sha256="f" * 64)], {"adapted": -vectors[3:4]})
        assert engine.remove([chosen[4].key, chosen[4].key, "0" * 16]) == 1
        assert reader.version() > before
        scores, keys = reader.search("adapted", vectors[3:5], 50)
        assert keys[0][-1] == chosen[3].key and float(scores[0, -1]) == pytest.approx(-1, abs=1e-6)
        assert len(keys[1]) == 49 and chosen[4].key not in keys[1]
        assert reader.fetch([chosen[4].key]) == {}


def test_the_same_call_twice_changes_nothing(engine):
    chosen, vectors = fill(engine, 30)
    before = engine.search("adapted", vectors[:4], 30)
    engine.upsert(chosen, {"adapted": vectors})
    after = engine.search("adapted", vectors[:4], 30)
    assert before[1] == after[1] and torch.equal(before[0], after[0])
    assert engine.count() == 30 and engine.verify() == []


def test_items_change_without_their_vectors(engine):
    chosen, vectors = fill(engine, 3)
    engine.upsert([replace(chosen[1], caption="new", attributes={"x": "y"})])
    assert engine.fetch([chosen[1].key])[chosen[1].key].caption == "new"
    assert found_ids(engine, engine.search("adapted", vectors[1:2], 1)[1][0]) == [chosen[1].id]
    with pytest.raises(ValueError, match="items must be in the index"):
        engine.upsert([Item("other")])


@pytest.mark.parametrize(
    "text",
    [
        "year=2003",
        "kind='a dog' and year in (2001, 2004)",
        'kind="it\'s"',
        "ok=true and path^=even/",
        "id=even/10.jpg",
        "source=photos and caption^='picture 1'",
        "kind^=c",
        "year in (2001,1999)",
    ],
)
def test_a_filter_keeps_what_it_says_and_always_gives_k(engine, text):
    chosen, vectors = fill(engine, 400)
    where = Where.parse(text)
    kept = [i for i, c in enumerate(chosen) if where.matches(vars(c), c.attributes)]
    assert kept and engine.count(where) == len(kept)
    assert {*engine.keys(where)} == {chosen[i].key for i in kept}
    scores, keys = engine.search("adapted", units(3, seed=2), 10, where)
    exact = (units(3, seed=2) @ vectors[kept].T).sort(descending=True)
    for row in range(3):
        expected = [chosen[kept[i]].key for i in exact.indices[row, :10].tolist()]
        assert keys[row] == expected and len(expected) == min(10, len(kept))
    assert torch.allclose(scores, exact.values[:, :10], atol=1e-6)


def test_a_filter_that_nothing_matches_gives_nothing_and_a_misspelt_field_is_named(engine):
    fill(engine, 20)
    scores, keys = engine.search("adapted", units(2), 5, Where.parse("year=1900"))
    assert scores.shape == (2, 0) and keys == [[], []]
    with pytest.raises(ValueError, match=r"where must name one of .* got 'yaer'"):
        engine.search("adapted", units(2), 5, Where.parse("yaer=2003"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (48.85837012345679, "48.85837012345679"),
        (0.1, "0.1"),
        (1.0, "1.0"),
        (1e-07, "1e-07"),
        (1e300, "1e+300"),
        (-0.0, "-0.0"),
        (2**53 + 1, "9007199254740993"),
        (10**30, "1" + "0" * 30),
        (-(2**63), "-9223372036854775808"),
        ("1e-07", "1e-07"),
        ("caf\udce9", "caf\udce9"),
        ("a\x00b", "a\x00b"),
        ("\U0001f600é", "\U0001f600é"),
    ],
)
def test_an_attribute_is_found_by_the_text_of_its_value_and_by_its_beginning(engine, value, text):
    stored = [Item("it", attributes={"x": value}), Item("other", attributes={"x": 7})]
    engine.upsert(stored, {"adapted": units(2)})
    where = Where((Condition("x", (text,)),))
    assert where.matches(vars(stored[0]), stored[0].attributes)
    assert engine.keys(where) == [stored[0].key]
    assert engine.search("adapted", units(1), 5, where)[1] == [[stored[0].key]]
    assert engine.keys(Where((Condition("x", (text[:-1],), prefix=True),))) == [stored[0].key]
    assert engine.keys(Where((Condition("x", (text + "0",), prefix=True),))) == []


def test_values_of_a_filter_are_never_part_of_a_statement(engine):
    chosen, _ = fill(engine, 20)
    for value in ("x' OR '1'='1", '"; DROP TABLE items; --', "%", "_"):
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        assert engine.count(Where.parse(f"id='{quoted}' and kind='{quoted}'")) == 0
    assert engine.count() == len(chosen)


def test_any_bytes_are_a_name(engine, again):
    names = [name.decode("utf-8", "surrogateescape") for name in BYTE_NAMES]
    stored = [Item(name, path=name, caption=name, attributes={"name": "é"}) for name in names]
    engine.upsert(stored, {"adapted": units(len(names))})
    with again() as reader:
        assert {*reader.known()} == {*names}
        assert reader.fetch([item.key for item in stored]) == {item.key: item for item in stored}
        assert reader.count(Where.parse("path^=caf")) == 1
        assert engine.remove([stored[0].key]) == 1 and {*reader.known()} == {*names[1:]}


def test_wrong_arguments_are_refused_and_change_nothing(engine):
    chosen, vectors = fill(engine, 4)
    long = units(1, dimension=DIMENSION + 1)
    for wrong, message in [
        ({"other": vectors}, "vectors must have the views adapted, got other"),
        ({"adapted": vectors[:2]}, r"vectors of adapted must be \[4, 24\]"),
        ({"adapted": vectors * 2}, "of length 1, got one of length 2"),
        ({"adapted": vectors * 0}, "of length 1, got one of length 0"),
        ({"adapted": vectors * torch.nan}, "finite and of length 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.upsert(chosen, wrong)
    with pytest.raises(ValueError, match="different ids"):
        engine.upsert([chosen[0]] * 2, {"adapted": vectors[:2]})
    with pytest.raises(ValueError, match="id must not be empty"):
        engine.upsert([Item("")], {"adapted": vectors[:1]})
    with pytest.raises(ValueError, match="attributes must be strings, numbers or booleans"):
        engine.upsert([Item("x", attributes={"a": []})], {"adapted": vectors[:1]})
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"attributes must be finite, got 'a': (nan|inf)"):
            engine.upsert([Item("x", attributes={"a": number})], {"adapted": vectors[:1]})
    for queries, k, view, message in [
        (long, 1, "adapted", r"queries must be floating point \[N, 24\]"),
        (vectors, 0, "adapted", "k must be at least 1"),
        (vectors * torch.nan, 1, "adapted", "queries must be finite"),
        (vectors * 0, 1, "adapted", "got a vector of zeros"),
        (vectors, 1, "frozen", "view must be one of adapted, got 'frozen'"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.search(view, queries, k)
    with pytest.raises(ValueError, match="key must be 16 hexadecimal digits"):
        engine.fetch(["../etc"])
    with pytest.raises(ValueError, match="keys must have vectors"):
        engine.vectors(["0" * 16], "adapted")
    assert engine.count() == 4 and engine.verify() == []


def test_two_ids_of_one_key_are_refused(engine, monkeypatch):
    fill(engine, 2)
    monkeypatch.setattr(Item, "key", items(1)[0].key)
    with pytest.raises(ValueError, match="id must have a key of its own, got 'other'"):
        engine.upsert([Item("other")], {"adapted": units(1)})


def test_a_generation_is_filled_beside_the_live_one_and_switched_at_once(engine, again):
    chosen, vectors = fill(engine, 40)
    new = engine.create_generation(OTHER, {"adapter": "adapter-2"})
    assert [entry.live for entry in engine.generations()] == [True, False]
    assert sorted(engine.missing(new)) == sorted(c.key for c in chosen)
    engine.upsert(chosen[:39], {"adapted": units(39, dimension=7)}, new)
    with pytest.raises(ValueError, match=f"got {new}, where 1 are missing"):
        engine.switch(new)
    with again() as reader:
        assert found_ids(reader, reader.search("adapted", vectors[5:6], 1)[1][0]) == [chosen[5].id]
        assert reader.search("adapted", units(1, dimension=7), 50, generation=new)[0].shape == (1, 39)
        engine.upsert(chosen[39:], {"adapted": -units(1, dimension=7)}, new)
        assert engine.missing(new) == []
        engine.switch(new)
        _, keys = reader.search("adapted", units(40, dimension=7), 1)
        assert keys[6] == [chosen[6].key] and reader.generation().number == new
        assert reader.stamps() == OTHER and reader.generation().notes == {"adapter": "adapter-2"}
        with pytest.raises(ValueError, match="generation must not be the live one"):
            engine.drop(new)
        engine.drop(1)
        with pytest.raises(ValueError, match=f"generation must be one of {new}, got 1"):
            reader.search("adapted", vectors[:1], 1, generation=1)
        assert reader.verify() == []


def test_a_changed_or_removed_picture_leaves_no_vector_in_another_generation(engine):
    chosen, vectors = fill(engine, 5)
    new = engine.create_generation(OTHER, {})
    engine.upsert(chosen, {"adapted": units(5, dimension=7)}, new)
    engine.upsert([replace(chosen[0], sha256="e" * 64)], {"adapted": vectors[:1]})
    engine.upsert([replace(chosen[1], caption="touched")], {"adapted": vectors[1:2]})
    engine.remove([chosen[2].key])
    engine.upsert(items(1, first=99), {"adapted": vectors[:1]})
    assert {*engine.missing(new)} == {chosen[0].key, items(1, first=99)[0].key}
    with pytest.raises(ValueError, match="which is not or differs"):
        engine.upsert(chosen[:1], {"adapted": units(1, dimension=7)}, new)
    assert engine.verify() == []


def test_several_views_of_an_item_are_written_together(place):
    with place.create({**STAMPS, "frozen": OTHER["adapted"]}) as engine:
        chosen = items(9)
        both = {"adapted": units(9), "frozen": units(9, dimension=7)}
        engine.upsert(chosen, both)
        for view, vectors in both.items():
            assert [row[0] for row in engine.search(view, vectors, 1)[1]] == [c.key for c in chosen]
            assert torch.equal(engine.vectors([c.key for c in chosen], view), vectors)
        [(found, held)] = engine.scan()
        rows = [chosen.index(item) for item in found]
        assert sorted(rows) == [*range(9)] and all(torch.equal(held[view], both[view][rows]) for view in both)
        with pytest.raises(ValueError, match="vectors must have the views adapted, frozen, got adapted"):
            engine.upsert(chosen, {"adapted": both["adapted"]})


def test_settings_and_styles_are_kept(engine, again):
    engine.put_settings({"ids": "path", "sources": {"caf\udce9": {"folder": "/caf\udce9"}}})
    engine.put_style("é/ \n", torch.arange(3.0))
    engine.put_style("é/ \n", torch.arange(4.0))
    with again() as reader:
        assert reader.settings()["sources"] == {"caf\udce9": {"folder": "/caf\udce9"}}
        assert [(name, vector.tolist()) for name, vector in reader.styles().items()] == [
            ("é/ \n", [0.0, 1.0, 2.0, 3.0])
        ]
        assert engine.delete_style("é/ \n") and not engine.delete_style("é/ \n") and reader.styles() == {}
    with pytest.raises(ValueError, match=r"vector must be finite \[d\]"):
        engine.put_style("x", torch.tensor([torch.nan]))


def test_two_writers_of_the_settings_undo_nothing(engine, again, tmp_path):
    folders = [tmp_path / f"{number}" / "photos" for number in range(6)]
    for folder in folders:
        folder.mkdir(parents=True)

    def add(some: list[Path]) -> None:
        with again() as mine:
            for folder in some:
                register(mine, [folder])

    threads = [threading.Thread(target=add, args=(folders[number::3],)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sources = engine.settings()["sources"]
    assert sorted(entry["folder"] for entry in sources.values()) == sorted(map(str, folders))
    assert len({entry["prefix"] for entry in sources.values()}) == 6


def test_one_engine_serves_threads(engine):
    _, vectors = fill(engine, 30)
    expected, found = engine.search("adapted", vectors, 3)[1], []
    threads = [threading.Thread(target=lambda: found.append(engine.search("adapted", vectors, 3)[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_two_searches_of_k_give_the_first_k_of_a_picture_and_words(engine):
    _, vectors = fill(engine, 400)
    pictures, texts = units(5, seed=3), units(5, seed=4)
    found = [engine.search("adapted", queries, 7) for queries in (pictures, texts)]
    exact = torch.maximum(pictures @ vectors.T, texts @ vectors.T).sort(descending=True)
    for row in range(5):
        parts = {part: Found(scores[row].tolist(), keys[row]) for part, (scores, keys) in zip("ab", found, strict=True)}
        best = combined(parts, 7)
        assert [key for key, _, _ in best] == [items(400)[place].key for place in exact.indices[row, :7].tolist()]
        assert [score for _, score, _ in best] == pytest.approx(exact.values[row, :7].tolist(), abs=1e-6)


def test_the_sum_of_a_softmax_is_that_over_all_items(engine):
    _, vectors = fill(engine, 70)
    if isinstance(engine, MilvusEngine):
        with pytest.raises(ValueError, match=r"combine must be 'similarity', as milvus:.* cannot sum over all"):
            engine.log_sum("adapted", units(3, seed=5), 100.0)
        return
    expected = (100 * units(3, seed=5) @ vectors.T).logsumexp(1, keepdim=True)
    assert torch.allclose(engine.log_sum("adapted", units(3, seed=5), 100.0), expected, atol=1e-4)


def test_an_engine_is_healthy_until_it_is_closed(engine):
    engine.health()
    engine.close()
    engine.close()
    with pytest.raises(OSError, match="is closed"):
        engine.health()
