"""An index keeps the similarity that its vectors are compared by, searches by it, and refuses every other."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.data.images import load_image
from hystar_fast.index.engine import Item
from hystar_fast.index.engine_checks import check_cosine
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.memory import Matrix
from hystar_fast.index.milvus import MilvusEngine
from hystar_fast.index.searcher import Query, Searcher
from hystar_fast.index.stamp import Stamp, StampMismatch, stamp_of
from hystar_fast.index.where import Where
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.similarity import COSINE
from tests.support.distances import Colours, NegativeDistance
from tests.support.index_engines import STAMPS, items, units
from tests.support.picture_trees import picture

COLOURS = {"adapted": stamp_of(Colours(), 3, None)}


def made(folder, count=30):
    engine = LocalEngine.create(folder, COLOURS)
    vectors = 4 * torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
    engine.upsert(items(count), {"adapted": vectors})
    return engine, vectors


def test_the_stamp_names_the_similarity_and_older_stamps_mean_cosine():
    assert COLOURS["adapted"].values["metric"] == COLOURS["adapted"].metric == "negative_distance"
    assert stamp_of(Pixels(), 256, None).values["metric"] == "cosine"
    assert Stamp({"method": "old", "dimension": 2}).metric == "cosine"
    with pytest.raises(StampMismatch, match="metric 'negative_distance' in it and 'cosine' now"):
        COLOURS["adapted"].check(Stamp({**COLOURS["adapted"].values, "metric": "cosine"}), "runs/index")


@pytest.mark.parametrize("where", [None, Where.parse("path^=even/")])
def test_a_search_is_exact_by_the_similarity(tmp_path, where):
    engine, vectors = made(tmp_path / "index")
    queries = 4 * torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    with engine:
        scores, keys = engine.search("adapted", queries, 7, where, similarity=NegativeDistance())
        kept = {*engine.keys(where)}
    listed = [item.key for item in items(30)]
    rows = [row for row, key in enumerate(listed) if key in kept]
    full = -torch.cdist(queries.double(), vectors[rows].double()).square()
    best = full.sort(dim=1, descending=True)
    assert torch.allclose(scores.double(), best.values[:, :7], atol=1e-5)
    assert keys == [[listed[rows[i]] for i in row[:7]] for row in best.indices.tolist()]


@pytest.mark.parametrize("block", [4, 64])
def test_blocks_and_removed_vectors_do_not_change_the_answer(block):
    vectors = 4 * torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    matrix = Matrix(3, block)
    numbers = torch.arange(1, 21).numpy()
    matrix.append(numbers, numbers, vectors.numpy())
    matrix.mask(numbers[:5])
    scores, keys = matrix.search(vectors[:6], 15, similarity=NegativeDistance())
    full = -torch.cdist(vectors[:6].double(), vectors[5:].double()).square()
    best = full.sort(dim=1, descending=True)
    assert torch.equal(keys, best.indices + 6) and torch.allclose(scores.double(), best.values, atol=1e-5)


def test_another_similarity_is_refused_by_name(tmp_path):
    engine, vectors = made(tmp_path / "colours")
    with engine:
        message = r"similarity must be 'negative_distance', with which .*colours was made, got 'cosine'"
        for search in (
            lambda: engine.search("adapted", vectors[:1], 3),
            lambda: engine.log_sum("adapted", vectors[:1], 100.0),
            lambda: engine.build_graph("adapted"),
        ):
            with pytest.raises(ValueError, match=message):
                search()
    with LocalEngine.create(tmp_path / "units", STAMPS) as engine:
        engine.upsert(items(3), {"adapted": units(3)})
        with pytest.raises(ValueError, match=r"must be 'cosine', with which .*units was made, got 'negative"):
            engine.search("adapted", units(1), 2, similarity=NegativeDistance())
        with pytest.raises(ValueError, match="finite and of length 1"):
            engine.upsert(items(3), {"adapted": 2 * units(3)})


def test_vectors_must_be_finite_but_of_no_length(tmp_path):
    engine, vectors = made(tmp_path / "index")
    vectors[0, 0] = torch.nan
    with engine, pytest.raises(ValueError, match="vectors of adapted must be finite"):
        engine.upsert(items(30), {"adapted": vectors})


def test_engines_with_a_search_of_their_own_take_cosine_alone(tmp_path):
    with pytest.raises(ValueError, match="similarity must be 'cosine' in Milvus, got 'negative_distance' of view 'ad"):
        MilvusEngine.create(f"milvus:{tmp_path}/index.db", COLOURS)
    with pytest.raises(ValueError, match="in PostgreSQL, got 'negative_distance' of view 'adapted': use a folder"):
        check_cosine(COLOURS, "PostgreSQL")
    with MilvusEngine.create(f"milvus:{tmp_path}/other.db", STAMPS) as engine:
        engine.upsert(items(3), {"adapted": units(3)})
        with pytest.raises(ValueError, match=r"must be 'cosine', with which milvus:.* was made, got 'negative"):
            engine.search("adapted", units(1), 2, similarity=NegativeDistance())


def test_a_searcher_asks_by_the_similarity_of_its_method(tmp_path):
    method = Colours()
    files = [picture(tmp_path / f"{number}.png", number) for number in range(5)]
    loaded = torch.stack([method.resize(load_image(file)) for file in files])
    vectors = method.encode_image(loaded)
    with LocalEngine.create(tmp_path / "index", COLOURS) as engine:
        engine.upsert([Item(file.name) for file in files], {"adapted": vectors})
        searcher = Searcher(engine, engine.generation(), "adapted", method)
        [hits], [worded] = searcher.search([Query(files[2])], 5), searcher.search([Query(text="a moon")], 5)
        with pytest.raises(ValueError, match="combine must be 'similarity' for similarity 'negative_dist"):
            searcher.search([Query(files[2], "a moon")], 5, combine="softmax")
    assert hits[0].id == "2.png" and hits[0].score == pytest.approx(0, abs=1e-5)
    for found, vector in ((hits, vectors[2]), (worded, method.encode_text(["a moon"])[0])):
        scores = -(vectors - vector).square().sum(1)
        assert [hit.id for hit in found] == [files[i].name for i in scores.argsort(descending=True)]
    assert COSINE.is_cosine
