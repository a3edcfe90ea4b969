"""Sinkhorn on CUDA: the extension's kernel in float32, plain torch for float64 and both gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops import sinkhorn_torch
from hystar_fast.ops.native import cuda_ready, extension


def forward(
    cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float, keep_history: bool
) -> tuple[Tensor, Tensor, Tensor]:
    native = extension() if cost.dtype == torch.float32 and cuda_ready()[0] else None
    if native is None or cost.numel() == 0:
        return sinkhorn_torch.forward(cost, mask, epsilon, n_iter, tol, keep_history)
    cost = cost.contiguous()
    *batch, n, m = cost.shape
    count = cost.numel() // (n * m)
    plan = torch.empty_like(cost)
    info = cost.new_empty([3, *batch], dtype=torch.int32)
    potentials = cost.new_empty(count * (n + m))
    full_mask = None if mask is None else mask.expand(cost.shape).contiguous()
    with torch.cuda.device(cost.device):
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
            torch.cuda.current_stream().cuda_stream,
            0 if workspace is None else workspace.data_ptr(),
        )
    return plan, cost.new_empty(0), info


unrolled_backward = sinkhorn_torch.unrolled_backward
implicit_backward = sinkhorn_torch.implicit_backward
