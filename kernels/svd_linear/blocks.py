"""Computes: the parts of svd_linear's kernels: a tile of a product, the scale of its rows, sums over its samples.
Grid: that of the calling kernel.
Each program owns: a tile [M, N]. Its rows may belong to one sample, to two, or to many.
Memory traffic: operands once a tile; one or two vectors of scale a tile, or one a sample if it has many.
Numerics: float32 accumulators. Samples are separated by selects, so NaN in one sample does not reach another.

Arguments that several kernels take, as tuples:

- ``scale``: (values [K, r] or [r], index [samples] or None, K, row stride of the values).
- ``samples``: (rows of a sample, number of samples, slots of a tile in the partial sums).
- ``shape``: (rows, columns, inner) of a product.
- ``strides``: (row of a, inner of a, inner of b, column of b); None if the operands are tensor descriptors.
"""

from __future__ import annotations

import triton
import triton.language as tl

# SPAN says how many samples a tile may hold: one scale for all rows, at most two samples, or any number of them.
SHARED: tl.constexpr = tl.constexpr(0)
PAIR: tl.constexpr = tl.constexpr(1)
MANY: tl.constexpr = tl.constexpr(2)

# Triton's interpreter multiplies bfloat16 wrongly and rounds wrongly to e4m3.
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _product(
    a,
    b,
    row0,
    col0,
    shape,
    strides,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    B_BY_COLUMN: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Return one tile of a @ b in float32. Rows and columns outside the matrices are zero."""
    rows_total, cols_total, inner = shape
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if strides is None:
        for k in range(0, inner, BLOCK_K):
            a_tile = a.load([row0, k])
            if B_BY_COLUMN:
                b_tile = b.load([col0, k]).T
            else:
                b_tile = b.load([k, col0])
            acc = _dot(a_tile, b_tile, acc)
    else:
        a_row, a_inner, b_inner, b_col = strides
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
            acc = _dot(a_tile, b_tile, acc)
            a_ptrs += BLOCK_K * a_inner
            b_ptrs += BLOCK_K * b_inner
    return acc


@triton.jit
def _dot(a, b, acc):
    """Return acc + a @ b; float32 operands are multiplied in TF32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32")


@triton.jit
def _scale_row(scale, sample, cols, cols_total):
    """Return the scale of one sample. It is NaN, and nothing is read, if the index is outside the bank."""
    values, index, bank_rows, row_stride = scale
    row = sample
    if index is not None:
        row = tl.load(index + sample)
    row = row.to(tl.int64)
    rows = row + tl.zeros_like(cols)
    ok = (cols < cols_total) & (rows >= 0) & (rows < bank_rows)
    return tl.load(values + row * row_stride + cols, mask=ok, other=float("nan")).to(tl.float32)


@triton.jit
def _write(out, tile, row0, col0, rows_total, cols_total, M: tl.constexpr, N: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Store a tile of a contiguous result [rows, cols]."""
    if DESCRIPTORS:
        out.store([row0, col0], tile.to(out.dtype))
    else:
        rows, cols = tl.arange(0, M), col0 + tl.arange(0, N)
        ptrs = out + row0.to(tl.int64) * cols_total + (rows[:, None] * cols_total + cols[None, :])
        ok = (row0 + rows < rows_total)[:, None] & (cols < cols_total)[None, :]
        tl.store(ptrs, tile.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _read(h, row0, col0, rows_total, cols_total, M: tl.constexpr, N: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Load a tile of a contiguous tensor [rows, cols] in float32; zero outside it."""
    if DESCRIPTORS:
        tile = h.load([row0, col0])
    else:
        rows, cols = tl.arange(0, M), col0 + tl.arange(0, N)
        ptrs = h + row0.to(tl.int64) * cols_total + (rows[:, None] * cols_total + cols[None, :])
        tile = tl.load(ptrs, mask=(row0 + rows < rows_total)[:, None] & (cols < cols_total)[None, :], other=0.0)
    return tile.to(tl.float32)


@triton.jit
def _modulated(tile, scale, samples, row0, cols, rows_total, cols_total, M: tl.constexpr, SPAN: tl.constexpr):
    """Return the tile, each row multiplied by the scale of its sample."""
    tokens, count, _ = samples
    rows = row0 + tl.arange(0, M)
    first = row0 // tokens
    if SPAN == SHARED:
        tile *= tl.load(scale[0] + cols, mask=cols < cols_total, other=0.0).to(tl.float32)[None, :]
    elif SPAN == PAIR:
        second = tl.minimum(first + 1, count - 1)
        first_scale = _scale_row(scale, first, cols, cols_total)
        second_scale = _scale_row(scale, second, cols, cols_total)
        tile *= tl.where((rows < (first + 1) * tokens)[:, None], first_scale[None, :], second_scale[None, :])
    else:
        last = tl.minimum(row0 + M - 1, rows_total - 1) // tokens
        for sample in range(first, last + 1):
            sample_scale = _scale_row(scale, sample, cols, cols_total)
            tile = tl.where((rows // tokens == sample)[:, None], tile * sample_scale[None, :], tile)
    return tile


@triton.jit
def _sum_samples(product, partials, samples, row0, cols, rows_total, cols_total, M: tl.constexpr, SPAN: tl.constexpr):
    """Store the sum over the rows of each sample of the tile, in the tile's slots of the partial sums."""
    tokens, _, slots = samples
    rows = row0 + tl.arange(0, M)
    first = row0 // tokens
    ok = cols < cols_total
    partial = partials + (row0 // M).to(tl.int64) * slots * cols_total + cols
    if SPAN == SHARED:
        tl.store(partial, tl.sum(product, 0), mask=ok)
    elif SPAN == PAIR:
        is_first = (rows < (first + 1) * tokens)[:, None]
        tl.store(partial, tl.sum(tl.where(is_first, product, 0.0), 0), mask=ok)
        tl.store(partial + cols_total, tl.sum(tl.where(is_first, 0.0, product), 0), mask=ok)
    else:
        last = tl.minimum(row0 + M - 1, rows_total - 1) // tokens
        for sample in range(first, last + 1):
            here = tl.where((rows // tokens == sample)[:, None], product, 0.0)
            tl.store(partial, tl.sum(here, 0), mask=ok)
            partial += cols_total


@triton.jit
def _svd_linear_reduce_kernel(
    partials,
    dscale,
    index,
    cols_total,
    samples,
    BLOCK_M: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dscale[row] = the sum of the partial sums of every sample that uses this row of scale, in a fixed order."""
    tokens, count, slots = samples
    row = tl.program_id(0)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    col_ok = cols < cols_total
    acc = tl.zeros((COLUMNS,), dtype=tl.float32)
    first_sample = row
    last_sample = row + 1
    if index is not None:
        first_sample = 0
        last_sample = count
    for sample in range(first_sample, last_sample):
        uses_row = sample == row
        if index is not None:
            uses_row = tl.load(index + sample) == row
        if uses_row:
            first = (sample * tokens) // BLOCK_M
            last = ((sample + 1) * tokens - 1) // BLOCK_M
            for start in range(first, last + 1, TILES):
                tiles = start + tl.arange(0, TILES)
                slot = sample - (tiles * BLOCK_M) // tokens  # slot 0 of a tile is its first sample
                ptrs = partials + (tiles.to(tl.int64) * slots + slot)[:, None] * cols_total + cols[None, :]
                ok = (tiles <= last)[:, None] & col_ok[None, :]
                acc += tl.sum(tl.load(ptrs, mask=ok, other=0.0), 0)
    out = dscale + row.to(tl.int64) * cols_total + cols
    tl.store(out, acc.to(dscale.dtype.element_ty), mask=col_ok)
