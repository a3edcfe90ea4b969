"""Exact search in memory, compared with a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hystar_fast.index.memory import Matrix


def matrix(vectors: torch.Tensor, block: int = 7, keys: np.ndarray | None = None) -> Matrix:
    made = Matrix(vectors.shape[1], block)
    count = len(vectors)
    numbers = np.arange(1, count + 1)
    keys = numbers if keys is None else keys
    for start in range(0, count, 5):
        part = slice(start, start + 5)
        made.append(numbers[part], keys[part], vectors[part].numpy())
    return made


@pytest.mark.parametrize("block", [1, 5, 64, 1000])
def test_search_equals_a_full_sort_by_score_and_then_by_key(block):
    torch.manual_seed(1)
    gallery = F.normalize(torch.randint(-1, 2, (97, 6)).float() + 0.01, dim=-1)
    keys = np.random.default_rng(0).permutation(97)
    queries = torch.randn(11, 6)
    scores, found = matrix(gallery, block, keys).search(queries, 10)
    expected = (F.normalize(queries, dim=-1).double() @ gallery.double().T).numpy()
    assert np.allclose(scores, -np.sort(-expected, axis=1)[:, :10], atol=1e-6)
    place_of = {int(key): place for place, key in enumerate(keys)}
    for row in range(11):
        own = [expected[row, place_of[key]] for key in found[row].tolist()]
        assert np.allclose(own, scores[row], atol=1e-6) and len({*found[row].tolist()}) == 10


@pytest.mark.parametrize("block", [2, 4, 100])
def test_of_equal_scores_those_of_the_smallest_keys_are_found(block):
    keys = np.array([9, 3, 7, 1, 8, 2, 6, 4, 5])
    _, found = matrix(torch.ones(9, 1), block, keys).search(torch.ones(2, 1), 4)
    assert found.tolist() == [[1, 2, 3, 4]] * 2


def test_masked_vectors_are_not_found_and_earlier_views_are_not_changed():
    made = matrix(torch.eye(12), 5)
    before = made.frozen()
    made.mask(np.array([3, 12, 99]))
    made.append(np.array([13]), np.array([13]), torch.eye(12)[2:3].numpy())
    assert (before.count, made.count, made.size) == (12, 11, 13)
    assert before.search(torch.eye(12)[2:3], 1)[1].tolist() == [[3]]
    assert made.search(torch.eye(12)[2:3], 1)[1].tolist() == [[13]]
    assert made.search(torch.eye(12)[11:], 20)[0].shape == (1, 11)
    kept = made.keep_only(np.array([1, 3, 5]))
    assert sorted(kept.search(torch.ones(1, 12), 9)[1][0].tolist()) == [1, 5]
    assert not made.has_many_masked
    made.mask(np.arange(1, 8))
    assert made.has_many_masked


def test_the_sum_over_all_is_that_of_the_unmasked():
    made = matrix(F.normalize(torch.randn(30, 4), dim=1), 8)
    made.mask(np.array([4]))
    vectors = torch.cat(made.blocks)[:30]
    kept = torch.cat([vectors[:3], vectors[4:]])
    queries = F.normalize(torch.randn(2, 4), dim=1)
    assert torch.allclose(made.log_sum(queries, 50.0), (50 * queries @ kept.T).logsumexp(1, keepdim=True), atol=1e-4)
