"""Sinkhorn in plain torch for devices and types without a kernel: the reference forward, gradients in O(NM) memory.

The reference's own gradient keeps every iteration's matrices; these two keep none, and wait for no device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hystar_fast.ref.sinkhorn import SinkhornStatus, log_kernel
from hystar_fast.ref.sinkhorn import sinkhorn as reference


def pack_info(iterations: Tensor, error: Tensor, status: Tensor) -> Tensor:
    """The int32 tensor [3, ...] in which the ops return what became of each problem; the error as its float32 bits."""
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
    """The iteration again for its column potentials, then backwards through each pair of softmaxes."""
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
    """Solve for the potentials that keep the marginals, in float64: a Laplacian, with a ridge for its null space.

    What the ridge lets into the null space cancels between rows and columns.
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
    """True where a problem has a plan, shaped to broadcast over it."""
    return (info[2] < SinkhornStatus.INFEASIBLE)[..., None, None]
