"""Launches the kernel of svd_linear_fused.py over rows [B * T, features], forward and backward."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hystar_fast.kernels.svd_linear_fused import _svd_linear_fused_kernel
from hystar_fast.kernels.svd_linear_launch import descriptor, reduce, span_and_slots, suits_descriptor
from hystar_fast.kernels.tuning import Tile, svd_linear_fused_tile


def forward(
    x: Tensor,
    u: Tensor,
    scale: Tensor,
    vh: Tensor,
    bias: Tensor | None,
    index: Tensor | None,
    tokens: int,
    save: bool,
    out: Tensor,
    *,
    capability: tuple[int, int],
    shares: int,
    tf32: bool = False,
    tile: Tile | None = None,
) -> Tensor | None:
    """Write y, contiguous [N, out], into ``out`` and return h [N, r] where it is to be kept."""
    h = x.new_empty(len(x), len(vh)) if save else None
    _launch(x, vh.t(), u.t(), out, h, bias, scale, index, tokens, True, False, capability, shares, tf32, tile)
    return h


def backward(
    dy: Tensor,
    u: Tensor,
    h: Tensor | None,
    scale: Tensor,
    vh: Tensor,
    index: Tensor | None,
    tokens: int,
    out: Tensor,
    *,
    capability: tuple[int, int],
    shares: int,
    tf32: bool = False,
    tile: Tile | None = None,
) -> Tensor | None:
    """Write dx, contiguous [N, in], into ``out`` and return dscale if h is given."""
    sums = h is not None
    return _launch(dy, u, vh, out, h, None, scale, index, tokens, False, sums, capability, shares, tf32, tile)


def _launch(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    out: Tensor,
    h: Tensor | None,
    bias: Tensor | None,
    scale: Tensor,
    index: Tensor | None,
    tokens: int,
    by_column: bool,
    sums: bool,
    capability: tuple[int, int],
    shares: int,
    tf32: bool,
    tile: Tile | None,
) -> Tensor | None:
    """out = ((a b) * scale) c + bias for a [N, K], b [K, r], c [r, columns]; by_column: b and c are transposes."""
    rows, inner = a.shape
    rank, columns = c.shape
    if scale.stride(-1) != 1:
        scale = scale.contiguous()
    b_stored, c_stored = (b.t(), c.t()) if by_column else (b, c)
    aligned = all(suits_descriptor(t) for t in (a, b_stored, c_stored, out, h) if t is not None)
    width = max(16, triton.next_power_of_2(rank))
    tile = tile or svd_linear_fused_tile(capability, a.itemsize, rows, width, aligned=aligned)
    tokens = rows if scale.dim() == 1 else tokens
    span, slots = span_and_slots(scale, tokens, tile.block_m)
    row_tiles = triton.cdiv(rows, tile.block_m)
    partials = torch.empty(row_tiles, slots, rank, dtype=torch.float32, device=a.device) if sums else None
    samples = rows // tokens
    shares = min(shares, triton.cdiv(columns, tile.block_n))
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    _svd_linear_fused_kernel[(row_tiles * shares,)](
        descriptor(tile, a, m, k),
        descriptor(tile, b_stored, *((width, k) if by_column else (k, width))) if tile.descriptors else b,
        descriptor(tile, c_stored, *((n, width) if by_column else (width, n))) if tile.descriptors else c,
        descriptor(tile, out, m, n),
        descriptor(tile, h, m, width),
        None if bias is None else bias.contiguous(),
        partials,
        scale,
        index,
        rows,
        rank,
        inner,
        columns,
        a.stride(0),
        a.stride(1),
        b.stride(0),
        b.stride(1),
        c.stride(0),
        c.stride(1),
        tokens,
        samples,
        scale.shape[0],
        scale.stride(0),
        slots,
        shares,
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_K=k,
        RANK=width,
        DESCRIPTORS=tile.descriptors,
        BY_COLUMN=by_column,
        EVEN_K=inner % k == 0,
        TF32=tf32,
        UPCAST=triton.knobs.runtime.interpret and a.dtype == torch.bfloat16,
        SPAN=span,
        HAS_INDEX=index is not None,
        HAS_BIAS=bias is not None,
        WRITE_H=h is not None and not sums,
        SUM=sums,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
    if partials is None:
        return None
    return reduce(partials, scale, index, tokens, samples, m)
