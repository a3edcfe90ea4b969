"""StyleNCE on the CPU: the extension and, for large products, torch; plain torch if there is no extension.

A small batch is one call of the extension in each direction: its products fit the second-level cache of a core, and a
call of torch costs as much as one of them. For a large batch, torch computes the three products, and the extension the
passes between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.native import extension, instruction_set
from hystar_fast.ops.style_nce import torch as plain
from hystar_fast.ref.style_nce import WEIGHTS

ISA = ""
"""The instruction set to use: empty for the widest of this CPU, or a member of ``_C.cpu_instruction_sets()``."""
MAX_OWN_PRODUCT = {"avx512": 1 << 26, "avx2": 1 << 25, "baseline": 1 << 20}
"""Multiply-adds of a product, N * N * D, up to which the extension is faster than torch (measured on Zen 4)."""


def forward(
    query: Tensor,
    target: Tensor,
    mask: Tensor | None,
    temperature: float,
    gamma: float | None,
    lam: float,
    epsilon: float,
    n_iter: int,
    weights: str,
    mean: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    native = extension()
    if native is None:
        return plain.forward(query, target, mask, temperature, gamma, lam, epsilon, n_iter, weights, mean, keep)
    dtype = plain.loss_dtype(query, target)
    n, d = query.shape
    query, target = _rows(query, dtype), _rows(target, dtype)
    loss = query.new_empty(() if mean else n)
    slope, units, lengths = query.new_empty(n, n), query.new_empty(2, n, d), query.new_empty(2, n)
    single, threads = dtype == torch.float32, torch.get_num_threads()
    rows = (query.data_ptr(), query.stride(0), target.data_ptr(), target.stride(0))
    mask = None if mask is None else mask.contiguous()
    sim = None
    if n * n * d > _max_own_product():
        normalise = native.style_nce_cpu_normalise_f32 if single else native.style_nce_cpu_normalise_f64
        normalise(*rows, n, d, units.data_ptr(), lengths.data_ptr(), threads, ISA)
        with without_autocast("cpu"):
            sim = units[0] @ units[1].mT
    call = native.style_nce_cpu_forward_f32 if single else native.style_nce_cpu_forward_f64
    call(
        *rows,
        0 if mask is None else mask.data_ptr(),
        n,
        d,
        temperature,
        0.0 if gamma is None else gamma,
        lam,
        epsilon,
        n_iter,
        WEIGHTS.index(weights),
        loss.data_ptr(),
        mean,
        slope.data_ptr(),
        keep,
        units.data_ptr(),
        lengths.data_ptr(),
        0 if sim is None else sim.data_ptr(),
        threads,
        ISA,
    )
    if not keep:
        slope, units, lengths = loss.new_empty(0), loss.new_empty(0), loss.new_empty(0)
    return loss, slope, units, lengths


def backward(
    dloss: Tensor,
    slope: Tensor,
    units: Tensor,
    lengths: Tensor,
    temperature: float,
    needs_dquery: bool,
    needs_dtarget: bool,
) -> tuple[Tensor, Tensor]:
    native = extension()
    if native is None:
        return plain.backward(dloss, slope, units, lengths, temperature, needs_dquery, needs_dtarget)
    _, n, d = units.shape
    single, mean, threads = units.dtype == torch.float32, dloss.dim() == 0, torch.get_num_threads()
    scale = 1 / (temperature * n) if mean else 1 / temperature
    if n * n * d <= _max_own_product():
        slope = slope.contiguous()
        dquery, dtarget = (units.new_empty((n, d) if needed else 0) for needed in (needs_dquery, needs_dtarget))
        call = native.style_nce_cpu_backward_f32 if single else native.style_nce_cpu_backward_f64
        call(
            dloss.data_ptr(),
            0 if mean else dloss.stride(0),
            slope.data_ptr(),
            units.data_ptr(),
            lengths.data_ptr(),
            n,
            d,
            scale,
            dquery.data_ptr() if needs_dquery else 0,
            dtarget.data_ptr() if needs_dtarget else 0,
            threads,
            ISA,
        )
        return dquery, dtarget
    project = native.style_nce_cpu_project_f32 if single else native.style_nce_cpu_project_f64
    (q, t), (q_length, t_length) = units, lengths
    shared = (n, d, dloss.data_ptr() if mean else 0, scale, threads, ISA)
    dquery, dtarget = q.new_empty(0), q.new_empty(0)
    with without_autocast("cpu"):
        if needs_dquery:
            dquery = slope @ t if mean else (slope @ t).mul_(dloss.unsqueeze(1))
            project(dquery.data_ptr(), q.data_ptr(), q_length.data_ptr(), *shared)
        if needs_dtarget:
            dtarget = slope.mT @ (q if mean else q * dloss.unsqueeze(1))
            project(dtarget.data_ptr(), t.data_ptr(), t_length.data_ptr(), *shared)
    return dquery, dtarget


def _max_own_product() -> int:
    return MAX_OWN_PRODUCT.get(ISA or instruction_set() or "", 0)


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in the dtype of the loss, with contiguous rows."""
    x = x.to(dtype)
    return x if x.stride(1) == 1 else x.contiguous()
