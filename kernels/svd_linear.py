"""Computes: g = (x vhᵀ) * scale (and h = x vhᵀ) forward; (dy u) * scale and dscale = Σ_t (dy u) * h backward.
Grid: one program a tile of [rows, rank], column tiles fastest so that neighbours share their rows of x in L2; or, where
persistent, one a multiprocessor, which walks over tiles and loads the operands of the next during an epilogue.
Each program owns: its tile of the result and its row of the partial sums [row tiles, slots, rank]: no atomics.
Memory traffic: operands once a tile, results once; the scale, per sample, is one or two vectors a tile.
Numerics: float32 accumulators; the scale multiplies them before anything is rounded; sums in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hystar_fast.kernels.svd_linear_blocks import _modulated, _product, _read, _sum_samples, _write


@triton.jit
def _finish(
    tile,
    g,
    h,
    partials,
    scale,
    index,
    row0,
    col0,
    rows_total,
    cols_total,
    tokens,
    samples,
    bank_rows,
    scale_row,
    slots,
    M: tl.constexpr,
    N: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WRITE_H: tl.constexpr,
    SUM: tl.constexpr,
    WRITE_G: tl.constexpr,
):
    """Epilogue of a tile: keep h, sum tile * h a sample, and write tile * scale."""
    cols = col0 + tl.arange(0, N)
    if WRITE_H:
        _write(h, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
    if SUM:
        product = tile * _read(h, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)
        _sum_samples(product, partials, row0, cols, rows_total, cols_total, tokens, slots, M, SPAN)
    if WRITE_G:
        tile = _modulated(
            tile,
            scale,
            index,
            row0,
            cols,
            rows_total,
            cols_total,
            tokens,
            samples,
            bank_rows,
            scale_row,
            M,
            SPAN,
            HAS_INDEX,
        )
        _write(g, tile, row0, col0, rows_total, cols_total, M, N, DESCRIPTORS)


@triton.jit
def _gemm_tile(
    program,
    a,
    b,
    g,
    h,
    partials,
    scale,
    index,
    rows_total,
    cols_total,
    inner,
    a_row,
    a_inner,
    b_inner,
    b_col,
    tokens,
    samples,
    bank_rows,
    scale_row,
    slots,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    B_BY_COLUMN: tl.constexpr,
    EVEN_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    WRITE_H: tl.constexpr,
    SUM: tl.constexpr,
    WRITE_G: tl.constexpr,
):
    """One tile of the product and its epilogue."""
    column_tiles = tl.cdiv(cols_total, BLOCK_N)
    row0 = program // column_tiles * BLOCK_M
    col0 = program % column_tiles * BLOCK_N
    acc = _product(
        a,
        b,
        row0,
        col0,
        rows_total,
        cols_total,
        inner,
        a_row,
        a_inner,
        b_inner,
        b_col,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        DESCRIPTORS,
        B_BY_COLUMN,
        EVEN_K,
        TF32,
        UPCAST,
    )
    HALF: tl.constexpr = BLOCK_N // 2
    left, right = acc.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
    for half in tl.static_range(2):
        _finish(
            left if half == 0 else right,
            g,
            h,
            partials,
            scale,
            index,
            row0,
            col0 + half * HALF,
            rows_total,
            cols_total,
            tokens,
            samples,
            bank_rows,
            scale_row,
            slots,
            BLOCK_M,
            HALF,
            SPAN,
            HAS_INDEX,
            DESCRIPTORS,
            WRITE_H,
            SUM,
            WRITE_G,
        )


@triton.jit
def _svd_linear_gemm_kernel(
    a,
    b,
    g,
    h,
    partials,
    scale,
    index,
    rows_total,
    cols_total,
    inner,
    a_row,
    a_inner,
    b_inner,
    b_col,
    tokens,
    samples,
    bank_rows,
    scale_row,
    slots,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    B_BY_COLUMN: tl.constexpr,
    EVEN_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    WRITE_H: tl.constexpr,
    SUM: tl.constexpr,
    WRITE_G: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """Forward: a = x, b = vhᵀ (WRITE_H keeps h). Backward: a = dy, b = u (SUM makes the partial sums of dscale)."""
    if PERSISTENT:
        tiles = tl.cdiv(rows_total, BLOCK_M) * tl.cdiv(cols_total, BLOCK_N)
        for program in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=SPAN != 2):
            _gemm_tile(
                program,
                a,
                b,
                g,
                h,
                partials,
                scale,
                index,
                rows_total,
                cols_total,
                inner,
                a_row,
                a_inner,
                b_inner,
                b_col,
                tokens,
                samples,
                bank_rows,
                scale_row,
                slots,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                DESCRIPTORS,
                B_BY_COLUMN,
                EVEN_K,
                TF32,
                UPCAST,
                SPAN,
                HAS_INDEX,
                WRITE_H,
                SUM,
                WRITE_G,
            )
    else:
        _gemm_tile(
            tl.program_id(0),
            a,
            b,
            g,
            h,
            partials,
            scale,
            index,
            rows_total,
            cols_total,
            inner,
            a_row,
            a_inner,
            b_inner,
            b_col,
            tokens,
            samples,
            bank_rows,
            scale_row,
            slots,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            DESCRIPTORS,
            B_BY_COLUMN,
            EVEN_K,
            TF32,
            UPCAST,
            SPAN,
            HAS_INDEX,
            WRITE_H,
            SUM,
            WRITE_G,
        )


@triton.jit
def _svd_linear_reduce_kernel(
    partials,
    dscale,
    index,
    cols_total,
    tokens,
    samples,
    slots,
    BLOCK_M: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """dscale[row] = Σ of the partial sums of every sample that uses this row of scale, in a fixed order."""
    row = tl.program_id(0)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    col_ok = cols < cols_total
    acc = tl.zeros((COLUMNS,), dtype=tl.float32)
    first_sample = row
    last_sample = row + 1
    if HAS_INDEX:
        first_sample = 0
        last_sample = samples
    for sample in range(first_sample, last_sample):
        uses_row = sample == row
        if HAS_INDEX:
            uses_row = tl.load(index + sample) == row
        if uses_row:
            first = (sample * tokens) // BLOCK_M
            last = ((sample + 1) * tokens - 1) // BLOCK_M
            for start in range(first, last + 1, TILES):
                tiles = start + tl.arange(0, TILES)
                slot = sample - (tiles * BLOCK_M) // tokens  # a tile's slot 0 is its first sample
                ptrs = partials + (tiles.to(tl.int64) * slots + slot)[:, None] * cols_total + cols[None, :]
                ok = (tiles <= last)[:, None] & col_ok[None, :]
                acc += tl.sum(tl.load(ptrs, mask=ok, other=0.0), 0)
    out = dscale + row.to(tl.int64) * cols_total + cols
    tl.store(out, acc.to(dscale.dtype.element_ty), mask=col_ok)
