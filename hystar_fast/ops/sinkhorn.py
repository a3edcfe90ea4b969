"""sinkhorn: schema, fake kernels, autograd and the choice of implementation."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hystar_fast.ops import sinkhorn_cpu, sinkhorn_cuda
from hystar_fast.ops.native import cuda_ready, extension, why_not
from hystar_fast.ops.status import OpStatus
from hystar_fast.ref.sinkhorn import SinkhornInfo, SinkhornStatus, check_arguments

__all__ = ["SinkhornInfo", "SinkhornStatus", "sinkhorn", "status"]

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
# info is int32 [3, ...]: iterations, the largest marginal error as the bits of a float32, status
LIB.define(
    "sinkhorn_forward(Tensor cost, Tensor? mask, float epsilon, int n_iter, float tol, bool keep_history) "
    "-> (Tensor plan, Tensor history, Tensor info)"
)
LIB.define(
    "sinkhorn_unrolled_backward(Tensor dplan, Tensor plan, Tensor cost, Tensor? mask, Tensor history, Tensor info, "
    "float epsilon, int n_iter) -> Tensor"
)
LIB.define("sinkhorn_implicit_backward(Tensor dplan, Tensor plan, Tensor info, float epsilon) -> Tensor")
for _device, _module in (("CPU", sinkhorn_cpu), ("CUDA", sinkhorn_cuda)):
    LIB.impl("sinkhorn_forward", _module.forward, _device)
    LIB.impl("sinkhorn_unrolled_backward", _module.unrolled_backward, _device)
    LIB.impl("sinkhorn_implicit_backward", _module.implicit_backward, _device)


@torch.library.register_fake("hystar_fast::sinkhorn_forward", lib=LIB)
def _forward_fake(
    cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float, keep_history: bool
) -> tuple[Tensor, Tensor, Tensor]:
    keeps = keep_history and cost.device.type == "cpu" and extension() is not None
    history = cost.new_empty([*cost.shape[:-2], n_iter, cost.shape[-1]] if keeps else [0])
    return cost.new_empty(cost.shape), history, cost.new_empty([3, *cost.shape[:-2]], dtype=torch.int32)


@torch.library.register_fake("hystar_fast::sinkhorn_unrolled_backward", lib=LIB)
def _unrolled_backward_fake(
    dplan: Tensor,
    plan: Tensor,
    cost: Tensor,
    mask: Tensor | None,
    history: Tensor,
    info: Tensor,
    epsilon: float,
    n_iter: int,
) -> Tensor:
    return plan.new_empty(plan.shape)


@torch.library.register_fake("hystar_fast::sinkhorn_implicit_backward", lib=LIB)
def _implicit_backward_fake(dplan: Tensor, plan: Tensor, info: Tensor, epsilon: float) -> Tensor:
    return plan.new_empty(plan.shape)


class _Unrolled(torch.autograd.Function):
    """Keeps the plan and, on the CPU, the column potentials of every iteration: n_iter * M values a problem."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float
    ) -> tuple[Tensor, Tensor]:
        plan, history, info = torch.ops.hystar_fast.sinkhorn_forward(cost, mask, epsilon, n_iter, tol, True)
        ctx.save_for_backward(plan, cost, mask, history, info)
        ctx.epsilon, ctx.n_iter = epsilon, n_iter
        ctx.mark_non_differentiable(info)
        return plan, info

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dplan: Tensor, dinfo: Tensor | None) -> tuple[Tensor | None, ...]:
        dcost = torch.ops.hystar_fast.sinkhorn_unrolled_backward(dplan, *ctx.saved_tensors, ctx.epsilon, ctx.n_iter)
        return dcost, None, None, None, None


