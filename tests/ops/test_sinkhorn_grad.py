"""sinkhorn: both gradients against autograd through the reference in float64, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hystar_fast as hf
from hystar_fast import ref
from hystar_fast.ops.sinkhorn import cpu as sinkhorn_cpu
from tests.support.shapes import SINKHORN
from tests.support.sinkhorn_cases import INF, NAN, isas, random_cost
from tests.support.tolerance import assert_as_accurate, relative_error


def gradient(sinkhorn: object, cost: Tensor, dplan: Tensor, *arguments: object, **options: object) -> Tensor:
    leaf = cost.detach().clone().requires_grad_()
    plan = sinkhorn(leaf, *arguments, **options)  # type: ignore[operator]
    (dcost,) = torch.autograd.grad(plan, leaf, dplan.to(plan.dtype))
    return dcost


def assert_same_gradient(cost: Tensor, *arguments: object, **options: object) -> None:
    dplan = torch.randn(cost.shape, dtype=torch.float64)
    actual = gradient(hf.sinkhorn, cost, dplan, *arguments, **options)
    same = gradient(ref.sinkhorn, cost, dplan, *arguments, **options)
    truth = gradient(ref.sinkhorn, cost.double(), dplan, *arguments, **options)
    if truth.norm() < 1e-9:  # one row or column: the plan is constant
        assert actual.norm() < 1e-5
    else:
        assert_as_accurate(actual, same, truth)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SINKHORN)
def test_unrolled(shape: tuple[int, int, int], dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinkhorn_cpu, "ISA", isa)
    for epsilon, n_iter in ((1.0, 1), (0.2, 2), (0.1, 50)):
        assert_same_gradient(random_cost(*shape, dtype=dtype), epsilon, n_iter)


@pytest.mark.parametrize("isa", isas())
def test_unrolled_where_the_potentials_move_far(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first step from v = 0 and the later ones need matrices of their own
    monkeypatch.setattr(sinkhorn_cpu, "ISA", isa)
    for epsilon in (1e-2, 2e-3):
        for shape in ((2, 13, 13), (1, 16, 9), (1, 40, 48)):
            cost = random_cost(*shape)
            cost[..., 0] += 1  # a column that every row avoids at first
            dplan = torch.randn(cost.shape, dtype=torch.float64)
            actual, truth = (gradient(f, cost, dplan, epsilon, 30) for f in (hf.sinkhorn, ref.sinkhorn))
            assert relative_error(actual, truth) < 1e-10
            assert_same_gradient(cost.float(), epsilon, 30)


def test_unrolled_masked() -> None:
    cost, mask = random_cost(2, 3, 14, 14, dtype=torch.float32), torch.rand(3, 14, 14) < 0.3
    mask |= torch.eye(14, dtype=torch.bool)
    assert_same_gradient(cost, 0.1, 30, mask=mask)
    assert_same_gradient(cost, 0.1, 30, mask=mask[0])
    assert_same_gradient(cost.double(), 0.1, 30, mask=mask)
    assert not gradient(hf.sinkhorn, cost, torch.randn(cost.shape), 0.1, mask=mask)[mask.expand_as(cost)].any()


def test_unrolled_with_tol_differentiates_the_iterations_done() -> None:
    cost = torch.stack([random_cost(9, 9), 5 * random_cost(9, 9)])
    assert_same_gradient(cost, 0.3, 100, tol=1e-3)
    assert_same_gradient(cost.float(), 0.3, 100, tol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SINKHORN)
def test_implicit(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert_same_gradient(random_cost(*shape, dtype=dtype), 0.2, 300, grad="implicit")
    mask = torch.rand(shape) < 0.2
    assert_same_gradient(random_cost(*shape, dtype=dtype), 0.2, 300, mask=mask, grad="implicit")


def test_implicit_is_the_limit_of_unrolled() -> None:
    cost, dplan = random_cost(2, 12, 9), torch.randn(2, 12, 9, dtype=torch.float64)
    unrolled, implicit = (gradient(hf.sinkhorn, cost, dplan, 0.1, 1500, grad=grad) for grad in ("unroll", "implicit"))
    assert relative_error(implicit, unrolled) < 1e-9


def test_implicit_on_a_support_in_parts() -> None:
    # constants move between u and v in each block by itself: the system has a null space of two dimensions
    mask = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)) == 0
    cost, dplan = random_cost(9, 9), torch.randn(9, 9, dtype=torch.float64)
    whole = gradient(hf.sinkhorn, cost, dplan, 0.1, 500, mask=mask, grad="implicit")
    for part in (slice(0, 4), slice(4, 9)):
        alone = gradient(hf.sinkhorn, cost[part, part], dplan[part, part], 0.1, 500, grad="implicit")
        assert relative_error(whole[part, part], alone) < 1e-10
    permutation = gradient(hf.sinkhorn, 100 * (1 - torch.eye(6)), torch.randn(6, 6), 0.1, grad="implicit")
    assert permutation.isfinite().all()


@pytest.mark.parametrize("grad", ["unroll", "implicit"])
def test_gradcheck_of_the_reference(grad: str) -> None:
    n_iter = 5 if grad == "unroll" else 60
    mask = torch.eye(3, 4, dtype=torch.bool)
    for arguments in ({}, {"mask": mask}):
        cost = random_cost(2, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda c, a=arguments: ref.sinkhorn(c, 1.0, n_iter, grad=grad, **a), cost)
        assert torch.autograd.gradcheck(lambda c, a=arguments: hf.sinkhorn(c, 1.0, n_iter, grad=grad, **a), cost)


@pytest.mark.parametrize("grad", ["unroll", "implicit"])
def test_one_bad_problem_spares_the_others(grad: str) -> None:
    good = random_cost(3, 6, 6, dtype=torch.float32)
    cost = torch.cat([good, good])
    cost[3, 2, 2] = NAN
    cost[4, :, 1] = INF
    cost[5, :4, :4] = INF  # four rows for two columns
    dplan = torch.randn(6, 6, 6)
    dcost = gradient(hf.sinkhorn, cost, dplan, 0.1, grad=grad)
    torch.testing.assert_close(dcost[:3], gradient(hf.sinkhorn, good, dplan[:3], 0.1, grad=grad))
    assert not dcost[3:].any()
    torch.testing.assert_close(gradient(ref.sinkhorn, cost, dplan, 0.1, grad=grad), dcost, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grad", ["unroll", "implicit"])
def test_second_derivative_is_refused(grad: str) -> None:
    cost = random_cost(4, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph must be False"):
        torch.autograd.grad(hf.sinkhorn(cost, 0.1, grad=grad).square().sum(), cost, create_graph=True)


def test_none_is_detached() -> None:
    cost = random_cost(4, 4).requires_grad_()
    assert not hf.sinkhorn(cost, 0.1, grad="none").requires_grad
    assert not ref.sinkhorn(cost, 0.1, grad="none").requires_grad
    with torch.no_grad():
        assert not hf.sinkhorn(cost, 0.1).requires_grad
    assert hf.sinkhorn(cost, 0.1, return_info=True)[0].requires_grad


def test_expanded_and_strided_upstream_gradient() -> None:
    cost = random_cost(2, 5, 7)
    expected = gradient(hf.sinkhorn, cost, torch.ones(2, 5, 7), 0.1)
    leaf = cost.clone().requires_grad_()
    hf.sinkhorn(leaf.mT.contiguous().mT, 0.1).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("grad", ["unroll", "implicit"])
def test_plain_torch_gradients(grad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = random_cost(4, 8, 6)
    cost[1, 0] = INF
    cost[2, 0, 0] = NAN
    cost[3, 0, :3] = INF
    dplan = torch.randn(4, 8, 6, dtype=torch.float64)
    n_iter = 30 if grad == "unroll" else 500
    shared, each = torch.eye(8, 6).bool(), torch.rand(4, 8, 6) < 0.2
    cases: list[dict[str, object]] = [{}, {"mask": shared}, {"mask": each}]
    if grad == "unroll":
        cases += [{"tol": 1e-3}, {"tol": 1e-3, "mask": each}]
    for options in cases:
        expected = gradient(hf.sinkhorn, cost, dplan, 0.1, n_iter, grad=grad, **options)
        with monkeypatch.context() as patch:
            patch.setattr(sinkhorn_cpu, "extension", lambda: None)
            actual = gradient(hf.sinkhorn, cost, dplan, 0.1, n_iter, grad=grad, **options)
        assert relative_error(actual, expected) < 1e-9
        if (mask := options.get("mask")) is not None:
            assert not actual[mask.expand_as(actual)].any()  # type: ignore[attr-defined]


def test_team_and_batch_threads_give_the_same_gradient() -> None:
    before = torch.get_num_threads()
    try:
        for shape in ((40, 48, 48), (1, 400, 400)):
            cost, dplan = random_cost(*shape, dtype=torch.float32), torch.randn(shape)
            torch.set_num_threads(1)
            alone = gradient(hf.sinkhorn, cost, dplan, 0.1)
            torch.set_num_threads(3)
            assert relative_error(gradient(hf.sinkhorn, cost, dplan, 0.1), alone) < 1e-5
    finally:
        torch.set_num_threads(before)
