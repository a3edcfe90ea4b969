"""Computes: y = ((x vhᵀ) * scale) uᵀ + bias in one kernel, for a rank that fits one tile (and h = x vhᵀ); backward
dx = ((dy u) * scale) vh and the partial sums of dscale.
Grid: one program a tile of rows and a share of the result's columns; the shares of a tile repeat its first product.
Each program owns: its part of the result; the first share also its part of h and its row of the partial sums.
Memory traffic: x and the result once, u and vh from L2 once a program; neither h nor g unless h is kept.
Numerics: as in svd_linear.py: g is rounded to the operands' precision before the second product.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hystar_fast.kernels.svd_linear_blocks import _modulated, _product, _read, _sum_samples, _write


@triton.jit
def _svd_linear_fused_kernel(
    a,
    b,
    c,
    out,
    h,
    bias,
    partials,
    scale,
    index,
    rows_total,
    rank,
    inner,
    cols_total,
    a_row,
    a_inner,
    b_inner,
    b_rank,
    c_rank,
    c_col,
    tokens,
    samples,
    bank_rows,
    scale_row,
    slots,
    shares,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RANK: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    EVEN_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WRITE_H: tl.constexpr,
    SUM: tl.constexpr,
):
    """((a b) * scale) c + bias. Forward: a = x, b = vhᵀ, c = uᵀ. Backward: a = dy, b = u, c = vh."""
    PRECISION: tl.constexpr = "tf32" if TF32 else "ieee"
    program = tl.program_id(0)
    row0 = program // shares * BLOCK_M
    share = program % shares
    tile = _product(
        a,
        b,
        row0,
        tl.zeros((), tl.int32),
        rows_total,
        rank,
        inner,
        a_row,
        a_inner,
        b_inner,
        b_rank,
        BLOCK_M,
        RANK,
        BLOCK_K,
        DESCRIPTORS,
        BY_COLUMN,
        EVEN_K,
        TF32,
        UPCAST,
    )
    ranks = tl.arange(0, RANK)
    if WRITE_H:  # noqa: SIM102 (known when compiling, unlike the share: without it there is no h)
        if share == 0:
            _write(h, tile, row0, 0, rows_total, rank, BLOCK_M, RANK, DESCRIPTORS)
    if SUM:  # noqa: SIM102
        if share == 0:
            product = tile * _read(h, row0, 0, rows_total, rank, BLOCK_M, RANK, DESCRIPTORS)
            _sum_samples(product, partials, row0, ranks, rows_total, rank, tokens, slots, BLOCK_M, SPAN)
    tile = _modulated(
        tile,
        scale,
        index,
        row0,
        ranks,
        rows_total,
        rank,
        tokens,
        samples,
        bank_rows,
        scale_row,
        BLOCK_M,
        SPAN,
        HAS_INDEX,
    )
    if DESCRIPTORS:
        g = tile.to(c.dtype)
    else:
        g = tile.to(c.dtype.element_ty)
    # a scale beyond the rank was not read and may be anything
    g = tl.where((ranks < rank)[None, :], g, 0.0).to(g.dtype)
    if UPCAST:
        g = g.to(tl.float32)
    tiles = tl.cdiv(cols_total, BLOCK_N)
    for number in range(share, tiles, shares):
        col0 = number * BLOCK_N
        cols = col0 + tl.arange(0, BLOCK_N)
        col_ok = cols < cols_total
        if DESCRIPTORS:
            if BY_COLUMN:
                c_tile = c.load([col0, 0]).T
            else:
                c_tile = c.load([0, col0])
        else:
            c_ptrs = c + ranks[:, None] * c_rank + cols.to(tl.int64)[None, :] * c_col
            c_tile = tl.load(c_ptrs, mask=(ranks < rank)[:, None] & col_ok[None, :], other=0.0)
        if UPCAST:
            c_tile = c_tile.to(tl.float32)
        result = tl.dot(g, c_tile, input_precision=PRECISION)
        if HAS_BIAS:
            result += tl.load(bias + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
        _write(out, result, row0, col0, rows_total, cols_total, BLOCK_M, BLOCK_N, DESCRIPTORS)
