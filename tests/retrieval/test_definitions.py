"""Every definition of a metric, compared with its definition on the full score matrix and with torchmetrics."""

from __future__ import annotations

import pytest
import torch
import torchmetrics.functional.retrieval as peer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hystar_fast.retrieval import relevant_ranks as module
from hystar_fast.retrieval.definitions import DENOMINATORS, Metric, measure
from hystar_fast.retrieval.metrics import TIE, bootstrap_mean, target_ranks
from hystar_fast.retrieval.relevant_ranks import relevant_ranks

NAMES = [
    "R@1",
    "R@3",
    "mAP@all",
    "mAP@all:interpolated",
    *(f"mAP@4:{d}{i}" for d in DENOMINATORS["mAP"] for i in ("", ":interpolated")),
    *(f"Prec@4:{d}" for d in DENOMINATORS["Prec"]),
]


def worst_order(scores: list[float], relevant: list[bool]) -> list[bool]:
    """Return the relevance of each place of the worst ranking: irrelevant items come first among ties within TIE."""
    relevant_scores = sorted((s for s, r in zip(scores, relevant, strict=True) if r), reverse=True)
    irrelevant_scores = sorted((s for s, r in zip(scores, relevant, strict=True) if not r), reverse=True)
    order: list[bool] = []
    for score in relevant_scores:
        while irrelevant_scores and irrelevant_scores[0] >= score - TIE:
            irrelevant_scores.pop(0)
            order.append(False)
        order.append(True)
    return order + [False] * len(irrelevant_scores)


def metric_by_definition(name: str, order: list[bool]) -> float:
    """Compute a metric from its definition, one place at a time."""
    kind, rest = name.split("@")
    cut, *choices = rest.split(":")
    k = len(order) if cut == "all" else int(cut)
    positives, first = sum(order), order[:k]
    if not positives:
        return float("nan")
    precision = [sum(order[: i + 1]) / (i + 1) for i in range(len(first))]
    if kind == "R":
        return float(any(first))
    if choices == ["shortened"]:
        shortened = min(k, positives)
        return sum(order[:shortened]) / shortened
    if kind == "Prec":
        return sum(first) / {"k": k, "gallery": min(k, len(order)), "positives": min(k, positives)}[choices[0]]
    if "interpolated" in choices:
        precision = [max(precision[i:]) for i in range(len(first))]
    divisors = {"positives": positives, "capped": min(k, positives), "found": max(1, sum(first))}
    divisor = divisors.get(choices[0] if choices else "", positives)
    return sum(p for p, hit in zip(precision, first, strict=True) if hit) / divisor


