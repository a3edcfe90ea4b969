"""svd_linear on the CPU: two 2-D GEMMs around one multiply, or one weight a style where that is cheaper.

The GEMMs stay whole, as splitting them costs more than it saves; the element-wise work runs in blocks that
stay in cache, so that half types are multiplied in float32 without a float32 copy of the activations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 1 << 18  # elements of one block of element-wise work: 1 MiB in float32


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which scales are applied and gradients are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    _check_index(index, scale)
    samples, tokens = _samples_tokens(x, scale)
    rows = x.reshape(samples * tokens, x.shape[-1])
    with torch.autocast("cpu", enabled=False):
        if materialise:
            weights = _weights(u, scale, vh)
            y = _per_group(rows, weights.mT, bias, samples, tokens, index)
            saved = weights if save else x.new_empty(0)
        else:
            h = torch.mm(rows, vh.t())
            g = torch.empty_like(h) if save else h
            _scale_rows(h, _row_scale(scale, index), samples, tokens, out=g)
            y = torch.mm(g, u.t()) if bias is None else torch.addmm(bias, g, u.t())
            saved = h if save else x.new_empty(0)
    return y.view(*x.shape[:-1], u.shape[0]), saved


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
    samples, tokens = _samples_tokens(dy, scale)
    rows = dy.reshape(samples * tokens, dy.shape[-1])
    dx, dscale = dy.new_empty(0), scale.new_empty(0)
    with torch.autocast("cpu", enabled=False):
        dbias = rows.sum(0) if needs_dbias else dy.new_empty(0)
        if materialise:
            if needs_dx:
                dx = _per_group(rows, saved, None, samples, tokens, index)
            if needs_dscale and x is not None:
                dscale = _dscale_from_weights(rows, x.reshape(len(rows), -1), u, scale, vh, index, samples, tokens)
        elif needs_dx or needs_dscale:
            dg = torch.mm(rows, u)
            row_scale = _row_scale(scale, index)
            if needs_dscale:
                sums = _segment_sums(dg, saved, samples, tokens, accumulator(dy.dtype))
                dscale = _to_bank(sums, scale, index)
            if needs_dx:
                _scale_rows(dg, row_scale, samples, tokens, out=dg)
                dx = torch.mm(dg, vh)
    if needs_dx:
        dx = dx.view(*dy.shape[:-1], vh.shape[1])
    return dx, dscale, dbias


def _samples_tokens(x: Tensor, scale: Tensor) -> tuple[int, int]:
    """Split the leading shape into samples (one scale row each) and tokens; a shared scale is one sample."""
    total = x.numel() // x.shape[-1] if x.shape[-1] else 0
    if scale.dim() == 1:
        return 1, total
    return x.shape[0], (total // x.shape[0] if x.shape[0] else 0)


def _check_index(index: Tensor | None, scale: Tensor) -> None:
    if index is not None and index.numel():
        low, high = (int(bound) for bound in index.aminmax())
        if low < 0 or high >= scale.shape[0]:
            raise ValueError(f"index: must lie in [0, {scale.shape[0]}), the rows of scale, got {low}..{high}")


def _row_scale(scale: Tensor, index: Tensor | None) -> Tensor:
    """One row of scale a sample, [samples, r]."""
    if index is not None:
        return scale.index_select(0, index)
    return scale.unsqueeze(0) if scale.dim() == 1 else scale


def _blocks(samples: int, tokens: int, rank: int) -> Iterator[tuple[slice, slice]]:
    """Cut [samples, tokens, rank] into blocks of whole samples, or of one sample's tokens where it is long."""
    rows = max(1, _BLOCK // max(rank, 1))
    if tokens and tokens < rows:
        step = rows // tokens
        for first in range(0, samples, step):
            yield slice(first, min(first + step, samples)), slice(0, tokens)
    elif tokens:
        for sample in range(samples):
            for first in range(0, tokens, rows):
                yield slice(sample, sample + 1), slice(first, min(first + rows, tokens))


def _scale_rows(h: Tensor, row_scale: Tensor, samples: int, tokens: int, *, out: Tensor) -> None:
    """out = h * scale, multiplied in the wider of the two dtypes."""
    h, out = h.view(samples, tokens, -1), out.view(samples, tokens, -1)
    if torch.promote_types(h.dtype, row_scale.dtype) == h.dtype:
        torch.mul(h, row_scale.to(h.dtype).unsqueeze(1), out=out)
        return
    for sample, token in _blocks(samples, tokens, h.shape[-1]):
        torch.mul(h[sample, token], row_scale[sample].unsqueeze(1), out=out[sample, token])


def _segment_sums(dg: Tensor, h: Tensor, samples: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """Sum dg * h over the tokens of each sample, [samples, r]."""
    dg, h = dg.view(samples, tokens, -1), h.view(samples, tokens, -1)
    sums = torch.zeros(samples, dg.shape[-1], dtype=dtype)
    for sample, token in _blocks(samples, tokens, dg.shape[-1]):
        product = torch.mul(dg[sample, token].to(dtype), h[sample, token])
        sums[sample] += product.sum(1)
    return sums


def _to_bank(sums: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
    """Add the samples' rows into the rows of the bank they came from, in the shape and dtype of scale."""
    if index is not None:
        sums = sums.new_zeros(scale.shape).index_add_(0, index, sums)
    return sums.reshape(scale.shape).to(scale.dtype)


def _weights(u: Tensor, scale: Tensor, vh: Tensor) -> Tensor:
    """One weight a row of scale, [K, out, in]."""
    bank = scale if scale.dim() == 2 else scale.unsqueeze(0)
    weights = u.new_empty(bank.shape[0], u.shape[0], vh.shape[1])
    for weight, row in zip(weights, bank, strict=True):
        torch.mm((u * row).to(u.dtype), vh, out=weight)
    return weights


def _groups(styles: int, samples: int, tokens: int, index: Tensor | None) -> tuple[Tensor | None, list[int]]:
    """Sort samples by style: the order (None when sorted already) and the number of rows of each style."""
    if index is None:
        return None, [tokens] * styles
    counts = torch.bincount(index, minlength=styles).tolist()
    return index.argsort(stable=True), [count * tokens for count in counts]


def _sorted_rows(rows: Tensor, samples: int, tokens: int, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.view(samples, tokens, -1).index_select(0, order).view(len(rows), -1)


def _per_group(
    rows: Tensor, matrices: Tensor, bias: Tensor | None, samples: int, tokens: int, index: Tensor | None
) -> Tensor:
    """Multiply the rows of every style by that style's matrix: rows @ matrices[k] + bias."""
    order, counts = _groups(len(matrices), samples, tokens, index)
    out = rows.new_empty(len(rows), matrices.shape[-1])
    parts = zip(_sorted_rows(rows, samples, tokens, order).split(counts), out.split(counts), matrices, strict=True)
    for part, target, matrix in parts:
        if bias is None:
            torch.mm(part, matrix, out=target)
        else:
            torch.addmm(bias, part, matrix, out=target)
    if order is None:
        return out
    unsorted = torch.empty_like(out).view(samples, tokens, -1)
    unsorted[order] = out.view(samples, tokens, -1)
    return unsorted.view(len(rows), -1)


def _dscale_from_weights(
    dy: Tensor,
    x: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    samples: int,
    tokens: int,
) -> Tensor:
    """dscale[k] = diag(uᵀ dW_k vhᵀ) with dW_k = dyᵀ x over the rows of style k."""
    styles = scale.shape[0] if scale.dim() == 2 else 1
    order, counts = _groups(styles, samples, tokens, index)
    dy, x = _sorted_rows(dy, samples, tokens, order), _sorted_rows(x, samples, tokens, order)
    wide = accumulator(dy.dtype)
    rows = [
        (u * torch.mm(torch.mm(dy_k.t(), x_k), vh.t()).to(wide)).sum(0)
        for dy_k, x_k in zip(dy.split(counts), x.split(counts), strict=True)
    ]
    return torch.stack(rows).reshape(scale.shape).to(scale.dtype)
