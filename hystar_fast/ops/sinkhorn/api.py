"""The public function sinkhorn, the schema of its ops, their fake kernels and autograd."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from hystar_fast.ops.native import cuda_ready, extension, extension_problem, instruction_set
from hystar_fast.ops.sinkhorn import cpu, cuda
from hystar_fast.ops.status import OpStatus
from hystar_fast.ops.transforms import check_not_batched, eager_op, first_order, is_transformed
from hystar_fast.ref.sinkhorn import SinkhornInfo, check_arguments
from hystar_fast.ref.sinkhorn import sinkhorn as reference

LIB = torch.library.Library("hystar_fast", "FRAGMENT")
# info is int32 [3, ...]: iterations, the bits of the largest marginal error as a float32, status
LIB.define(
    "sinkhorn_forward(Tensor cost, Tensor? mask, float epsilon, int n_iter, float tol, bool keep_history) "
    "-> (Tensor plan, Tensor history, Tensor info)"
)
LIB.define(
    "sinkhorn_unrolled_backward(Tensor dplan, Tensor plan, Tensor cost, Tensor? mask, Tensor history, Tensor info, "
    "float epsilon, int n_iter) -> Tensor"
)
LIB.define("sinkhorn_implicit_backward(Tensor dplan, Tensor plan, Tensor info, float epsilon) -> Tensor")
for _device, _module in (("CPU", cpu), ("CUDA", cuda)):
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    cost, mask, ctx.epsilon, ctx.n_iter, ctx.tol, ctx.keep_history = inputs
    plan, history, info = output
    ctx.save_for_backward(plan, cost, mask, history, info)


@first_order("sinkhorn")
def _backward_of_op(ctx: Any, dplan: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the op itself, as exported programs call it; the history is computed again if it was not kept."""
    plan, cost, mask, history, info = ctx.saved_tensors
    if not ctx.keep_history:
        history = torch.ops.hystar_fast.sinkhorn_forward(cost, mask, ctx.epsilon, ctx.n_iter, ctx.tol, True)[1]
    dcost = torch.ops.hystar_fast.sinkhorn_unrolled_backward(
        dplan, plan, cost, mask, history, info, ctx.epsilon, ctx.n_iter
    )
    return dcost, None, None, None, None, None


torch.library.register_autograd("hystar_fast::sinkhorn_forward", _backward_of_op, setup_context=_setup_context, lib=LIB)

_forward = eager_op(torch.ops.hystar_fast.sinkhorn_forward.default, cpu.forward, cuda.forward)


