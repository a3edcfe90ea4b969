"""sinkhorn: properties that hold for any input, and closed forms."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hystar_fast as hf
from hystar_fast.ops.sinkhorn import SinkhornStatus
from hystar_fast.ref.sinkhorn_feasibility import has_plan

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31 - 1)
epsilons = st.floats(0.05, 2.0)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(sizes, sizes, seeds, epsilons)
def test_marginals_and_sign(n: int, m: int, seed: int, epsilon: float) -> None:
    plan, info = hf.sinkhorn(random(seed, n, m), epsilon, 2000, return_info=True)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(-2), torch.full((m,), n / m, dtype=torch.float64), atol=1e-12, rtol=0)
    row_error = (plan.sum(-1) - 1).abs().max().item()
    assert math.isclose(info.max_marginal_error.item(), row_error, abs_tol=1e-7)
    assert bool(info.converged) == (info.max_marginal_error.item() <= 1e-3)
    assert row_error < 1e-6


@given(sizes, sizes, seeds, epsilons)
def test_columns_are_met_after_any_number_of_iterations(n: int, m: int, seed: int, epsilon: float) -> None:
    for n_iter in (1, 2, 3):
        plan = hf.sinkhorn(random(seed, n, m), epsilon, n_iter)
        torch.testing.assert_close(plan.sum(-2), torch.full((m,), n / m, dtype=torch.float64), atol=1e-12, rtol=0)


@given(sizes, sizes, seeds, epsilons)
def test_permutation_equivariance(n: int, m: int, seed: int, epsilon: float) -> None:
    cost = random(seed, n, m)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    plan = hf.sinkhorn(cost, epsilon, 20)
    torch.testing.assert_close(hf.sinkhorn(cost[rows][:, columns], epsilon, 20), plan[rows][:, columns])


@given(sizes, sizes, seeds, epsilons)
def test_shifts_and_units(n: int, m: int, seed: int, epsilon: float) -> None:
    cost = random(seed, n, m)
    plan = hf.sinkhorn(cost, epsilon, 20)
    # a row's shift never matters, a column's does not at convergence; cost and epsilon share a unit
    torch.testing.assert_close(hf.sinkhorn(cost + 5 * random(seed + 1, n, 1), epsilon, 20), plan)
    torch.testing.assert_close(hf.sinkhorn(7 * cost, 7 * epsilon, 20), plan)
    done = hf.sinkhorn(cost, epsilon, 3000)
    shifted = hf.sinkhorn(cost + random(seed + 2, 1, m), epsilon, 3000)
    torch.testing.assert_close(shifted, done, atol=1e-7, rtol=1e-6)


@given(seeds, st.floats(0.2, 2.0))
def test_two_by_two_in_closed_form(seed: int, epsilon: float) -> None:
    cost = random(seed, 2, 2)
    gain = (cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1]).item()
    stay = 1 / (1 + math.exp(-gain / (2 * epsilon)))
    expected = torch.tensor([[stay, 1 - stay], [1 - stay, stay]], dtype=torch.float64)
    torch.testing.assert_close(hf.sinkhorn(cost, epsilon, 3000), expected, atol=1e-9, rtol=0)


@given(sizes, sizes, seeds)
def test_limits_of_epsilon(n: int, m: int, seed: int) -> None:
    cost = random(seed, n, m)
    torch.testing.assert_close(hf.sinkhorn(cost, 1e9), torch.full((n, m), 1 / m, dtype=torch.float64))
    rank_one = cost[:, :1] + cost[:1]
    torch.testing.assert_close(hf.sinkhorn(rank_one, 0.1, 3), torch.full((n, m), 1 / m, dtype=torch.float64))
    assignment = torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(hf.sinkhorn(-assignment, 0.01), assignment)


@given(sizes, sizes, seeds, st.floats(0, 0.9))
def test_mask_is_infinite_cost_and_gives_exact_zeros(n: int, m: int, seed: int, share: float) -> None:
    cost, mask = random(seed, 3, n, m), random(seed + 1, 3, n, m) < share
    plan, info = hf.sinkhorn(cost, 0.2, mask=mask, return_info=True)
    assert not plan[mask].any()
    assert torch.equal(plan, hf.sinkhorn(cost.masked_fill(mask, math.inf), 0.2))
    assert torch.equal(plan, hf.sinkhorn(cost.masked_fill(mask, math.nan), 0.2, mask=mask))
    zero = info.status == SinkhornStatus.INFEASIBLE
    assert plan[~zero].sum((-1, -2)).allclose(torch.tensor(float(n), dtype=torch.float64))
    assert not plan[zero].any()


@given(st.integers(1, 6), st.integers(1, 6), seeds, st.floats(0.2, 0.9))
def test_infeasible_is_exactly_halls_condition(n: int, m: int, seed: int, share: float) -> None:
    allowed = random(seed, 4, n, m) > share
    # one iteration at a tiny epsilon is far from the marginals, so that the flow has to decide
    info = hf.sinkhorn(random(seed + 1, 4, n, m), 1e-3, 1, mask=~allowed, return_info=True)[1]
    for problem, status in zip(allowed, info.status.tolist(), strict=True):
        subsets = (list(s) for size in range(1, n + 1) for s in combinations(range(n), size))
        feasible = all(len(s) * m <= int(problem[s].any(0).sum()) * n for s in subsets)
        assert has_plan(problem) == feasible
        assert (status != SinkhornStatus.INFEASIBLE) == feasible


@given(seeds, st.sampled_from([(70, 70, 5.0), (24, 36, 6.5), (40, 30, 4.5), (9, 131, 55.0)]))
def test_flow_on_sparse_supports(seed: int, case: tuple[int, int, float]) -> None:
    # degrees at which about half of the supports carry a plan: long augmenting paths, and some that fail
    n, m, degree = case
    allowed = random(seed, 3, n, m) < degree / m
    info = hf.sinkhorn(random(seed + 1, 3, n, m), 1e-3, 1, mask=~allowed, return_info=True)[1]
    expected = [has_plan(problem) for problem in allowed]
    assert [status != SinkhornStatus.INFEASIBLE for status in info.status.tolist()] == expected


@given(st.integers(1, 7), st.integers(1, 4), seeds)
def test_same_class_masks_are_feasible_up_to_half(n: int, classes: int, seed: int) -> None:
    label = (random(seed, n) * classes).long()
    plan, info = hf.sinkhorn(random(seed, n, n), 0.3, mask=label[:, None] == label, return_info=True)
    feasible = 2 * int(label.bincount().max()) <= n
    assert (info.status.item() != SinkhornStatus.INFEASIBLE) == feasible
    assert plan.isfinite().all()


@given(st.integers(1, 6), st.integers(1, 6), seeds, st.integers(0, 3))
def test_a_problem_never_touches_another(n: int, m: int, seed: int, bad: int) -> None:
    cost = random(seed, 4, n, m).float()
    clean = hf.sinkhorn(cost, 0.1)
    for poison in (math.nan, -math.inf, math.inf):
        poisoned = cost.clone()
        poisoned[bad] = poison
        plan = hf.sinkhorn(poisoned, 0.1)
        others = [i for i in range(4) if i != bad]
        assert torch.equal(plan[others], clean[others])
        assert plan[bad].isnan().all() if poison != math.inf else not plan[bad].any()


@given(sizes, seeds)
def test_gradient_ignores_row_shifts_and_keeps_symmetry(n: int, seed: int) -> None:
    cost = random(seed, n, n)
    cost = (cost + cost.mT).requires_grad_()
    plan = hf.sinkhorn(cost, 0.3, 1000, grad="implicit")
    (dcost,) = torch.autograd.grad((plan * random(seed + 1, n, n)).sum(), cost)
    # adding a constant to a row or a column changes no plan
    assert dcost.sum(-1).abs().max() < 1e-9
    assert dcost.sum(-2).abs().max() < 1e-9
    torch.testing.assert_close(plan, plan.mT, atol=1e-8, rtol=0)
