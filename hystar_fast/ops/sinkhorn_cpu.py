"""Sinkhorn on the CPU: hands pointers to the extension, or everything to plain torch where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops import sinkhorn_torch
from hystar_fast.ops.native import extension

ISA = ""
"""The instruction set to use: empty for the widest this CPU has, or a member of ``_C.cpu_instruction_sets()``."""


def forward(
    cost: Tensor, mask: Tensor | None, epsilon: float, n_iter: int, tol: float, keep_history: bool
) -> tuple[Tensor, Tensor, Tensor]:
    native = extension()
    if native is None or cost.numel() == 0:
        return sinkhorn_torch.forward(cost, mask, epsilon, n_iter, tol, keep_history)
    cost = cost.contiguous()
    *batch, n, m = cost.shape
    plan = torch.empty_like(cost)
    info = torch.empty([3, *batch], dtype=torch.int32)
    history = cost.new_empty([*batch, n_iter, m] if keep_history else 0)
    mask_pointer, mask_stride, held = _mask(mask, cost)
    call = native.sinkhorn_cpu_forward_f32 if cost.dtype == torch.float32 else native.sinkhorn_cpu_forward_f64
    call(
        cost.data_ptr(),
        mask_pointer,
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
    del held
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
        return sinkhorn_torch.unrolled_backward(dplan, plan, cost, mask, history, info, epsilon, n_iter)
    dplan, cost = dplan.contiguous(), cost.contiguous()
    n, m = cost.shape[-2:]
    dcost = torch.empty_like(cost)
    mask_pointer, mask_stride, held = _mask(mask, cost)
    single = cost.dtype == torch.float32
    call = native.sinkhorn_cpu_unrolled_backward_f32 if single else native.sinkhorn_cpu_unrolled_backward_f64
    call(
        cost.data_ptr(),
        mask_pointer,
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
    del held
    return dcost


def implicit_backward(dplan: Tensor, plan: Tensor, info: Tensor, epsilon: float) -> Tensor:
    native = extension()
    if native is None or plan.numel() == 0:
        return sinkhorn_torch.implicit_backward(dplan, plan, info, epsilon)
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


def _mask(mask: Tensor | None, cost: Tensor) -> tuple[int, int, Tensor | None]:
    """The mask's pointer, its stride from problem to problem, and the tensor that must outlive the call."""
    if mask is None:
        return 0, 0, None
    n, m = cost.shape[-2:]
    if mask.shape[-2:] == (n, m) and mask.numel() == n * m:
        held, stride = mask.contiguous(), 0
    else:
        held, stride = mask.expand(cost.shape).contiguous(), n * m
    return held.data_ptr(), stride, held
