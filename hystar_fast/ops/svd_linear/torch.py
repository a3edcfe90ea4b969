"""The op svd_linear in plain torch: parts for all implementations, and the factored path of a GPU without Triton."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which scales are applied and gradients are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def samples_tokens(x: Tensor, scale: Tensor) -> tuple[int, int]:
    """Split the leading shape into samples (one row of scale each) and tokens; a shared scale is one sample."""
    if scale.dim() == 1:
        return 1, prod(x.shape[:-1])
    return x.shape[0], prod(x.shape[1:-1])


def g_factor(dtype: torch.dtype) -> float:
    """Return the power of two by which g = h * scale is multiplied on a GPU before it is rounded; y is divided by it.

    g is at most as large as the norm of y, which is up to sqrt(out) times the largest entry of y. In float16, 1/64
    keeps g finite wherever y is, up to 4,096 outputs. Entries of g below 2**-8 then keep fewer than 11 bits.
    """
    return 1 / 64 if dtype == torch.float16 else 1.0


def affine(rows: Tensor, matrix: Tensor, bias: Tensor | None, *, out: Tensor, alpha: float = 1.0) -> None:
    """Write alpha * rows @ matrix + bias into `out`."""
    if bias is not None:
        torch.addmm(bias, rows, matrix, alpha=alpha, out=out)
    elif alpha != 1:
        torch.addmm(out, rows, matrix, beta=0, alpha=alpha, out=out)
    else:
        torch.mm(rows, matrix, out=out)


def scale_rows(
    h: Tensor, scale: Tensor, index: Tensor | None, samples: int, tokens: int, factor: float = 1.0
) -> Tensor:
    """Return h * scale * factor; NaN if a sample's index is outside the bank, as raising would wait for the device."""
    if index is not None:
        taken = scale[index.clamp(0, scale.shape[0] - 1)]
        scale = taken.masked_fill(~_inside(index, scale), float("nan"))
    rank = h.shape[1]
    scale = scale.reshape(samples, 1, rank)
    if factor != 1:  # in float32, before the product is rounded to the dtype of h
        scale = scale.float() * factor
    return (h.view(samples, tokens, rank) * scale).to(h.dtype).view(h.shape)


def sum_dscale(dg: Tensor, h: Tensor, scale: Tensor, index: Tensor | None, samples: int, tokens: int) -> Tensor:
    """Return Σ_t dg * h of each sample, added to its row of scale in a fixed order."""
    wide = accumulator(h.dtype)
    sums = (dg.to(wide) * h).view(samples, tokens, h.shape[1]).sum(1)
    if index is not None:
        sums = sums.masked_fill(~_inside(index, scale), 0)
        bank = sums.new_zeros(scale.shape)
        sums = bank.index_put_((index.clamp(0, scale.shape[0] - 1),), sums, accumulate=True)
    return sums.reshape(scale.shape).to(scale.dtype)


def _inside(index: Tensor, scale: Tensor) -> Tensor:
    return ((index >= 0) & (index < scale.shape[0])).unsqueeze(1)
