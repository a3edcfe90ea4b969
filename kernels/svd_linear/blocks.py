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
def _columns(row, cols, cols_total, EVEN: tl.constexpr):
    """Return some columns of a row in float32: zero beyond the last, of which there are none if EVEN."""
    if EVEN:
        value = tl.load(row + cols)
    else:
        value = tl.load(row + cols, mask=cols < cols_total, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _scale_row(scale, sample, cols, cols_total, EVEN: tl.constexpr):
    """Return the scale of one sample. It is NaN, and nothing is read, if the index is outside the bank."""
    values, index, bank_rows, row_stride = scale
    row = sample
    if index is None:
        row_scale = _columns(values + row.to(tl.int64) * row_stride, cols, cols_total, EVEN)
    else:
        row = tl.load(index + row).to(tl.int64)
        ok = (row >= 0) & (row < bank_rows)
        if not EVEN:
            ok = ok & (cols < cols_total)
        row_scale = tl.load(values + row * row_stride + cols, mask=ok, other=float("nan")).to(tl.float32)
    return row_scale


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
def _one_sample(samples, row0, M: tl.constexpr):
    """Return whether all rows of a tile, which holds at most two samples, are of one."""
    tokens, count, _ = samples
    second = row0 // tokens + 1
    return (row0 + M <= second * tokens) | (second == count)


@triton.jit
def _modulated(
    tile,
    scale,
    factor,
    samples,
    row0,
    cols,
    rows_total,
    cols_total,
    M: tl.constexpr,
    SPAN: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Return the tile, each row multiplied by the scale of its sample and by a factor: a number, or one a column."""
    tokens, _, _ = samples
    rows = row0 + tl.arange(0, M)
    first = row0 // tokens
    if SPAN == SHARED:
        tile *= (_columns(scale[0], cols, cols_total, EVEN) * factor)[None, :]
    elif SPAN == PAIR:
        first_scale = _scale_row(scale, first, cols, cols_total, EVEN) * factor
        if _one_sample(samples, row0, M):
            tile *= first_scale[None, :]
        else:
            second_scale = _scale_row(scale, first + 1, cols, cols_total, EVEN) * factor
            tile *= tl.where((rows < (first + 1) * tokens)[:, None], first_scale[None, :], second_scale[None, :])
    else:
        last = tl.minimum(row0 + M - 1, rows_total - 1) // tokens
        for sample in range(first, last + 1):
            sample_scale = _scale_row(scale, sample, cols, cols_total, EVEN) * factor
            tile = tl.where((rows // tokens == sample)[:, None], tile * sample_scale[None, :], tile)
    return tile


@triton.constexpr_function
def _strips(block_m, span, descriptors):
    """Return the rows of a slot of the partial sums."""
    return block_m // 16 if descriptors and span != MANY.value else 1


@triton.jit
def _strip_sums(tile, M: tl.constexpr, N: tl.constexpr, STRIPS: tl.constexpr):
    """Return the sum over the rows of each strip, [STRIPS, N]."""
    return tl.sum(tile.reshape(STRIPS, M // STRIPS, N), 1)


@triton.jit
def _sum_samples(
    product,
    partials,
    samples,
    row0,
    cols,
    rows_total,
    cols_total,
    M: tl.constexpr,
    N: tl.constexpr,
    SPAN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Store the sums over the rows of each sample of the tile, in the tile's slots of the partial sums.

    On Hopper and Blackwell a slot has a row for each strip of 16 rows, unless a tile has many samples. A strip is in
    one warp of the product; to add up those of several warps, Triton has every warp repeat the sum.
    """
    tokens, _, slots = samples
    STRIPS: tl.constexpr = _strips(M, SPAN, DESCRIPTORS)
    rows = row0 + tl.arange(0, M)
    first = row0 // tokens
    strips = tl.arange(0, STRIPS)
    partial = partials + (row0 // M).to(tl.int64) * slots * STRIPS * cols_total
    partial += strips[:, None] * cols_total + cols[None, :]
    ok = (cols < cols_total)[None, :]
    if SPAN == MANY:
        last = tl.minimum(row0 + M - 1, rows_total - 1) // tokens
        for sample in range(first, last + 1):
            here = tl.where((rows // tokens == sample)[:, None], product, 0.0)
            tl.store(partial, _strip_sums(here, M, N, STRIPS), mask=ok)
            partial += cols_total
    elif SPAN == PAIR:
        one = _one_sample(samples, row0, M)
        second = tl.zeros((STRIPS, N), dtype=tl.float32)
        if not one:
            is_first = (rows < (first + 1) * tokens)[:, None]
            second = _strip_sums(tl.where(is_first, 0.0, product), M, N, STRIPS)
            product = tl.where(is_first, product, 0.0)
        tl.store(partial, _strip_sums(product, M, N, STRIPS), mask=ok)
        tl.store(partial + STRIPS * cols_total, second, mask=ok & (one == 0))
    else:
        tl.store(partial, _strip_sums(product, M, N, STRIPS), mask=ok)


@triton.jit
def _svd_linear_reduce_kernel(
    partials,
    dscale,
    index,
    cols_total,
    samples,
    BLOCK_M: tl.constexpr,
    STRIPS: tl.constexpr,
    PARTS: tl.constexpr,
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
            parts_total = (last - first + 1) * STRIPS
            for start in range(0, parts_total, PARTS):
                parts = start + tl.arange(0, PARTS)
                tiles = first + parts // STRIPS
                slot = sample - (tiles * BLOCK_M) // tokens  # slot 0 of a tile is its first sample
                at = (tiles.to(tl.int64) * slots + slot) * STRIPS + parts % STRIPS
                ptrs = partials + at[:, None] * cols_total + cols[None, :]
                ok = (parts < parts_total)[:, None] & col_ok[None, :]
                acc += tl.sum(tl.load(ptrs, mask=ok, other=0.0), 0)
    out = dscale + row.to(tl.int64) * cols_total + cols
    tl.store(out, acc.to(dscale.dtype.element_ty), mask=col_ok)