@given(
    n=st.integers(1, 6),
    m=st.integers(1, 19),
    labels=st.integers(1, 4),
    ties=st.booleans(),
    block=st.integers(1, 25),
    query_block=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_streamed_metrics_equal_the_full_matrix(n, m, labels, ties, block, query_block, seed):
    generator = torch.Generator().manual_seed(seed)

    def points(count: int) -> Tensor:
        if ties:
            return torch.randint(-1, 2, (count, 3), generator=generator).double()
        return torch.randn(count, 3, generator=generator).double()

    queries, gallery = points(n), points(m)
    query_labels = torch.randint(labels, (n,), generator=generator)
    gallery_labels = torch.randint(labels, (m,), generator=generator)
    metrics = [Metric.parse(name) for name in NAMES]
    found = measure(queries, gallery, query_labels, gallery_labels, metrics, block=block, query_block=query_block)
    scores = queries @ gallery.mT
    orders = [worst_order(scores[i].tolist(), (gallery_labels == query_labels[i]).tolist()) for i in range(n)]
    for name, metric in zip(NAMES, metrics, strict=True):
        expected = torch.tensor([metric_by_definition(name, order) for order in orders], dtype=torch.float64)
        assert torch.allclose(found.values[metric], expected, equal_nan=True), name
    assert found.unanswerable == sum(not any(order) for order in orders)


def test_shortened_precision_by_hand() -> None:
    metric = Metric.parse("Prec@4:shortened")
    ranks = torch.tensor([[1, 4, 0, 0, 0], [2, 3, 4, 5, 6], [5, 6, 7, 8, 9], [0, 0, 0, 0, 0], [3, 0, 0, 0, 0]])
    found = metric.values(ranks, torch.tensor([2, 5, 5, 0, 1]), 10)
    expected = torch.tensor([1 / 2, 3 / 4, 0.0, torch.nan, 0.0], dtype=torch.float64)
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert Metric.parse("Prec@4:positives").values(ranks, torch.tensor([2, 5, 5, 0, 1]), 10)[0] == 1.0


PEERS = {
    "mAP@all": lambda p, t: peer.retrieval_average_precision(p, t),
    "mAP@7:found": lambda p, t: peer.retrieval_average_precision(p, t, top_k=7),
    "Prec@7:k": lambda p, t: peer.retrieval_precision(p, t, top_k=7),
    "Prec@90:k": lambda p, t: peer.retrieval_precision(p, t, top_k=90),
    "Prec@90:gallery": lambda p, t: peer.retrieval_precision(p, t, top_k=90, adaptive_k=True),
    "R@7": lambda p, t: peer.retrieval_hit_rate(p, t, top_k=7),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_metrics_equal_torchmetrics(name, ties):
    """For tied scores torchmetrics is given the order of our rule: relevant items come last among equal scores."""
    queries, gallery = torch.randn(12, 6), torch.randn(60, 6)
    if ties:
        queries, gallery = queries.round(), gallery.round()
    query_labels, gallery_labels = torch.randint(5, (12,)), torch.randint(5, (60,))
    metric = Metric.parse(name)
    found = measure(queries, gallery, query_labels, gallery_labels, [metric], block=13, query_block=5).values[metric]
    for i in range(12):
        target = gallery_labels == query_labels[i]
        # torchmetrics drops items with scores of 0 or less, so all scores are raised.
        scores = (queries[i].double() @ gallery.double().mT) + 100 - 1e-3 * target
        expected = PEERS[name](scores if ties else scores + 1e-3 * target, target)
        assert float(found[i]) == pytest.approx(float(expected), abs=1e-6)


def test_with_one_relevant_item_the_ranks_equal_target_ranks():
    queries, gallery = torch.randn(40, 8), torch.randn(30, 8)
    queries[3] = torch.nan
    queries[4] = torch.inf
    gallery[7] = torch.nan
    targets = torch.randint(30, (40,))
    ranks = torch.cat([r for r, _ in relevant_ranks(queries, gallery, targets, torch.arange(30), query_block=7)])
    assert torch.equal(ranks.flatten() - 1, target_ranks(queries, gallery, targets))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_relevant_item_without_a_finite_score_ranks_behind_everything(bad):
    gallery = torch.tensor([[3.0], [bad], [2.0], [1.0], [2.5]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    ranks, counts = next(relevant_ranks(torch.ones(1, 1), gallery, torch.zeros(1, dtype=torch.int64), labels))
    assert (ranks.tolist(), counts.tolist()) == ([[1, 3, 5]], [3])


def test_a_collapsed_encoder_has_the_lowest_possible_scores():
    one, labels = torch.ones(10, 4) / 2, torch.arange(10) % 5
    metrics = [Metric.parse(name) for name in ("R@1", "R@8", "mAP@all")]
    found = measure(one, one, labels, labels, metrics).values
    assert found[metrics[0]].tolist() == found[metrics[1]].tolist() == [0.0] * 10
    assert found[metrics[2]].tolist() == pytest.approx([(1 / 9 + 2 / 10) / 2] * 10)


def test_the_scores_of_all_queries_and_items_are_never_held_at_once(monkeypatch):
    largest = 0
    search = torch.searchsorted

    def record_size(thresholds: Tensor, scores: Tensor, **kwargs: bool) -> Tensor:
        nonlocal largest
        largest = max(largest, scores.numel())
        return search(thresholds, scores, **kwargs)

    monkeypatch.setattr(module.torch, "searchsorted", record_size)
    labels = torch.arange(300) % 7
    points = torch.randn(300, 4)
    measure(points, points, labels, labels, [Metric.parse("mAP@all")], block=32, query_block=16)
    assert largest == 32 * 16


def test_metric_names_round_trip():
    for name in NAMES:
        assert str(Metric.parse(name)) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mAP@200", "must name its definition: mAP@200:positives, mAP@200:capped, mAP@200:found"),
        ("Prec@100", "must name its definition: Prec@100:k, Prec@100:gallery, Prec@100:positives"),
        ("Prec@100:capped", "must name its definition"),
        ("mAP@all:found", "must name its definition: mAP@all"),
        ("R@5:k", "must name its definition: R@5"),
        ("R@0", "cut-off of at least 1"),
        ("Prec@all:k", "cut-off of at least 1"),
        ("Prec@5:k:interpolated", "metric must be a mAP to be interpolated"),
        ("accuracy", "metric must be R@k"),
    ],
)
def test_a_name_without_its_definition_is_rejected(name, message):
    with pytest.raises(ValueError, match=message):
        Metric.parse(name)


def test_the_interval_is_over_queries_with_a_relevant_item():
    labels = torch.tensor([0, 1, 2, 9])
    metric = Metric.parse("R@1")
    found = measure(torch.eye(4), torch.eye(4), labels, torch.arange(4), [metric])
    interval = found.interval(metric)
    assert found.unanswerable == 1
    assert interval == bootstrap_mean(torch.ones(3))
    nothing = measure(torch.eye(4), torch.eye(4), torch.full((4,), 7), torch.arange(4), [metric])
    assert nothing.interval(metric) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_labels": torch.zeros(3)}, TypeError, "query_labels must be an int64 tensor, got torch.float32"),
        ({"gallery_labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"gallery_labels must have shape \(6,\)"),
        ({"queries": torch.randn(3, 5)}, ValueError, "with one D"),
        ({"block": 0}, ValueError, "block must be at least 1"),
        ({"query_block": 0}, ValueError, "query_block must be at least 1"),
        ({"metrics": []}, ValueError, "metrics must name at least one"),
    ],
)
def test_bad_input_is_rejected(change, error, message):
    arguments = {
        "queries": torch.randn(3, 4),
        "gallery": torch.randn(6, 4),
        "query_labels": torch.arange(3),
        "gallery_labels": torch.arange(6),
        "metrics": [Metric.parse("R@1")],
    }
    with pytest.raises(error, match=message):
        measure(**(arguments | change))
