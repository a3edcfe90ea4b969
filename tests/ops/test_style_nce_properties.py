"""Properties of style_nce for any embeddings: closed forms, symmetries, InfoNCE, the order of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus

from hystar_fast import style_nce

PAPER_RATIO = 80 / 47

batches = st.tuples(st.integers(2, 12), st.integers(2, 9), st.integers(0, 2**16))
temperatures = st.floats(0.03, 2.0)
weight_modes = st.sampled_from(["paper", "authors", "uniform"])
plan_grads = st.sampled_from(["none", "unroll", "implicit"])


def draw(batch: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    n, d, seed = batch
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return query, query + torch.randn(n, d, dtype=torch.float64, generator=generator)


def cosines(query: Tensor, target: Tensor) -> Tensor:
    return normalize(query) @ normalize(target).T


def three_weights(query: Tensor, target: Tensor, temperature: float = 0.5, **options: object) -> Tensor:
    """The weights of row 0 of three, [w_01, w_02], read off the loss: it is linear in them at two temperatures."""
    rows, values = [], []
    for value in (temperature, 2 * temperature):
        loss = style_nce(query, target, temperature=value, gamma=1.0, reduction="none", **options)[0]
        sim = cosines(query, target)[0]
        rows.append(((sim[1:] - sim[0]) / value).exp())
        values.append(loss.expm1())
    return torch.linalg.solve(torch.stack(rows), torch.stack(values))


@given(batches, temperatures)
def test_uniform_weights_are_infonce(batch: tuple[int, int, int], temperature: float) -> None:
    """Eq. 4 with w = 1/(N-1) and gamma = N-1 is Eq. 3, in value and gradient."""
    inputs = [tensor.requires_grad_() for tensor in draw(batch)]
    n = batch[0]
    loss = style_nce(*inputs, temperature=temperature, weights="uniform", gamma=float(n - 1))
    infonce = cross_entropy(cosines(*inputs) / temperature, torch.arange(n))
    torch.testing.assert_close(loss, infonce, rtol=1e-10, atol=1e-12)
    expected = torch.autograd.grad(infonce, inputs)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), expected, rtol=1e-9, atol=1e-11)


@given(batches, st.integers(0, 2**16))
def test_auto_gamma_weighs_every_negative_alike(batch: tuple[int, int, int], seed: int) -> None:
    """With uniform weights, gamma="auto" gives each negative that is left 80/47, however many the mask leaves."""
    query, target = draw(batch)
    n = batch[0]
    mask = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    loss = style_nce(query, target, weights="uniform", gamma="auto", mask=mask, reduction="none")
    logits = cosines(query, target) / 0.07
    left = ~(mask | torch.eye(n, dtype=torch.bool))
    negatives = PAPER_RATIO * (left * (logits - logits.diagonal()[:, None]).exp()).sum(1)
    torch.testing.assert_close(loss, negatives.log1p(), rtol=1e-9, atol=1e-12)


def test_auto_gamma_is_80_at_the_batch_of_the_paper() -> None:
    query, target = draw((48, 16, 0))
    torch.testing.assert_close(style_nce(query, target, gamma="auto"), style_nce(query, target, gamma=80.0))


@given(batches, weight_modes, plan_grads, st.integers(0, 2**16))
def test_order_of_the_batch_does_not_matter(
    batch: tuple[int, int, int], weights: str, plan_grad: str, seed: int
) -> None:
    inputs = [tensor.requires_grad_() for tensor in draw(batch)]
    order = torch.randperm(batch[0], generator=torch.Generator().manual_seed(seed))
    options = {"weights": weights, "plan_grad": plan_grad, "epsilon": 0.5}
    loss = style_nce(*inputs, reduction="none", **options)
    shuffled = style_nce(*(tensor[order] for tensor in inputs), reduction="none", **options)
    torch.testing.assert_close(shuffled, loss[order], rtol=1e-8, atol=1e-10)
    expected = torch.autograd.grad(loss.sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(shuffled.sum(), inputs), expected, rtol=1e-6, atol=1e-8)


@given(batches, weight_modes, plan_grads, st.integers(0, 2**16))
def test_only_directions_matter(batch: tuple[int, int, int], weights: str, plan_grad: str, seed: int) -> None:
    """Rescaling rows changes nothing, so the gradient of a row is orthogonal to it."""
    inputs = [tensor.requires_grad_() for tensor in draw(batch)]
    loss = style_nce(*inputs, weights=weights, plan_grad=plan_grad)
    sizes = 10 ** torch.empty(2, batch[0], 1, dtype=torch.float64).uniform_(
        -3, 3, generator=torch.Generator().manual_seed(seed)
    )
    rescaled = style_nce(inputs[0] * sizes[0], inputs[1] * sizes[1], weights=weights)
    torch.testing.assert_close(rescaled, loss, rtol=1e-9, atol=1e-11)
    for tensor, gradient in zip(inputs, torch.autograd.grad(loss, inputs), strict=True):
        radial = (tensor * gradient).sum(1).abs()
        assert (radial <= 1e-10 * tensor.norm(dim=1) * gradient.norm(dim=1) + 1e-13).all()


@given(batches, weight_modes, st.floats(0.1, 100.0), st.floats(1.1, 10.0))
def test_grows_with_gamma(batch: tuple[int, int, int], weights: str, gamma: float, factor: float) -> None:
    query, target = draw(batch)
    less = style_nce(query, target, weights=weights, gamma=gamma, temperature=0.5, reduction="none")
    more = style_nce(query, target, weights=weights, gamma=gamma * factor, temperature=0.5, reduction="none")
    assert (less > 0).all() and (more > less).all()
    assert (more <= less + math.log(factor) + 1e-9).all()


@given(batches, weight_modes)
def test_a_closer_positive_lowers_the_loss(batch: tuple[int, int, int], weights: str) -> None:
    """Queries e_i, targets at an angle out of their span: only the cosine of the positive changes with it."""
    n = batch[0]
    basis = torch.eye(2 * n, dtype=torch.float64)
    angles = torch.linspace(1.5, 0.0, 9, dtype=torch.float64)
    losses = torch.stack(
        [
            style_nce(basis[:n], a.cos() * basis[:n] + a.sin() * basis[n:], weights=weights, temperature=0.5)
            for a in angles
        ]
    )
    assert (losses.diff() < 0).all()


@given(batches, st.floats(0.05, 1.0), st.floats(0.1, 200.0))
def test_two_samples_have_one_plan(batch: tuple[int, int, int], temperature: float, gamma: float) -> None:
    """N = 2: each sample is the other's only negative, with weight 1, whatever the cost."""
    query, target = draw((2, *batch[1:]))
    sim = cosines(query, target)
    expected = softplus(math.log(gamma) + (sim[[0, 1], [1, 0]] - sim.diagonal()) / temperature, threshold=1e3)
    for weights in ("paper", "authors", "uniform"):
        loss = style_nce(query, target, temperature=temperature, gamma=gamma, weights=weights, reduction="none")
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


