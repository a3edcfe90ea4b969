"""Tests for every implementation of style_nce. A module that imports them defines the fixture `path`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hystar_fast.ops.style_nce import style_nce
from tests.support.style_nce_parity import assert_parity, make_pair, run, same_class

WEIGHTS = ["paper", "authors", "uniform"]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("gamma", [3.0, "auto"])
def test_parity_with_masks(gamma: float | str, weights: str, path: str) -> None:
    """One class: every pair is forbidden. Two classes: one has 12 of 23 samples, so no plan exists. More: feasible."""
    for classes in (1, 2, 3, 7):
        assert_parity(*make_pair(23, 19), mask=same_class(23, classes), weights=weights, gamma=gamma)


def test_gradient_of_one_input_alone(path: str) -> None:
    query, target = make_pair(21, 34)
    both = run(style_nce, query, target)[1:]
    weight = torch.linspace(0.5, 1.5, 21)
    for index, expected in enumerate(both):
        inputs = [query.clone(), target.clone()]
        inputs[index].requires_grad_()
        (style_nce(*inputs, reduction="none") * weight).sum().backward()
        torch.testing.assert_close(inputs[index].grad, expected)


@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0])
def test_gradient_of_the_mean_is_that_of_equal_rows(upstream: float, path: str) -> None:
    """The upstream gradient is a scalar for the mean, expanded for a sum of rows, and one for each row otherwise."""
    inputs = [tensor.requires_grad_() for tensor in make_pair(19, 40)]
    expected = torch.autograd.grad(style_nce(*inputs), inputs, torch.tensor(upstream))
    total = torch.autograd.grad(style_nce(*inputs, reduction="none").sum() / 19, inputs, torch.tensor(upstream))
    rows = torch.autograd.grad(style_nce(*inputs, reduction="none"), inputs, torch.full((19,), upstream / 19))
    for got in (total, rows):
        torch.testing.assert_close(got, expected)


def test_a_second_backward_gives_the_same_gradient(path: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in make_pair(9, 6)]
    loss = style_nce(*inputs, reduction="none")
    upstream = torch.rand(9)
    first = torch.autograd.grad(loss, inputs, upstream, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, inputs, upstream), first, strict=True))


def test_strides(path: str) -> None:
    query, target = make_pair(21, 18)
    mask = torch.rand(42, 42) < 0.2
    expected = run(style_nce, query, target, mask=mask[::2, ::2].contiguous())
    layouts = (query.T.contiguous().T, torch.stack([target, target], 1)[:, 0])
    for got, want in zip(run(style_nce, *layouts, mask=mask[::2, ::2]), expected, strict=True):
        torch.testing.assert_close(got, want)
    same = style_nce(query[:1].expand(21, 18), target)
    torch.testing.assert_close(same, style_nce(query[:1].repeat(21, 1), target))


def test_poisoned_buffers(path: str) -> None:
    """Deterministic mode fills uninitialised memory with NaN, so an element that is read but not written is seen."""
    inputs = make_pair(23, 37)
    expected = run(style_nce, *inputs)
    torch.use_deterministic_algorithms(True)
    try:
        actual = run(style_nce, *inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("size", [1e-41, 1e-30, 1e-13, 1e13, 1e30])
def test_size_of_the_embeddings_does_not_matter(size: float, path: str) -> None:
    """Cosines do not depend on the length of a row, even if its numbers are denormal and have few digits."""
    query, target = make_pair(33, 20)
    query, target = query * size, target / max(size, 1e-30)
    truth = run(style_nce, query.double(), target.double())
    actual = run(style_nce, query, target)
    torch.testing.assert_close(actual[0].double(), truth[0], rtol=1e-4, atol=1e-5)
    scales = ((1, size), (2, 1 / max(size, 1e-30)))
    for index, scale in scales[size < 1e-38 :]:  # the gradient of denormal rows is beyond float32
        torch.testing.assert_close(actual[index].double() * scale, truth[index] * scale, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{"temperature": 1e-3}, {"lam": 0.01}, {"epsilon": 1e-3}], ids=str)
def test_extreme_options_stay_finite(options: dict[str, Any], path: str) -> None:
    query, target = make_pair(37, 3)
    target[0] = -query[0]
    for weights in WEIGHTS:
        assert all(result.isfinite().all() for result in run(style_nce, query, target, weights=weights, **options))


@pytest.mark.parametrize("gamma", [80.0, "auto"])
def test_without_negatives_loss_and_gradients_are_zero(gamma: float | str, path: str) -> None:
    nothing = torch.ones(18, 18, dtype=torch.bool)
    for (query, target), mask in ((make_pair(1, 4), None), (make_pair(18, 4), nothing)):
        for weights in WEIGHTS:
            for result in run(style_nce, query, target, weights=weights, gamma=gamma, mask=mask):
                assert torch.equal(result, torch.zeros_like(result))


def test_zero_vector_has_cosine_zero_and_no_gradient(path: str) -> None:
    query, target = make_pair(25, 9)
    query[2], target[20] = 0, 0
    assert_parity(query, target)
    _, dquery, dtarget = run(style_nce, query, target)
    assert not dquery[2].any() and not dtarget[20].any() and dquery[20].any()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["query", "target"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_sample_that_is_not_finite_affects_only_itself(weights: str, side: str, poison: float, path: str) -> None:
    query, target = make_pair(21, 35)
    mask = torch.zeros(21, 21, dtype=torch.bool)
    mask[3], mask[:, 3] = True, True
    expected = run(style_nce, query, target, weights=weights, mask=mask, gamma="auto")
    (query if side == "query" else target)[3, 33] = poison
    actual = run(style_nce, query, target, weights=weights, gamma="auto")
    assert actual[0][3].isnan() and style_nce(query, target, weights=weights).isnan()
    others = torch.arange(21) != 3
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got[others], want[others])
    assert not actual[1][3].any() and not actual[2][3].any()
