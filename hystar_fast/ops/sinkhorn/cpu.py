"""Sinkhorn on the CPU: passes pointers to the extension, or calls plain torch if there is no extension."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops.native import extension
from hystar_fast.ops.sinkhorn import torch as plain

ISA = ""
"""The instruction set to use: empty for the widest of this CPU, or a member of ``_C.cpu_instruction_sets()``."""


def forward(
    cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float, keep_history: bool
) -> tuple[Tensor, Tensor, Tensor]:
    native = extension()
    if native is None or cost.numel() == 0:
        return plain.forward(cost, mask, epsilon, n_iter, tol, keep_history)
    cost = cost.contiguous()
    *batch, n, m = cost.shape
    plan = torch.empty_like(cost)
    info = torch.empty([3, *batch], dtype=torch.int32)
    history = cost.new_empty([*batch, n_iter, m] if keep_history else 0)
    mask, mask_stride = _contiguous_mask(mask, cost)
    call = native.sinkhorn_cpu_forward_f32 if cost.dtype == torch.float32 else native.sinkhorn_cpu_forward_f64
    call(
        cost.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        mask_stride,
        cost.numel() // (n * m),
        n,
        m,
        epsilon,
        n_iter,
        tol,
        plan.data_ptr(),
        history.data_ptr(),
        info.data_ptr(),
        torch.get_num_threads(),
        ISA,
    )
    return plan, history, info


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
    native = extension()
    if native is None or cost.numel() == 0:
        return plain.unrolled_backward(dplan, plan, cost, mask, history, info, epsilon, n_iter)
    dplan, cost = dplan.contiguous(), cost.contiguous()
    n, m = cost.shape[-2:]
    dcost = torch.empty_like(cost)
    mask, mask_stride = _contiguous_mask(mask, cost)
    single = cost.dtype == torch.float32
    call = native.sinkhorn_cpu_unrolled_backward_f32 if single else native.sinkhorn_cpu_unrolled_backward_f64
    call(
        cost.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        mask_stride,
        cost.numel() // (n * m),
        n,
        m,
        epsilon,
        n_iter,
        plan.data_ptr(),
        history.data_ptr(),
        info.data_ptr(),
        dplan.data_ptr(),
        dcost.data_ptr(),
        torch.get_num_threads(),
        ISA,
    )
    return dcost


def implicit_backward(dplan: Tensor, plan: Tensor, info: Tensor, epsilon: float) -> Tensor:
    native = extension()
    if native is None or plan.numel() == 0:
        return plain.implicit_backward(dplan, plan, info, epsilon)
    n, m = plan.shape[-2:]
    wide_plan, wide_dplan = plan.double().contiguous(), dplan.double().contiguous()
    dcost = torch.empty_like(wide_plan)
    native.sinkhorn_cpu_implicit_backward_f64(
        wide_plan.data_ptr(),
        wide_dplan.data_ptr(),
        dcost.data_ptr(),
        plan.numel() // (n * m),
        n,
        m,
        epsilon,
        torch.get_num_threads(),
        ISA,
    )
    return dcost.to(plan.dtype)


def _contiguous_mask(mask: Tensor | None, cost: Tensor) -> tuple[Tensor | None, int]:
    """Return the mask as contiguous memory, and its stride between problems: 0 if they share one mask."""
    if mask is None:
        return None, 0
    n, m = cost.shape[-2:]
    if mask.shape[-2:] == (n, m) and mask.numel() == n * m:
        return mask.contiguous(), 0
    return mask.expand(cost.shape).contiguous(), n * m
