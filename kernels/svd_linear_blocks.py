"""Computes: what the kernels of svd_linear are made of: a tile of a product, the scale of its rows, sums a sample.
Grid: of the kernel that calls them.
Each program owns: a tile [M, N], which may hold rows of one sample, of two, or of many.
Memory traffic: operands once a tile; the scale, per sample, is one or two vectors a tile.
Numerics: float32 accumulators; NaN of one sample meets selects, never sums, of another.
"""

from __future__ import annotations

import triton
import triton.language as tl

# SPAN, how a tile meets the samples: all rows share one scale, it holds at most two samples, or any number of them.
SHARED, PAIR, MANY = 0, 1, 2


@triton.jit
def _product(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    B_BY_COLUMN: tl.constexpr,
    EVEN_K: tl.constexpr,
    TF32: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of a @ b in float32. Out-of-range rows and columns are zero."""
    PRECISION: tl.constexpr = "tf32" if TF32 else "ieee"
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if DESCRIPTORS:
        for k in range(0, inner, BLOCK_K):
            a_tile = a.load([row0, k])
            if B_BY_COLUMN:
                b_tile = b.load([col0, k]).T
            else:
                b_tile = b.load([k, col0])
            if UPCAST:
                a_tile = a_tile.to(tl.float32)
                b_tile = b_tile.to(tl.float32)
            acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
    else:
        rows = tl.arange(0, BLOCK_M)
        cols = tl.arange(0, BLOCK_N)
        ks = tl.arange(0, BLOCK_K)
        a_ptrs = a + row0.to(tl.int64) * a_row + (rows[:, None] * a_row + ks[None, :] * a_inner)
        b_ptrs = b + col0.to(tl.int64) * b_col + (ks[:, None] * b_inner + cols[None, :] * b_col)
        row_ok = (row0 + rows < rows_total)[:, None]
        col_ok = (col0 + cols < cols_total)[None, :]
        for k in range(0, inner, BLOCK_K):
            if EVEN_K:
                a_tile = tl.load(a_ptrs, mask=row_ok, other=0.0)
                b_tile = tl.load(b_ptrs, mask=col_ok, other=0.0)
            else:
                a_tile = tl.load(a_ptrs, mask=row_ok & (ks < inner - k)[None, :], other=0.0)
                b_tile = tl.load(b_ptrs, mask=col_ok & (ks < inner - k)[:, None], other=0.0)
            if UPCAST:
                a_tile = a_tile.to(tl.float32)
                b_tile = b_tile.to(tl.float32)
            acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
            a_ptrs += BLOCK_K * a_inner
            b_ptrs += BLOCK_K * b_inner
    return acc


@triton.jit
def _scale_row(scale, index, sample, cols, cols_total, bank_rows, scale_row, HAS_INDEX: tl.constexpr):
    """The scale of one sample; NaN where its index is outside the bank, so that it is seen and never read."""
    row = sample
    if HAS_INDEX:
        row = tl.load(index + sample)
    row = row.to(tl.int64)
    rows = row + tl.zeros_like(cols)
    ok = (cols < cols_total) & (rows >= 0) & (rows < bank_rows)
    return tl.load(scale + row * scale_row + cols, mask=ok, other=float("nan")).to(tl.float32)


@triton.jit
def _write(out, tile, row0, col0, rows_total, cols_total, M: tl.constexpr, N: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Store a tile of a contiguous [rows, cols] result."""
    if DESCRIPTORS:
        out.store([row0, col0], tile.to(out.dtype))
    else:
        rows, cols = tl.arange(0, M), col0 + tl.arange(0, N)
        ptrs = out + row0.to(tl.int64) * cols_total + (rows[:, None] * cols_total + cols[None, :])
        ok = (row0 + rows < rows_total)[:, None] & (cols < cols_total)[None, :]
        tl.store(ptrs, tile.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _read(h, row0, col0, rows_total, cols_total, M: tl.constexpr, N: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Load a tile of a contiguous [rows, cols] tensor; zero outside it."""
    if DESCRIPTORS:
        tile = h.load([row0, col0])
    else:
        rows, cols = tl.arange(0, M), col0 + tl.arange(0, N)
        ptrs = h + row0.to(tl.int64) * cols_total + (rows[:, None] * cols_total + cols[None, :])
        tile = tl.load(ptrs, mask=(row0 + rows < rows_total)[:, None] & (cols < cols_total)[None, :], other=0.0)
    return tile.to(tl.float32)


@triton.jit
def _modulated(
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
    M: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """tile * the scale of each row's sample."""
    rows = row0 + tl.arange(0, M)
    first = row0 // tokens
    if SPAN == 0:
        tile *= tl.load(scale + cols, mask=cols < cols_total, other=0.0).to(tl.float32)[None, :]
    elif SPAN == 1:
        second = tl.minimum(first + 1, samples - 1)
        one = _scale_row(scale, index, first, cols, cols_total, bank_rows, scale_row, HAS_INDEX)
        two = _scale_row(scale, index, second, cols, cols_total, bank_rows, scale_row, HAS_INDEX)
        tile *= tl.where((rows < (first + 1) * tokens)[:, None], one[None, :], two[None, :])
    else:
        last = tl.minimum(row0 + M - 1, rows_total - 1) // tokens
        for sample in range(first, last + 1):
            one = _scale_row(scale, index, sample, cols, cols_total, bank_rows, scale_row, HAS_INDEX)
            tile = tl.where((rows // tokens == sample)[:, None], tile * one[None, :], tile)
    return tile


@triton.jit
def _sum_samples(
    product, partials, row0, cols, rows_total, cols_total, tokens, slots, M: tl.constexpr, SPAN: tl.constexpr
):
    """Store the sum of the tile's rows of each sample in the tile's slots of partials."""
    rows = row0 + tl.arange(0, M)
    first = row0 // tokens
    ok = cols < cols_total
    partial = partials + (row0 // M).to(tl.int64) * slots * cols_total + cols
    if SPAN == 0:
        tl.store(partial, tl.sum(product, 0), mask=ok)
    elif SPAN == 1:
        is_first = (rows < (first + 1) * tokens)[:, None]
        tl.store(partial, tl.sum(tl.where(is_first, product, 0.0), 0), mask=ok)
        tl.store(partial + cols_total, tl.sum(tl.where(is_first, 0.0, product), 0), mask=ok)
    else:
        last = tl.minimum(row0 + M - 1, rows_total - 1) // tokens
        for sample in range(first, last + 1):
            here = tl.where((rows // tokens == sample)[:, None], product, 0.0)
            tl.store(partial, tl.sum(here, 0), mask=ok)
            partial += cols_total
