"""Properties of perturbed_topk for any scores: closed forms, symmetries, limits, and the error of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hystar_fast import perturbed_topk
from hystar_fast.ops.perturbed_topk.ablations import topk_with_diagonal_jacobian, topk_without_control_variate
from hystar_fast.ref.perturbed_topk import soft_topk
from tests.support.perturbed_topk_cases import generator, make_mask, run

sizes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**16))
sigmas = st.sampled_from([0.01, 0.05, 0.3, 2.0])


def draw(size: tuple[int, int, int, int]) -> tuple[Tensor, int, int]:
    """Return scores that are whole multiples of 2^-20, k and a seed."""
    b, n, k, seed = size
    return torch.randint(0, 1 << 20, (b, n), generator=generator(seed)).double() / (1 << 20), k, seed


def estimates(function: Callable[..., Tensor], scores: Tensor, dsoft: Tensor, count: int, samples: int) -> Tensor:
    """Return as many independent estimates of the gradient of one item's scores [N], [count, N]."""
    leaf = scores.expand(count, -1).clone().requires_grad_()
    soft = function(leaf, dsoft.shape[0], sigma=0.05, samples=samples, generator=generator())
    (gradient,) = torch.autograd.grad(soft, leaf, dsoft.to(soft.dtype).expand(soft.shape))
    return gradient


def test_two_positions_have_a_closed_form() -> None:
    """N = 2, K = 1: Y = Phi(gap / (sigma sqrt 2)), within four standard errors; and so has the gradient."""
    sigma = 0.05
    for gap in (0.0, 0.02, -0.07):
        u = gap / (sigma * math.sqrt(2))
        share = (1 + math.erf(u / math.sqrt(2))) / 2
        slope = math.exp(-u * u / 2) / math.sqrt(2 * math.pi) / (sigma * math.sqrt(2))
        leaf = torch.tensor([[gap, 0.0]], dtype=torch.float64).expand(200, 2).clone().requires_grad_()
        soft = perturbed_topk(leaf, 1, sigma=sigma, samples=1000, generator=generator())
        (gradient,) = torch.autograd.grad(soft[:, 0, 0].sum(), leaf)
        for found, exact in ((soft[:, 0, 0], share), (gradient[:, 0], slope), (gradient[:, 1], -slope)):
            error = float(found.detach().std()) / math.sqrt(200)
            assert abs(float(found.detach().mean()) - exact) <= 4 * error
            assert error < 0.02 * max(abs(exact), 1)


def test_the_inclusion_of_equal_scores_is_uniform() -> None:
    soft = perturbed_topk(torch.zeros(1, 10), 3, sigma=0.1, samples=40_000, generator=generator())
    assert ((soft.sum(1) - 0.3).abs() < 4 * math.sqrt(0.3 * 0.7 / 40_000)).all()
    first = 0.3  # position 0 is in row 0 or in no row
    assert abs(float(soft[0, 0, 0]) - first) < 0.01 and not soft[0, 1:, 0].any()


@given(sizes, sigmas, st.booleans())
def test_rows_sum_to_one_and_columns_to_at_most_one(
    size: tuple[int, int, int, int], sigma: float, masked: bool
) -> None:
    scores, k, seed = draw(size)
    mask = make_mask(*scores.shape) if masked else None
    soft = perturbed_topk(scores, k, sigma=sigma, samples=16, generator=generator(seed), mask=mask)
    open_positions = torch.full((len(scores),), scores.shape[1]) if mask is None else (~mask).sum(1)
    rows = (torch.arange(k) < open_positions[:, None]).double()
    assert torch.equal(soft.sum(2), rows)  # sixteenths are exact
    assert (soft >= 0).all() and (soft.sum(1) <= 1).all()


@given(sizes, sigmas, st.integers(-64, 64))
def test_adding_a_number_to_all_scores_changes_nothing(
    size: tuple[int, int, int, int], sigma: float, shift: int
) -> None:
    """Exactly for noise on the same grid as the scores; and so the gradient sums to zero."""
    scores, k, seed = draw(size)
    noise = torch.randint(-1 << 12, 1 << 12, (len(scores), 9, scores.shape[1]), generator=generator(seed)) / 1024
    power = 2.0 ** round(math.log2(sigma))
    assert torch.equal(soft_topk(scores + shift, noise, k, power), soft_topk(scores, noise, k, power))
    gradient = run(perturbed_topk, scores, k, seed=seed, sigma=sigma, samples=9)[1]
    assert (gradient.sum(1).abs() <= 1e-13 * gradient.abs().sum(1)).all()


@given(sizes, sigmas)
def test_scores_and_sigma_in_another_unit(size: tuple[int, int, int, int], sigma: float) -> None:
    scores, k, seed = draw(size)
    once = run(perturbed_topk, scores, k, seed=seed, sigma=sigma, samples=9)
    scaled = run(perturbed_topk, scores * 8, k, seed=seed, sigma=sigma * 8, samples=9)
    assert torch.equal(scaled[0], once[0])
    torch.testing.assert_close(scaled[1] * 8, once[1], rtol=1e-12, atol=1e-14)


