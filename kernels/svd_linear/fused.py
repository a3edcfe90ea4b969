"""Computes: forward, y = ((x vhᵀ) * scale) uᵀ + bias in one kernel, for a rank that fits one tile (and h = x vhᵀ);
backward, dx = ((dy u) * scale) vh and the partial sums of dscale.
Grid: one program for each tile of rows and share of the result's columns. Every share repeats the tile's first product.
Each program owns: its part of the result. The first share also owns h and the partial sums of its tile of rows.
Memory traffic: x and the result once; u and vh once a program, from L2; h only if it is kept.
Numerics: as in gemm.py; g is rounded to the precision of the operands before the second product.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hystar_fast.kernels.prepared import launch
from hystar_fast.kernels.svd_linear.blocks import _dot, _modulated, _product, _read, _sum_samples, _write
from hystar_fast.kernels.svd_linear.launch import (
    Modulation,
    can_use_tma,
    descriptor,
    empty_partials,
    even_rank,
    sum_partials,
)
from hystar_fast.kernels.tuning import Gpu, Tile, svd_linear_fused_tile


@even_rank
@triton.jit
def _svd_linear_fused_kernel(
    a,
    b,
    c,
    out,
    h,
    bias,
    partials,
    shape,
    columns,
    strides,
    c_strides,
    samples,
    scale,
    TILE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    SPAN: tl.constexpr,
    FACTOR: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """((a b) * scale) c + bias. Forward: a = x, b = vhᵀ, c = uᵀ. Backward: a = dy, b = u, c = vh.

    FACTOR, a power of two, multiplies (a b) * scale before it is rounded, and is taken back in the result.

    h is written in the forward and read in the backward; it may be None, as may the bias and the partial sums.
    ``shape`` is that of the first product, ``columns`` is (columns of the result, shares), and TILE is (rows, columns
    of the result, step along the inner dimension, rank).
    """
    M: tl.constexpr = TILE[0]
    N: tl.constexpr = TILE[1]
    RANK: tl.constexpr = TILE[3]
    DESCRIPTORS: tl.constexpr = strides is None
    rows_total, rank, _ = shape
    cols_total, shares = columns
    program = tl.program_id(0)
    row0 = program // shares * M
    share = program % shares
    tile = _product(a, b, row0, tl.zeros((), tl.int32), shape, strides, M, RANK, TILE[2], BY_COLUMN, EVEN_K)
    ranks = tl.arange(0, RANK)
    if partials is not None:  # known when compiling, unlike the share
        if share == 0:
            product = tile * _read(h, row0, 0, rows_total, rank, M, RANK, DESCRIPTORS)
            _sum_samples(product, partials, samples, row0, ranks, rows_total, rank, M, RANK, SPAN, DESCRIPTORS)
    elif h is not None:  # noqa: SIM102
        if share == 0:
            _write(h, tile, row0, 0, rows_total, rank, M, RANK, DESCRIPTORS)
    tile = _modulated(tile, scale, FACTOR, samples, row0, ranks, rows_total, rank, M, SPAN, EVEN)
    if DESCRIPTORS:
        g = tile.to(c.dtype)
    else:
        g = tile.to(c.dtype.element_ty)
    # a scale beyond the rank was not read, and may be anything
    g = tl.where((ranks < rank)[None, :], g, 0.0).to(g.dtype)
    for number in range(share, tl.cdiv(cols_total, N), shares):
        col0 = number * N
        cols = col0 + tl.arange(0, N)
        col_ok = cols < cols_total
        if DESCRIPTORS:
            if BY_COLUMN:
                c_tile = c.load([col0, 0]).T
            else:
                c_tile = c.load([0, col0])
        else:
            c_ptrs = c + ranks[:, None] * c_strides[0] + cols.to(tl.int64)[None, :] * c_strides[1]
            c_tile = tl.load(c_ptrs, mask=(ranks < rank)[:, None] & col_ok[None, :], other=0.0)
        result = _dot(g, c_tile, tl.zeros((M, N), dtype=tl.float32)) * (1.0 / FACTOR)
        if bias is not None:
            result += tl.load(bias + cols, mask=col_ok, other=0.0).to(tl.float32)[None, :]
        _write(out, result, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)


def forward(
    x: Tensor,
    u: Tensor,
    vh: Tensor,
    bias: Tensor | None,
    modulation: Modulation,
    out: Tensor,
    *,
    gpu: Gpu,
    shares: int,
    keep_h: bool,
    factor: float = 1.0,
    tile: Tile | None = None,
) -> Tensor | None:
    """Write y, contiguous [N, out], into ``out``, and return h [N, r] if it is to be kept."""
    h = x.new_empty(len(x), len(vh)) if keep_h else None
    _launch((x, vh.t(), u.t()), (vh, u), out, h, bias, modulation, gpu, shares, tile, sums=False, factor=factor)
    return h


def backward(
    dy: Tensor,
    u: Tensor,
    vh: Tensor,
    h: Tensor | None,
    modulation: Modulation,
    out: Tensor,
    *,
    gpu: Gpu,
    shares: int,
    tile: Tile | None = None,
) -> Tensor | None:
    """Write dx, contiguous [N, in], into ``out``, and return dscale if h is given."""
    return _launch((dy, u, vh), (u, vh), out, h, None, modulation, gpu, shares, tile, sums=h is not None)


def _launch(
    operands: tuple[Tensor, Tensor, Tensor],
    stored: tuple[Tensor, Tensor],
    out: Tensor,
    h: Tensor | None,
    bias: Tensor | None,
    modulation: Modulation,
    gpu: Gpu,
    shares: int,
    tile: Tile | None,
    *,
    sums: bool,
    factor: float = 1.0,
) -> Tensor | None:
    """Run the kernel on a [N, K], b [K, r] and c [r, columns]; `stored` are b and c as they are in memory."""
    a, b, c = operands
    rows, inner = a.shape
    rank, columns = c.shape
    by_column = stored[0] is not b
    width = max(16, triton.next_power_of_2(rank))
    if tile is None:
        aligned = can_use_tma(a, *stored, out, h)
        tile = svd_linear_fused_tile(gpu.capability, a.itemsize, rows, width, aligned=aligned)
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    span, _ = modulation.span_and_slots(rows, m)
    scale, samples = modulation.arguments(rows, m)
    partials = empty_partials(h if sums else None, tile, modulation)
    shares = min(shares, triton.cdiv(columns, n))
    launch(
        _svd_linear_fused_kernel,
        triton.cdiv(rows, m) * shares,
        descriptor(tile, a, m, k),
        descriptor(tile, stored[0], *((width, k) if by_column else (k, width))),
        descriptor(tile, stored[1], *((n, width) if by_column else (width, n))),
        descriptor(tile, out, m, n),
        descriptor(tile, h, m, width),
        None if bias is None else bias.contiguous(),
        partials,
        (rows, rank, inner),
        (columns, shares),
        None if tile.descriptors else (*a.stride(), *b.stride()),
        None if tile.descriptors else c.stride(),
        samples,
        scale,
        TILE=(m, n, k, width),
        BY_COLUMN=by_column,
        SPAN=span,
        FACTOR=factor,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
    return None if partials is None else sum_partials(partials, modulation, rows, m)
