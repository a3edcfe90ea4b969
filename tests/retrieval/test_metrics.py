"""Ranks and recalls against the full score matrix, ties, intervals and bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hystar_fast.retrieval import metrics
from hystar_fast.retrieval.definitions import Metric, measure
from hystar_fast.retrieval.joint import joint_ranks
from hystar_fast.retrieval.metrics import TIE, bootstrap_mean, recall, recall_at_k, target_ranks


def full_matrix_ranks(queries: Tensor, gallery: Tensor, targets: Tensor) -> list[int]:
    """Compute ranks from the definition, one query and one gallery item at a time, in float64."""
    ranks = []
    for query, target in zip(queries.double(), targets.tolist(), strict=True):
        scores = [float(query @ item) for item in gallery.double()]
        ranks.append(sum(s >= scores[target] - TIE for j, s in enumerate(scores) if j != target))
    return ranks


@given(
    n=st.integers(1, 9), m=st.integers(1, 23), d=st.integers(1, 8), block=st.integers(1, 30), seed=st.integers(0, 10**6)
)
def test_streamed_ranks_equal_the_full_matrix_on_points_with_many_ties(n, m, d, block, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-2, 3, (n, d), generator=generator).double()
    gallery = torch.randint(-2, 3, (m, d), generator=generator).double()
    targets = torch.randint(m, (n,), generator=generator)
    assert target_ranks(queries, gallery, targets, block=block).tolist() == full_matrix_ranks(queries, gallery, targets)


@pytest.mark.parametrize("block", [1, 7, 131, 4096])
def test_the_block_does_not_change_the_ranks_of_real_vectors(block):
    queries, gallery = torch.randn(67, 33), torch.randn(131, 33)
    targets = torch.randint(131, (67,))
    expected = full_matrix_ranks(queries, gallery, targets)
    assert target_ranks(queries, gallery, targets, block=block).tolist() == expected


def test_a_collapsed_encoder_has_no_recall():
    one = torch.ones(10, 4) / 2
    ranks = target_ranks(one, one, torch.arange(10))
    assert ranks.tolist() == [9] * 10
    assert recall(ranks, 1) == 0.0


def test_duplicates_in_the_gallery_count_against_the_query():
    gallery = torch.eye(3)[[0, 1, 0]]
    assert target_ranks(torch.eye(3)[:1], gallery, torch.tensor([0])).tolist() == [1]


def test_perfect_and_shifted_retrieval():
    points = torch.nn.functional.normalize(torch.randn(20, 8), dim=-1)
    assert recall_at_k(points, points, torch.arange(20), 1) == 1.0
    assert recall_at_k(points, points, torch.arange(20).roll(1), 1) == 0.0


def test_recall_grows_with_k_and_is_one_at_the_size_of_the_gallery():
    queries, gallery = torch.randn(50, 6), torch.randn(40, 6)
    ranks = target_ranks(queries, gallery, torch.randint(40, (50,)))
    values = [recall(ranks, k) for k in range(1, 41)]
    assert values == sorted(values)
    assert values[-1] == 1.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_query_that_is_not_finite_ranks_last_and_changes_no_other_rank(bad):
    queries, gallery = torch.randn(5, 4), torch.randn(7, 4)
    targets = torch.arange(5)
    clean = target_ranks(queries, gallery, targets)
    poisoned = queries.clone()
    poisoned[2] = bad
    ranks = target_ranks(poisoned, gallery, targets)
    assert ranks[2] == 6
    keep = [0, 1, 3, 4]
    assert torch.equal(ranks[keep], clean[keep])


def test_no_queries_give_no_ranks():
    assert target_ranks(torch.empty(0, 3), torch.randn(4, 3), torch.empty(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": torch.randn(3, 5)}, ValueError, r"queries must be \[N, D\] and gallery \[M, D\]"),
        ({"queries": torch.randn(3)}, ValueError, "queries must be"),
        ({"targets": torch.zeros(3)}, TypeError, "targets must be an integer tensor, got torch.float32"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, ValueError, r"targets must have shape \(3,\)"),
        ({"targets": torch.tensor([0, 1, 6])}, ValueError, r"targets must lie in 0\.\.5, got 0\.\.6"),
        ({"targets": torch.tensor([0, -1, 2])}, ValueError, r"targets must lie in 0\.\.5, got -1\.\.2"),
        ({"block": 0}, ValueError, "block must be at least 1, got 0"),
    ],
)
def test_bad_input_is_rejected(change, error, message):
    given_arguments = {
        "queries": torch.randn(3, 4),
        "gallery": torch.randn(6, 4),
        "targets": torch.arange(3),
        "block": 8,
    }
    arguments = given_arguments | change
    with pytest.raises(error, match=message):
        target_ranks(arguments["queries"], arguments["gallery"], arguments["targets"], block=arguments["block"])


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        recall(torch.zeros(3), 0)


def test_the_interval_of_a_constant_is_that_constant():
    found = bootstrap_mean(torch.ones(30))
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 30)


def test_the_interval_is_about_two_standard_errors_wide_and_reproducible():
    hits = (torch.arange(400) % 4 == 0).float()
    found = bootstrap_mean(hits)
    error = (0.25 * 0.75 / 400) ** 0.5
    assert found.value == pytest.approx(0.25)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert found == bootstrap_mean(hits)
    assert found != bootstrap_mean(hits, seed=1)


def test_the_mean_weighs_every_row_equally_and_skips_missing_values():
    table = torch.tensor([[1.0, torch.nan, torch.nan, torch.nan], [0.0, 0.0, 0.0, 1.0]])
    found = bootstrap_mean(table)
    assert found.value == pytest.approx((1.0 + 0.25) / 2)
    assert found.n == 4
    assert found.low <= found.value <= found.high


def test_the_values_of_a_query_are_resampled_together():
    """Two equal rows have the interval of one row, not that of twice as many queries."""
    hits = (torch.arange(100) % 2).float()
    one, pair = bootstrap_mean(hits), bootstrap_mean(torch.stack([hits, hits]))
    assert (pair.low, pair.high) == pytest.approx((one.low, one.high))


def test_the_interval_does_not_depend_on_how_many_draws_are_in_memory(monkeypatch):
    values = torch.rand(2, 57)
    values[0, ::3] = torch.nan
    found = bootstrap_mean(values, resamples=200)
    for size in (1, 500):
        monkeypatch.setattr(metrics, "_DRAWN_AT_ONCE", size)
        assert bootstrap_mean(values, resamples=200) == found


@pytest.mark.parametrize("values", [torch.empty(0), torch.full((2, 3), torch.nan), torch.zeros(2, 2, 2)])
def test_values_without_a_mean_are_rejected(values):
    with pytest.raises(ValueError, match="values must be"):
        bootstrap_mean(values)


def test_the_interval_is_that_of_the_mean_of_row_means_in_every_resample():
    """A row with few values has the same weight as a full one, in every resample too."""
    generator = torch.Generator().manual_seed(3)
    table = torch.rand(2, 40, generator=generator)
    table[0, 5:] = torch.nan
    draws = torch.randint(40, (300, 40), generator=torch.Generator().manual_seed(0))
    means = torch.stack([table[:, draw].double().nanmean(dim=1).nanmean() for draw in draws])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    found = bootstrap_mean(table, resamples=300)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_embeddings_are_scored_in_float32(dtype: torch.dtype) -> None:
    gallery = torch.nn.functional.normalize(0.25 * torch.randn(300, 64) + torch.randn(1, 64), dim=-1)
    queries = torch.nn.functional.normalize(gallery + 0.06 * torch.randn(300, 64), dim=-1).to(dtype)
    gallery, labels = gallery.to(dtype), torch.arange(300)
    exact = target_ranks(queries.float(), gallery.float(), labels)
    assert int((exact > 0).sum()) > 0
    assert torch.equal(target_ranks(queries, gallery, labels), exact)
    metric = Metric.parse("mAP@all")
    found = measure(queries, gallery, labels, labels, [metric]).values[metric]
    assert torch.equal(found, measure(queries.float(), gallery.float(), labels, labels, [metric]).values[metric])
    joint = joint_ranks(queries, queries.flip(0), gallery, labels)
    assert torch.equal(joint, joint_ranks(queries.float(), queries.flip(0).float(), gallery.float(), labels))
