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
from hystar_fast.ops.contexts import on_device, without_autocast
from hystar_fast.ops.svd_linear import materialised, replay
from hystar_fast.ops.svd_linear.cost import fused_shares, materialising_is_cheaper, may_materialise
from hystar_fast.ops.svd_linear.torch import (
    affine,
    g_factor,
    samples_tokens,
    scale_rows,
    sum_dscale,
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
    if not materialise:
        repeated = replay.run(replay.NEEDS_DSCALE * save, x, u, scale, vh, bias, index)
        if repeated is not None:
            return repeated[0], repeated[1] if save else x.new_empty(0)
    samples, tokens = samples_tokens(x, scale)
    rows = x.reshape(samples * tokens, x.shape[-1])
    with without_autocast("cuda"), on_device(x):
        if not materialise and runs_triton(rows):
            y, saved = _triton_forward(x, rows, u, scale, vh, bias, index, tokens, save)
            return y, x.new_empty(0) if saved is None else saved
        # y is written through a view of it, because a result that is a view could not be changed in place
        y = x.new_empty(*x.shape[:-1], u.shape[0])
        y_rows = y.view(len(rows), u.shape[0])
        if materialise:
            saved = materialised.weights(u, scale, vh)
            materialised.product(rows, saved.mT, bias, samples, index, out=y_rows)
        else:
            saved, factor = torch.mm(rows, vh.t()), g_factor(x.dtype)
            g = scale_rows(saved, scale, index, samples, tokens, factor)
            affine(g, u.t(), bias, out=y_rows, alpha=1 / factor)
    return y, saved if save else x.new_empty(0)


def _triton_forward(
    x: Tensor,
    rows: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    tokens: int,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return y, and h if it is to be saved; keep the call to be repeated."""
    from hystar_fast.kernels.prepared import recorded

    kernels, on, factor = _kernels(), gpu(x.device), g_factor(x.dtype)
    modulation = kernels.launch.Modulation(scale, index, tokens)
    shares = _shares(rows, len(vh), len(u))
    y = x.new_empty(*x.shape[:-1], len(u))
    out, product = y.view(len(rows), len(u)), None
    with recorded() as launches:
        if shares is None:
            g, h = kernels.gemm.forward(rows, vh, modulation, gpu=on, keep_h=save, factor=factor)
            affine(g, u.t(), bias, out=out, alpha=1 / factor)
            product = replay.Product(y, g, u, bias, 1 / factor, transposed=True)
        else:
            h = kernels.fused.forward(
                rows, u, vh, bias, modulation, out, gpu=on, shares=shares, keep_h=save, factor=factor
            )
    factored = [
        needs
        for needs in (False, True)
        if not may_materialise(x, index, save)
        or not materialising_is_cheaper(
            len(rows),
            1 if scale.dim() == 1 else len(scale),
            len(vh),
            vh.shape[1],
            len(u),
            needs_dx=needs,
            needs_dscale=save,
        )
    ]
    options = [replay.NEEDS_DSCALE * save + replay.NEEDS_DX * needs_dx for needs_dx in factored]
    replay.keep(options, (x, u, scale, vh, bias, index), [y] if h is None else [y, h], launches, product)
    return y, h


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
    if 0 in dy.stride():  # that of y.sum(), say: no tensor map can address it
        dy = dy.contiguous()
    if not materialise and (needs_dx or needs_dscale):
        saved = saved.contiguous()  # hooks for saved tensors may have given it other strides
        repeated = replay.backward(dy, u, scale, vh, index, saved, needs_dx, needs_dscale, needs_dbias)
        if repeated is not None:
            return tuple(dy.new_empty(0) if gradient is None else gradient for gradient in repeated)  # type: ignore[return-value]
    samples, tokens = samples_tokens(dy, scale)
    rows = dy.reshape(samples * tokens, dy.shape[-1])
    dx = dy.new_empty(*dy.shape[:-1], vh.shape[1]) if needs_dx else dy.new_empty(0)
    dx_rows = dx.view(len(rows), vh.shape[1]) if needs_dx else dx
    dscale = None
    with without_autocast("cuda"), on_device(dy):
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
                target = dx_rows if needs_dx else None
                dscale = _triton_backward(dy, rows, u, scale, vh, index, h, tokens, target, dx)
    return dx, scale.new_empty(0) if dscale is None else dscale, dbias


def _triton_backward(
    dy: Tensor,
    rows: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    h: Tensor | None,
    tokens: int,
    dx_rows: Tensor | None,
    dx: Tensor,
) -> Tensor | None:
    """Write dx unless `dx_rows`, its rows, are None, return dscale if h is given, and keep the call to be repeated."""
    from hystar_fast.kernels.prepared import recorded

    kernels, on = _kernels(), gpu(dy.device)
    modulation = kernels.launch.Modulation(scale, index, tokens)
    shares = None if dx_rows is None else _shares(rows, len(vh), vh.shape[1])
    g, dscale, product = None, None, None
    with recorded() as launches:
        if shares is not None:
            dscale = kernels.fused.backward(rows, u, vh, h, modulation, dx_rows, gpu=on, shares=shares)
        else:
            g, dscale = kernels.gemm.backward(rows, u, h, modulation, gpu=on, needs_dg=dx_rows is not None)
    if g is not None:
        torch.mm(g, vh, out=dx_rows)
        product = replay.Product(dx, g, vh)
    results = [tensor for tensor in (None if dx_rows is None else dx, dscale) if tensor is not None]
    option = replay.BACKWARD + replay.NEEDS_DX * (dx_rows is not None) + replay.NEEDS_DSCALE * (h is not None)
    replay.keep([option], (dy, u, scale, None if dx_rows is None else vh, h, index), results, launches, product)
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
