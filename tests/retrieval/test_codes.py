"""Iterative quantisation, signs, Hamming distances and both rules for ties, against their definitions."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from hystar_fast.retrieval.codes import fit_itq, hamming_distances, measure_codes, sign_codes
from hystar_fast.retrieval.definitions import Metric

METRICS = [Metric.parse(name) for name in ("mAP@all", "mAP@2:capped:interpolated", "Prec@2:gallery", "R@1")]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def codes(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed) > 0


def test_the_rotation_is_orthogonal_and_the_loss_never_rises():
    vectors = random(300, 24) @ random(24, 24, seed=1)
    found = fit_itq(vectors, 8, seed=3)
    assert len(found.losses) == 51
    assert all(after <= before + 1e-9 for before, after in zip(found.losses, found.losses[1:], strict=False))
    assert found.losses[-1] < found.losses[0]
    assert torch.allclose(found.projection.mT @ found.projection, torch.eye(8, dtype=torch.float64), atol=1e-10)


def test_the_projection_spans_the_principal_directions():
    scales = torch.tensor([5.0, 4.0, 3.0, 0.3, 0.2, 0.1], dtype=torch.float64)
    vectors = 7 + random(500, 6) * scales
    found = fit_itq(vectors, 3)
    assert torch.allclose(found.mean, vectors.mean(0))
    spanned = (found.projection @ found.projection.mT).diagonal()
    assert (spanned[:3] > 0.99).all() and (spanned[3:] < 0.01).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_rotation_of_signs_is_recovered(seed):
    planted = codes(600, 5, seed=seed).double() * 2 - 1
    vectors = planted @ torch.linalg.qr(random(5, 5, seed=seed + 10)).Q.mT
    found = min((fit_itq(vectors, 5, seed=start) for start in range(5)), key=lambda fitted: fitted.losses[-1])
    agreement = (2 * found.encode(vectors).double() - 1).mT @ planted
    best = agreement.abs().max(dim=1)
    assert (best.values > 0.99 * 600).all()
    assert sorted(best.indices.tolist()) == list(range(5))


def test_a_seed_gives_one_quantiser_and_a_mean_of_ones_own_centres():
    vectors = random(100, 8)
    one, two, other = fit_itq(vectors, 4, seed=1), fit_itq(vectors, 4, seed=1), fit_itq(vectors, 4, seed=2)
    assert torch.equal(one.projection, two.projection) and not torch.allclose(one.projection, other.projection)
    assert torch.equal(one.encode(vectors + 3, mean=one.mean + 3), one.encode(vectors))
    assert one.encode(vectors).dtype == torch.bool


def test_distances_count_different_bits():
    a, b = codes(5, 64), codes(7, 64, seed=1)
    assert torch.equal(hamming_distances(a, b), (a[:, None] != b[None]).sum(-1))
    assert torch.equal(sign_codes(torch.tensor([[0.0, -1.0, 2.0]])), torch.tensor([[False, False, True]]))


def expected(distances: Tensor, relevant: Tensor, metric: Metric) -> float:
    """Return the mean of a metric over all orders of the items, each sorted by its distance."""
    values = []
    for order in permutations(range(len(distances))):
        ranked = sorted(order, key=lambda i: distances[i].item())
        ranks = [place for place, i in enumerate(ranked, start=1) if relevant[i]]
        values.append(metric.values(torch.tensor([ranks]), torch.tensor([len(ranks)]), len(distances)).item())
    return sum(values) / len(values)


@pytest.mark.parametrize(("items", "bits"), [(1, 1), (2, 1), (4, 1), (5, 2), (6, 2)])
def test_the_mean_over_orders_is_the_exact_expectation_for_a_few_items(items, bits):
    queries, gallery = codes(3, bits), codes(items, bits, seed=1)
    labels = torch.arange(items) % 2
    found = measure_codes(queries, gallery, torch.tensor([0, 1, 0]), labels, METRICS, ties="mean")
    distances = hamming_distances(queries, gallery)
    for row, label in enumerate([0, 1, 0]):
        for metric in METRICS:
            value = found.values[metric][row].item()
            if bool((labels == label).any()):
                assert value == pytest.approx(expected(distances[row], labels == label, metric), abs=1e-12)
            else:
                assert value != value


def test_ten_orders_are_near_the_expectation_and_the_same_each_time():
    queries, gallery = codes(20, 3), codes(400, 3, seed=1)
    labels = torch.arange(400) % 4
    metric = Metric.parse("Prec@50:gallery")
    once = measure_codes(queries, gallery, torch.arange(20) % 4, labels, [metric], ties="mean").values[metric]
    again = measure_codes(queries, gallery, torch.arange(20) % 4, labels, [metric], ties="mean").values[metric]
    many = measure_codes(queries, gallery, torch.arange(20) % 4, labels, [metric], ties="mean", orders=200)
    assert torch.equal(once, again)
    assert (once - many.values[metric]).abs().max() < 0.08
    assert abs((once - many.values[metric]).mean()) < 0.02


def test_ties_against_the_query_put_every_irrelevant_item_first():
    same = torch.ones(1, 4, dtype=torch.bool)
    labels = torch.tensor([0, 0, 1, 1, 1])
    metric = Metric.parse("mAP@all")
    against = measure_codes(same, same.expand(5, 4), torch.tensor([0]), labels, [metric])
    mean = measure_codes(same, same.expand(5, 4), torch.tensor([0]), labels, [metric], ties="mean")
    assert against.values[metric].item() == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert mean.values[metric].item() == pytest.approx(against.chance)
    assert mean.first.tolist() == against.first.tolist() == [4]


def test_codes_do_not_depend_on_the_order_of_the_gallery():
    queries, gallery, labels = codes(5, 6), codes(40, 6, seed=1), torch.arange(40) // 10
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one = measure_codes(queries, gallery, torch.arange(5) % 4, labels, METRICS)
    two = measure_codes(queries, gallery[order], torch.arange(5) % 4, labels[order], METRICS)
    assert all(torch.equal(one.values[metric], two.values[metric]) for metric in METRICS)


def tied(rule: str) -> object:
    return measure_codes(codes(1, 4), codes(1, 4), torch.tensor([0]), torch.tensor([0]), METRICS, ties=rule)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fit_itq(random(10, 4), 5),
            ValueError,
            "bits must be between 1 and 4, the width of the embed.*, got 5",
        ),
        (lambda: fit_itq(random(4, 8), 4), ValueError, "vectors must be more than 4 to fit codes of as .*, got 4"),
        (lambda: hamming_distances(random(1, 4), codes(1, 4)), TypeError, "queries must be codes, a bool tensor, got"),
        (lambda: hamming_distances(codes(1, 4), codes(1, 5)), ValueError, r"got \(1, 4\) and \(1, 5\)"),
        (lambda: tied("x"), ValueError, r"ties must be one of \('against', 'mean'\), got 'x'"),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