class _Implicit(torch.autograd.Function):
    """Keeps the plan alone."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float
    ) -> tuple[Tensor, Tensor]:
        plan, _, info = torch.ops.hystar_fast.sinkhorn_forward(cost, mask, epsilon, n_iter, tol, False)
        ctx.save_for_backward(plan, info)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(info)
        return plan, info

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dplan: Tensor, dinfo: Tensor | None) -> tuple[Tensor | None, ...]:
        dcost = torch.ops.hystar_fast.sinkhorn_implicit_backward(dplan, *ctx.saved_tensors, ctx.epsilon)
        return dcost, None, None, None, None


@overload
def sinkhorn(
    cost: Tensor,
    epsilon: float,
    n_iter: int = 50,
    *,
    mask: Tensor | None = None,
    grad: str = "unroll",
    return_info: Literal[False] = False,
    tol: float | None = None,
) -> Tensor: ...


@overload
def sinkhorn(
    cost: Tensor,
    epsilon: float,
    n_iter: int = 50,
    *,
    mask: Tensor | None = None,
    grad: str = "unroll",
    return_info: Literal[True],
    tol: float | None = None,
) -> tuple[Tensor, SinkhornInfo]: ...


def sinkhorn(
    cost: Tensor,
    epsilon: float,
    n_iter: int = 50,
    *,
    mask: Tensor | None = None,
    grad: str = "unroll",
    return_info: bool = False,
    tol: float | None = None,
) -> Tensor | tuple[Tensor, SinkhornInfo]:
    """Return the entropic transport plan of every cost matrix of a batch, with the plan itself, not only its value.

    Eq. 5-7 of the paper, for N rows and M columns::

        T = argmin <C, T> - epsilon H(T)   with   T 1 = 1   and   T' 1 = N/M   (1 when N = M)

    by ``n_iter`` iterations, each a row half-step and then a column half-step: columns are met to rounding, rows to
    what ``return_info`` reports. ``epsilon`` and the cost share a unit; the smaller epsilon, the more iterations.

    Args:
        cost: ``[..., N, M]``, any leading shape, any floating dtype; computed in float32, or float64 for float64.
            ``+inf`` forbids an entry.
        epsilon: Weight of the entropy, > 0.
        n_iter: Iterations, at least 1.
        mask: bool, broadcasts to the shape of cost; True forbids an entry, whatever its cost.
        grad: ``"unroll"``, the exact derivative of the iterations done; ``"implicit"``, that of the converged plan
            (cheaper in memory, and only as right as the plan is converged); ``"none"``, a detached plan.
        return_info: Also return a `SinkhornInfo`: iterations, largest marginal error and status of every problem.
        tol: Stop a problem before the first iteration that finds every row within ``tol`` of 1. None does them all.

    Returns:
        ``plan [..., N, M]``, float64 for float64 and float32 otherwise; forbidden entries are exact zeros. With
        ``return_info=True``, ``(plan, info)``. A problem whose allowed entries carry no plan (a mask without a perfect
        matching, N = 1 with its only entry masked) is all zeros with status INFEASIBLE; one with NaN or -inf in an
        allowed entry is all NaN with status INVALID. Neither touches another problem of the batch.

    Gradients:
        cost, first order only; zero for forbidden entries and for infeasible and invalid problems.

    Cost:
        2 n_iter N M multiply-adds and (but for extremes) one exp an entry, forward; 6 n_iter N M multiply-adds for
        the unrolled backward. Memory: the plan, at most another matrix of its size a thread, and n_iter M values a
        problem for the unrolled gradient.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or value is out of range.

    Source:
        Hystar, Eq. 5-7; Cuturi, Sinkhorn distances (2013); Schmitzer, Stabilized sparse scaling (2019).

    Example:
        >>> import torch
        >>> from hystar_fast import sinkhorn
        >>> plan = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.5)
        >>> plan.sum(-1)
        tensor([1., 1.])
        >>> torch.allclose(plan[0, 0] / plan[0, 1], torch.tensor(2.0).exp())
        True
    """
    check_arguments(cost, epsilon, n_iter, mask, grad, tol)
    if cost.dtype != torch.float32 and cost.dtype != torch.float64:
        cost = cost.float()
    stop = 0.0 if tol is None else float(tol)
    if grad != "none" and cost.requires_grad and torch.is_grad_enabled():
        function = _Unrolled if grad == "unroll" else _Implicit
        plan, info = function.apply(cost, mask, float(epsilon), n_iter, stop)
    else:
        plan, _, info = torch.ops.hystar_fast.sinkhorn_forward(cost.detach(), mask, float(epsilon), n_iter, stop, False)
    if not return_info:
        return plan
    iterations, error, outcome = info.unbind()
    return plan, SinkhornInfo(iterations.long(), error.view(torch.float32).to(plan.dtype), outcome.long())


def status() -> list[OpStatus]:
    """Say what sinkhorn runs on each device."""
    native = extension()
    slow, reason = "torch: logsumexp", why_not() or ""
    cpu = slow if native is None else f"C++: stabilised scaling, {native.cpu_instruction_sets()[0]}"
    ready, cuda_reason = cuda_ready()
    cuda = "CUDA C++ in float32, gradients where a problem stays on chip; the rest in torch" if ready else slow
    return [
        OpStatus("sinkhorn", "cpu", cpu, reason),
        OpStatus("sinkhorn", "cuda", cuda, "" if ready else cuda_reason),
    ]
