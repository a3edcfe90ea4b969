"""svd_linear on CUDA: a Triton GEMM that scales in its epilogue, then a GEMM of torch; at small rank one Triton kernel.

float64, and float32 if TF32 is off, use the GEMMs of torch with element-wise kernels between them: Triton has no
tensor-core path at that precision, and the element-wise kernels take a few per cent of the time of such GEMMs. The same
path runs if Triton is missing or the GPU is older than Ampere.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from hystar_fast.kernels.tuning import Gpu
from hystar_fast.ops.svd_linear import materialised
from hystar_fast.ops.svd_linear.cost import fused_shares
from hystar_fast.ops.svd_linear.torch import (
    affine,
    g_factor,
    samples_tokens,
    scale_rows,
    sum_dscale,
    without_autocast,
)

_OLDEST = (8, 0)


def forward(
    x: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    materialise: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Return y and what the backward needs: h [N, r] (factored) or the weights [K, out, in] (materialised)."""
    samples, tokens = samples_tokens(x, scale)
    rows = x.reshape(samples * tokens, x.shape[-1])
    # y is written through a view of it, because a result that is a view could not be changed in place
    y = x.new_empty(*x.shape[:-1], u.shape[0])
    y_rows = y.view(len(rows), u.shape[0])
    factor = g_factor(x.dtype)
    with without_autocast("cuda"), torch.cuda.device(x.device):
        if materialise:
            saved = materialised.weights(u, scale, vh)
            materialised.product(rows, saved.mT, bias, samples, index, out=y_rows)
        elif not runs_triton(rows):
            saved = torch.mm(rows, vh.t())
            g = scale_rows(saved, scale, index, samples, tokens, factor)
            affine(g, u.t(), bias, out=y_rows, alpha=1 / factor)
        else:
            kernels, on = _kernels(), gpu(x.device)
            modulation = kernels.launch.Modulation(scale, index, tokens)
            shares = _shares(rows, len(vh), len(u))
            if shares is None:
                g, saved = kernels.gemm.forward(rows, vh, modulation, gpu=on, keep_h=save, factor=factor)
                affine(g, u.t(), bias, out=y_rows, alpha=1 / factor)
            else:
                saved = kernels.fused.forward(
                    rows, u, vh, bias, modulation, y_rows, gpu=on, shares=shares, keep_h=save, factor=factor
                )
    return y, saved if save else x.new_empty(0)


def backward(
    dy: Tensor,
    x: Tensor | None,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    saved: Tensor,
    materialise: bool,
    needs_dx: bool,
    needs_dscale: bool,
    needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dscale and dbias. One that is not needed is empty."""
    samples, tokens = samples_tokens(dy, scale)
    rows = dy.reshape(samples * tokens, dy.shape[-1])
    dx = dy.new_empty(*dy.shape[:-1], vh.shape[1]) if needs_dx else dy.new_empty(0)
    dx_rows = dx.view(len(rows), vh.shape[1]) if needs_dx else dx
    dscale = None
    with without_autocast("cuda"), torch.cuda.device(dy.device):
        dbias = rows.sum(0) if needs_dbias else dy.new_empty(0)
        if materialise:
            if needs_dx:
                materialised.product(rows, saved, None, samples, index, out=dx_rows)
            if needs_dscale and x is not None:
                dscale = materialised.dscale(rows, x.reshape(len(rows), -1), u, scale, vh, samples, index)
        elif needs_dx or needs_dscale:
            h = saved if needs_dscale else None
            if not runs_triton(rows):
                dg = torch.mm(rows, u)
                dscale = None if h is None else sum_dscale(dg, h, scale, index, samples, tokens)
                if needs_dx:
                    torch.mm(scale_rows(dg, scale, index, samples, tokens), vh, out=dx_rows)
            else:
                dscale = _triton_backward(rows, u, scale, vh, index, h, tokens, dx_rows if needs_dx else None)
    return dx, scale.new_empty(0) if dscale is None else dscale, dbias


def _triton_backward(
    dy: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    h: Tensor | None,
    tokens: int,
    dx: Tensor | None,
) -> Tensor | None:
    """Write dx unless it is None, and return dscale if h is given."""
    kernels, on = _kernels(), gpu(dy.device)
    modulation = kernels.launch.Modulation(scale, index, tokens)
    shares = None if dx is None else _shares(dy, len(vh), vh.shape[1])
    if shares is not None:
        dscale: Tensor | None = kernels.fused.backward(dy, u, vh, h, modulation, dx, gpu=on, shares=shares)
        return dscale
    g, dscale = kernels.gemm.backward(dy, u, h, modulation, gpu=on, needs_dg=dx is not None)
    if dx is not None:
        torch.mm(g, vh, out=dx)
    return dscale


@cache
def _kernels() -> ModuleType:
    """Import the Triton kernels. This happens at their first use, because importing Triton takes time."""
    import hystar_fast.kernels.svd_linear.fused
    import hystar_fast.kernels.svd_linear.gemm

    return hystar_fast.kernels.svd_linear


@cache
def triton_problem() -> str | None:
    """Return why the Triton kernels do not run here (without a GPU: why they would not), or None."""
    try:
        _kernels()
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < _OLDEST:
        return f"needs compute capability {_OLDEST}, this GPU has {torch.cuda.get_device_capability()}"
    return None


@cache
def _triton_works() -> bool:
    """Return whether the Triton kernels run here; warn once if they do not."""
    problem = triton_problem()
    if problem:
        warnings.warn(f"svd_linear runs on torch's GEMMs: {problem}", RuntimeWarning, stacklevel=2)
    return problem is None


def runs_triton(rows: Tensor) -> bool:
    """Return whether the Triton kernels take these rows."""
    fast = rows.dtype in (torch.float16, torch.bfloat16) or (rows.dtype == torch.float32 and _tf32())
    return fast and rows.numel() > 0 and _triton_works()


def _tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _shares(rows: Tensor, rank: int, columns: int) -> int | None:
    """Return the shares of the fused kernel, or None if two kernels are cheaper."""
    multiprocessors = gpu(rows.device).multiprocessors
    return fused_shares(
        len(rows), rank, rows.shape[1], columns, itemsize=rows.itemsize, multiprocessors=multiprocessors
    )


def gpu(device: torch.device) -> Gpu:
    """Return the facts of a GPU on which the choice of a launch depends."""
    properties = torch.cuda.get_device_properties(device)
    return Gpu((properties.major, properties.minor), properties.multi_processor_count)
