"""Sinkhorn on CUDA: the kernels of the extension in float32, plain torch for float64.

Gradients are computed by the extension if a problem stays on chip, and by torch if it does not.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from hystar_fast.ops.contexts import current_stream, on_device
from hystar_fast.ops.native import cuda_extension
from hystar_fast.ops.sinkhorn import torch as plain


def forward(
    cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float, keep_history: bool
) -> tuple[Tensor, Tensor, Tensor]:
    native = cuda_extension(cost.dtype)
    if native is None or cost.numel() == 0:
        return plain.forward(cost, mask, epsilon, n_iter, tol, keep_history)
    cost = cost.contiguous()
    *batch, n, m = cost.shape
    count = cost.numel() // (n * m)
    plan = torch.empty_like(cost)
    info = cost.new_empty([3, *batch], dtype=torch.int32)
    potentials = cost.new_empty(count * (n + m))
    full_mask = None if mask is None else mask.expand(cost.shape).contiguous()
    with on_device(cost):
        size = native.sinkhorn_cuda_workspace(count, n, m)
        workspace = cost.new_empty(size, dtype=torch.uint8) if size else None
        native.sinkhorn_cuda_forward(
            cost.data_ptr(),
            0 if full_mask is None else full_mask.data_ptr(),
            plan.data_ptr(),
            potentials.data_ptr(),
            potentials.data_ptr() + 4 * count * n,
            info.data_ptr() + 8 * count,
            info.data_ptr() + 4 * count,
            info.data_ptr(),
            count,
            n,
            m,
            epsilon,
            n_iter,
            tol,
            current_stream(cost),
            0 if workspace is None else workspace.data_ptr(),
        )
    return plan, cost.new_empty(0), info


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
    native = _extension_with_gradient(cost)
    if native is None:
        return plain.unrolled_backward(dplan, plan, cost, mask, history, info, epsilon, n_iter)
    cost, dplan = cost.contiguous(), dplan.contiguous()
    n, m = cost.shape[-2:]
    count = cost.numel() // (n * m)
    dcost = torch.empty_like(cost)
    full_mask = None if mask is None else mask.expand(cost.shape).contiguous()
    with on_device(cost):
        size = native.sinkhorn_cuda_unrolled_workspace(count, n, m, n_iter)
        workspace = cost.new_empty(size, dtype=torch.uint8)
        native.sinkhorn_cuda_unrolled_backward(
            cost.data_ptr(),
            0 if full_mask is None else full_mask.data_ptr(),
            dplan.data_ptr(),
            info.data_ptr(),
            dcost.data_ptr(),
            count,
            n,
            m,
            epsilon,
            n_iter,
            current_stream(cost),
            workspace.data_ptr(),
        )
    return dcost


def implicit_backward(dplan: Tensor, plan: Tensor, info: Tensor, epsilon: float) -> Tensor:
    native = _extension_with_gradient(plan)
    if native is None:
        return plain.implicit_backward(dplan, plan, info, epsilon)
    plan, dplan = plan.contiguous(), dplan.contiguous()
    n, m = plan.shape[-2:]
    dcost = torch.empty_like(plan)
    with on_device(plan):
        native.sinkhorn_cuda_implicit_backward(
            plan.data_ptr(),
            dplan.data_ptr(),
            info.data_ptr(),
            dcost.data_ptr(),
            plan.numel() // (n * m),
            n,
            m,
            epsilon,
            current_stream(plan),
        )
    return dcost


def _extension_with_gradient(matrix: Tensor) -> ModuleType | None:
    """Return the extension if it has the gradients of problems of this dtype and size on this device; else None."""
    native = cuda_extension(matrix.dtype)
    if native is None or matrix.numel() == 0:
        return None
    with on_device(matrix):
        return native if native.sinkhorn_cuda_has_gradient(*matrix.shape[-2:]) else None
