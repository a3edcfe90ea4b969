"""Both gradients of the CUDA Sinkhorn: run on the CPU against the float64 reference; on a GPU, the kernels too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hystar_fast as hf
from hystar_fast import ref
from hystar_fast.ops.sinkhorn import cuda as sinkhorn_cuda
from hystar_fast.ops.sinkhorn import torch as sinkhorn_torch
from hystar_fast.ref.sinkhorn import SinkhornStatus
from tests.support.gpu import requires_cuda
from tests.support.sinkhorn_cuda_host import (
    A100,
    CLUSTER,
    H200,
    RTX_5090,
    STREAM,
    TILE,
    Choice,
    Gpu,
    Host,
    argument_counts,
    paper_cost,
    pretend_cuda,
)
from tests.support.tolerance import assert_as_accurate

GRADS = ("unroll", "implicit")
TWO = Choice(CLUSTER, 0, 2)  # blocks of 64 x 256


def reference(cost: Tensor, dplan: Tensor, epsilon: float, n_iter: int, grad: str, **options: Any) -> Tensor:
    leaf = cost.clone().requires_grad_()
    plan = ref.sinkhorn(leaf, epsilon, n_iter, grad=grad, **options)
    return torch.autograd.grad(plan, leaf, dplan.to(plan.dtype))[0]


def check(
    host: Host,
    cost: Tensor,
    epsilon: float,
    n_iter: int,
    grad: str = "unroll",
    *,
    mask: Tensor | None = None,
    tol: float | None = None,
    **options: Any,
) -> None:
    """The gradient of random upstream gradients against the reference's."""
    cost, dplan = cost.float(), torch.randn(cost.shape)
    plan, info = ref.sinkhorn(cost, epsilon, n_iter, grad="none", return_info=True, mask=mask, tol=tol)
    given = plan.contiguous() if grad == "implicit" else cost
    held = mask if grad == "unroll" else None
    actual = host.gradient(
        given, dplan, epsilon, info.iterations, n_iter, implicit=grad == "implicit", mask=held, **options
    )
    truth = reference(cost.double(), dplan, epsilon, n_iter, grad, mask=mask, tol=tol)
    same = reference(cost, dplan, epsilon, n_iter, grad, mask=mask, tol=tol)
    assert_as_accurate(actual, same, truth)
    forbidden = cost.isposinf() if mask is None else cost.isposinf() | mask
    assert not actual[forbidden].any()


@pytest.mark.parametrize("epsilon", [0.1, 0.02])
@pytest.mark.parametrize(
    ("n", "m"), [(5, 7), (17, 17), (31, 48), (48, 48), (49, 49), (65, 33), (96, 96), (97, 100), (128, 127)]
)
def test_unrolled(host: Host, n: int, m: int, epsilon: float) -> None:
    check(host, paper_cost(2 if n < 49 else 1, n, m), epsilon, 20 if n < 49 else 9)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (17, 17), (48, 48), (65, 33), (97, 100), (128, 127)])
def test_implicit(host: Host, n: int, m: int) -> None:
    check(host, paper_cost(2 if n < 49 else 1, n, m), 0.1, 300, "implicit")


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize(
    ("n", "m", "blocks"), [(60, 200, 1), (129, 129, 4), (100, 130, 2), (192, 192, 4), (256, 256, 4), (500, 40, 8)]
)
def test_on_a_cluster(host: Host, n: int, m: int, blocks: int, grad: str) -> None:
    choice = Choice(CLUSTER, 0, blocks)
    assert host.choose_gradient(n, m, H200) == choice
    check(host, paper_cost(1, n, m), 0.1, 6 if grad == "unroll" else 120, grad)


@pytest.mark.parametrize("n_iter", [1, 2, 3, 4, 5, 8, 9, 50])
def test_every_number_of_iterations(host: Host, n_iter: int) -> None:
    check(host, paper_cost(2, 19, 23), 0.03, n_iter)


@pytest.mark.parametrize("epsilon", [1e-2, 2e-3, 5e-4])
@pytest.mark.parametrize(("n", "m", "choice"), [(48, 40, None), (70, 70, None), (70, 70, TWO)])
def test_absorbed_scalings_are_taken_back(host: Host, n: int, m: int, choice: Choice | None, epsilon: float) -> None:
    """The potentials move by hundreds of powers of two, so that A is built anew on the way there and back."""
    cost = torch.rand(1, n, m)
    cost[..., 0] += 1  # a column that every row avoids at first
    check(host, cost, epsilon, 30, choice=choice)


