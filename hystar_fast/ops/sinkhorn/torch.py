"""Sinkhorn in plain torch, for devices and dtypes without a kernel: the reference forward, gradients in O(NM) memory.

Autograd over the reference would keep the matrices of every iteration. These two gradients keep none of them, and never
wait for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hystar_fast.ref.sinkhorn import SinkhornStatus, log_kernel
from hystar_fast.ref.sinkhorn import sinkhorn as reference


def pack_info(iterations: Tensor, error: Tensor, status: Tensor) -> Tensor:
    """Return the info of every problem as the ops do: int32 [3, ...], with the bits of the error as a float32."""
    return torch.stack([iterations.int(), error.float().view(torch.int32), status.int()])


def forward(
    cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float, keep_history: bool
) -> tuple[Tensor, Tensor, Tensor]:
    plan, info = reference(cost, epsilon, n_iter, mask=mask, grad="none", return_info=True, tol=tol or None)
    history = cost.new_empty(0)
    return plan.contiguous(), history, pack_info(info.iterations, info.max_marginal_error, info.status)


def unrolled_backward(
    dplan: Tensor,
    plan: Tensor,
    cost: Tensor,
    mask: Tensor | None,
    history: Tensor,
    info: Tensor,
    epsilon: float,
    n_iter: int,
) -> Tensor:
    """Repeat the iterations for their column potentials, then go back through the two softmaxes of each."""
    if plan.numel() == 0:
        return torch.zeros_like(plan)
    kernel = log_kernel(cost, mask, epsilon)[0]
    n, m = kernel.shape[-2:]
    done = info[0].unsqueeze(-1)
    potentials = [torch.zeros_like(kernel[..., 0, :])]
    for k in range(n_iter):
        u = -torch.logsumexp(kernel + potentials[-1].unsqueeze(-2), -1)
        v = math.log(n / m) - torch.logsumexp(kernel + u.unsqueeze(-1), -2)
        potentials.append(torch.where(k < done, v, potentials[-1]))

    usable = _usable(info)
    dkernel = torch.where(usable, plan * dplan, 0.0)
    du, dv = dkernel.sum(-1), dkernel.sum(-2)
    for k in range(n_iter, 0, -1):
        log_rows = torch.log_softmax(kernel + potentials[k - 1].unsqueeze(-2), -1)
        columns = torch.softmax(log_rows - potentials[k - 1].unsqueeze(-2), -2) * dv.unsqueeze(-2)
        du_k = du - columns.sum(-1)
        rows = log_rows.exp() * du_k.unsqueeze(-1)
        active = k <= done
        dkernel = dkernel - torch.where(active.unsqueeze(-1), columns + rows, 0.0)
        du, dv = torch.where(active, 0.0, du), torch.where(active, -rows.sum(-2), dv)
    return torch.where(usable, dkernel / -epsilon, 0.0)


def implicit_backward(dplan: Tensor, plan: Tensor, info: Tensor, epsilon: float) -> Tensor:
    """Solve, in float64, for the changes of the potentials that leave the marginals as they are.

    The matrix is a Laplacian, so it is singular, and a small ridge is added to it. The part of the solution in the null
    space cancels between rows and columns.
    """
    if plan.numel() == 0:
        return torch.zeros_like(plan)
    usable = _usable(info)
    p = torch.where(usable, plan, 0.0).double()
    weighted = p * dplan.double()
    rows, columns = p.sum(-1), p.sum(-2)
    inverse = torch.where(rows > 0, 1 / rows, 0.0).unsqueeze(-1)
    laplacian = torch.diag_embed(columns) - p.mT @ (p * inverse)
    ridge = torch.diag_embed(torch.where(columns > 0, 1e-12 * columns, 1.0))
    right = weighted.sum(-2, keepdim=True).mT - p.mT @ (weighted.sum(-1, keepdim=True) * inverse)
    factor = torch.linalg.cholesky_ex(laplacian + ridge)[0]
    beta = torch.cholesky_solve(right, factor)
    alpha = (weighted.sum(-1, keepdim=True) - p @ beta) * inverse
    dcost = (weighted - p * (alpha + beta.mT)) / -epsilon
    return torch.where(usable, dcost, 0.0).to(plan.dtype)


def _usable(info: Tensor) -> Tensor:
    """Return True for every problem that has a plan, in a shape that broadcasts over the plan."""
    return (info[2] < SinkhornStatus.INFEASIBLE)[..., None, None]
