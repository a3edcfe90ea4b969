"""svd_linear on the CPU: two 2-D GEMMs around one multiplication, or one weight for each style if that is cheaper.

The GEMMs are not divided into blocks, because packing u and vh again for each block costs more than it saves.
The multiplication and the sums of dscale are in cpu_rows.py.

float16 is computed in float32: h and g can be sqrt(out) times as large as y, and would overflow where a plain layer's
products, which are summed in float32, do not. The library's float16 GEMM is four times as slow as its float32 one, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.svd_linear import materialised
from hystar_fast.ops.svd_linear.checks import check_index_range
from hystar_fast.ops.svd_linear.cpu_rows import scale_rows, sum_and_scale
from hystar_fast.ops.svd_linear.torch import affine, samples_tokens


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
    if x.dtype == torch.float16:
        wide = None if bias is None else bias.float()
        y, saved = forward(x.float(), u.float(), scale, vh.float(), wide, index, materialise, save)
        return y.half(), saved
    check_index_range(index, scale)
    samples, tokens = samples_tokens(x, scale)
    rows = x.reshape(samples * tokens, x.shape[-1])
    # y is written through a view of it, because a result that is a view could not be changed in place
    y = x.new_empty(*x.shape[:-1], u.shape[0])
    y_rows = y.view(len(rows), u.shape[0])
    with without_autocast("cpu"):
        if materialise:
            weights = materialised.weights(u, scale, vh)
            materialised.product(rows, weights.mT, bias, samples, index, out=y_rows)
            saved = weights if save else x.new_empty(0)
        else:
            h = torch.mm(rows, vh.t())
            g = torch.empty_like(h) if save else h
            scale_rows(h, _row_scale(scale, index), tokens, out=g)
            affine(g, u.t(), bias, out=y_rows)
            saved = h if save else x.new_empty(0)
    return y, saved


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
    if dy.dtype == torch.float16:
        x, wide = None if x is None else x.float(), (u.float(), scale, vh.float(), index, saved)
        dx, dscale, dbias = backward(dy.float(), x, *wide, materialise, needs_dx, needs_dscale, needs_dbias)
        return dx.half(), dscale, dbias.half()
    samples, tokens = samples_tokens(dy, scale)
    rows = dy.reshape(samples * tokens, dy.shape[-1])
    dx = dy.new_empty(*dy.shape[:-1], vh.shape[1]) if needs_dx else dy.new_empty(0)
    dscale = scale.new_empty(0)
    with without_autocast("cpu"):
        dbias = rows.sum(0) if needs_dbias else dy.new_empty(0)
        if materialise:
            if needs_dx:
                materialised.product(rows, saved, None, samples, index, out=dx.view(len(rows), vh.shape[1]))
            if needs_dscale and x is not None:
                dscale = materialised.dscale(rows, x.reshape(len(rows), -1), u, scale, vh, samples, index)
        elif needs_dx or needs_dscale:
            dg = torch.mm(rows, u)
            row_scale = _row_scale(scale, index)
            if needs_dscale:
                sums = sum_and_scale(dg, saved, row_scale, tokens, scaled=needs_dx)
                dscale = _to_bank(sums, scale, index)
            elif needs_dx:
                scale_rows(dg, row_scale, tokens, out=dg)
            if needs_dx:
                torch.mm(dg, vh, out=dx.view(len(rows), vh.shape[1]))
    return dx, dscale, dbias


def _row_scale(scale: Tensor, index: Tensor | None) -> Tensor:
    """Return one row of scale for each sample, [samples, r]."""
    if index is not None:
        return scale.index_select(0, index)
    return scale.unsqueeze(0) if scale.dim() == 1 else scale


def _to_bank(sums: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
    """Return the sums of the samples added to their rows of the bank, in the shape and dtype of scale."""
    if index is not None:
        sums = sums.new_zeros(scale.shape).index_add_(0, index, sums)
    return sums.reshape(scale.shape).to(scale.dtype)