@given(sizes)
def test_without_noise_it_is_the_hard_topk_in_order_of_position(size: tuple[int, int, int, int]) -> None:
    scores, k, seed = draw(size)
    b, n = scores.shape
    scores = torch.rand(b, n, generator=generator(seed)).argsort(1).double()  # a gap of 1 between any two
    soft, gradient = run(perturbed_topk, scores, k, seed=seed, sigma=1e-3, samples=5)
    for item in range(b):
        for row, position in enumerate(sorted(scores[item].topk(min(k, n)).indices.tolist())):
            assert soft[item, row, position] == 1
    assert soft.sum() == b * min(k, n) and not gradient.any()


@given(sizes, sigmas)
def test_permuting_the_positions_permutes_their_inclusion(size: tuple[int, int, int, int], sigma: float) -> None:
    scores, k, seed = draw(size)
    noise = torch.randn(len(scores), 8, scores.shape[1], generator=generator(seed))
    order = torch.randperm(scores.shape[1], generator=generator(seed))
    included = soft_topk(scores, noise, k, sigma).sum(1)
    assert torch.equal(soft_topk(scores[:, order], noise[..., order], k, sigma).sum(1), included[:, order])


@given(sizes, sigmas)
def test_a_larger_score_is_chosen_at_least_as_often(size: tuple[int, int, int, int], sigma: float) -> None:
    scores, k, seed = draw(size)
    raised = scores.clone()
    raised[:, 0] += 0.25
    before, after = (
        perturbed_topk(s, k, sigma=sigma, samples=9, generator=generator(seed)).sum(1)[:, 0] for s in (scores, raised)
    )
    assert (after >= before).all()


@given(sizes, sigmas)
def test_one_more_position_contains_the_others(size: tuple[int, int, int, int], sigma: float) -> None:
    scores, k, seed = draw(size)
    fewer, more = (
        perturbed_topk(scores, count, sigma=sigma, samples=8, generator=generator(seed)).sum(1) for count in (k, k + 1)
    )
    assert (more >= fewer).all()


@pytest.mark.parametrize(("common", "bound"), [(0.0, 0.98), (1.0, 0.25), (3.0, 0.1)])
def test_the_control_variate_lowers_the_error_of_the_gradient(common: float, bound: float) -> None:
    """N = 49, K = 4, S = 1000, by the common part of the upstream gradient. No bias."""
    scores, dsoft = torch.rand(49, generator=generator(1)), common + torch.randn(4, 49, generator=generator(2))
    exact = estimates(perturbed_topk, scores, dsoft, 1500, 1000).double().mean(0)
    with_it, without = (
        estimates(function, scores, dsoft, 150, 1000).double()
        for function in (perturbed_topk, topk_without_control_variate)
    )
    error, error_without = (float((found - exact).square().mean().sqrt()) for found in (with_it, without))
    assert error < bound * error_without, (error, error_without)
    bias = (without.mean(0) - exact).abs() / (without.std(0) / math.sqrt(150))
    assert float(bias.square().mean()) < 2  # both estimate the same derivative


def test_the_control_variate_and_the_full_jacobian_have_the_same_values_as_their_ablations() -> None:
    scores = torch.rand(3, 12, generator=generator(1))
    for mask in (None, make_mask(3, 12)):
        options = {"sigma": 0.1, "samples": 30, "mask": mask}
        expected = perturbed_topk(scores, 4, generator=generator(), **options)
        for function in (topk_without_control_variate, topk_with_diagonal_jacobian):
            assert torch.equal(function(scores, 4, generator=generator(), **options), expected)


def test_the_diagonal_jacobian_is_its_definition() -> None:
    """dscores_j = sum over k of dsoft_kj E[Y_kj Z_j] / sigma."""
    scores = torch.rand(2, 9, generator=generator(1)).double()
    options = {"sigma": 0.2, "samples": 50}
    soft, found = run(topk_with_diagonal_jacobian, scores, 3, **options)
    noise = torch.randn(2, 50, 9, generator=generator()).double()
    hard = torch.stack([soft_topk(scores, noise[:, [s, s]].float(), 3, 0.2) for s in range(50)], 1)
    dsoft = torch.randn(soft.shape, generator=generator(7), dtype=torch.float64)
    expected = torch.einsum("bskn,bkn,bsn->bn", hard, dsoft, noise) / (50 * 0.2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_diagonal_jacobian_lacks_the_other_half() -> None:
    """N = 2, K = 1, gap 0.02, sigma 0.05: the gradient of Y_1 is (5.42, -5.42), and the diagonal one (5.42, 0)."""
    scores, dsoft = torch.tensor([0.02, 0.0], dtype=torch.float64), torch.tensor([[1.0, 0.0]])
    full, diagonal = (
        estimates(function, scores, dsoft, 200, 2000).mean(0)
        for function in (perturbed_topk, topk_with_diagonal_jacobian)
    )
    slope = 5.4207
    torch.testing.assert_close(full, torch.tensor([slope, -slope], dtype=torch.float64), rtol=0.02, atol=0)
    torch.testing.assert_close(diagonal, torch.tensor([slope, 0.0], dtype=torch.float64), rtol=0.03, atol=0)