def test_scalings_that_grow_by_the_size_in_every_iteration(host: Host) -> None:
    cost = torch.rand(1, 31, 31) * 0.1 + 2
    cost[:, :-1, 0], cost[:, -1, 1:] = 0.0, 0.0
    check(host, cost, 0.01, 60)


def test_columns_far_from_the_others(host: Host) -> None:
    cost = torch.rand(2, 20, 20)
    cost[:, :, 3] += 100
    cost[:, 4] += 1e4
    check(host, cost, 0.1, 15)


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("choice", [None, TWO])
def test_masks(host: Host, grad: str, choice: Choice | None) -> None:
    cost, mask = torch.rand(2, 33, 31), torch.rand(2, 33, 31) < 0.3
    check(host, cost, 0.1, 12 if grad == "unroll" else 300, grad, mask=mask, choice=choice)


def test_with_a_tolerance_the_iterations_done_are_undone(host: Host) -> None:
    cost = torch.stack([torch.rand(9, 9), 5 * torch.rand(9, 9)])
    check(host, cost, 0.3, 100, tol=1e-3)


def test_implicit_on_a_support_in_parts(host: Host) -> None:
    """Constants move between rows and columns in each part by itself, and a permutation leaves nothing to move."""
    mask = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)) == 0
    check(host, torch.rand(1, 9, 9), 0.1, 500, "implicit", mask=mask)
    permutation = torch.eye(6)[None]
    dcost = host.gradient(permutation, torch.randn(1, 6, 6), 0.1, torch.ones(1), 1, implicit=True)
    assert dcost.abs().amax() < 1e-5


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize(("size", "choice"), [(1, None), (2, None), (1, TWO)])
def test_a_constant_plan_has_no_gradient(host: Host, size: int, choice: Choice | None, grad: str) -> None:
    given = torch.ones(1, 1, size)
    dcost = host.gradient(
        given, torch.randn(1, 1, size), 0.1, torch.ones(1), 1, implicit=grad == "implicit", choice=choice
    )
    assert dcost.abs().amax() < 1e-5


@pytest.mark.parametrize("choice", [None, TWO])
@pytest.mark.parametrize("grad", GRADS)
def test_problems_without_a_plan_have_a_gradient_of_zero(host: Host, grad: str, choice: Choice | None) -> None:
    given, dplan = torch.rand(3, 40, 40), torch.randn(3, 40, 40)
    given[1] = math.nan
    if grad == "implicit":
        given /= given.sum(-1, keepdim=True)
    iterations = torch.tensor([12, 0, 12])
    options: dict[str, Any] = {"implicit": grad == "implicit", "choice": choice}
    dcost = host.gradient(given, dplan, 0.1, iterations, 12, **options)
    alone = host.gradient(given[2:], dplan[2:], 0.1, iterations[2:], 12, **options)
    assert not dcost[1].any() and dcost[0].any() and torch.equal(dcost[2], alone[0])


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize(("size", "choice"), [(48, None), (70, None), (100, None), (100, TWO)])
def test_the_order_of_threads_never_matters(host: Host, size: int, choice: Choice | None, grad: str) -> None:
    cost, dplan = torch.rand(2, size, size) * 3, torch.randn(2, size, size)
    given = ref.sinkhorn(cost, 0.1, 20).contiguous() if grad == "implicit" else cost
    first, *others = (
        host.gradient(
            given, dplan, 0.004, torch.full((2,), 9), 9, implicit=grad == "implicit", choice=choice, seed=seed
        )
        for seed in (1, 20, 300)
    )
    assert first.isfinite().all() and all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("gpu", "n", "m", "choice"),
    [
        (A100, 128, 128, Choice(TILE, 0, 1)),
        (A100, 129, 129, Choice(STREAM, 0, 0)),
        (H200, 1, 1, Choice(TILE, 0, 1)),
        (H200, 129, 129, Choice(CLUSTER, 0, 4)),
        (RTX_5090, 256, 256, Choice(CLUSTER, 0, 4)),
        (H200, 512, 256, Choice(CLUSTER, 0, 8)),
        (H200, 513, 256, Choice(STREAM, 0, 0)),
        (H200, 200, 257, Choice(STREAM, 0, 0)),
    ],
)
def test_the_choice_of_kernel(host: Host, gpu: Gpu, n: int, m: int, choice: Choice) -> None:
    assert host.choose_gradient(n, m, gpu) == choice


