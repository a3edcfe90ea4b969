"""svd_linear on the CPU: two 2-D GEMMs around one multiplication, or one weight for each style if that is cheaper.

The GEMMs are not divided into blocks, because packing u and vh again for each block costs more than it saves.
Element-wise work is not divided either: every parallel region ends in a barrier, which takes milliseconds on a busy
machine. Only float32 copies of bfloat16 are made in blocks, which bounds their memory.

float16 is computed in float32: h and g can be sqrt(out) times as large as y, and would overflow where a plain layer's
products, which are summed in float32, do not. The library's float16 GEMM is four times as slow as its float32 one, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hystar_fast.ops.contexts import without_autocast
from hystar_fast.ops.svd_linear import materialised
from hystar_fast.ops.svd_linear.checks import check_index_range
from hystar_fast.ops.svd_linear.torch import accumulator, affine, samples_tokens

_BLOCK = 1 << 22  # elements of a block of float32 copies: 16 MiB


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
            _scale_rows(h, _row_scale(scale, index), samples, tokens, out=g)
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
                sums = _segment_sums(dg, saved, samples, tokens, accumulator(dy.dtype))
                dscale = _to_bank(sums, scale, index)
            if needs_dx:
                _scale_rows(dg, row_scale, samples, tokens, out=dg)
                torch.mm(dg, vh, out=dx.view(len(rows), vh.shape[1]))
    return dx, dscale, dbias


def _row_scale(scale: Tensor, index: Tensor | None) -> Tensor:
    """Return one row of scale for each sample, [samples, r]."""
    if index is not None:
        return scale.index_select(0, index)
    return scale.unsqueeze(0) if scale.dim() == 1 else scale


def _blocks(samples: int, tokens: int, rank: int) -> Iterator[tuple[slice, slice]]:
    """Divide [samples, tokens, rank] into blocks of whole samples, or of tokens of one sample if it is long."""
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
    """Write h * scale into `out`, multiplied in the wider of the two dtypes."""
    shape = (samples, tokens, h.shape[-1])
    h, out = h.view(shape), out.view(shape)
    row_scale = row_scale.unsqueeze(1)
    if torch.promote_types(h.dtype, row_scale.dtype) == h.dtype:
        torch.mul(h, row_scale.to(h.dtype), out=out)
    elif h.dtype == torch.bfloat16:
        # scale = high + low in bfloat16 keeps 16 bits of it. h * high + (h * low) is rounded once, like the float32
        # product, but needs no float32 copy of h.
        high = row_scale.to(h.dtype)
        low = (row_scale - high).nan_to_num(0, 0, 0).to(h.dtype)
        torch.addcmul(h * low, h, high, out=out)
    else:
        for sample, token in _blocks(samples, tokens, h.shape[-1]):
            torch.mul(h[sample, token], row_scale[sample], out=out[sample, token])


def _segment_sums(dg: Tensor, h: Tensor, samples: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """Return the sums of dg * h over the tokens of each sample, [samples, r]."""
    shape = (samples, tokens, h.shape[-1])
    dg, h = dg.view(shape), h.view(shape)
    sums = torch.zeros(samples, dg.shape[-1], dtype=dtype)
    for sample, token in _blocks(samples, tokens, dg.shape[-1]):
        product = torch.mul(dg[sample, token].to(dtype), h[sample, token])
        sums[sample] += product.sum(1)
    return sums


def _to_bank(sums: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
    """Return the sums of the samples added to their rows of the bank, in the shape and dtype of scale."""
    if index is not None:
        sums = sums.new_zeros(scale.shape).index_add_(0, index, sums)
    return sums.reshape(scale.shape).to(scale.dtype)
