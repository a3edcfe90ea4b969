"""Approximate search by a graph: recall, exact scores, additions, removals, filters, and damage."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.index.engine import IndexDamaged, Item
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.local_graph import Graph
from hystar_fast.index.memory import Matrix
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.where import Where
from tests.support.cli import refused, run

COUNT, DIMENSION = 600, 24
STAMPS = {"adapted": Stamp({"dimension": DIMENSION})}


def clusters(count: int, seed: int, dimension: int = DIMENSION) -> Tensor:
    """Return unit vectors around three hundred centres, as those of pictures are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(300, dimension, generator=torch.Generator().manual_seed(99))
    chosen = centres[torch.randint(0, 300, (count,), generator=generator)]
    return F.normalize(chosen + 0.7 * torch.randn(count, dimension, generator=generator), dim=1)


def items(count: int, first: int = 0) -> list[Item]:
    return [
        Item(f"{i}.jpg", path=f"{i}.jpg", sha256=f"{i:064x}", attributes={"odd": i % 2})
        for i in range(first, first + count)
    ]


@pytest.fixture
def engine(tmp_path: Path) -> LocalEngine:
    """Return an index with a graph."""
    made = LocalEngine.create(tmp_path / "index", STAMPS)
    made.upsert(items(COUNT), {"adapted": clusters(COUNT, 0)})
    made.build_graph("adapted")
    return made


def exact(engine: LocalEngine, queries: Tensor, k: int) -> tuple[Tensor, list[list[str]]]:
    """Search without the graph."""
    return engine.search("adapted", queries, k, Where(()))


def check_as_exact(engine: LocalEngine, queries: Tensor, k: int) -> None:
    scores, keys = engine.search("adapted", queries, k)
    expected, names = exact(engine, queries, k)
    assert torch.allclose(scores, expected, atol=1e-6)
    assert keys == names


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("clusters", 0.999), ("random", 0.95)])
def test_recall_among_20000_with_exact_scores_in_order(kind, least):
    generator = torch.Generator().manual_seed(3)
    random = F.normalize(torch.randn(20_050, 128, generator=generator), dim=1)
    vectors = clusters(20_050, 1, 128) if kind == "clusters" else random
    gallery, queries = vectors[:20_000], vectors[20_000:]
    matrix = Matrix(128)
    numbers = np.arange(1, 20_001)
    matrix.append(numbers, numbers, gallery.numpy())
    found = Graph.build(matrix).search(matrix, queries, 10)
    expected = matrix.search(queries, 10)
    hits = [len({*mine} & {*right}) for mine, right in zip(found[1].tolist(), expected[1].tolist(), strict=True)]
    assert sum(hits) / (10 * len(queries)) >= least
    for row, keys in enumerate(found[1]):
        own = gallery[keys - 1] @ queries[row]
        assert torch.allclose(found[0][row], own, atol=1e-6) and bool((own.diff() <= 1e-6).all())


def test_a_graph_is_used_and_its_answers_are_those_of_exact_search(engine, monkeypatch):
    used: list[int] = []
    search = Graph.search
    monkeypatch.setattr(Graph, "search", lambda self, *rest: used.append(1) or search(self, *rest))
    check_as_exact(engine, clusters(20, 7), 10)
    assert len(used) == 1
    with LocalEngine(engine.folder) as other:
        check_as_exact(other, clusters(20, 7), 10)
    assert len(used) == 2
    engine.graphs.drop()
    check_as_exact(engine, clusters(20, 7), 10)
    assert len(used) == 2


def test_what_came_later_is_found_and_what_has_gone_is_not(engine):
    queries = clusters(10, 7)
    engine.upsert(items(40, COUNT), {"adapted": torch.cat([queries, clusters(30, 8)])})
    scores, keys = engine.search("adapted", queries, 3)
    assert [found[0] for found in keys] == [item.key for item in items(10, COUNT)] and scores[:, 0].min() > 0.9999
    engine.remove([item.key for item in items(5, COUNT)] + [found[1] for found in keys])
    check_as_exact(engine, queries, 10)
    changed = [Item(item.id, path=item.path, sha256="f" * 64) for item in items(10)]
    engine.upsert(changed, {"adapted": clusters(10, 9)})
    check_as_exact(engine, clusters(10, 9), 5)