class _Unrolled(torch.autograd.Function):
    """The exact gradient. It keeps the plan and, on the CPU, n_iter * M values a problem: all column potentials."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float
    ) -> tuple[Tensor, Tensor]:
        plan, history, info = _forward(cost, mask, epsilon, n_iter, tol, True)
        ctx.save_for_backward(plan, cost, mask, history, info)
        ctx.epsilon, ctx.n_iter = epsilon, n_iter
        ctx.mark_non_differentiable(info)
        return plan, info

    @staticmethod
    @first_order("sinkhorn")
    def backward(ctx: Any, dplan: Tensor, dinfo: Tensor | None) -> tuple[Tensor | None, ...]:
        dcost = torch.ops.hystar_fast.sinkhorn_unrolled_backward(dplan, *ctx.saved_tensors, ctx.epsilon, ctx.n_iter)
        return dcost, None, None, None, None


class _Implicit(torch.autograd.Function):
    """The gradient of the converged plan. It keeps nothing but the plan."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float
    ) -> tuple[Tensor, Tensor]:
        plan, _, info = _forward(cost, mask, epsilon, n_iter, tol, False)
        ctx.save_for_backward(plan, info)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(info)
        return plan, info

    @staticmethod
    @first_order("sinkhorn")
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
    """Return the entropic transport plan of every cost matrix of a batch.

    Eq. 5-7 of the paper, for N rows and M columns::

        T = argmin <C, T> - epsilon H(T)   with   T 1 = 1   and   T' 1 = N/M   (1 when N = M)

    by ``n_iter`` iterations, each of them a row half-step and then a column half-step. So the column sums are exact up
    to rounding, and ``return_info`` reports the error of the row sums. ``epsilon`` has the unit of the cost. A smaller
    epsilon needs more iterations.

    Args:
        cost: ``[..., N, M]``, any leading shape, any floating dtype; computed in float32, or float64 for float64.
            ``+inf`` forbids an entry.
        epsilon: Weight of the entropy, > 0.
        n_iter: Iterations, at least 1.
        mask: bool, broadcasts to the shape of cost. True forbids an entry, whatever its cost.
        grad: ``"unroll"``: the exact derivative of the iterations that ran. ``"implicit"``: the derivative of the
            converged plan, which needs less memory but is exact only if the plan has converged. ``"none"``: the plan is
            detached.
        return_info: Also return a `SinkhornInfo`: iterations, largest marginal error and status of every problem.
        tol: Stop a problem before the first iteration at which every row sum is within ``tol`` of 1. With None, all
            iterations run.

    Returns:
        ``plan [..., N, M]``, float64 for a float64 cost and float32 otherwise. Forbidden entries are exactly zero. With
        ``return_info=True``, ``(plan, info)``. If no plan exists on the allowed entries of a problem (for example, a
        mask without a perfect matching, or N = 1 with its only entry masked), the plan is zero and the status
        INFEASIBLE. If an allowed entry is NaN or -inf, the plan is NaN and the status INVALID. Other problems of the
        batch are not affected.

    Gradients:
        cost; first order only (any order and forward mode through torch.func, which runs the reference). Zero for
        forbidden entries, and for infeasible and invalid problems.

    Cost:
        Forward: 2 n_iter N M multiply-adds and usually one exp for each entry. Unrolled backward: 6 n_iter N M
        multiply-adds. Memory: the plan, at most another matrix of its size for each thread, and n_iter M values for
        each problem for the unrolled gradient.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value is out of range.

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
    n_iter = int(n_iter)
    if is_transformed(cost):
        for name, tensor in (("cost", cost), ("mask", mask)):
            check_not_batched(name, tensor, "pass all problems at once, [..., N, M]")
        plan, info = reference(cost, epsilon, n_iter, mask=mask, grad=grad, return_info=True, tol=tol)
        return (plan, info) if return_info else plan
    if cost.dtype != torch.float32 and cost.dtype != torch.float64:
        cost = cost.float()
    stop = 0.0 if tol is None else float(tol)
    if torch.compiler.is_exporting() and grad == "unroll":  # the program is differentiated by the op
        plan, _, info = _forward(cost, mask, float(epsilon), n_iter, stop, False)
    elif grad != "none" and cost.requires_grad and torch.is_grad_enabled():
        function = _Unrolled if grad == "unroll" else _Implicit
        plan, info = function.apply(cost, mask, float(epsilon), n_iter, stop)
    else:
        plan, _, info = _forward(cost.detach(), mask, float(epsilon), n_iter, stop, False)
    if not return_info:
        return plan
    iterations, error, outcome = info.unbind()
    return plan, SinkhornInfo(iterations.long(), error.view(torch.float32).to(plan.dtype), outcome.long())


def status() -> list[OpStatus]:
    """Return the implementation of sinkhorn on each device."""
    slow, isa = "torch: logsumexp", instruction_set()
    on_cpu = slow if isa is None else f"C++: stabilised scaling, {isa}"
    ready, problem = cuda_ready()
    on_cuda = "CUDA C++ in float32, gradients if a problem stays on chip; the rest in torch" if ready else slow
    return [
        OpStatus("sinkhorn", "cpu", on_cpu, extension_problem() or ""),
        OpStatus("sinkhorn", "cuda", on_cuda, problem),
    ]