@given(st.integers(2, 40), st.floats(0.05, 1.0), st.floats(0.1, 200.0), weight_modes)
def test_equal_cosines_have_equal_weights(n: int, temperature: float, gamma: float, weights: str) -> None:
    """Identical samples: loss log(1 + gamma). Orthogonal ones: log(1 + gamma e^(-1/temperature))."""
    options = {"temperature": temperature, "gamma": gamma, "weights": weights}
    same = style_nce(torch.ones(n, 3, dtype=torch.float64), torch.ones(n, 3, dtype=torch.float64), **options)
    assert same.item() == pytest.approx(math.log1p(gamma), rel=1e-9)
    basis = torch.eye(n, dtype=torch.float64)
    orthogonal = style_nce(basis, basis, **options)
    assert orthogonal.item() == pytest.approx(math.log1p(gamma * math.exp(-1 / temperature)), rel=1e-9)


@given(st.integers(0, 2**16), st.floats(2.0, 5.0), st.floats(1.0, 3.0))
def test_three_samples_mix_two_cycles(seed: int, epsilon: float, lam: float) -> None:
    """N = 3: the plan is a (0 1 2) + (1 - a) (0 2 1), a = sigmoid((cost of the second - of the first) / 3 epsilon)."""
    query, target = draw((3, 5, seed))
    sim = cosines(query, target)
    for weights, cost, entropy in (("paper", ((1 - sim) / lam).exp(), epsilon), ("authors", sim - 1, lam)):
        first, second = cost[0, 1] + cost[1, 2] + cost[2, 0], cost[0, 2] + cost[2, 1] + cost[1, 0]
        share = ((second - first) / (3 * entropy)).sigmoid()
        got = three_weights(query, target, weights=weights, epsilon=epsilon, lam=lam, n_iter=500)
        torch.testing.assert_close(got, torch.stack([share, 1 - share]), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**16))
def test_the_paper_favours_hard_negatives_and_the_authors_code_easy_ones(seed: int) -> None:
    """One cycle of negatives is near, the other far: Eq. 5 gives the near one more weight, the code gives it less."""
    angle = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.8 + 0.1
    turn = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    query = torch.stack([turn.cos(), turn.sin()], 1)
    target = torch.stack([(turn + angle).cos(), (turn + angle).sin()], 1)
    near = cosines(query, target)[0, 1:].argmax()
    hard = three_weights(query, target, weights="paper")
    easy = three_weights(query, target, weights="authors", lam=0.5)
    assert hard[near] > 0.5 > hard[1 - near]
    assert easy[near] < 0.5 < easy[1 - near]
    even = three_weights(query, target, weights="uniform")
    torch.testing.assert_close(even, torch.full_like(even, 0.5))


@given(batches, st.integers(2, 4), st.floats(0.1, 2.0))
def test_without_a_plan_rows_are_weighted_alone(batch: tuple[int, int, int], rest: int, epsilon: float) -> None:
    """A class of more than N/2 leaves no plan: a row's weights are the softmax of -C/epsilon over its negatives."""
    query, target = draw((3 + rest, *batch[1:]))
    labels = torch.tensor([0, 0, 0, 0, 0, *range(1, rest)])[: 3 + rest]
    mask = labels[:, None] == labels
    sim = cosines(query, target)
    bias = (-(1 - sim).exp() / epsilon).masked_fill(mask, -math.inf).log_softmax(1)
    logits = sim / 0.07 + (80 * bias.exp()).log()
    expected = softplus(logits.logsumexp(1) - sim.diagonal() / 0.07, threshold=1e3)
    expected[mask.all(1)] = 0
    actual = style_nce(query, target, mask=mask, epsilon=epsilon, reduction="none")
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@given(batches, weight_modes, plan_grads)
def test_masked_pairs_do_not_meet(batch: tuple[int, int, int], weights: str, plan_grad: str) -> None:
    """A target that is masked as everyone's negative pulls and pushes only its own query."""
    n = batch[0]
    query, target = draw(batch)
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[:, 0] = True
    loss = style_nce(query, target.requires_grad_(), mask=mask, weights=weights, plan_grad=plan_grad, reduction="none")
    gradient = torch.autograd.grad(loss[1:].sum(), target, retain_graph=True)[0]
    assert not gradient[0].any()


def test_mean_is_the_mean_of_the_rows() -> None:
    query, target = draw((9, 4, 1))
    torch.testing.assert_close(style_nce(query, target), style_nce(query, target, reduction="none").mean())
