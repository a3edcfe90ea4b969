"""svd_linear on CUDA: a Triton GEMM that scales in its epilogue, then a GEMM of torch; at small rank one Triton kernel.

float64, and float32 when TF32 is off, go to torch's GEMMs around element-wise kernels: Triton has no tensor-core
path at that precision, and the element-wise passes are a few per cent of such GEMMs. The same path serves where Triton
is missing or the GPU is older than Ampere.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from hystar_fast.ops import svd_linear_materialised as materialised
from hystar_fast.ops.svd_linear_cost import fused_shares
from hystar_fast.ops.svd_linear_materialised import accumulator, affine, samples_tokens, without_autocast

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
    # written through a view, as a view for a result could not be changed in place
    y = x.new_empty(*x.shape[:-1], u.shape[0])
    y_rows = y.view(len(rows), u.shape[0])
    with without_autocast("cuda"), torch.cuda.device(x.device):
        if materialise:
            saved = materialised.weights(u, scale, vh)
            materialised.product(rows, saved.mT, bias, samples, index, out=y_rows)
        else:
            launch = _triton_for(rows)
            shares = None if launch is None else _shares(rows, len(vh), len(u))
            if launch is None:
                saved = torch.mm(rows, vh.t())
                g = _scaled(saved, scale, index, samples, tokens)
                affine(g, u.t(), bias, out=y_rows)
            elif shares is None:
                g, saved = launch.forward(rows, scale, vh, index, tokens, save, **_options(rows))
                affine(g, u.t(), bias, out=y_rows)
            else:
                options = _options(rows, shares)
                saved = _fused().forward(rows, u, scale, vh, bias, index, tokens, save, y_rows, **options)
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
    """Return dx, dscale, dbias; one that is not needed is empty."""
    samples, tokens = samples_tokens(dy, scale)
    rows = dy.reshape(samples * tokens, dy.shape[-1])
    dx = dy.new_empty(*dy.shape[:-1], vh.shape[1]) if needs_dx else dy.new_empty(0)
    dscale = scale.new_empty(0)
    with without_autocast("cuda"), torch.cuda.device(dy.device):
        dbias = rows.sum(0) if needs_dbias else dy.new_empty(0)
        if materialise:
            if needs_dx:
                materialised.product(rows, saved, None, samples, index, out=dx.view(len(rows), vh.shape[1]))
            if needs_dscale and x is not None:
                dscale = materialised.dscale(rows, x.reshape(len(rows), -1), u, scale, vh, samples, index)
        elif needs_dx or needs_dscale:
            h = saved if needs_dscale else None
            launch = _triton_for(rows)
            shares = None if launch is None or not needs_dx else _shares(rows, len(vh), vh.shape[1])
            g = None
            if launch is None:
                dg = torch.mm(rows, u)
                sums = None if h is None else _dscale(dg, h, scale, index, samples, tokens)
                g = _scaled(dg, scale, index, samples, tokens) if needs_dx else None
            elif shares is not None:
                options = _options(rows, shares)
                dx_rows = dx.view(len(rows), vh.shape[1])
                sums = _fused().backward(rows, u, h, scale, vh, index, tokens, dx_rows, **options)
            else:
                g, sums = launch.backward(rows, u, h, scale, index, tokens, needs_dx, **_options(rows))
            dscale = dscale if sums is None else sums
            if g is not None:
                torch.mm(g, vh, out=dx.view(len(rows), vh.shape[1]))
    return dx, dscale, dbias


@cache
def why_not() -> str | None:
    """Return why the Triton kernels do not run here, or None. Without a GPU: why they would not."""
    try:
        import hystar_fast.kernels.svd_linear_launch  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < _OLDEST:
        return f"needs compute capability {_OLDEST}, this GPU has {torch.cuda.get_device_capability()}"
    return None


@cache
def _launch() -> ModuleType | None:
    reason = why_not()
    if reason:
        warnings.warn(f"svd_linear runs on torch's GEMMs: {reason}", RuntimeWarning, stacklevel=2)
        return None
    from hystar_fast.kernels import svd_linear_launch

    return svd_linear_launch


def _triton_for(rows: Tensor) -> ModuleType | None:
    """The Triton launcher where it takes these rows, or None."""
    fast = rows.dtype in (torch.float16, torch.bfloat16) or (rows.dtype == torch.float32 and _tf32())
    return _launch() if fast and rows.numel() else None


def _fused() -> ModuleType:
    from hystar_fast.kernels import svd_linear_fused_launch

    return svd_linear_fused_launch


def _shares(rows: Tensor, rank: int, columns: int) -> int | None:
    """The shares of the fused kernel where it is the cheaper one."""
    _, multiprocessors = gpu(rows.device)
    return fused_shares(
        len(rows), rank, rows.shape[1], columns, itemsize=rows.itemsize, multiprocessors=multiprocessors
    )


def _tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def gpu(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability and number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def _options(rows: Tensor, shares: int | None = None) -> dict[str, object]:
    """What a launcher wants to know: of the GPU, and of the fused kernel into how many shares."""
    capability, multiprocessors = gpu(rows.device)
    filled = {"multiprocessors": multiprocessors} if shares is None else {"shares": shares}
    return {"capability": capability, "tf32": rows.dtype == torch.float32, **filled}


def _inside(index: Tensor, scale: Tensor) -> Tensor:
    return ((index >= 0) & (index < scale.shape[0])).unsqueeze(1)


def _scaled(h: Tensor, scale: Tensor, index: Tensor | None, samples: int, tokens: int) -> Tensor:
    """h * scale a sample; NaN where the index is outside the bank, as looking would cost a synchronisation."""
    if index is not None:
        taken = scale[index.clamp(0, scale.shape[0] - 1)]
        scale = taken.masked_fill(~_inside(index, scale), float("nan"))
    rank = h.shape[1]
    return (h.view(samples, tokens, rank) * scale.reshape(samples, 1, rank)).to(h.dtype).view(h.shape)


def _dscale(dg: Tensor, h: Tensor, scale: Tensor, index: Tensor | None, samples: int, tokens: int) -> Tensor:
    """Σ_t dg * h a sample, added into the rows of scale in a fixed order."""
    wide = accumulator(h.dtype)
    sums = (dg.to(wide) * h).view(samples, tokens, h.shape[1]).sum(1)
    if index is not None:
        sums = sums.masked_fill(~_inside(index, scale), 0)
        bank = sums.new_zeros(scale.shape)
        sums = bank.index_put_((index.clamp(0, scale.shape[0] - 1),), sums, accumulate=True)
    return sums.reshape(scale.shape).to(scale.dtype)
