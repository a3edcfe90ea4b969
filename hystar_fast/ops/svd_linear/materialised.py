"""svd_linear with one weight W_k = u diag(scale_k) vh for each style, and plain GEMMs over the rows of that style.

This runs on any device. With an index it sorts the samples by style on the host, so only the CPU uses it with an index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops.svd_linear.torch import accumulator, affine


def weights(u: Tensor, scale: Tensor, vh: Tensor) -> Tensor:
    """Return one weight for each row of scale, [K, out, in]."""
    bank = scale if scale.dim() == 2 else scale.unsqueeze(0)
    built = u.new_empty(bank.shape[0], u.shape[0], vh.shape[1])
    for weight, row in zip(built, bank, strict=True):
        torch.mm((u * row).to(u.dtype), vh, out=weight)
    return built


def product(
    rows: Tensor, matrices: Tensor, bias: Tensor | None, samples: int, index: Tensor | None, *, out: Tensor
) -> None:
    """Write rows @ matrices[k] + bias into `out`, for the rows of each style k."""
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
    """Return the order that sorts the samples by style (None if they are sorted), and the rows of each style."""
    if index is None:
        return None, [rows // styles] * styles
    counts = torch.bincount(index, minlength=styles) * (rows // samples)
    return index.argsort(stable=True), counts.tolist()


def _sorted(rows: Tensor, samples: int, order: Tensor | None) -> Tensor:
    if order is None:
        return rows
    return rows.reshape(samples, -1).index_select(0, order).view(rows.shape)