def test_k_are_found_although_most_of_the_graph_has_gone(engine):
    engine.remove([item.key for item in items(COUNT - 12)])
    queries = clusters(5, 7)
    assert engine.search("adapted", queries, 10)[0].shape == (5, 10)
    check_as_exact(engine, queries, 10)
    check_as_exact(engine, queries, 50)
    engine.remove([item.key for item in items(COUNT)])
    assert engine.search("adapted", queries, 10)[0].shape == (5, 0)


def test_a_filter_is_exact(engine):
    queries = clusters(5, 7)
    scores, keys = engine.search("adapted", queries, 10, Where.parse("odd=1"))
    odd = [item.key for item in items(COUNT) if item.attributes["odd"]]
    assert all(key in odd for found in keys for key in found) and scores.shape == (5, 10)


def test_equal_scores_are_in_the_order_of_their_keys(tmp_path):
    with LocalEngine.create(tmp_path / "index", STAMPS) as engine:
        engine.upsert(items(30), {"adapted": clusters(1, 0).repeat(30, 1)})
        engine.build_graph("adapted")
        _, keys = engine.search("adapted", clusters(1, 0), 30)
        assert keys[0] == sorted(keys[0])


def test_wrong_queries_are_refused_as_without_a_graph(engine):
    with pytest.raises(ValueError, match="k must be at least 1"):
        engine.search("adapted", clusters(1, 0), 0)
    with pytest.raises(ValueError, match="queries must be finite"):
        engine.search("adapted", torch.full((1, DIMENSION), torch.nan), 1)


def test_a_dropped_generation_and_a_replaced_index_have_no_graph(engine, tmp_path):
    number = engine.create_generation(STAMPS, {})
    for part in (items(COUNT),):
        engine.upsert(part, {"adapted": clusters(COUNT, 5)}, number)
    engine.switch(number)
    check_as_exact(engine, clusters(5, 5), 5)
    engine.drop(1)
    assert not [*engine.folder.glob("graph-*")]
    engine.build_graph("adapted")
    with LocalEngine.create(tmp_path / "new", STAMPS) as new:
        new.upsert(items(50), {"adapted": clusters(50, 6)})
        engine.take_over(new)
    check_as_exact(engine, clusters(5, 6), 5)


@pytest.mark.parametrize("place", [0.01, 0.5, 0.999])
def test_a_flipped_bit_is_found(engine, place):
    (path,) = engine.folder.glob("graph-*")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with LocalEngine(engine.folder) as other, pytest.raises(IndexDamaged, match="hystar-fast index accelerate"):
        other.search("adapted", clusters(1, 0), 1)


def test_the_command_builds_and_removes_graphs(engine, tmp_path, monkeypatch):
    result = run("index", "accelerate", engine.folder, "--off")
    assert result.exit_code == 0 and "removed 1 graphs" in result.output
    result = run("index", "accelerate", engine.folder)
    assert result.exit_code == 0 and f"is searched by a graph of {COUNT} pictures" in result.output, result.output
    check_as_exact(engine, clusters(5, 1), 5)
    with LocalEngine.create(tmp_path / "empty", STAMPS):
        assert "NAME must hold pictures for a graph of them" in refused("index", "accelerate", tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "faiss", None)
    message = refused("index", "accelerate", engine.folder)
    assert "a graph needs faiss, which is not installed: pip install 'hystar-fast[ann]'" in message
    with LocalEngine(engine.folder) as other, pytest.raises(ModuleNotFoundError, match="or remove it with --off"):
        other.search("adapted", clusters(1, 0), 1)
