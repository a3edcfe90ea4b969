"""StyleNCE on CUDA: products in torch, and the passes between them in the extension; float64 in plain torch.

If the plan stays on chip, the forward is five launches: unit rows, product, cost, plan, loss. The backward is three:
both products and one projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops.contexts import current_stream, on_device, without_autocast
from hystar_fast.ops.native import cuda_extension
from hystar_fast.ops.style_nce import torch as plain
from hystar_fast.ref.style_nce import WEIGHTS


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
    native = cuda_extension(plain.loss_dtype(query, target))
    if native is None:
        return plain.forward(query, target, mask, temperature, gamma, lam, epsilon, n_iter, weights, mean, keep)
    n, d = query.shape
    query, target = _rows(query), _rows(target)
    loss = query.new_empty(() if mean else n)
    slope, units, lengths = query.new_empty(n, n), query.new_empty(2, n, d), query.new_empty(2, n)
    mask = None if mask is None else mask.contiguous()
    with on_device(query), without_autocast("cuda"):
        stream = current_stream(query)
        native.style_nce_cuda_normalise(
            query.data_ptr(),
            query.stride(0),
            target.data_ptr(),
            target.stride(0),
            n,
            d,
            units.data_ptr(),
            lengths.data_ptr(),
            stream,
        )
        sim = units[0] @ units[1].mT
        workspace = query.new_empty(native.style_nce_cuda_workspace(n), dtype=torch.uint8)
        native.style_nce_cuda_forward(
            sim.data_ptr(),
            lengths.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            n,
            temperature,
            0.0 if gamma is None else gamma,
            lam,
            epsilon,
            n_iter,
            WEIGHTS.index(weights),
            loss.data_ptr(),
            mean,
            slope.data_ptr(),
            stream,
            workspace.data_ptr(),
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
    native = cuda_extension(units.dtype)
    if native is None:
        return plain.backward(dloss, slope, units, lengths, temperature, needs_dquery, needs_dtarget)
    q, t = units
    mean = dloss.dim() == 0
    shared = mean or dloss.stride(0) == 0  # one upstream gradient for all rows
    n, d = q.shape
    lengths = lengths.contiguous()
    dquery, dtarget = q.new_empty(0), q.new_empty(0)
    with on_device(q), without_autocast("cuda"):
        if needs_dquery:
            dquery = slope @ t
        if needs_dtarget:
            dtarget = slope.mT @ (q if shared else q * dloss.unsqueeze(1))
        native.style_nce_cuda_project(
            dquery.data_ptr() if needs_dquery else 0,
            dtarget.data_ptr() if needs_dtarget else 0,
            units.data_ptr(),
            lengths.data_ptr(),
            n,
            d,
            dloss.data_ptr(),
            0 if shared else dloss.stride(0),
            1 / (temperature * n) if mean else 1 / temperature,
            current_stream(q),
        )
    return dquery, dtarget


def _rows(x: Tensor) -> Tensor:
    """Return x in float32, with contiguous rows."""
    x = x.float()
    return x if x.stride(1) == 1 else x.contiguous()
