"""Computes: forward, g = (x vhᵀ) * scale (and h = x vhᵀ); backward, (dy u) * scale and dscale = Σ_t (dy u) * h.
Grid: one program for each tile of [rows, rank], column tiles first, so that neighbours share their rows of x in L2. If
persistent: one program for each multiprocessor; it walks over the tiles and loads operands of the next in an epilogue.
Each program owns: its tile of the result, and its row of the partial sums [row tiles, slots, rank]. No atomics.
Memory traffic: operands once a tile, results once; one or two vectors of scale a tile, or one a sample if it has many.
Numerics: float32 accumulators, multiplied by the scale before they are rounded; sums in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hystar_fast.kernels.prepared import launch
from hystar_fast.kernels.svd_linear.blocks import MANY, _modulated, _product, _read, _sum_samples, _write
from hystar_fast.kernels.svd_linear.launch import (
    Modulation,
    can_use_tma,
    descriptor,
    empty_partials,
    even,
    sum_partials,
)
from hystar_fast.kernels.tuning import SPECIALISE, SPECIALISED, Gpu, Tile, svd_linear_tile


@triton.jit
def _finish(
    tile,
    g,
    h,
    partials,
    scale,
    samples,
    row0,
    col0,
    shape,
    M: tl.constexpr,
    N: tl.constexpr,
    SPAN: tl.constexpr,
    FACTOR: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Write tile * scale * FACTOR, unless g is None. The forward also writes h; the backward reads h and sums tile * h.

    `partials` and h are given in the backward with dscale; only h in a forward that keeps it.
    """
    rows_total, cols_total, _ = shape
    cols = col0 + tl.arange(0, N)
    if partials is not None:
        product = tile * _read(h, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
        _sum_samples(product, partials, samples, row0, cols, rows_total, cols_total, M, N, SPAN, DESCRIPTORS)
    elif h is not None:
        _write(h, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
    if g is not None:
        tile = _modulated(tile, scale, FACTOR, samples, row0, cols, rows_total, cols_total, M, SPAN, EVEN)
        _write(g, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)


@even
@triton.jit
def _svd_linear_gemm_kernel(
    a,
    b,
    g,
    h,
    partials,
    shape,
    strides,
    samples,
    scale,
    TILE: tl.constexpr,
    B_BY_COLUMN: tl.constexpr,
    SPAN: tl.constexpr,
    FACTOR: tl.constexpr,
    PERSISTENT: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Compute g = (a b) * scale * FACTOR.

    Forward: a = x, b = vhᵀ, and h = a b is written unless it is None. Backward: a = dy, b = u, and h is read for the
    partial sums of dscale = Σ_t (a b) * h unless it is None.

    g and the partial sums of dscale may be None. TILE is (rows, columns, step along the inner dimension).
    """
    M: tl.constexpr = TILE[0]
    N: tl.constexpr = TILE[1]
    HALF: tl.constexpr = N // 2
    column_tiles = tl.cdiv(shape[1], N)
    tl.assume(shape[2] > 0)
    start, stop, step = 0, 1, 1  # one tile a program: the compiler removes the loop
    if PERSISTENT:
        start, stop, step = tl.program_id(0), tl.cdiv(shape[0], M) * column_tiles, tl.num_programs(0)
    for number in tl.range(start, stop, step, flatten=SPAN != MANY):
        program = number if PERSISTENT else tl.program_id(0)
        row0 = program // column_tiles * M
        col0 = program % column_tiles * N
        acc = _product(a, b, row0, col0, shape, strides, M, N, TILE[2], B_BY_COLUMN, EVEN_K)
        # one half of the columns after the other needs fewer registers
        left, right = acc.reshape(M, 2, HALF).permute(0, 2, 1).split()
        for half in tl.static_range(2):
            _finish(
                left if half == 0 else right,
                g,
                h,
                partials,
                scale,
                samples,
                row0,
                col0 + half * HALF,
                shape,
                M,
                HALF,
                SPAN,
                FACTOR,
                strides is None,
                EVEN,
            )


def forward(
    x: Tensor,
    vh: Tensor,
    modulation: Modulation,
    *,
    gpu: Gpu,
    keep_h: bool,
    factor: float = 1.0,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return g = (x vhᵀ) * scale * factor, [N, r], and h = x vhᵀ if it is to be kept."""
    g = x.new_empty(len(x), len(vh))
    h = x.new_empty(len(x), len(vh)) if keep_h else None
    _launch(x, vh.t(), g, h, modulation, gpu, tile, b_stored=vh, sums=False, factor=factor)
    return g, h


def backward(
    dy: Tensor,
    u: Tensor,
    h: Tensor | None,
    modulation: Modulation,
    *,
    gpu: Gpu,
    needs_dg: bool,
    tile: Tile | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return (dy u) * scale, [N, r], if needed, and dscale, in the shape and dtype of scale, if h is given.

    A tile of warps of three kinds is another kernel, for both gradients of a large batch on Hopper.
    """
    if h is not None and needs_dg and (SPECIALISE if tile is None else tile.specialised):
        from hystar_fast.kernels.svd_linear import specialised  # Gluon takes 0.2 s to import

        if specialised.suits(dy, u, h, modulation, gpu, tile or SPECIALISED):
            return specialised.backward(dy, u, h, modulation, gpu=gpu, tile=tile or SPECIALISED)
        if tile is not None:
            raise ValueError("this tile needs Hopper, a half type, a scale a sample, and tiles for all multiprocessors")
    dg = dy.new_empty(len(dy), u.shape[1]) if needs_dg else None
    return dg, _launch(dy, u, dg, h, modulation, gpu, tile, b_stored=u, sums=h is not None)


def _launch(
    a: Tensor,
    b: Tensor,
    g: Tensor | None,
    h: Tensor | None,
    modulation: Modulation,
    gpu: Gpu,
    tile: Tile | None,
    *,
    b_stored: Tensor,
    sums: bool,
    factor: float = 1.0,
) -> Tensor | None:
    """Run the kernel on a [N, K] and b [K, r], which is stored as `b_stored`: as it is, or transposed."""
    rows, inner = a.shape
    rank, by_column = b.shape[1], b_stored is not b
    if tile is None:
        aligned = can_use_tma(a, b_stored, g, h)
        tokens = modulation.rows_per_sample(rows)
        tile = svd_linear_tile(gpu, a.itemsize, tokens, rows, rank, aligned=aligned)
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    span, _ = modulation.span_and_slots(rows, m)
    scale, samples = modulation.arguments(rows, m)
    partials = empty_partials(h if sums else None, tile, modulation)
    tiles = triton.cdiv(rows, m) * triton.cdiv(rank, n)
    persistent = tile.persistent and tiles > gpu.multiprocessors
    launch(
        _svd_linear_gemm_kernel,
        gpu.multiprocessors if persistent else tiles,
        descriptor(tile, a, m, k),
        descriptor(tile, b_stored, *((n, k) if by_column else (k, n))),
        descriptor(tile, g, m, n // 2),
        descriptor(tile, h, m, n // 2),
        partials,
        (rows, rank, inner),
        None if tile.descriptors else (*a.stride(), *b.stride()),
        samples,
        scale,
        TILE=(m, n, k),
        B_BY_COLUMN=by_column,
        SPAN=span,
        FACTOR=factor,
        PERSISTENT=persistent,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )
    return None if partials is None else sum_partials(partials, modulation, rows, m)