@pytest.mark.parametrize("size", [20, 600])
@pytest.mark.parametrize("grad", GRADS)
def test_the_op_hands_over_what_the_kernels_take(
    host: Host, grad: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward as on CUDA, kernels emulated; a size that does not stay on chip is left to torch."""
    cost, mask = torch.rand(2, 2, size, 9), torch.rand(size, 9) < 0.2
    dplan = torch.randn(9, 2, 2, size).permute(1, 2, 3, 0)
    n_iter = 4 if grad == "unroll" else 40
    pretend_cuda(monkeypatch, host, sinkhorn_cuda)
    in_torch = []
    for name in ("unrolled_backward", "implicit_backward"):
        kept = getattr(sinkhorn_torch, name)
        monkeypatch.setattr(sinkhorn_torch, name, lambda *a, kept=kept: in_torch.append(1) or kept(*a))
    plan, history, info = sinkhorn_cuda.forward(cost, mask, 0.2, n_iter, 0.0, True)
    if grad == "unroll":
        dcost = sinkhorn_cuda.unrolled_backward(dplan, plan, cost, mask, history, info, 0.2, n_iter)
    else:
        dcost = sinkhorn_cuda.implicit_backward(dplan, plan, info, 0.2)
    truth = reference(cost.double(), dplan, 0.2, n_iter, grad, mask=mask)
    assert_as_accurate(dcost, reference(cost, dplan, 0.2, n_iter, grad, mask=mask), truth)
    assert len(in_torch) == (size == 600)


def test_the_emulation_has_the_extension_s_signatures() -> None:
    """Both take pointers: one argument more or less would read memory of something else."""
    counts = {"workspace": 3, "forward": 16, "has_gradient": 2}
    counts |= {"unrolled_workspace": 4, "unrolled_backward": 12, "implicit_backward": 9}
    assert argument_counts("sinkhorn_cuda_") in ({}, {f"sinkhorn_cuda_{name}": count for name, count in counts.items()})


@requires_cuda
@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (5, 7), (48, 48), (65, 33), (100, 128), (129, 129), (192, 192), (256, 256), (300, 300)]
)
def test_the_gpu_agrees_with_the_reference(n: int, m: int, grad: str) -> None:
    cost, dplan = paper_cost(5, n, m), torch.randn(5, n, m)
    for mask in (None, torch.rand(n, m) < 0.1):
        leaf = cost.cuda().requires_grad_()
        on_gpu = None if mask is None else mask.cuda()
        plan, info = hf.sinkhorn(leaf, 0.1, 200, grad=grad, mask=on_gpu, return_info=True)
        (actual,) = torch.autograd.grad(plan, leaf, dplan.cuda())
        truth = reference(cost.double(), dplan, 0.1, 200, grad, mask=mask)
        if truth.norm() < 1e-9:  # a plan that is constant, or none
            assert actual.abs().amax() < 1e-4
        else:
            assert_as_accurate(actual.cpu(), reference(cost, dplan, 0.1, 200, grad, mask=mask), truth)
            assert (info.status < SinkhornStatus.INFEASIBLE).all()


@requires_cuda
def test_the_gpu_takes_back_what_it_absorbed() -> None:
    for size in (48, 100, 200):
        cost, dplan = torch.rand(3, size, size), torch.randn(3, size, size)
        cost[..., 0] += 1
        leaf = cost.cuda().requires_grad_()
        (actual,) = torch.autograd.grad(hf.sinkhorn(leaf, 2e-3, 50), leaf, dplan.cuda())
        truth, same = (reference(c, dplan, 2e-3, 50, "unroll") for c in (cost.double(), cost))
        assert_as_accurate(actual.cpu(), same, truth)


@requires_cuda
@pytest.mark.parametrize("grad", GRADS)
def test_the_gpu_is_deterministic_over_batches_larger_than_the_grid(grad: str) -> None:
    cost, dplan = paper_cost(3000, 20, 20).cuda().requires_grad_(), torch.randn(3000, 20, 20, device="cuda")
    first, second = (torch.autograd.grad(hf.sinkhorn(cost, 0.1, 30, grad=grad), cost, dplan)[0] for _ in range(2))
    last = cost.detach()[-3:].clone().requires_grad_()
    (alone,) = torch.autograd.grad(hf.sinkhorn(last, 0.1, 30, grad=grad), last, dplan[-3:])
    assert torch.equal(first, second) and torch.equal(first[-3:], alone)
