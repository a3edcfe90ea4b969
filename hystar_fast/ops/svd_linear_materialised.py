"""svd_linear through one weight W_k = u diag(scale_k) vh a style, and plain GEMMs over the rows of that style.

Runs on any device; with an index the samples are sorted by style on the host, so the CPU alone is given one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keep autocast from casting inside the op; free where it is off, as entering torch.autocast is not."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def weights(u: Tensor, scale: Tensor, vh: Tensor) -> Tensor:
    """Return one weight a row of scale, [K, out, in]."""
    bank = scale if scale.dim() == 2 else scale.unsqueeze(0)
    built = u.new_empty(bank.shape[0], u.shape[0], vh.shape[1])
    for weight, row in zip(built, bank, strict=True):
        torch.mm((u * row).to(u.dtype), vh, out=weight)
    return built


def affine(rows: Tensor, matrix: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """out = rows @ matrix + bias."""
    if bias is None:
        torch.mm(rows, matrix, out=out)
    else:
        torch.addmm(bias, rows, matrix, out=out)


def product(
    rows: Tensor, matrices: Tensor, bias: Tensor | None, samples: int, index: Tensor | None, *, out: Tensor
) -> None:
    """Multiply the rows of every style by that style's matrix: out = rows @ matrices[k] + bias."""
    order, counts = _by_style(len(matrices), len(rows), samples, index)
    grouped = _sorted(rows, samples, order)
    result = out if order is None else torch.empty_like(out)
    for part, target, matrix in zip(grouped.split(counts), result.split(counts), matrices, strict=True):
        affine(part, matrix, bias, out=target)
    if order is not None:
        torch.index_select(result.view(samples, -1), 0, order.argsort(), out=out.view(samples, -1))


def dscale(dy: Tensor, x: Tensor, u: Tensor, scale: Tensor, vh: Tensor, samples: int, index: Tensor | None) -> Tensor:
    """Return dscale[k] = diag(uᵀ dW_k vhᵀ), where dW_k = dyᵀ x over the rows of style k."""
    order, counts = _by_style(scale.shape[0] if scale.dim() == 2 else 1, len(dy), samples, index)
    parts = zip(_sorted(dy, samples, order).split(counts), _sorted(x, samples, order).split(counts), strict=True)
    wide = accumulator(dy.dtype)
    sums = [(u * torch.mm(torch.mm(dy_k.t(), x_k), vh.t()).to(wide)).sum(0) for dy_k, x_k in parts]
    return torch.stack(sums).reshape(scale.shape).to(scale.dtype)


def _by_style(styles: int, rows: int, samples: int, index: Tensor | None) -> tuple[Tensor | None, list[int]]:
    """Return the order that sorts the samples by style (None: they are sorted) and the rows of each style."""
    if index is None:
        return None, [rows // styles] * styles
    counts = torch.bincount(index, minlength=styles) * (rows // samples)
    return index.argsort(stable=True), counts.tolist()


def _sorted(rows: Tensor, samples: int, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.view(samples, -1).index_select(0, order).view(rows.shape)
