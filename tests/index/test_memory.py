"""The cosine index, compared with a full sort, and its files."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from hystar_fast.index.memory import MemoryIndex


def ids(n: int) -> list[str]:
    return [f"item {i}" for i in range(n)]


@pytest.mark.parametrize("block", [1, 5, 64, 1000])
def test_search_equals_a_stable_full_sort(block):
    gallery, queries = torch.randint(-1, 2, (97, 6)).float() + 0.01, torch.randn(11, 6)
    scores, positions = MemoryIndex(gallery, ids(97)).search(queries, 10, block=block)
    expected = F.normalize(queries, dim=-1) @ F.normalize(gallery, dim=-1).T
    assert torch.allclose(scores, expected.sort(descending=True, stable=True).values[:, :10], atol=1e-6)
    assert torch.allclose(expected.gather(1, positions), scores, atol=1e-6)


def test_equal_scores_keep_the_order_of_the_index():
    _, positions = MemoryIndex(torch.ones(9, 2), ids(9)).search(torch.ones(1, 2), 9, block=2)
    assert positions[0].tolist() == list(range(9))


def test_k_is_at_most_the_size_of_the_index():
    scores, positions = MemoryIndex(torch.eye(3), ids(3)).search(torch.eye(3)[:1], 10)
    assert scores.shape == positions.shape == (1, 3)


def test_a_saved_index_loads_unchanged(tmp_path):
    index = MemoryIndex(torch.randn(5, 4), ["a", "é", "🐶", "b", "c"], {"gallery": "noto"})
    index.save(tmp_path / "new" / "folder")
    again = MemoryIndex.load(tmp_path / "new" / "folder")
    assert again.ids == index.ids
    assert again.about == index.about
    assert torch.allclose(again.embeddings, index.embeddings, atol=1e-7)


@pytest.mark.parametrize("name", ["index.json", "index.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "rubbish"])
def test_a_missing_or_damaged_file_is_rejected(tmp_path, name, damage):
    MemoryIndex(torch.randn(5, 4), ids(5)).save(tmp_path)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
        message = f"which has no {name}"
    else:
        path.write_bytes(path.read_bytes()[:20] if damage == "truncated" else b"\xff\x00rubbish")
        message = "holds a damaged index"
    with pytest.raises(ValueError, match=message):
        MemoryIndex.load(tmp_path)


def test_ids_that_do_not_match_the_embeddings_are_rejected(tmp_path):
    MemoryIndex(torch.randn(5, 4), ids(5)).save(tmp_path)
    meta = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(meta | {"ids": ids(4)}))
    with pytest.raises(ValueError, match=r"ids must have one entry an embedding \(5\), got 4"):
        MemoryIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("embeddings", "names", "message"),
    [
        (torch.randn(4), ids(4), r"embeddings must be floating point \[M, D\]"),
        (torch.ones(4, 2, dtype=torch.int64), ids(4), "embeddings must be floating point"),
        (torch.randn(4, 2), ids(3), "ids must have one entry"),
        (torch.full((1, 2), torch.nan), ids(1), "embeddings must be finite"),
    ],
)
def test_bad_contents_are_rejected(embeddings, names, message):
    with pytest.raises(ValueError, match=message):
        MemoryIndex(embeddings, names)


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        (torch.randn(1, 5), 1, r"queries must be \[N, 4\], got \(1, 5\)"),
        (torch.randn(1, 4), 0, "k must be at least 1"),
        (torch.full((1, 4), torch.inf), 1, "queries must be finite"),
    ],
)
def test_bad_queries_are_rejected(query, k, message):
    with pytest.raises(ValueError, match=message):
        MemoryIndex(torch.randn(3, 4), ids(3)).search(query, k)
